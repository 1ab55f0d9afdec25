"""Stores: many traces in one folder, with an index that finds them. Opens without torch, a model or a network."""

from workbench.stores.check import StoreReport
from workbench.stores.store import Store

__all__ = ["Store", "StoreReport"]
