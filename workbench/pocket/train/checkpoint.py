"""Checkpoints: all that a run needs to go on bit for bit, or the weights alone."""

from dataclasses import asdict
from pathlib import Path

import torch

from workbench.errors import CheckpointError
from workbench.files import atomic_path
from workbench.model.config import Config
from workbench.pocket.train.batches import Place
from workbench.pocket.train.model import Pocket
from workbench.pocket.train.plan import Plan, State
from workbench.pocket.train.shared import Shared


def save(path: Path, plan: Plan, shared: Shared, state: State, model: Pocket) -> None:
    """Everything, at `path`, whole or not at all."""
    held = {
        "model": {name: p.detach().clone() for name, p in model.named_parameters()},
        "shape": asdict(model.c),
        "plan": asdict(plan),
        "state": shared.state(),
        "places": torch.tensor([place.row() for place in state.places], dtype=torch.float64),
        "step": state.step,
        "tokens": state.tokens,
        "cpu": state.cpu,
    }
    with atomic_path(path) as hidden:
        torch.save(held, hidden)


def resume(path: Path, plan: Plan, shared: Shared, state: State) -> None:
    """Puts a run back to where it was saved. Raises CheckpointError if it is not the run of `plan`."""
    held = torch.load(path, weights_only=True)
    saved = {"workers": len(held["places"]), **held["plan"]}
    requested = {"workers": len(state.places), **asdict(plan)}
    differing = [name for name in saved | requested if saved.get(name) != requested.get(name)]
    if differing:
        values = "; ".join(f"{name} {saved.get(name)!r} there, {requested.get(name)!r} here" for name in differing)
        raise CheckpointError(
            f"{path} is of another run ({values}). Give the same plan and number of workers to go on with it, or "
            f"another folder to begin a new run."
        )
    shared.restore(held["state"])
    state.step, state.tokens, state.cpu = held["step"], held["tokens"], held["cpu"]
    state.places = [Place.of(row) for row in held["places"].tolist()]


def finished(path: Path) -> bool:
    """Whether the run of a checkpoint is at its end."""
    held = torch.load(path, weights_only=True)
    return held["tokens"] >= held["plan"]["tokens"]


def snapshot(model: Pocket, path: Path) -> None:
    """The weights and the dtype that they were trained in, for `load`."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.save({"model": weights, "shape": asdict(model.c), "dtype": model.dtype_name}, path)


def load(path: Path, dtype: str = "float32") -> Pocket:
    """The model of a checkpoint or a snapshot, computing in `dtype` whatever it was trained in."""
    held = torch.load(path, weights_only=True)
    model = Pocket(Config(**{**held["shape"], "layer_types": tuple(held["shape"]["layer_types"])}), dtype)
    model.load_state_dict(held["model"])
    return model
