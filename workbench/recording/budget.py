"""Estimates the size of a recording before the run, and selects what to leave out if it would not fit."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import hooks
from workbench.errors import BudgetError
from workbench.model.config import Config
from workbench.text import size_text
from workbench.traces.format import MAX_TENSOR

# The presets of record="auto", the most useful for their size first. The others follow from these or have to be
# requested by name.
AUTO = ("steps", "lens", "attention", "residuals", "writes", "values", "experts")
AUTO_SHARE = 0.25  # of the free memory: a notebook holds several traces
REFUSE_SHARE = 0.8
DTYPE_CODES = {"float32": "F32", "bfloat16": "BF16", "float64": "F64"}
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I32": 4}

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> safetensors dtype code, shape


@dataclass(frozen=True)
class Estimate:
    """The size of a recording: `bytes` on disk, `memory` during the run (both in bytes), and `by_name` for each name.

    `fits` is True if `memory` is at most 80 % of the free memory of the machine or the container.
    """

    bytes: int
    memory: int
    free: int
    by_name: dict[str, int]
    positions: int
    omitted: tuple[str, ...] = ()
    n_steps: int = 0
    note: str = ""  # how it was made, if the model was not loaded; which copies of weights decoding uses

    @property
    def fits(self) -> bool:
        return self.memory <= REFUSE_SHARE * self.free

    def __str__(self) -> str:
        parts = [f"{size_text(size)} {name}" for name, size in sorted(self.by_name.items(), key=lambda kv: -kv[1])[:6]]
        verdict = "fits" if self.fits else "does not fit"
        omitted = f"; left out: {', '.join(self.omitted)}" if self.omitted else ""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{size_text(self.bytes)} on disk for {self.positions} positions ({', '.join(parts)}); "
            f"{size_text(self.memory)} of memory while it runs, {size_text(self.free)} free: {verdict}{omitted}{note}"
        )


def dtype_code(name: str, dtype: str) -> str:
    """The safetensors dtype code of a hook point or summary in a trace; `dtype` is the model's."""
    ending = name.rpartition(".")[2]
    if name.endswith("_ids") or ending == "hook_expert_indices":
        return "I32"
    if name in hooks.SUMMARIES and name != "sinks":
        return "F32"
    if name == "sinks" or ending in ("hook_sink", "hook_attn_scores"):
        return "F64" if dtype == "float64" else "F32"
    return DTYPE_CODES[dtype]


def shape(c: Config, name: str, n_pos: int, n_steps: int) -> tuple[int, ...]:
    """The shape that a hook point or summary will have in a trace of `n_pos` positions."""
    size = {
        "pos": n_pos,
        "query": n_pos,
        "key": n_pos,
        "layer": c.n_layers,
        "head": c.n_heads,
        "kv_head": c.n_kv_heads,
        "d_head": c.d_head,
        "d_model": c.d_model,
        "d_vocab": c.d_vocab,
        "expert": c.n_experts,
        "choice": c.n_active,
        "step": n_steps,
        "key_step": n_steps,
        "rank": min(hooks.RANKS.get(name, 0), c.d_vocab),
    }
    return tuple(size[axis] for axis in hooks.axes(name))


def shapes(c: Config, names: Sequence[str], dtype: str, n_pos: int, n_steps: int) -> Shapes:
    """Dtype and shape of every array that would be recorded, by full name."""
    return {name: (dtype_code(name, dtype), shape(c, name, n_pos, n_steps)) for name in names}


def size(entry: tuple[str, tuple[int, ...]]) -> int:
    """The bytes of an array of that dtype and shape."""
    n = SIZES[entry[0]]
    for d in entry[1]:
        n *= d
    return n


def by_short_name(table: Shapes) -> dict[str, int]:
    """Bytes of each hook point, by short name, summed over the layers."""
    total: dict[str, int] = {}
    for name, entry in table.items():
        key = name if name in hooks.SUMMARIES else hooks.short_name(name)
        total[key] = total.get(key, 0) + size(entry)
    return total


