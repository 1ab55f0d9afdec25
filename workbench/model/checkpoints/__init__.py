"""Weights of gpt-oss, read from any published format into one form: `load(where)`."""

from workbench.model.checkpoints.formats import POCKET, Loadable, load

__all__ = ["POCKET", "Loadable", "load"]
