"""Path patching: one receiver reads a sender's output from the corrupted run; all others read the clean one."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.checks import check_callable, check_choice, check_index, check_indices, check_items, check_type
from workbench.errors import EditError
from workbench.experiments.activation_patching import MAX_ELEMENTS_PER_PASS, MAX_ROWS, Metric, measured, two_prompts
from workbench.experiments.cached_run import CachedRun
from workbench.experiments.checkpoint import SweepCheckpoint, model_inputs
from workbench.experiments.suppression import FrozenRouting
from workbench.model.config import Config
from workbench.model.gpt_oss import linear, rms_norm, unembed
from workbench.model.model import Model, Prompt
from workbench.model.prefill import CHUNK_ALIGN
from workbench.progress import progress_bar
from workbench.recording.taps import Recorder
from workbench.taps import Chain, Tap

Part = tuple[Any, ...]  # a kind, and if it has them its layer and its number in the layer
# kind -> the config field with their number per layer
SENDERS = {"head": "n_heads", "expert": "n_experts", "attn": None, "mlp": None}
RECEIVERS = {"q": "n_heads", "k": "n_kv_heads", "v": "n_kv_heads", "mlp": None, "router": None, "logits": None}
NUMBERED = {"expert": "expert", "k": "kv head", "v": "kv head"}  # what the number counts, if not query heads
ROUTING = ("frozen", "recomputed")
ROUNDING = 1e-5  # relative to the largest output: smaller changes count as none if rows are not independent
RECOMPUTED = ("hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v")
RECOMPUTED += ("hook_resid_mid", "ln2.hook_normalized", "mlp.router.hook_out")  # recomputed here, without edits


def path_patching(
    model: Model,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    sender: Part,
    receivers: Sequence[Part | Sequence[Part]] | None = None,
    *,
    positions: Sequence[int] | None = None,
    routing: str = "frozen",
    resume: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """The direct effect of a sender on each receiver: the metric when that path carries the corrupted value.

    The clean prompt is run. A receiver reads the residual stream, at every position, as if the sender had written what
    it wrote in the corrupted run; no other component does. Everything after the receiver follows from the receiver's
    new output. The result is normalized: 0 is the metric of the clean run, 1 that of the corrupted run.

    Args:
        model: the model.
        clean: the prompt that is run.
        corrupted: the prompt that the sender's values are taken from, with as many tokens.
        metric: a function from logits (batch d_vocab) at the last position to values (batch), such as
            `wb.patching.logit_diff`.
        sender: `("head", layer, head)`, `("attn", layer)`, `("mlp", layer)` or `("expert", layer, expert)` (with its
            routing weight).
        receivers: `("q", layer, head)`, `("k", layer, kv_head)`, `("v", layer, kv_head)`, `("mlp", layer)` (the
            experts' input), `("router", layer)` or `("logits",)`. A list among them is patched at once. All that come
            after the sender, one by one, unless given.
        positions: the positions where the sender is patched; all unless given.
        routing: "frozen" keeps the experts and routing weights of the clean run; then no router is a receiver, and the
            effects are `content` effects, as in `wb.reasoning.suppression(…, split_routing=True)`. "recomputed"
            includes the effects of reweighting and rerouting.
        resume: a file that keeps finished paths. The same call continues from it after an interruption.

    Returns:
        DataArray (receiver), as a share of the difference between the two runs. `attrs["clean"]` and
        `attrs["corrupted"]` are the unnormalized metrics, `attrs["total"]` is the effect of the sender by all paths
        together. `attrs["tolerance"]` is the change in the sender's output that still counts as none (0 if
        `model.rows_independent`).

    The effects of single paths need not add up to the total.

    >>> gap = wb.patching.logit_diff(model, "8", "7")
    >>> clean, corrupted = (model.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    >>> receivers = [("mlp", 3), ("v", 4, 0), ("logits",)]
    >>> paths = wb.patching.path_patching(model, clean, corrupted, gap, ("head", 3, 1), receivers)
    >>> paths.dims, paths["receiver"].values.tolist()
    (('receiver',), ['mlp 3', 'v 4 0', 'logits'])

    Raises:
        PromptError: the prompts differ in length or do not differ at all.
        SelectionError: the model does not have this sender or receiver.
        EditError: an unknown kind of sender or receiver, a receiver before the sender, or edits in force at a hook
            point that path patching recomputes.
        ArgumentError: another `routing`.
        ResumeError: the file holds another sweep, or is damaged.
        FileError: the file cannot be written.

    See Wang et al. 2022 (arXiv 2211.00593) and Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
    """
    check_type("path_patching", model, Model)
    routing, metric = check_choice("routing", routing, ROUTING), check_callable("metric", metric)
    c = model.config
    sender = _checked_part(c, sender, SENDERS, "sender")
    requested = readers(c, sender, routing=routing) if receivers is None else check_items("receivers", receivers)
    receiver_sets: list[list[Part]] = [_receiver_set(c, receiver) for receiver in requested]
    for receiver in (r for receiver_set in receiver_sets for r in receiver_set):
        if receiver not in readers(c, sender, routing="recomputed"):
            raise EditError(
                f"receiver {_label([receiver])!r} is computed before sender {_label([sender])!r}: no path leads there"
            )
    edited = [e.glob for e in model.active_edits() if any(p.endswith(RECOMPUTED) for p in e.points)]
    if edited:
        raise EditError(
            f"path patching recomputes some hook points itself and cannot run under edits at {edited}; remove them"
        )
    clean_ids, corrupted_ids, _ = two_prompts(model, corrupted, clean)  # the clean prompt is run
    weights = [hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer) for layer in range(c.n_layers)]
    record = _output_points(sender)
    position_list = None if positions is None else check_indices("position", positions, len(clean_ids))
    inputs = {
        "what": "path_patching",
        "clean": clean_ids,
        "corrupted": corrupted_ids,
        "metric": metric,
        "sender": sender,
    }
    inputs |= {"receivers": receiver_sets, "positions": position_list, "routing": routing}
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, model_inputs(model) | inputs) as cells,
    ):
        clean_run = CachedRun(model, clean_ids, [*weights, *record])
        corrupted_run = CachedRun(model, corrupted_ids, [*weights, *record])
        baselines = [measured(metric, run.logits(slice(-1, None))[:, 0]) for run in (clean_run, corrupted_run)]
        change = _output(corrupted_run, sender) - _output(clean_run, sender)
        if position_list is not None:
            elsewhere = np.setdiff1d(np.arange(len(clean_run)), position_list)
            change[:, torch.as_tensor(elsewhere, device=change.device)] = 0
        tolerance = 0.0 if model.rows_independent else ROUNDING * float(_output(clean_run, sender).abs().max())
        changed = change[0].abs().gt(tolerance).any(-1).nonzero()
        # a pass that starts here multiplies the same blocks and reproduces the same bits
        start = (
            int(changed[0]) // CHUNK_ALIGN * CHUNK_ALIGN
            if len(changed)
            else (len(clean_run) - 1) // CHUNK_ALIGN * CHUNK_ALIGN
        )
        values = np.zeros(len(receiver_sets))
        whole_tap = Chain(_AddChange(sender, change[:, start:]), *_frozen_routing(clean_run, start, routing))
        total = _run(clean_run, metric, whole_tap, sender[1], start, 1)[0]
        batches = list(_batches(receiver_sets, c, (len(clean_run) - start) * c.d_model))
        for layer, rows in progress_bar(batches, desc="patching paths", unit="pass"):
            flag.check()
            if all(i in cells for i in rows):
                values[rows] = [cells[i] for i in rows]
                continue
            receiver_tap = _PatchReceivers(model, change[:, start:], [receiver_sets[i] for i in rows])
            values[rows] = _run(
                clean_run,
                metric,
                Chain(receiver_tap, *_frozen_routing(clean_run, start, routing)),
                layer,
                start,
                len(rows),
            )
            for i in rows:
                cells.put(i, values[i])
    scaled = (np.array([*values, total]) - baselines[0]) / (baselines[1] - baselines[0])
    coords = {"receiver": [_label(receiver_set) for receiver_set in receiver_sets]}
    attrs = {"long_name": f"from {_label([sender])}", "units": "share of the gap", "routing": routing}
    attrs |= {
        "clean": baselines[0],
        "corrupted": baselines[1],
        "total": float(scaled[-1]),
        "n": len(clean_run),
        "tolerance": tolerance,
    }
    return xr.DataArray(scaled[:-1], coords, ("receiver",), attrs=attrs)


def readers(c: Config, sender: Part, *, routing: str = "frozen") -> list[Part]:
    """Every receiver after a sender: all components that read the residual stream with its output in it.

    >>> readers(Config(n_layers=2, n_heads=2, n_kv_heads=1), ("mlp", 0))
    [('q', 1, 0), ('q', 1, 1), ('k', 1, 0), ('v', 1, 0), ('mlp', 1), ('logits',)]
    """
    receivers: list[Part] = []
    for layer in range(sender[1], c.n_layers):
        if layer > sender[1]:
            for kind in ("q", "k", "v"):
                receivers += [(kind, layer, number) for number in range(getattr(c, str(RECEIVERS[kind])))]
        if layer > sender[1] or sender[0] in ("head", "attn"):
            receivers += [("mlp", layer)] if routing == "frozen" else [("mlp", layer), ("router", layer)]
    return [*receivers, ("logits",)]


def _receiver_set(c: Config, receiver: Any) -> list[Part]:
    """One receiver, or a list of receivers that are patched at once, as a list of checked receivers."""
    items = check_items("a receiver", receiver)
    single = isinstance(items[0], str)
    return [_checked_part(c, part, RECEIVERS, "receiver") for part in ([items] if single else items)]


def _checked_part(c: Config, part: Any, kinds: dict[str, str | None], role: str) -> Part:
    """The part as a tuple of a kind and ints.

    Raises EditError for an unknown kind, SelectionError for a component that the model does not have.
    """
    kind, *numbers = check_items(role, part)
    if not isinstance(kind, str) or kind not in kinds:
        raise EditError(f"the first item of a {role} must be one of {', '.join(kinds)}, got {kind!r}")
    count = kinds[kind]
    limits = [] if kind == "logits" else [c.n_layers] if count is None else [c.n_layers, getattr(c, count)]
    if len(numbers) != len(limits):
        numbers_text = ", ".join(["layer", "its number"][: len(limits)])
        raise EditError(f"{role} {kind!r} must be ({', '.join(filter(None, [repr(kind), numbers_text]))}), got {part}")
    names = ("layer", NUMBERED.get(kind, "head"))
    return (kind, *(check_index(name, number, limit) for name, number, limit in zip(names, numbers, limits)))


def _label(parts: Sequence[Part]) -> str:
    names = [" ".join(map(str, part)) for part in parts]
    return " + ".join(names) if len(names) <= 3 else f"{names[0]} + … + {names[-1]} ({len(names)})"


def _output_points(sender: Part) -> list[str]:
    """The hook points from which a sender's output is computed."""
    point = {"head": "attn.hook_z", "attn": "hook_attn_out", "mlp": "hook_mlp_out", "expert": "mlp.hook_expert_out"}
    return [f"blocks.{sender[1]}.{point[sender[0]]}"]


def _output(run: CachedRun, sender: Part) -> Tensor:
    """A sender's output to the residual stream (batch pos d_model), up to a constant."""
    kind, layer, *number = sender
    value = run.seen[_output_points(sender)[0]]
    if kind == "head":
        w = run.model.weights.blocks[layer]
        one_head = torch.zeros_like(value)
        one_head[:, :, number[0]] = value[:, :, number[0]]
        return linear(one_head.flatten(2), w.w_o)
    if kind == "expert":
        weight = run.seen[hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer)][..., number[0], None, None]
        return (value * weight * (run.routes(layer) == number[0])[..., None]).sum(2)
    return value