def working_memory(c: Config, dtype: str, n_pos: int, names: Sequence[str], chunk: int) -> int:
    """Approximate bytes of a run besides weights and recording: KV cache, one layer's values, a chunk of logits.

    `chunk`: the positions that are prefilled at a time, of the `n_pos` of the text.
    """
    item = SIZES[DTYPE_CODES[dtype]]
    cache = 2 * c.n_layers * c.n_kv_heads * c.d_head * n_pos * item
    layer = chunk * (8 * c.d_model + 4 * c.n_heads * c.d_head + 4 * c.d_mlp * c.n_active) * max(item, 4)
    attention = 3 * c.n_heads * 64 * n_pos * 4
    if any(name.endswith(("hook_attn_scores", "hook_pattern")) for name in names):
        attention += 5 * c.n_heads * chunk * n_pos * 4  # of one layer: scores, pattern, and their blocks
    if "lens_ids" in names:
        attention += c.n_layers * chunk * c.d_model * item  # residual streams are held until the final prediction
    return cache + layer + attention + 3 * 256 * c.d_vocab * 4


def row_memory(c: Config, dtype: str, n_pos: int) -> int:
    """Bytes of one text of a batch while it is generated, at most: keys and values, and what is recorded live."""
    item = SIZES[DTYPE_CODES[dtype]]
    # a cache that has to grow gets twice the room, and is in memory together with the smaller one
    cache = 3 * 2 * c.n_layers * c.n_kv_heads * c.d_head * n_pos * item
    return cache + c.n_layers * n_pos * (2 * c.n_experts * item + 8 * c.n_active)


def refuse_if_device_too_small(working: int, free: int, device: str) -> None:
    """Raises BudgetError if a pass would not fit into the free memory of the device."""
    if working > REFUSE_SHARE * free:
        raise BudgetError(
            f"a pass needs about {size_text(working)} on {device}; the limit is {size_text(REFUSE_SHARE * free)}, 80 % "
            f"of the free memory there ({size_text(free)}). Shorten the text, or record fewer patterns."
        )


def refuse_if_disk_too_small(nbytes: int, path: Path) -> None:
    """Raises BudgetError, before the run, if the disk of `path` does not have enough free space."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise BudgetError(
            f"the trace needs about {size_text(nbytes)}, and the disk of {folder} has {size_text(free)} free. "
            f"Record less, or give a path on another disk."
        )


def too_big(
    estimate: Estimate,
    requested: Mapping[str, Sequence[str]],
    size_of: Callable[[Sequence[str]], int],
    available: Collection[str],
    n_layers: int,
    over_limit: Mapping[str, int],
) -> BudgetError:
    """The error for a recording that does not fit: the size of each requested item, and smaller choices.

    Args:
        estimate: of the recording.
        requested: item of the request -> the hook points and summaries it stands for.
        size_of: the bytes of some of these.
        available: what the model exposes.
        n_layers: of the model.
        over_limit: bytes of each array that is larger than an array of a trace may be.
    """
    smaller = {
        "record='attention' (any pattern on demand)": hooks.expand("attention", n_layers),
        "record='residuals'": hooks.expand("residuals", n_layers),
        "one layer, record='blocks.0.hook_resid_*'": hooks.match("blocks.0.hook_resid_*", n_layers),
        "record='' (routing, predictions, sinks, norms only)": [],
    }
    sizes = ", ".join(f"{item} {size_text(size_of(names))}" for item, names in requested.items())
    choices = "; ".join(f"{k} {size_text(size_of(v))}" for k, v in smaller.items() if set(v) <= set(available))
    if estimate.fits and over_limit:
        name = max(over_limit, key=lambda name: over_limit[name])
        reason = (
            f"makes arrays that are too large for a trace, such as {name} with {size_text(over_limit[name])}; an array "
            f"may have {size_text(MAX_TENSOR)}"
        )
    else:
        reason = (
            f"needs {size_text(estimate.memory)} of memory; the limit is {size_text(REFUSE_SHARE * estimate.free)}, "
            f"80 % of the free memory ({size_text(estimate.free)})"
        )
    return BudgetError(
        f"recording {' '.join(requested) or 'this'} over {estimate.positions} positions {reason}. "
        f"{sizes and f'Requested: {sizes}. '}Smaller: {choices}; or record='auto', which takes what fits."
    )
