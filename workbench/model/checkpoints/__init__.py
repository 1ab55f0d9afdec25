"""Loads the weights of gpt-oss from any published format into one internal form: `load(where)`."""

from workbench.model.checkpoints.formats import POCKET, Loadable, load

__all__ = ["POCKET", "Loadable", "load"]
