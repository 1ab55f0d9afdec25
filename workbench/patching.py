"""Patching and knockouts: which activations, paths, experts and attention edges an output depends on."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
