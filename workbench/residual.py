"""The residual stream: its geometry over tokens and steps, and what each component writes to a logit."""

from workbench.topics import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
