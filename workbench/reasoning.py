"""Reasoning: which steps of a chain of thought the answer depends on, and when it is settled."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
