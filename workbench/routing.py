"""Routing: which experts are chosen, how evenly, for what, and how the choice changes over a text."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
