"""Activation patching: values of one run are copied into another, one site at a time, and a metric is measured."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.checks import check_callable, check_flag, check_indices, check_type, check_whole
from workbench.errors import ArgumentError, HookNameError, PromptError
from workbench.experiments.cached_run import CachedRun, SingleHookTap
from workbench.experiments.checkpoint import SweepCheckpoint, model_inputs
from workbench.model.gpt_oss import unembed
from workbench.model.model import Model, Prompt
from workbench.progress import progress_bar
from workbench.recording.taps import Recorder
from workbench.taps import Chain

MAX_ROWS = 32  # patches in one pass, at most
MAX_ELEMENTS_PER_PASS = 1 << 22  # elements of one residual stream in a pass, at most
Metric = Callable[[Tensor], Tensor]  # logits of the last position (batch d_vocab) -> batch


def measured(metric: Metric, logits: Tensor) -> float:
    """The metric of one row of logits. Raises ArgumentError unless it is one finite number."""
    return float(check_values(metric(logits), len(logits))[0].detach())


def check_values(values: Any, n: int) -> Tensor:
    """What a metric returned for `n` rows of logits. Raises ArgumentError unless it is a finite number for each."""
    if not isinstance(values, Tensor) or values.shape != (n,) or not bool(values.isfinite().all()):
        got = f"a tensor of shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ArgumentError(
            f"metric must return a tensor with one finite number for each row of logits (here {n}), got {got}."
        )
    return values


@dataclass(frozen=True)
class LogitDiff:
    """The logit of `token` minus that of `other`, as a metric of the logits at the last position."""

    token: int
    other: int

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, self.token] - logits[:, self.other]


def logit_diff(model: Model, token: str | int, other: str | int) -> LogitDiff:
    """A metric for patching experiments: the logit of one next token minus that of another, given as texts or ids.

    >>> wb.patching.logit_diff(model, "7", "8")
    LogitDiff(token=22, other=23)

    Raises PromptError for a text that is not exactly one token, or an id that the model does not have.
    """
    check_type("logit_diff", model, Model)
    return LogitDiff(token_id(model, token), token_id(model, other))


def token_id(model: Model, token: str | int) -> int:
    """The id of a token given as text or id.

    Raises PromptError for a text that is not exactly one token and for an id that the model does not have,
    ArgumentTypeError for anything else.
    """
    if not isinstance(token, str):
        number = check_whole("token", token)
        if not 0 <= number < model.config.d_vocab:
            raise PromptError(f"token id {number} is out of range: {model.name} has ids 0..{model.config.d_vocab - 1}")
        return number
    if model.tokenizer is None:
        raise PromptError(f"this model has no tokenizer; give the id of token {token!r}")
    ids = model.tokenizer.encode(token)
    if len(ids) != 1:
        raise PromptError(
            f"token {token!r} is {len(ids)} tokens ({ids}); this needs exactly one token. Pass one of these ids."
        )
    return ids[0]


def two_prompts(model: Model, clean: Prompt, corrupted: Prompt) -> tuple[list[int], list[int], int]:
    """The token ids of the corrupted and of the clean prompt, and the first position where they differ.

    Raises PromptError if they differ in length or do not differ at all.
    """
    corrupted_ids, clean_ids = model.to_tokens(corrupted), model.to_tokens(clean)
    if len(corrupted_ids) != len(clean_ids):
        raise PromptError(
            f"the clean prompt has {len(clean_ids)} tokens and the corrupted one {len(corrupted_ids)}; "
            "make them equally long"
        )
    first = next((i for i, (a, b) in enumerate(zip(corrupted_ids, clean_ids)) if a != b), None)
    if first is None:
        raise PromptError("the two prompts are the same, so there is nothing to patch")
    return corrupted_ids, clean_ids, first


def activation_patching(
    model: Model,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    *,
    site: str = "resid_pre",
    positions: Sequence[int] | None = None,
    by_head: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """How much of a metric each position or head restores when its value is copied in from the clean run.

    The result is normalized: 0 is the metric of the corrupted run, 1 that of the clean run. Values outside this range
    are possible. A high value shows that the value at this site is sufficient to restore the metric in this pair of
    prompts. It does not show that the site is necessary, nor that it generalizes to other prompts.

    Args:
        model: the model. Edits in force apply to both runs.
        clean: the prompt that values are copied from.
        corrupted: the prompt that is run, with as many tokens.
        metric: a function from logits (batch d_vocab) at the last position to values (batch), such as
            `wb.patching.logit_diff`.
        site: a hook point of every layer with an axis of positions.
        positions: the positions to patch; those from the first difference on unless given. Before it, both runs are
            equal.
        by_head: patch each head on its own, at all `positions` together, for sites with an axis of heads.
        resume: a file that keeps finished cells. The same call continues from it after an interruption.

    Returns:
        DataArray (layer pos), or (layer head) with `by_head`, as a share of the difference between the two runs.
        `attrs["clean"]` and `attrs["corrupted"]` are the unnormalized metrics.

    >>> gap = wb.patching.logit_diff(model, "8", "7")
    >>> clean, corrupted = (model.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    >>> sweep = wb.patching.activation_patching(model, clean, corrupted, gap)
    >>> sweep.dims, bool(np.isclose(sweep[0, 0], 1, atol=1e-3))  # the only different token restores all of it
    (('layer', 'pos'), True)

    Raises:
        PromptError: the prompts differ in length or do not differ at all.
        HookNameError: the site has no positions, or no heads with `by_head`.
        ResumeError: the file holds another sweep, or is damaged.
        FileError: the file cannot be written.

    See Meng et al. 2022 (arXiv 2202.05262), and Zhang and Nanda 2023 (arXiv 2309.16042) for metrics and corruptions.
    """
    check_type("activation_patching", model, Model)
    metric, by_head = check_callable("metric", metric), check_flag("by_head", by_head)
    point = hooks.full_name(site)
    axes = hooks.axes(point)
    if "*" not in point or "pos" not in axes or (by_head and "head" not in axes):
        needed = {"pos", "head"} if by_head else {"pos"}
        sites = [hooks.short_name(p) for p, names in hooks.POINTS.items() if "*" in p and needed <= set(names)]
        raise HookNameError(
            f"site {site!r} has the axes {' '.join(axes)}; activation patching{' with by_head=True' * by_head} needs "
            f"{'positions and heads' if by_head else 'positions'} in every layer. Sites that have them: "
            f"{', '.join(sites)}."
        )
    corrupted_ids, clean_ids, first = two_prompts(model, clean, corrupted)
    if positions is None:
        patched = np.arange(first, len(corrupted_ids))
    else:
        patched = np.array(check_indices("position", positions, len(corrupted_ids)))
    c = model.config
    points = [hooks.at_layer(point, layer) for layer in range(c.n_layers)]
    last = hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)
    inputs = {
        "what": "activation_patching",
        "clean": clean_ids,
        "corrupted": corrupted_ids,
        "metric": metric,
        "site": point,
    }
    inputs |= {"positions": patched.tolist(), "by_head": by_head}
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, model_inputs(model) | inputs) as cells,
    ):
        corrupted_run, clean_run = CachedRun(model, corrupted_ids), CachedRun(model, clean_ids, points)
        baselines = [measured(metric, run.logits(slice(-1, None))[:, 0]) for run in (corrupted_run, clean_run)]
        shape = (c.n_layers, c.n_heads if by_head else len(patched))
        values = np.zeros(shape)
        batches = [
            (layer, batch)
            for layer in range(c.n_layers)
            for batch in _batches(corrupted_run, shape[1], patched, by_head)
        ]
        for layer, batch in progress_bar(batches, desc="patching", unit="pass"):
            flag.check()
            cell_ids = [layer * shape[1] + i for i in range(shape[1])[batch]]
            if all(cell_id in cells for cell_id in cell_ids):
                values[layer, batch] = [cells[cell_id] for cell_id in cell_ids]
                continue
            start = int(patched.min()) if by_head else int(patched[batch].min())
            n = len(range(shape[1])[batch])
            tap = _PatchTap(points[layer], clean_run.seen[points[layer]], start, batch, patched, by_head)
            cache = corrupted_run.cache.fork(n, start)
            resid = corrupted_run.resid(layer)[:, start:].expand(n, -1, -1)
            recorder = Recorder([last], device=model.device)
            model.forward_from(resid, layer, Chain(tap, recorder), cache, slice(0, 0))
            logits = unembed(c, model.weights, recorder[last][:, -1:])[:, 0]
            values[layer, batch] = metric(logits).double().cpu().numpy()
            for cell_id, value in zip(cell_ids, values[layer, batch]):
                cells.put(cell_id, value)
    scaled = (values - baselines[0]) / (baselines[1] - baselines[0])
    dims = ("layer", "head" if by_head else "pos")
    coords = {"layer": np.arange(c.n_layers), dims[1]: np.arange(c.n_heads) if by_head else patched}
    attrs = {"long_name": f"{site} from the clean run", "units": "share of the gap", "site": site}
    return xr.DataArray(scaled, coords, dims, attrs=attrs | {"corrupted": baselines[0], "clean": baselines[1]})


class _PatchTap(SingleHookTap):
    """Row i of the pass gets the clean value at one position, or in one head at all positions."""

    def __init__(self, name: str, clean: Tensor, start: int, part: slice, positions: np.ndarray, by_head: bool):
        self.name, self.clean, self.start, self.part, self.at, self.by_head = (
            name,
            clean,
            start,
            part,
            positions,
            by_head,
        )

    def changed(self, x: Tensor) -> Tensor:
        if self.by_head:
            positions = torch.as_tensor(self.at, device=x.device)
            for row, head in enumerate(range(x.shape[2])[self.part]):
                x[row, positions - self.start, head] = self.clean[0, positions, head]
        else:
            positions = torch.as_tensor(self.at[self.part], device=x.device)
            x[torch.arange(len(positions), device=x.device), positions - self.start] = self.clean[0, positions]
        return x


def _batches(base: CachedRun, n: int, positions: np.ndarray, by_head: bool) -> Iterator[slice]:
    """Which patches run in one pass: neighbors, so that the positions before them are computed once."""
    width = base.model.config.d_model
    start = 0
    while start < n:
        n_pos = len(base) - int(positions.min() if by_head else positions[start:].min())
        rows = max(1, min(MAX_ROWS, MAX_ELEMENTS_PER_PASS // (n_pos * width)))
        yield slice(start, min(start + rows, n))
        start += rows
