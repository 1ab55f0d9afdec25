"""Path patching: what one part of the model wrote reaches one reader of it as in another run, and no other reader."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.checks import check_index
from workbench.errors import ArgumentError, EditError
from workbench.experiments.activation_patching import ROWS, WORK, Outcome, two_prompts
from workbench.experiments.cached_run import CachedRun
from workbench.experiments.checkpoint import SweepCheckpoint, of_model
from workbench.experiments.suppression import FrozenRouting
from workbench.model.config import Config
from workbench.model.gpt_oss import linear, rms_norm, unembed
from workbench.model.model import Model, Prompt
from workbench.model.prefill import CHUNK_ALIGN
from workbench.recording.taps import Recorder
from workbench.taps import Chain, Tap

Part = tuple[Any, ...]  # a word, and where there is one its layer and its number in it
SENDERS = {"head": "n_heads", "expert": "n_experts", "attn": None, "mlp": None}  # what a layer has that many of
RECEIVERS = {"q": "n_heads", "k": "n_kv_heads", "v": "n_kv_heads", "mlp": None, "router": None, "logits": None}
NUMBERED = {"expert": "expert", "k": "kv head", "v": "kv head"}  # what the number counts, where it is no head
ROUTING = ("frozen", "recomputed")
ROUNDING = 1e-5  # of the largest write: where rows are not independent, smaller changes count as none
OURS = ("hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v")
OURS += ("hook_resid_mid", "ln2.hook_normalized", "mlp.router.hook_out")  # made anew here, without edits


def path_patching(
    model: Model,
    clean: Prompt,
    corrupted: Prompt,
    metric: Outcome,
    sender: Part,
    receivers: Sequence[Part | Sequence[Part]] | None = None,
    *,
    positions: Sequence[int] | None = None,
    routing: str = "frozen",
    resume: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """The direct effect of one sender on each receiver (receiver): the metric with that path as in the corrupted run.

    In shares of the gap: 0 is the metric of the clean run, in which everything else happens, 1 that of the corrupted
    one; `attrs` hold both, as `tolerance` the change that still counts as none (0 where `model.rows_independent`), and
    as `total` what the sender does by all paths together. The sender is `("head", layer, head)`, `("attn", layer)`,
    `("mlp", layer)` or `("expert", layer, expert)`, with its weight. A receiver reads the residual stream, at every
    position, as if the sender had written there what it wrote in the corrupted run; nobody else does, and what comes
    after the receiver follows from what it then writes. Receivers are `("q", layer, head)`, `("k", layer, kv_head)`,
    `("v", layer, kv_head)`, `("mlp", layer)` (what the experts read), `("router", layer)` and `("logits",)`; a list of
    them is a path through all of these at once. Unless given, they are all that come after the sender, one by one.
    `positions` are those where the sender is another; all, unless given.

    With `routing="frozen"` the experts of the clean run run, with their weights: what is found is content, as
    `wb.reasoning.suppression(…, split_routing=True)` calls it, and no router is a receiver. With "recomputed" it has
    re-weighting and re-routing in it. `resume` is a file that keeps finished paths, as for `activation_patching`.

    >>> gap = wb.patching.logit_diff(model, "8", "7")
    >>> clean, corrupted = (model.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    >>> receivers = [("mlp", 3), ("v", 4, 0), ("logits",)]
    >>> paths = wb.patching.path_patching(model, clean, corrupted, gap, ("head", 3, 1), receivers)
    >>> paths.dims, paths["receiver"].values.tolist()
    (('receiver',), ['mlp 3', 'v 4 0', 'logits'])

    Raises PromptError if the prompts are not equally long or do not differ, SelectionError for a sender or receiver
    that the model does not have, EditError for one of another kind, a receiver before the sender, and edits in force at
    what a receiver reads, ArgumentError for other `routing`, ResumeError as `activation_patching` does. (arXiv
    2211.00593, 2304.05969)
    """
    if routing not in ROUTING:
        raise ArgumentError(f"routing must be 'frozen' or 'recomputed', got {routing!r}.")
    c = model.config
    _known(c, sender, SENDERS, "sender")
    asked: Sequence[Any] = readers(c, sender, routing=routing) if receivers is None else receivers
    sets: list[list[Part]] = [[r] if isinstance(r[0], str) else list(r) for r in asked]
    for receiver in (r for several in sets for r in several):
        _known(c, receiver, RECEIVERS, "receiver")
        if receiver not in readers(c, sender, routing="recomputed"):
            raise EditError(
                f"{_label([receiver])!r} is computed before {_label([sender])!r} writes: no path leads there"
            )
    edited = [e.glob for e in model.active_edits() if any(p.endswith(OURS) for p in e.points)]
    if edited:
        raise EditError(f"paths are followed by computing anew what is edited here: leave out the edits at {edited}")
    ours, theirs, _ = two_prompts(model, corrupted, clean)  # the text that is run is the clean one
    weights = [hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer) for layer in range(c.n_layers)]
    record = _written(sender)
    where = None if positions is None else np.asarray(positions, int).tolist()
    inputs = {"what": "path_patching", "clean": ours, "corrupted": theirs, "metric": metric, "sender": sender}
    inputs |= {"receivers": sets, "positions": where, "routing": routing}
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, of_model(model) | inputs) as cells,
    ):
        base = CachedRun(model, ours, [*weights, *record])
        other = CachedRun(model, theirs, [*weights, *record])
        ends = [metric(reading.logits(slice(-1, None))[:, 0])[0].item() for reading in (base, other)]
        change = _write(other, sender) - _write(base, sender)
        if where is not None:
            elsewhere = np.setdiff1d(np.arange(len(base)), where)
            change[:, torch.as_tensor(elsewhere, device=change.device)] = 0
        least = 0.0 if model.rows_independent else ROUNDING * float(_write(base, sender).abs().max())
        moved = change[0].abs().gt(least).any(-1).nonzero()
        # from where a pass may begin: then positions meet the same products, and get the same bits
        start = (
            int(moved[0]) // CHUNK_ALIGN * CHUNK_ALIGN if len(moved) else (len(base) - 1) // CHUNK_ALIGN * CHUNK_ALIGN
        )
        values = np.zeros(len(sets))
        everything = Chain(_Whole(sender, change[:, start:]), *_frozen_routing(base, start, routing))
        total = _run(base, metric, everything, sender[1], start, 1)[0]
        todo = list(_batches(sets, c, (len(base) - start) * c.d_model))
        for layer, rows in tqdm(todo, desc="following paths", unit="pass", leave=False, disable=None):
            flag.check()
            if all(i in cells for i in rows):
                values[rows] = [cells[i] for i in rows]
                continue
            edges = _Edges(model, change[:, start:], [sets[i] for i in rows])
            values[rows] = _run(
                base, metric, Chain(edges, *_frozen_routing(base, start, routing)), layer, start, len(rows)
            )
            for i in rows:
                cells.put(i, values[i])
    scaled = (np.array([*values, total]) - ends[0]) / (ends[1] - ends[0])
    coords = {"receiver": [_label(several) for several in sets]}
    attrs = {"long_name": f"from {_label([sender])}", "units": "share of the gap", "routing": routing}
    attrs |= {"clean": ends[0], "corrupted": ends[1], "total": float(scaled[-1]), "n": len(base), "tolerance": least}
    return xr.DataArray(scaled[:-1], coords, ("receiver",), attrs=attrs)


def readers(c: Config, sender: Part, *, routing: str = "frozen") -> list[Part]:
    """Every receiver that comes after a sender: all that read the residual stream with what it wrote in it.

    >>> readers(Config(n_layers=2, n_heads=2, n_kv_heads=1), ("mlp", 0))
    [('q', 1, 0), ('q', 1, 1), ('k', 1, 0), ('v', 1, 0), ('mlp', 1), ('logits',)]
    """
    found: list[Part] = []
    for layer in range(sender[1], c.n_layers):
        if layer > sender[1]:
            for word in ("q", "k", "v"):
                found += [(word, layer, number) for number in range(getattr(c, str(RECEIVERS[word])))]
        if layer > sender[1] or sender[0] in ("head", "attn"):
            found += [("mlp", layer)] if routing == "frozen" else [("mlp", layer), ("router", layer)]
    return [*found, ("logits",)]


def _known(c: Config, part: Part, kinds: dict[str, str | None], what: str) -> None:
    """Raises EditError for a part of another kind, SelectionError for one that the model does not have."""
    word, *numbers = part
    if word not in kinds:
        raise EditError(f"a {what} begins with one of {', '.join(kinds)}, not with {word!r}")
    count = kinds[word]
    limits = [] if word == "logits" else [c.n_layers] if count is None else [c.n_layers, getattr(c, count)]
    if len(numbers) != len(limits):
        says = ", ".join(["layer", "its number"][: len(limits)])
        raise EditError(f"a {what} {word!r} is ({', '.join(filter(None, [repr(word), says]))}); got {part}")
    for name, number, limit in zip(("layer", NUMBERED.get(word, "head")), numbers, limits):
        check_index(name, number, limit)


def _label(parts: Sequence[Part]) -> str:
    said = [" ".join(map(str, part)) for part in parts]
    return " + ".join(said) if len(said) <= 3 else f"{said[0]} + … + {said[-1]} ({len(said)})"


def _written(sender: Part) -> list[str]:
    """The hook points that tell what a sender wrote."""
    point = {"head": "attn.hook_z", "attn": "hook_attn_out", "mlp": "hook_mlp_out", "expert": "mlp.hook_expert_out"}
    return [f"blocks.{sender[1]}.{point[sender[0]]}"]


def _write(reading: CachedRun, sender: Part) -> Tensor:
    """What a sender wrote into the residual stream (batch pos d_model), up to a constant."""
    word, layer, *number = sender
    said = reading.seen[_written(sender)[0]]
    if word == "head":
        w = reading.model.weights.blocks[layer]
        alone = torch.zeros_like(said)
        alone[:, :, number[0]] = said[:, :, number[0]]
        return linear(alone.flatten(2), w.w_o)
    if word == "expert":
        share = reading.seen[hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer)][..., number[0], None, None]
        return (said * share * (reading.routes(layer) == number[0])[..., None]).sum(2)
    return said


def _frozen_routing(base: CachedRun, start: int, routing: str) -> list[Tap]:
    return [FrozenRouting(base, start, weights=True)] if routing == "frozen" else []


def _run(base: CachedRun, metric: Outcome, tap: Tap, layer: int, start: int, n: int) -> np.ndarray:
    """The metric of the clean text under a tap, in `n` rows, from a layer and a position on."""
    model = base.model
    last = hooks.at_layer("blocks.*.hook_resid_post", model.config.n_layers - 1)
    resid, seen = base.resid(layer)[:, start:].expand(n, -1, -1), Recorder([last], device=model.device)
    model.forward_from(resid, layer, Chain(tap, seen), base.cache.fork(n, start), slice(0, 0))
    logits = unembed(model.config, model.weights, seen[last][:, -1:])[:, 0]
    return metric(logits).double().cpu().numpy()


def _batches(sets: Sequence[Sequence[Part]], c: Config, size: int) -> Iterator[tuple[int, list[int]]]:
    """The paths that are followed in one pass: those whose first receiver is in the same layer."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for i, several in enumerate(sets):
        by_layer[min(c.n_layers - 1 if r == ("logits",) else r[1] for r in several)].append(i)
    at_once = max(1, min(ROWS, WORK // size))
    for layer, which in sorted(by_layer.items()):
        for i in range(0, len(which), at_once):
            yield layer, which[i : i + at_once]


class _Whole(Tap):
    """The sender writes what it wrote in the other run, for everybody to read."""

    def __init__(self, sender: Part, change: Tensor):
        point = "hook_attn_out" if sender[0] in ("head", "attn") else "hook_mlp_out"
        self.name, self.change = f"blocks.{sender[1]}.{point}", change

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        return x + self.change if name == self.name else x


class _Edges(Tap):
    """In row i of the pass, the receivers of set i read the residual stream with the change, and all others without."""

    def __init__(self, model: Model, change: Tensor, sets: Sequence[Sequence[Part]]):
        self.model, self.change = model, change
        self.rows: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)  # row, and the head where it is one
        for row, several in enumerate(sets):
            for word, *numbers in several:
                layer = numbers[0] if numbers else model.config.n_layers - 1
                self.rows[word, layer].append((row, numbers[1] if len(numbers) > 1 else 0))
        self.stream: Tensor | None = None  # as the pass has it, before the attention or before the MLP

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        layer = hooks.layer_of(name)
        if layer is None:
            return x
        point = name.removeprefix(f"blocks.{layer}.")
        if point in ("hook_resid_pre", "hook_resid_mid"):
            self.stream = x
        elif point in ("attn.hook_q", "attn.hook_k", "attn.hook_v"):
            return self._heads(point[-1], layer, x)
        elif point == "ln2.hook_normalized":
            return self._experts(layer, x)
        elif point == "mlp.router.hook_out":
            return self._router(layer, x)
        elif point == "hook_resid_post" and (rows := self._asked("logits", layer)):
            x = x.clone()
            x[rows] += self.change
        return x

    def _asked(self, word: str, layer: int) -> list[int]:
        return sorted({row for row, _ in self.rows.get((word, layer), [])})

    def _read(self, rows: list[int], scale: Tensor, *, changed: bool) -> Tensor:
        """What rows of the stream are after the norm: row pos d_model."""
        assert self.stream is not None
        stream = self.stream[rows]
        return rms_norm(stream + self.change if changed else stream, scale, self.model.config.eps)

    def _heads(self, word: str, layer: int, x: Tensor) -> Tensor:
        if rows := self._asked(word, layer):
            w = self.model.weights.blocks[layer]
            matrix, bias = getattr(w, f"w_{word}"), getattr(w, f"b_{word}")
            theirs = linear(self._read(rows, w.ln1, changed=True), matrix, bias).view(len(rows), *x.shape[1:])
            x = x.clone()
            for row, head in self.rows[word, layer]:
                x[row, :, head] = theirs[rows.index(row), :, head]
        return x

    def _experts(self, layer: int, x: Tensor) -> Tensor:
        if rows := self._asked("mlp", layer):
            x = x.clone()
            x[rows] = self._read(rows, self.model.weights.blocks[layer].ln2, changed=True)
        return x

    def _router(self, layer: int, x: Tensor) -> Tensor:
        """The router read what the experts read: where only one of the two is a receiver, it reads anew."""
        mlp, router = set(self._asked("mlp", layer)), set(self._asked("router", layer))
        w = self.model.weights.blocks[layer]
        for rows, changed in ((sorted(mlp - router), False), (sorted(router - mlp), True)):
            if rows:
                x = x.clone()
                x[rows] = linear(self._read(rows, w.ln2, changed=changed), w.w_router, w.b_router)
        return x
