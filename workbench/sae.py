"""Sparse autoencoders: load those that others trained, see their features, splice them into the model."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
