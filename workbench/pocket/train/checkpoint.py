"""Checkpoints: the whole state of a run, to resume it bit for bit, or only the weights."""

from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from workbench.errors import CheckpointError
from workbench.files import atomic_write
from workbench.model.config import Config
from workbench.pocket.train.batches import Place
from workbench.pocket.train.imported import imported
from workbench.pocket.train.model import Pocket
from workbench.pocket.train.plan import Plan, State
from workbench.pocket.train.shared import Shared


def save(path: Path, plan: Plan, shared: Shared, state: State, model: Pocket) -> None:
    """Writes the whole state of a run atomically to `path`."""
    content = {
        "model": {name: p.detach().clone() for name, p in model.named_parameters()},
        "shape": asdict(model.c),
        "plan": asdict(plan),
        "state": shared.state(),
        "places": torch.tensor([place.row() for place in state.places], dtype=torch.float64),
        "step": state.step,
        "tokens": state.tokens,
        "cpu": state.cpu,
    }
    _write(content, path)


def resume(path: Path, plan: Plan, shared: Shared, state: State) -> None:
    """Restores the state of a run from `path`. Raises CheckpointError if it was saved with another plan."""
    content = torch.load(path, weights_only=True)
    saved = {"workers": len(content["places"]), **content["plan"]}
    requested = {"workers": len(state.places), **asdict(plan)}
    differing = [name for name in saved | requested if saved.get(name) != requested.get(name)]
    if differing:
        values = "; ".join(f"{name} {saved.get(name)!r} saved, {requested.get(name)!r} requested" for name in differing)
        raise CheckpointError(
            f"{path} belongs to another run ({values}). To resume it, use the same plan and number of workers; to "
            f"start a new run, use another folder."
        )
    shared.restore(content["state"])
    state.step, state.tokens, state.cpu = content["step"], content["tokens"], content["cpu"]
    state.places = [Place.of(row) for row in content["places"].tolist()]


def finished(path: Path) -> bool:
    """Whether the run of a checkpoint is complete."""
    content = torch.load(path, weights_only=True)
    return content["tokens"] >= content["plan"]["tokens"]


def snapshot(model: Pocket, path: Path) -> None:
    """Writes the weights and the dtype they were trained in, for `load`."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    _write({"model": weights, "shape": asdict(model.c), "dtype": model.dtype_name}, path)


def _write(content: dict[str, Any], path: Path) -> None:
    buffer = BytesIO()  # torch.save to a path raises RuntimeError when the disk is full, without the reason
    torch.save(content, buffer)
    atomic_write(path, buffer.getvalue())


def load(path: Path, dtype: str = "float32") -> Pocket:
    """The model of a checkpoint or snapshot, or of a folder with an exported model, with products in `dtype`.

    `dtype` is independent of the dtype of its training.
    """
    if path.is_dir():
        return imported(path, dtype)
    content = torch.load(path, weights_only=True)
    model = Pocket(Config(**{**content["shape"], "layer_types": tuple(content["shape"]["layer_types"])}), dtype)
    model.load_state_dict(content["model"])
    return model
