"""Circuits read from the weights alone, in terms of tokens: heads, routers and experts, without running the model."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
