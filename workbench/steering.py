"""Steering: directions from contrasted activations, and what adding them does."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
