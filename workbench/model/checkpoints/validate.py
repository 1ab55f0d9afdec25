"""What any gpt-oss must look like: the numbers of its config; names, shapes, types and values of its tensors.

Knows the shapes that a Config asks for, and no format.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import BudgetError, CheckpointError
from workbench.model.checkpoints.pages import can_release_pages
from workbench.model.config import Config
from workbench.model.kernels import native
from workbench.model.kernels.packed import Packed
from workbench.model.memory import free_memory
from workbench.text import size_text

Shape = tuple[int, ...]
DEQUANTIZE_MAX_BYTES = 256e6  # bytes: a model that takes less is dequantised, and runs the same on every machine
FAST_MEMORY_FRACTION = 0.8  # of the free memory: a file up to that size stays mapped as a whole
PACKED_BYTES = 17 / 32  # of a parameter in MXFP4: 16 bytes of codes and one of scale for 32
DENSE = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def top_shapes(c: Config) -> dict[str, Shape]:
    """By field of Weights, outside of the blocks."""
    return {"embed": (c.d_vocab, c.d_model), "ln_final": (c.d_model,), "unembed": (c.d_vocab, c.d_model)}


def block_shapes(c: Config) -> dict[str, Shape]:
    """By field of Block and of Experts, in the internal form: matrices are [out, in]."""
    q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    return {
        "ln1": (c.d_model,),
        "w_q": (q, c.d_model),
        "b_q": (q,),
        "w_k": (kv, c.d_model),
        "b_k": (kv,),
        "w_v": (kv, c.d_model),
        "b_v": (kv,),
        "sinks": (c.n_heads,),
        "w_o": (c.d_model, q),
        "b_o": (c.d_model,),
        "ln2": (c.d_model,),
        "w_router": (c.n_experts, c.d_model),
        "b_router": (c.n_experts,),
        "up": (c.n_experts, 2 * c.d_mlp, c.d_model),
        "up_bias": (c.n_experts, 2 * c.d_mlp),
        "down": (c.n_experts, c.d_model, c.d_mlp),
        "down_bias": (c.n_experts, c.d_model),
    }


def packed_shapes(shape: Shape, where: str) -> tuple[Shape, Shape]:
    """Of the MXFP4 blocks and scales that hold a matrix [..., in]."""
    *rows, n = shape
    if n % 32:
        raise CheckpointError(f"{where}: MXFP4 experts need input dimensions that 32 divides, the config says {n}.")
    return (*rows, n // 32, 16), (*rows, n // 32)


def check_tensors(expected: Mapping[str, Shape], tensors: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError unless `tensors` are exactly the expected ones: no name more or less, every shape, every dtype.

    Integers are expected under names that end in blocks or scales, and numbers under all others.
    """
    check_shapes(expected, {name: tuple(t.shape) for name, t in tensors.items()}, where)
    wrong = []
    for name, tensor in tensors.items():
        allowed = (torch.uint8,) if name.endswith(("blocks", "scales")) else DENSE
        if tensor.dtype not in allowed:
            wrong.append(f"{name} is {_short(tensor.dtype)}, not {' or '.join(map(_short, allowed))}")
    if wrong:
        raise CheckpointError(
            f"{where}: {listed(wrong, 'tensor of an unexpected type', 'tensors of unexpected types')}."
        )


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Raises CheckpointError that lists everything missing, unexpected and of another shape."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {list(found[name])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    complaints = [
        listed(names, one, many)
        for names, one, many in (
            (missing, "tensor is missing", "tensors are missing"),
            (extra, "tensor is not gpt-oss's", "tensors are not gpt-oss's"),
            (wrong, "tensor has a wrong shape", "tensors have wrong shapes"),
        )
        if names
    ]
    if complaints:
        advice = "Is this config.json that of these weights, and is every file here? Fetch or export the model again."
        raise CheckpointError(f"{where} does not hold what its config describes: {'; '.join(complaints)}. {advice}")


def check_scales(name: str, scales: Tensor, where: str) -> None:
    """255 is NaN in the MXFP4 standard; no published gpt-oss has one, so the file is damaged."""
    if scales.numel() and int(scales.max()) == 255:
        count = int((scales == 255).sum())
        raise CheckpointError(
            f"{where}: {name} has {count} scale bytes of 255, which MXFP4 defines as NaN. Fetch or export it again."
        )


