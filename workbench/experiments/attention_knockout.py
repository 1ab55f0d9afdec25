"""What is missed when chosen tokens cannot look at chosen others, against cutting as much attention elsewhere."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.analysis import statistics
from workbench.checks import check_head, check_layer, check_position
from workbench.edits.positions import whole_numbers
from workbench.errors import EditError, SelectionError
from workbench.experiments.cached_run import LOGITS, CachedRun, divergence
from workbench.experiments.checkpoint import SweepCheckpoint, of_model
from workbench.model.gpt_oss import unembed
from workbench.model.model import Model
from workbench.model.prefill import CHUNK_ALIGN
from workbench.taps import Tap
from workbench.traces import Trace
from workbench.traces.spans import Span
from workbench.traces.steps import Step

MODES = ("mask", "zero", "mean")
WORK = 1 << 25  # numbers of one layer's scores in a pass, at most
Places = Step | Span | slice | int | Sequence[Any]  # token positions; a sequence may be of any of these


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
    """How much changes if the tokens `queries` do not see the tokens `keys`, next to what chance would do.

    Both are steps, messages, slices, positions, or several of these. The edges are cut in these `layers` ("all",
    "full", "sliding", or numbers) and `heads`, unless they are shorter than `least` tokens: `layers="full",
    min_distance=model.config.window` cuts what only a full layer can see. Modes:

    * `mask`: hidden before the softmax; the sink and the other keys share what is left.
    * `zero`: dropped after the softmax; the others keep their weights.
    * `mean`: looked at as before, but the value there is the mean one of the text, by layer and head.

    `kl` (pos) is KL(as it was || cut) in nats of each prediction from the first query on, `gap` (pos) by how many
    logits the token that was likeliest falls against the runner-up. `control_kl` and `control_gap` (control pos) are
    the same for edges drawn at random, from the same queries, in the same layers and heads, to keys that are about as
    far away, until as much attention is cut. Their `attrs` hold the mean over positions, its 95 % interval (`low`,
    `high`; over the positions of this one text: for many, collect the means and use `wb.statistics.mean_interval`), the
    `null` (the mean of each control) and `p`, how often a control is as large. `attrs` tell what was cut: `edges`,
    `mass` (attention, a mean over layers and heads, summed over edges), `distance` (mean), and the same of controls.
    `resume` is a file that keeps finished controls, as for `activation_patching`.

    >>> trace = wb.trace("What is 12+30?")
    >>> cut = wb.patching.attention_knockout(model, trace, slice(30, 40), slice(5, 15), n_controls=3)
    >>> cut["kl"].dims, cut["control_kl"].dims, bool((cut["pos"] == np.arange(30, len(trace))).all())
    (('pos',), ('control', 'pos'), True)

    Raises EditError for another mode, no layer or no head, and where there is no edge to cut; SelectionError for
    layers, heads and positions that there are not, ResumeError as `activation_patching` does.
    """
    chosen = _layers(model, layers)
    if mode not in MODES:
        raise EditError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    c, n = model.config, len(trace)
    several = list(range(c.n_heads)) if heads is None else [check_head(h, c.n_heads) for h in heads]
    if not several:
        raise EditError("heads is empty: give at least one head, or None for all of them.")
    asked = np.zeros((n, n), bool)
    asked[np.ix_(positions_of(queries, n), positions_of(keys, n))] = True
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    allowed = (distance >= min_distance) & (distance >= 0)
    if all(c.is_sliding(layer) for layer in chosen):
        allowed &= distance < c.window
    edges = asked & allowed
    if not edges.any():
        raise EditError(
            f"no edge is cut: no query comes {min_distance} tokens or more after a key that these layers see"
        )
    start = int(edges.any(1).argmax())
    begin = start // CHUNK_ALIGN * CHUNK_ALIGN  # from where a pass may begin, positions get the same bits again
    values = [hooks.at_layer("blocks.*.attn.hook_v", layer) for layer in chosen] if mode == "mean" else []
    asked_for = {"what": "attention_knockout", "tokens": trace.tokens, "edges": edges, "allowed": allowed & ~asked}
    asked_for |= {"layers": chosen, "heads": several, "mode": mode, "n_controls": n_controls, "seed": seed}
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, of_model(model) | asked_for) as cells,
    ):
        base = CachedRun(model, trace.tokens, values)
        mass = _mass(base, chosen, several, begin)
        dice = np.random.default_rng(seed)
        sets = [edges, *(_alike(edges, allowed & ~asked, mass, distance, dice) for _ in range(n_controls))]
        kl, gap = np.zeros((2, len(sets), n - start))
        rows = max(1, WORK // (c.n_heads * (n - begin) * n))
        for i in tqdm(range(0, len(sets), rows), desc="cutting", unit="pass", leave=False, disable=None):
            flag.check()
            part = slice(i, i + rows)
            numbers = range(len(sets))[part]
            if all(number in cells for number in numbers):
                kl[part], gap[part] = np.stack([cells[number] for number in numbers], 1)
                continue
            cut = torch.as_tensor(np.stack(sets[part])[:, begin:], device=model.device)
            tap = _Cut(base, chosen, several, cut, begin, mode)
            seen = base.rerun_from(begin, tap, n=len(cut))
            last = seen[hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)][:, start - begin :]
            before = base.resid(c.n_layers)[:, start:]
            kl[part] = divergence(model, before.expand_as(last), last).double().cpu().numpy()
            gap[part] = _fall(model, before, last)
            for number in numbers:
                cells.put(number, np.stack([kl[number], gap[number]]))
    coords = {"pos": np.arange(start, n), "control": np.arange(n_controls)}
    data = {"kl": ("pos", kl[0]), "gap": ("pos", gap[0])}
    data |= {"control_kl": (("control", "pos"), kl[1:]), "control_gap": (("control", "pos"), gap[1:])}
    told = {"mode": mode, "layers": chosen, "heads": several, "n": n - start, "seed": seed}
    for name, of in (("edges", np.ones((n, n))), ("mass", mass), ("distance", distance)):
        each = [float(of[s].sum()) if name != "distance" else float(of[s].mean()) if s.any() else np.nan for s in sets]
        told |= {name: each[0], f"control_{name}": each[1:]}
    found = xr.Dataset(data, coords, told)
    for name, units in (("kl", "nats"), ("gap", "logits")):
        found[name].attrs = {"units": units} | _judged(found[name].values, found[f"control_{name}"].values)
        found[f"control_{name}"].attrs["units"] = units
    return found


def _layers(model: Model, layers: str | Sequence[int]) -> list[int]:
    c = model.config
    every = list(range(c.n_layers))
    kinds = {"all": every, "full": [i for i in every if not c.is_sliding(i)]}
    kinds["sliding"] = [i for i in every if c.is_sliding(i)]
    chosen = kinds.get(layers, []) if isinstance(layers, str) else [check_layer(i, c.n_layers) for i in layers]
    if not chosen:
        raise EditError(
            f"layers must be 'all', 'full', 'sliding' or some of 0 to {c.n_layers - 1}, got {layers!r}."
            + (" This model has no such layer." if layers in kinds else "")
        )
    return chosen


def positions_of(places: Places, n: int) -> list[int]:
    """The positions that steps, slices and numbers stand for, in order."""
    if isinstance(places, Step | Span):
        places = slice(places.start, places.stop)
    if isinstance(places, slice):
        found = list(range(n)[places])
    elif isinstance(places, Iterable):
        found = sorted({p for place in places for p in positions_of(place, n)})
    else:
        found = whole_numbers(places)
    if not found:
        raise SelectionError(f"{places!r} selects no position: they are between 0 and {n - 1}.")
    return [check_position(position, n) for position in found]


def _mass(base: CachedRun, layers: Sequence[int], heads: Sequence[int], start: int) -> np.ndarray:
    """The attention of each query to each key (query key), a mean over layers and heads; 0 before `start`."""
    kept = np.zeros((len(base), len(base)))
    tap = _Watch(layers, heads)
    base.rerun_from(start, tap)
    kept[start:] = tap.total.cpu().numpy() / len(layers)
    return kept


class _Watch(Tap):
    """Adds up the patterns of some layers, each a mean over some heads."""

    def __init__(self, layers: Sequence[int], heads: Sequence[int]):
        self.points = {hooks.at_layer("blocks.*.attn.hook_pattern", layer) for layer in layers}
        self.heads, self.total = list(heads), torch.zeros(())

    def wants(self, name: str) -> bool:
        return name in self.points

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name in self.points:
            self.total = self.total.to(x.device) + x[0, self.heads].double().mean(0)
        return x


def _alike(edges: np.ndarray, free: np.ndarray, mass: np.ndarray, distance: np.ndarray, dice) -> np.ndarray:
    """Other edges of the same queries, drawn among those about as long, until about as much attention is on them.

    A free key comes the sooner, the nearer its distance is to that of a key that is cut, as a ratio, plus a number
    drawn from the exponential distribution; the last one is taken if that brings the sum nearer.
    """
    found = np.zeros_like(edges)
    for query in np.flatnonzero(edges.any(1)):
        cut, left = np.flatnonzero(edges[query]), np.flatnonzero(free[query] & (mass[query] > 0))
        if not len(left):
            continue
        far = np.log1p(np.abs(distance[query]))
        apart = np.abs(np.subtract.outer(far[left], far[cut])).min(1)
        order = left[np.argsort(apart + dice.exponential(size=len(left)))]
        with_each = np.concatenate([[0], mass[query, order].cumsum()])
        found[query, order[: np.abs(with_each - mass[query, cut].sum()).argmin()]] = True
    return found


class _Cut(Tap):
    """In row i of the pass, the edges of set i (row query key) are cut in some layers and heads."""

    def __init__(
        self, base: CachedRun, layers: Sequence[int], heads: Sequence[int], cut: Tensor, start: int, mode: str
    ):
        self.base, self.layers, self.heads, self.start, self.mode = base, set(layers), list(heads), start, mode
        self.cut = cut[:, None]
        self.point = "attn.hook_attn_scores" if mode == "mask" else "attn.hook_pattern"
        self.value: Tensor | None = None  # of the pass, row key kv_head d_head
        self.moved: Tensor | None = None  # what is looked at along the edges: row head query key

    def wants(self, name: str) -> bool:
        return hooks.layer_of(name) in self.layers and name.endswith(self.point)

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if hooks.layer_of(name) not in self.layers:
            return x
        if self.mode == "mean":
            if name.endswith("attn.hook_v"):
                self.value = x
            elif name.endswith(self.point):
                self.moved = x[:, self.heads] * self.cut
            elif name.endswith("attn.hook_z"):
                return self._to_the_mean(name, x)
        elif name.endswith(self.point):
            x = x.clone()
            x[:, self.heads] = x[:, self.heads].masked_fill(self.cut, -torch.inf if self.mode == "mask" else 0.0)
        return x

    def _to_the_mean(self, name: str, z: Tensor) -> Tensor:
        """What the heads take along the edges is the mean value instead; z: row query head d_head."""
        assert self.value is not None and self.moved is not None
        known = self.base.seen[name.replace("hook_z", "hook_v")]
        v = torch.cat([known[:, : self.start].expand(len(z), -1, -1, -1), self.value], 1)
        v = known.mean(1, keepdim=True) - v
        group = z.shape[2] // v.shape[2]
        change = torch.einsum("rhqk,rkhd->rqhd", self.moved, v.repeat_interleave(group, 2)[:, :, self.heads])
        z = z.clone()
        z[:, :, self.heads] += change.to(z.dtype)
        return z


def _fall(model: Model, before: Tensor, after: Tensor) -> np.ndarray:
    """By how many logits the likeliest token falls against the runner-up (row pos), from two last residual streams."""
    found = []
    for i in range(0, before.shape[1], LOGITS):
        plain, cut = (unembed(model.config, model.weights, x[:, i : i + LOGITS]).float() for x in (before, after))
        two = plain.topk(2, -1).indices
        ahead = [x.gather(-1, two.expand(len(x), -1, -1)) for x in (plain, cut)]
        was, now = (x[..., 0] - x[..., 1] for x in ahead)
        found.append(was - now)
    return torch.cat(found, 1).double().cpu().numpy()


def _judged(values: np.ndarray, controls: np.ndarray) -> dict:
    """The mean over positions, its interval, and what the controls say."""
    interval, null = statistics.mean_interval(values), controls.mean(1)
    p = (1 + int((np.abs(null) >= abs(interval.value)).sum())) / (1 + len(null))
    bounds = {"mean": float(interval.value), "low": float(interval.low), "high": float(interval.high)}
    return bounds | {"null": null.tolist(), "p": p}
