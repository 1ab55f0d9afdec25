"""The residual stream: its geometry over tokens and steps, and what each component writes to a logit."""

from workbench.analysis.residual import massive_activations as massive_activations
from workbench.analysis.residual import resid_cosine as resid_cosine
from workbench.analysis.trajectories import resid_basis as resid_basis
from workbench.analysis.trajectories import resid_trajectory as resid_trajectory
from workbench.analysis.trajectories import step_cosine as step_cosine
from workbench.experiments.logit_attribution import logit_attribution as logit_attribution

__all__ = [
    "logit_attribution",
    "massive_activations",
    "resid_basis",
    "resid_cosine",
    "resid_trajectory",
    "step_cosine",
]