def packed(name: str, blocks: Tensor, scales: Tensor, where: str, device: torch.device) -> Packed:
    """The matrices of a layer as they are stored; CheckpointError for a scale that is NaN."""
    usual = native.safe_scales(scales) if native.isa() or native.decode() else False
    if not usual:
        check_scales(name, scales, where)
    return Packed(blocks.to(device), scales.to(device), usual)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Only the vectors: norms, biases and sinks cost nothing to look through, matrices would be read from disk."""
    bad = [n for n, t in tensors.items() if t.ndim == 1 and t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{where}: {listed(bad, 'tensor holds NaN or infinity', 'tensors hold NaN or infinity')}."
        )


def listed(names: Iterable[str], one: str, many: str, *, first: int = 4) -> str:
    """
    >>> listed(["a", "b", "c"], "tensor is missing", "tensors are missing", first=2)
    '3 tensors are missing: a, b, … (1 more)'
    """
    names = list(names)
    rest = f", … ({len(names) - first} more)" if len(names) > first else ""
    return f"{len(names)} {one if len(names) == 1 else many}: {', '.join(names[:first])}{rest}"


def check_config(c: Config, where: str) -> Config:
    """The config itself, if a model can have these numbers: sizes positive, heads in groups, layer types known."""
    sizes = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "n_experts", "n_active", "d_mlp", "d_vocab")
    for name in (*sizes, "n_ctx", "window", "rope_original", "eps", "rope_theta", "rope_factor"):
        value = getattr(c, name)
        if not (math.isfinite(value) and value > 0):
            raise CheckpointError(f"{where}: {name} must be positive, it is {value}.")
    if c.n_heads % c.n_kv_heads:
        raise CheckpointError(f"{where}: {c.n_kv_heads} kv heads cannot be shared evenly by {c.n_heads} heads.")
    if c.n_active > c.n_experts:
        raise CheckpointError(f"{where}: a token cannot choose {c.n_active} of {c.n_experts} experts.")
    if c.d_head % 2:
        raise CheckpointError(f"{where}: RoPE turns pairs, so d_head must be even, it is {c.d_head}.")
    if len(c.layer_types) != c.n_layers:
        raise CheckpointError(f"{where}: {len(c.layer_types)} layer_types for {c.n_layers} layers.")
    known = ("sliding_attention", "full_attention")
    if unknown := sorted({t for t in c.layer_types if t not in known}):
        raise CheckpointError(f"{where}: unknown layer type {unknown[0]!r}; gpt-oss has {' and '.join(known)}.")
    return c


def default_dtype(config: Config, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that was asked for; without one, fp32 for a small model and bf16 for a large one."""
    return dtype or (torch.float32 if config.n_params < 1e9 else torch.bfloat16)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a checkpoint will be plan: where, in which dtype, and whether its experts stay packed."""

    device: torch.device
    dtype: torch.dtype
    memory: str  # "fast" | "small", decided

    def keeps_packed(self, config: Config) -> bool:
        """Whether experts that are stored in MXFP4 stay so: not in a model that is a small matter when dequantised."""
        return self.memory == "small" or config.n_params * self.dtype.itemsize > DEQUANTIZE_MAX_BYTES


def plan_loading(
    config: Config,
    where: str,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    memory: str,
    packed: bool,
    mapped: bool,
) -> LoadPlan:
    """What to load into; BudgetError, before a tensor is read, if it would not fit.

    `packed`: the experts are stored in MXFP4; `mapped`: the file's own bytes can be used as they lie there.
    """
    target, free = default_dtype(config, dtype), free_memory(device)
    if memory == "auto":
        whole = config.n_packed * PACKED_BYTES + (config.n_params - config.n_packed) * 2
        memory = (
            "small" if mapped and device.type == "cpu" and can_release_pages() and whole > FAST_MEMORY_FRACTION * free else "fast"
        )
    plan = LoadPlan(device, target, memory)
    in_place = mapped and device.type == "cpu"
    need = (config.n_params - config.n_packed) * (0 if in_place and target == torch.bfloat16 else target.itemsize)
    if not packed:
        need += config.n_packed * (0 if in_place and target == torch.bfloat16 else target.itemsize)
    elif not plan.keeps_packed(config):
        need += config.n_packed * target.itemsize
    elif not in_place:
        need += int(config.n_packed * PACKED_BYTES)
    if need > 0.9 * free:
        smaller = ", or dtype=torch.bfloat16" if target.itemsize > 2 else ""
        advice = "" if packed else " With the experts in MXFP4, as published, it takes a third or less."
        raise BudgetError(
            f"{where}: its {config.n_params:,} parameters take {size_text(need)} in {_short(target)}, and {device} has "
            f"{size_text(free)} free.{advice} Take a machine or a GPU with more memory{smaller}."
        )
    return plan


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
