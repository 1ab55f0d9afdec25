"""Circuits: what can be read from the weights alone, in the vocabulary: heads, routers and experts, without any run."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
