"""Weights of gpt-oss, read from any published format into one form: `load(where)`."""

from workbench.runner.weights.open import POCKET, load

__all__ = ["POCKET", "load"]
