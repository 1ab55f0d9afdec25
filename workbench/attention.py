"""Attention: patterns, what heads attend to, and the attention sink."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
