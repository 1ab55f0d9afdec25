"""How a Model is pickled and deep-copied: as its path and settings, from which the copy is loaded."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import CheckpointError, EditError
from workbench.model.checkpoints import POCKET, Loadable
from workbench.paths import absolute, expanded

if TYPE_CHECKING:
    from workbench.model.model import Model


def load_arguments(
    where: Loadable, dtype: torch.dtype, device: str | None, memory: str, tokenizer: str | os.PathLike[str] | None
) -> dict[str, Any] | None:
    """The arguments that reload the model from any working directory of this machine; None for an object in memory."""
    if not isinstance(where, str | os.PathLike):
        return None
    path = str(where) if where == POCKET or not expanded(where).exists() else str(absolute(where))
    tokenizer_path = None if tokenizer is None else str(absolute(tokenizer, "tokenizer"))
    return {"where": path, "dtype": dtype, "device": device, "memory": memory, "tokenizer": tokenizer_path}


def reduced(model: "Model") -> tuple[Callable, tuple, dict[str, Any]]:
    """What `Model.__reduce__` returns. Raises CheckpointError for a model without files, EditError for active edits."""
    if model.loaded_with is None:
        raise CheckpointError(
            f"{model.name} shares the memory of a transformers model and has no files, so it cannot be pickled or "
            f"deep-copied. Call save_pretrained on that model and pass the folder to wb.Model, or make the Model "
            f"where it is needed."
        )
    if edits := model.active_edits():
        raise EditError(
            f"{model.name} has active edits ({', '.join(e.glob for e in edits)}), which belong to this context. "
            f"Pickle or deep-copy it outside of the `with`, and edit the copy."
        )
    attributes = {"stop_ids": model.stop_ids, "template": model.template}
    return _reloaded, (type(model), model.loaded_with, model.adapter_at, model.digest), attributes


def _reloaded(
    kind: type["Model"], arguments: dict[str, Any], adapter_at: tuple[str, float] | None, digest: str
) -> "Model":
    model = kind(**arguments)
    if adapter_at is not None:
        model = model.with_adapter(adapter_at[0], scale=adapter_at[1])
    if model.digest != digest:
        raise CheckpointError(
            f"the weights at {arguments['where']!r} have changed since the model was pickled. Load them with wb.Model."
        )
    return model
