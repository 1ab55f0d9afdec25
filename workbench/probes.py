"""Probes: what can be read from activations by a linear classifier, with baselines."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