def _frozen_routing(base: CachedRun, start: int, routing: str) -> list[Tap]:
    return [FrozenRouting(base, start, weights=True)] if routing == "frozen" else []


def _run(base: CachedRun, metric: Metric, tap: Tap, layer: int, start: int, n: int) -> np.ndarray:
    """The metric of the clean run under a tap, in `n` rows, from a layer and a position on."""
    model = base.model
    last = hooks.at_layer("blocks.*.hook_resid_post", model.config.n_layers - 1)
    resid, seen = base.resid(layer)[:, start:].expand(n, -1, -1), Recorder([last], device=model.device)
    model.forward_from(resid, layer, Chain(tap, seen), base.cache.fork(n, start), slice(0, 0))
    logits = unembed(model.config, model.weights, seen[last][:, -1:])[:, 0]
    return metric(logits).double().cpu().numpy()


def _batches(sets: Sequence[Sequence[Part]], c: Config, size: int) -> Iterator[tuple[int, list[int]]]:
    """Paths for one pass: those whose first receiver is in the same layer."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for i, receiver_set in enumerate(sets):
        by_layer[min(c.n_layers - 1 if r == ("logits",) else r[1] for r in receiver_set)].append(i)
    batch_size = max(1, min(MAX_ROWS, MAX_ELEMENTS_PER_PASS // size))
    for layer, path_ids in sorted(by_layer.items()):
        for i in range(0, len(path_ids), batch_size):
            yield layer, path_ids[i : i + batch_size]


class _AddChange(Tap):
    """Adds the change of the sender's output to the stream, for all components."""

    def __init__(self, sender: Part, change: Tensor):
        point = "hook_attn_out" if sender[0] in ("head", "attn") else "hook_mlp_out"
        self.name, self.change = f"blocks.{sender[1]}.{point}", change

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        return x + self.change if name == self.name else x


