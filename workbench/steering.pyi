"""Steering: directions from contrasted activations, and what adding them does."""

from workbench.experiments.steering import steering_effect as steering_effect
from workbench.experiments.steering import steering_vector as steering_vector

__all__ = [
    "steering_effect",
    "steering_vector",
]
