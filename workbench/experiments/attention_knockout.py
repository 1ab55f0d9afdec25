"""Attention knockout: chosen queries cannot attend to chosen keys; compared with as much attention cut elsewhere."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.analysis import statistics
from workbench.checks import (
    check_choice,
    check_count,
    check_indices,
    check_items,
    check_position,
    check_seed,
    check_slice,
    check_type,
    check_whole,
)
from workbench.errors import EditError, SelectionError
from workbench.experiments.cached_run import LOGIT_CHUNK, CachedRun, divergence
from workbench.experiments.checkpoint import SweepCheckpoint, model_inputs
from workbench.model.gpt_oss import unembed
from workbench.model.model import Model
from workbench.model.prefill import CHUNK_ALIGN
from workbench.progress import progress_bar
from workbench.taps import Tap
from workbench.traces import Trace
from workbench.traces.spans import Span
from workbench.traces.steps import Step
from workbench.units import with_units

MODES = ("mask", "zero", "mean")
MAX_ELEMENTS_PER_PASS = 1 << 25  # attention scores of one layer in a pass, at most
Places = Step | Span | slice | int | Sequence[Any]  # token positions; a sequence may mix these


def attention_knockout(
    model: Model,
    trace: Trace,
    queries: Places,
    keys: Places,
    *,
    layers: str | Sequence[int] = "all",
    heads: Sequence[int] | None = None,
    min_distance: int = 0,
    mode: str = "mask",
    n_controls: int = 20,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """How much predictions change if the tokens `queries` cannot attend to the tokens `keys`, next to random controls.

    Cutting attention always changes something. The controls show how much a cut of the same size changes: other edges
    drawn at random from the same queries, in the same layers and heads, to keys at similar distances, until the same
    attention mass is cut.

    Args:
        model: the model.
        trace: the text.
        queries: a step, message, slice, position, or a sequence of these.
        keys: the same.
        layers: "all", "full", "sliding", or layer numbers.
        heads: the heads; None for all.
        min_distance: cut only edges of at least this many tokens. `layers="full", min_distance=model.config.window`
            cuts what only full-attention layers can attend to.
        mode: "mask" hides the keys before the softmax, so the sink and the other keys share the probability; "zero"
            removes the attention after the softmax, and the others keep their weights; "mean" keeps the attention and
            replaces the value by the mean value of the text, by layer and head.
        n_controls: number of random controls.
        seed: of the controls.
        resume: a file that keeps finished controls. The same call continues from it after an interruption.

    Returns:
        Dataset over (pos), the positions from the first query on:
        `kl`, KL(unedited || cut) of each prediction, in nats;
        `gap`, how much the logit difference between the most likely token and the runner-up falls, in logits;
        `control_kl` and `control_gap` (control pos), the same for the controls.
        `attrs` of `kl` and `gap`: `mean` over positions with its 95 % interval `low` and `high`, `null` (the mean of
        each control) and `p`, how often a control is as large. The interval is over positions of this one text; for
        many texts, collect the means and use `wb.statistics.mean_interval`.
        `attrs` of the Dataset: `edges`, `mass` (attention, averaged over layers and heads and summed over edges) and
        `distance` (mean, in tokens) of the cut, each with its `control_…` list.

    >>> trace = wb.trace("What is 12+30?")
    >>> knockout = wb.patching.attention_knockout(model, trace, slice(30, 40), slice(5, 15), n_controls=3)
    >>> knockout["kl"].dims, knockout["control_kl"].dims, bool((knockout["pos"] == np.arange(30, len(trace))).all())
    (('pos',), ('control', 'pos'), True)

    Raises:
        EditError: no layer, or no edge to cut.
        ArgumentError: another mode, no head, or a number out of range.
        SelectionError: a layer, head or position that does not exist.
        ResumeError: the file holds another sweep, or is damaged.
        FileError: the file cannot be written.
    """
    check_type("attention_knockout", model, Model)
    check_type("attention_knockout", trace, Trace)
    layer_numbers, mode = selected_layers(model, layers), check_choice("mode", mode, MODES)
    min_distance, seed = check_whole("min_distance", min_distance, 0), check_seed(seed)
    n_controls = check_count("n_controls", n_controls, 0)
    c, n = model.config, len(trace)
    head_numbers = list(range(c.n_heads)) if heads is None else check_indices("head", heads, c.n_heads)
    requested = np.zeros((n, n), bool)
    requested[np.ix_(positions_of(queries, n), positions_of(keys, n))] = True
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    allowed = (distance >= min_distance) & (distance >= 0)
    if all(c.is_sliding(layer) for layer in layer_numbers):
        allowed &= distance < c.window
    edges = requested & allowed
    if not edges.any():
        raise EditError(
            "nothing to knock out: no query-key pair in these layers is at least "
            f"min_distance={min_distance} tokens apart"
        )
    start = int(edges.any(1).argmax())
    pass_start = start // CHUNK_ALIGN * CHUNK_ALIGN  # a pass that starts here reproduces the same bits
    values = [hooks.at_layer("blocks.*.attn.hook_v", layer) for layer in layer_numbers] if mode == "mean" else []
    inputs = {"what": "attention_knockout", "tokens": trace.tokens, "edges": edges, "allowed": allowed & ~requested}
    inputs |= {"layers": layer_numbers, "heads": head_numbers, "mode": mode, "n_controls": n_controls, "seed": seed}
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, model_inputs(model) | inputs, shape=(2, n - start)) as cells,
    ):
        base = CachedRun(model, trace.tokens, values)
        mass = _attention_mass(base, layer_numbers, head_numbers, pass_start)
        rng = np.random.default_rng(seed)
        edge_sets = [
            edges,
            *(_control_edges(edges, allowed & ~requested, mass, distance, rng) for _ in range(n_controls)),
        ]
        kl, gap = np.zeros((2, len(edge_sets), n - start))
        rows = max(1, MAX_ELEMENTS_PER_PASS // (c.n_heads * (n - pass_start) * n))
        for i in progress_bar(range(0, len(edge_sets), rows), desc="cutting", unit="pass"):
            flag.check()
            batch = slice(i, i + rows)
            cell_ids = range(len(edge_sets))[batch]
            if all(cell_id in cells for cell_id in cell_ids):
                kl[batch], gap[batch] = np.stack([cells[cell_id] for cell_id in cell_ids], 1)
                continue
            cut = torch.as_tensor(np.stack(edge_sets[batch])[:, pass_start:], device=model.device)
            tap = _CutEdges(base, layer_numbers, head_numbers, cut, pass_start, mode)
            recorder = base.rerun_from(pass_start, tap, n=len(cut))
            edited = recorder[hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)][:, start - pass_start :]
            unedited = base.resid(c.n_layers)[:, start:]
            kl[batch] = divergence(model, unedited.expand_as(edited), edited).double().cpu().numpy()
            gap[batch] = _gap_fall(model, unedited, edited)
            for cell_id in cell_ids:
                cells.put(cell_id, np.stack([kl[cell_id], gap[cell_id]]))
    coords = {"pos": np.arange(start, n), "control": np.arange(n_controls)}
    data = {"kl": ("pos", kl[0]), "gap": ("pos", gap[0])}
    data |= {"control_kl": (("control", "pos"), kl[1:]), "control_gap": (("control", "pos"), gap[1:])}
    attrs = {"mode": mode, "layers": layer_numbers, "heads": head_numbers, "n": n - start, "seed": seed}
    for name, measure in (("edges", np.ones((n, n))), ("mass", mass), ("distance", distance)):
        set_values = [
            float(measure[edge_set].sum())
            if name != "distance"
            else float(measure[edge_set].mean())
            if edge_set.any()
            else np.nan
            for edge_set in edge_sets
        ]
        attrs |= {name: set_values[0], f"control_{name}": set_values[1:]}
    dataset = xr.Dataset(data, coords, attrs)
    for name in ("kl", "gap"):
        dataset[name].attrs = _summary(dataset[name].values, dataset[f"control_{name}"].values)
    return with_units(dataset, "nats", gap="logits", control_gap="logits")


def selected_layers(model: Model, layers: str | Sequence[int]) -> list[int]:
    """The layers "all", "full" or "sliding" of a model, or those of these numbers; EditError for none."""
    c = model.config
    all_layers = list(range(c.n_layers))
    named = {"all": all_layers, "full": [i for i in all_layers if not c.is_sliding(i)]}
    named["sliding"] = [i for i in all_layers if c.is_sliding(i)]
    numbers = named.get(layers, []) if isinstance(layers, str) else check_indices("layer", layers, c.n_layers)
    if not numbers:
        raise EditError(
            f"layers must be 'all', 'full', 'sliding' or numbers from 0 to {c.n_layers - 1}, got {layers!r}."
            + (" This model has no such layer." if layers in named else "")
        )
    return numbers


def positions_of(places: Places, n: int) -> list[int]:
    """The positions in steps, messages, slices and numbers, in order."""
    if isinstance(places, Step | Span):
        places = slice(places.start, places.stop)
    if isinstance(places, slice):
        positions = list(range(n)[check_slice("positions", places)])
    elif isinstance(places, Iterable) and getattr(places, "ndim", 1):  # an array without axes is a number
        positions = sorted({p for place in check_items("positions", places) for p in positions_of(place, n)})
    else:
        positions = [check_position(places, n)]
    if not positions:
        raise SelectionError(f"{places!r} selects no position; positions are between 0 and {n - 1}.")
    return positions


def _attention_mass(base: CachedRun, layers: Sequence[int], heads: Sequence[int], start: int) -> np.ndarray:
    """Attention (query key), averaged over layers and heads; 0 for queries before `start`."""
    mass = np.zeros((len(base), len(base)))
    tap = _PatternSum(layers, heads)
    base.rerun_from(start, tap)
    mass[start:] = tap.total.cpu().numpy() / len(layers)
    return mass


class _PatternSum(Tap):
    """Sums the patterns of some layers, each averaged over some heads."""

    def __init__(self, layers: Sequence[int], heads: Sequence[int]):
        self.points = {hooks.at_layer("blocks.*.attn.hook_pattern", layer) for layer in layers}
        self.heads, self.total = list(heads), torch.zeros(())

    def wants(self, name: str) -> bool:
        return name in self.points

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name in self.points:
            self.total = self.total.to(x.device) + x[0, self.heads].double().mean(0)
        return x


def _control_edges(
    edges: np.ndarray, free: np.ndarray, mass: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Random control edges: for the same queries, of similar distance, with about the same attention mass.

    Free keys are ordered by how close their distance is to that of a cut key, as a log ratio, plus an exponentially
    distributed random number. Keys are taken in this order; the last one is taken if it brings the mass closer.
    """
    control = np.zeros_like(edges)
    for query in np.flatnonzero(edges.any(1)):
        cut_keys, free_keys = np.flatnonzero(edges[query]), np.flatnonzero(free[query] & (mass[query] > 0))
        if not len(free_keys):
            continue
        log_distance = np.log1p(np.abs(distance[query]))
        mismatch = np.abs(np.subtract.outer(log_distance[free_keys], log_distance[cut_keys])).min(1)
        order = free_keys[np.argsort(mismatch + rng.exponential(size=len(free_keys)))]
        cumulative_mass = np.concatenate([[0], mass[query, order].cumsum()])
        control[query, order[: np.abs(cumulative_mass - mass[query, cut_keys].sum()).argmin()]] = True
    return control