class _PatchReceivers(Tap):
    """In row i of the pass, only the receivers of set i read the residual stream with the change."""

    def __init__(self, model: Model, change: Tensor, sets: Sequence[Sequence[Part]]):
        self.model, self.change = model, change
        self.rows: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)  # row and head (0 if it has none)
        for row, receiver_set in enumerate(sets):
            for kind, *numbers in receiver_set:
                layer = numbers[0] if numbers else model.config.n_layers - 1
                self.rows[kind, layer].append((row, numbers[1] if len(numbers) > 1 else 0))
        self.stream: Tensor | None = None  # of this pass, before the attention or before the MLP

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
        elif point == "hook_resid_post" and (rows := self._rows_of("logits", layer)):
            x = x.clone()
            x[rows] += self.change
        return x

    def _rows_of(self, kind: str, layer: int) -> list[int]:
        return sorted({row for row, _ in self.rows.get((kind, layer), [])})

    def _normed(self, rows: list[int], scale: Tensor, *, changed: bool) -> Tensor:
        """Rows of the stream after the norm (row pos d_model)."""
        assert self.stream is not None
        stream = self.stream[rows]
        return rms_norm(stream + self.change if changed else stream, scale, self.model.config.eps)

    def _heads(self, kind: str, layer: int, x: Tensor) -> Tensor:
        if rows := self._rows_of(kind, layer):
            w = self.model.weights.blocks[layer]
            matrix, bias = getattr(w, f"w_{kind}"), getattr(w, f"b_{kind}")
            patched = linear(self._normed(rows, w.ln1, changed=True), matrix, bias).view(len(rows), *x.shape[1:])
            x = x.clone()
            for row, head in self.rows[kind, layer]:
                x[row, :, head] = patched[rows.index(row), :, head]
        return x

    def _experts(self, layer: int, x: Tensor) -> Tensor:
        if rows := self._rows_of("mlp", layer):
            x = x.clone()
            x[rows] = self._normed(rows, self.model.weights.blocks[layer].ln2, changed=True)
        return x

    def _router(self, layer: int, x: Tensor) -> Tensor:
        """Router and experts share their input; if only one of them is a receiver, the router is recomputed."""
        mlp, router = set(self._rows_of("mlp", layer)), set(self._rows_of("router", layer))
        w = self.model.weights.blocks[layer]
        for rows, changed in ((sorted(mlp - router), False), (sorted(router - mlp), True)):
            if rows:
                x = x.clone()
                x[rows] = linear(self._normed(rows, w.ln2, changed=changed), w.w_router, w.b_router)
        return x
