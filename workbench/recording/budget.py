"""How big a recording will be, told before the run; and what to leave out when it would not fit."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import hooks
from workbench.errors import BudgetError
from workbench.model.config import Config
from workbench.text import size_text

# What record="auto" takes, the most useful for its size first; the rest follows from these or is asked for by name.
AUTO = ("steps", "lens", "attention", "residuals", "writes", "values", "experts")
AUTO_SHARE = 0.25  # of the memory that is free: a notebook holds several traces
REFUSE_SHARE = 0.8
WORDS = {"float32": "F32", "bfloat16": "BF16", "float64": "F64"}
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I32": 4}

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> safetensors dtype word, shape


@dataclass(frozen=True)
class Estimate:
    """What a recording will take: `bytes` on disk, `memory` while it runs (both in bytes), and the share of each name.

    `fits` compares `memory` with 80 % of what the machine or the container has free.
    """

    bytes: int
    memory: int
    free: int
    by_name: dict[str, int]
    positions: int
    omitted: tuple[str, ...] = ()
    n_steps: int = 0

    @property
    def fits(self) -> bool:
        return self.memory <= REFUSE_SHARE * self.free

    def __str__(self) -> str:
        parts = [f"{size_text(size)} {name}" for name, size in sorted(self.by_name.items(), key=lambda kv: -kv[1])[:6]]
        verdict = "fits" if self.fits else "does not fit"
        left = f"; left out: {', '.join(self.omitted)}" if self.omitted else ""
        return (
            f"{size_text(self.bytes)} on disk for {self.positions} positions ({', '.join(parts)}); "
            f"{size_text(self.memory)} of memory while it runs, {size_text(self.free)} free: {verdict}{left}"
        )


def word(name: str, dtype: str) -> str:
    """The dtype in which a hook point or lane is kept; `dtype` is the model's."""
    ending = name.rpartition(".")[2]
    if name.endswith("_ids") or ending == "hook_expert_indices":
        return "I32"
    if name in hooks.SUMMARIES and name != "sinks":
        return "F32"
    if name == "sinks" or ending in ("hook_sink", "hook_attn_scores"):
        return "F64" if dtype == "float64" else "F32"
    return WORDS[dtype]


def shape(c: Config, name: str, n_pos: int, n_steps: int) -> tuple[int, ...]:
    """The shape that a hook point or lane will have in a trace of `n_pos` positions."""
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


def shapes(c: Config, wanted: Sequence[str], dtype: str, n_pos: int, n_steps: int) -> Shapes:
    """Dtype and shape of every array that would be recorded, by full name."""
    return {name: (word(name, dtype), shape(c, name, n_pos, n_steps)) for name in wanted}


def size(entry: tuple[str, tuple[int, ...]]) -> int:
    """The bytes of an array of that dtype and shape."""
    n = SIZES[entry[0]]
    for d in entry[1]:
        n *= d
    return n


def by_short_name(table: Shapes) -> dict[str, int]:
    """Bytes by the short name of a hook point, all layers together."""
    total: dict[str, int] = {}
    for name, entry in table.items():
        key = name if name in hooks.SUMMARIES else hooks.short_name(name)
        total[key] = total.get(key, 0) + size(entry)
    return total


def working_memory(c: Config, dtype: str, n_pos: int, wanted: Sequence[str], chunk: int) -> int:
    """About what a run takes besides weights and recording: keys and values, one layer's values, a piece of logits.

    `chunk`: the positions that are read at a time, of the `n_pos` of the text.
    """
    item = SIZES[WORDS[dtype]]
    cache = 2 * c.n_layers * c.n_kv_heads * c.d_head * n_pos * item
    layer = chunk * (8 * c.d_model + 4 * c.n_heads * c.d_head + 4 * c.d_mlp * c.n_active) * max(item, 4)
    attention = 3 * c.n_heads * 64 * n_pos * 4
    if any(name.endswith(("hook_attn_scores", "hook_pattern")) for name in wanted):
        attention += 5 * c.n_heads * chunk * n_pos * 4  # of one layer: scores, pattern, and their blocks
    if "lens_ids" in wanted:
        attention += c.n_layers * chunk * c.d_model * item  # residual streams wait for the final prediction
    return cache + layer + attention + 3 * 256 * c.d_vocab * 4


def refuse_if_device_too_small(working: int, free: int, device: str) -> None:
    """Raises BudgetError if a pass would not fit into what is free on the device."""
    if working > REFUSE_SHARE * free:
        raise BudgetError(
            f"a pass needs about {size_text(working)} on {device}, and 80 % of the {size_text(free)} that are free "
            f"there is {size_text(REFUSE_SHARE * free)}. Shorten the text, or record fewer patterns."
        )


def refuse_if_disk_too_small(nbytes: int, path: Path) -> None:
    """Raises BudgetError if the disk on which `path` lies has not enough room, before anything runs."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise BudgetError(
            f"the trace takes about {size_text(nbytes)}, and the disk of {folder} has {size_text(free)} free. "
            f"Record less, or give a place on another disk."
        )


def too_big(
    estimate: Estimate,
    requested: Mapping[str, Sequence[str]],
    price: Callable[[Sequence[str]], int],
    available: Collection[str],
    n_layers: int,
) -> BudgetError:
    """The error for a recording that does not fit: the price of each thing requested, and the cheaper choices."""
    cheaper = {
        "record='attention' (any pattern on demand)": hooks.expand("attention", n_layers),
        "record='residuals'": hooks.expand("residuals", n_layers),
        "one layer, record='blocks.0.hook_resid_*'": hooks.match("blocks.0.hook_resid_*", n_layers),
        "record='' (routing, predictions, sinks, norms only)": [],
    }
    prices = ", ".join(f"{word} {size_text(price(names))}" for word, names in requested.items())
    choices = {k: v for k, v in cheaper.items() if set(v) <= set(available)}
    return BudgetError(
        f"recording {' '.join(requested) or 'this'} over {estimate.positions} positions needs "
        f"{size_text(estimate.memory)} of memory, and 80 % of the {size_text(estimate.free)} that are free is "
        f"{size_text(REFUSE_SHARE * estimate.free)}. {prices and f'It asks for: {prices}. '}"
        f"Cheaper: {'; '.join(f'{k} {size_text(price(v))}' for k, v in choices.items())}; "
        f"or record='auto', which takes what fits."
    )