class _CutEdges(Tap):
    """In row i of the pass, edge set i (row query key) is cut in some layers and heads."""

    def __init__(
        self, base: CachedRun, layers: Sequence[int], heads: Sequence[int], cut: Tensor, start: int, mode: str
    ):
        self.base, self.layers, self.heads, self.start, self.mode = base, set(layers), list(heads), start, mode
        self.cut = cut[:, None]
        self.point = "attn.hook_attn_scores" if mode == "mask" else "attn.hook_pattern"
        self.value: Tensor | None = None  # values of this pass (row key kv_head d_head)
        self.cut_attention: Tensor | None = None  # attention along the cut edges (row head query key)

    def wants(self, name: str) -> bool:
        return hooks.layer_of(name) in self.layers and name.endswith(self.point)

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if hooks.layer_of(name) not in self.layers:
            return x
        if self.mode == "mean":
            if name.endswith("attn.hook_v"):
                self.value = x
            elif name.endswith(self.point):
                self.cut_attention = x[:, self.heads] * self.cut
            elif name.endswith("attn.hook_z"):
                return self._replace_by_mean(name, x)
        elif name.endswith(self.point):
            x = x.clone()
            x[:, self.heads] = x[:, self.heads].masked_fill(self.cut, -torch.inf if self.mode == "mask" else 0.0)
        return x

    def _replace_by_mean(self, name: str, z: Tensor) -> Tensor:
        """Replaces the values read along the cut edges by the mean value; z (row query head d_head)."""
        assert self.value is not None and self.cut_attention is not None
        unedited_v = self.base.seen[name.replace("hook_z", "hook_v")]
        v = torch.cat([unedited_v[:, : self.start].expand(len(z), -1, -1, -1), self.value], 1)
        v = unedited_v.mean(1, keepdim=True) - v
        group = z.shape[2] // v.shape[2]
        change = torch.einsum("rhqk,rkhd->rqhd", self.cut_attention, v.repeat_interleave(group, 2)[:, :, self.heads])
        z = z.clone()
        z[:, :, self.heads] += change.to(z.dtype)
        return z


def _gap_fall(model: Model, before: Tensor, after: Tensor) -> np.ndarray:
    """How much the logit gap of top token and runner-up falls (row pos), from two final residual streams."""
    falls = []
    for i in range(0, before.shape[1], LOGIT_CHUNK):
        before_logits, after_logits = (
            unembed(model.config, model.weights, x[:, i : i + LOGIT_CHUNK]).float() for x in (before, after)
        )
        top_ids = before_logits.topk(2, -1).indices
        gaps = [x.gather(-1, top_ids.expand(len(x), -1, -1)) for x in (before_logits, after_logits)]
        before_gap, after_gap = (x[..., 0] - x[..., 1] for x in gaps)
        falls.append(before_gap - after_gap)
    return torch.cat(falls, 1).double().cpu().numpy()


def _summary(values: np.ndarray, controls: np.ndarray) -> dict:
    """The mean over positions, its interval, the controls' means, and the p-value."""
    interval, null = statistics.mean_interval(values), controls.mean(1)
    p = (1 + int((np.abs(null) >= abs(interval.value)).sum())) / (1 + len(null))
    bounds = {"mean": float(interval.value), "low": float(interval.low), "high": float(interval.high)}
    return bounds | {"null": null.tolist(), "p": p}
