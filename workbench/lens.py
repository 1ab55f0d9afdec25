"""Lenses: what each layer would predict, by the model's own unembedding or a trained one."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
