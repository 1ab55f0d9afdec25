"""Statistics for experiments over prompts: intervals, tests, corrections and information measures."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
