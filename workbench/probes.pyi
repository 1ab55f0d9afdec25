"""Probes: what can be read from activations by a linear classifier, with baselines."""

from workbench.analysis.probes import linear_probe as linear_probe

__all__ = [
    "linear_probe",
]
