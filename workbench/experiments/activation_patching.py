"""Activation patching: values of one run are put into another, place by place, and an metric is read off."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.errors import HookNameError, PromptError
from workbench.experiments.cached_run import CachedRun, SingleHookTap
from workbench.experiments.checkpoint import SweepCheckpoint, of_model
from workbench.model.gpt_oss import unembed
from workbench.model.model import Model, Prompt
from workbench.recording.taps import Recorder
from workbench.taps import Chain

ROWS = 32  # places that are patched in one pass, at most
WORK = 1 << 22  # numbers of one residual stream in a pass, at most
Outcome = Callable[[Tensor], Tensor]  # logits of the last position (batch d_vocab) -> batch


@dataclass(frozen=True)
class LogitDiff:
    """By how much the next token is rather `token` than `other`: the difference of their logits."""

    token: int
    other: int

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, self.token] - logits[:, self.other]


def logit_diff(model: Model, token: str | int, other: str | int) -> LogitDiff:
    """An metric for sweeps: the logit of one next token less that of another, given as texts or ids.

    >>> wb.patching.logit_diff(model, "7", "8")
    LogitDiff(token=22, other=23)

    Raises PromptError for a text that is not one token.
    """
    return LogitDiff(token_id(model, token), token_id(model, other))


def token_id(model: Model, token: str | int) -> int:
    """The id of one token, given as a text or as that. Raises PromptError for a text that is not one token."""
    if not isinstance(token, str):
        return int(token)
    if model.tokenizer is None:
        raise PromptError(f"this model has no tokenizer: give the id of {token!r}")
    ids = model.tokenizer.encode(token)
    if len(ids) != 1:
        raise PromptError(f"{token!r} is {len(ids)} tokens, and an metric is about one: {ids}")
    return ids[0]


def two_prompts(model: Model, clean: Prompt, corrupted: Prompt) -> tuple[list[int], list[int], int]:
    """The tokens of the corrupted and of the clean prompt, and the first position where they differ.

    Raises PromptError if they are not equally long or do not differ.
    """
    ours, theirs = model.to_tokens(corrupted), model.to_tokens(clean)
    if len(ours) != len(theirs):
        raise PromptError(
            f"the clean prompt has {len(theirs)} tokens and the corrupted one {len(ours)}: make them equal"
        )
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    if first is None:
        raise PromptError("the two prompts are the same, so nothing can be patched")
    return ours, theirs, first


def activation_patching(
    model: Model,
    clean: Prompt,
    corrupted: Prompt,
    metric: Outcome,
    *,
    site: str = "resid_pre",
    positions: Sequence[int] | None = None,
    by_head: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """What each place carries (layer pos): the metric with that place's value taken from the clean run.

    Both prompts have equally many tokens. 0 is the metric of the corrupted run, 1 that of the clean one; `attrs` hold
    both as they are. `site` is any hook point with an axis of positions; `positions` are those that differ unless
    given: what is equal in both up to a place is equal at that place. With `by_head` (sites with an axis of heads) the
    heads are patched one by one, at all these positions together (layer head).

    `resume` is a file that keeps finished cells: the same sweep, asked for again, goes on from there.

    A pass starts at its place, with the keys and values before it and the residual stream below it as they were.

    >>> gap = wb.patching.logit_diff(model, "8", "7")
    >>> clean, corrupted = (model.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    >>> sweep = wb.patching.activation_patching(model, clean, corrupted, gap)
    >>> sweep.dims, bool(np.isclose(sweep[0, 0], 1, atol=1e-3))  # the only token that differs carries all, at first
    (('layer', 'pos'), True)

    Raises PromptError if the prompts are not equally long or do not differ, HookNameError for a site without positions,
    ResumeError if the file holds another sweep.
    """
    point = hooks.full_name(site)
    axes = hooks.axes(point)
    if "*" not in point or "pos" not in axes or (by_head and "head" not in axes):
        want = "heads" if by_head else "positions, in every layer"
        raise HookNameError(f"{site!r} has the axes {' '.join(axes)}; a sweep here needs {want}")
    ours, theirs, first = two_prompts(model, clean, corrupted)
    at = np.arange(first, len(ours)) if positions is None else np.asarray(positions, int)
    c = model.config
    points = [hooks.at_layer(point, layer) for layer in range(c.n_layers)]
    last = hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)
    asked = {"what": "activation_patching", "clean": theirs, "corrupted": ours, "metric": metric, "site": point}
    asked |= {"positions": at.tolist(), "by_head": by_head}
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, of_model(model) | asked) as cells,
    ):
        base, other = CachedRun(model, ours), CachedRun(model, theirs, points)
        ends = [metric(reading.logits(slice(-1, None))[:, 0])[0].item() for reading in (base, other)]
        shape = (c.n_layers, c.n_heads if by_head else len(at))
        values = np.zeros(shape)
        todo = [(layer, part) for layer in range(c.n_layers) for part in _parts(base, shape[1], at, by_head)]
        for layer, part in tqdm(todo, desc="patching", unit="pass", leave=False, disable=None):
            flag.check()
            numbers = [layer * shape[1] + i for i in range(shape[1])[part]]
            if all(number in cells for number in numbers):
                values[layer, part] = [cells[number] for number in numbers]
                continue
            start = int(at.min()) if by_head else int(at[part].min())
            n = len(range(shape[1])[part])
            tap = _Place(points[layer], other.seen[points[layer]], start, part, at, by_head)
            cache = base.cache.fork(n, start)
            resid = base.resid(layer)[:, start:].expand(n, -1, -1)
            seen = Recorder([last], device=model.device)
            model.forward_from(resid, layer, Chain(tap, seen), cache, slice(0, 0))
            logits = unembed(c, model.weights, seen[last][:, -1:])[:, 0]
            values[layer, part] = metric(logits).double().cpu().numpy()
            for number, value in zip(numbers, values[layer, part]):
                cells.put(number, value)
    scaled = (values - ends[0]) / (ends[1] - ends[0])
    dims = ("layer", "head" if by_head else "pos")
    coords = {"layer": np.arange(c.n_layers), dims[1]: np.arange(c.n_heads) if by_head else at}
    attrs = {"long_name": f"{site} from the clean run", "units": "share of the gap", "site": site}
    return xr.DataArray(scaled, coords, dims, attrs=attrs | {"corrupted": ends[0], "clean": ends[1]})


class _Place(SingleHookTap):
    """Row i of the pass takes the clean value at its own place: one position, or one head at all positions."""

    def __init__(self, name: str, clean: Tensor, start: int, part: slice, at: np.ndarray, by_head: bool):
        self.name, self.clean, self.start, self.part, self.at, self.by_head = name, clean, start, part, at, by_head

    def changed(self, x: Tensor) -> Tensor:
        if self.by_head:
            here = torch.as_tensor(self.at, device=x.device)
            for row, head in enumerate(range(x.shape[2])[self.part]):
                x[row, here - self.start, head] = self.clean[0, here, head]
        else:
            here = torch.as_tensor(self.at[self.part], device=x.device)
            x[torch.arange(len(here), device=x.device), here - self.start] = self.clean[0, here]
        return x


def _parts(base: CachedRun, n: int, at: np.ndarray, by_head: bool) -> Iterator[slice]:
    """Places side by side in one pass: neighbours, so that what they share is read once."""
    width = base.model.config.d_model
    begin = 0
    while begin < n:
        left = len(base) - int(at.min() if by_head else at[begin:].min())
        rows = max(1, min(ROWS, WORK // (left * width)))
        yield slice(begin, min(begin + rows, n))
        begin += rows
