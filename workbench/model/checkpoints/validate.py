"""Checks of the config and tensors of a gpt-oss (names, shapes, dtypes, values), and of the memory that it needs.

Independent of any file format.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import BudgetError, CheckpointError
from workbench.model.config import Config
from workbench.model.kernels import native
from workbench.model.kernels.packed import Packed
from workbench.model.madvise import can_release_pages
from workbench.model.memory import free_memory
from workbench.text import brief, size_text

Shape = tuple[int, ...]
DEQUANTIZE_MAX_BYTES = 256e6  # a model that takes less is dequantized, and gives the same numbers on every machine
FAST_FRACTION = 0.8  # of the free memory: a file up to this size stays mapped as a whole
PACKED_BYTES = 17 / 32  # per parameter in MXFP4: 16 bytes of codes and one byte of scale for 32 parameters
# Field of Config -> the smallest and largest value with which the forward pass computes something sensible. The largest
# sizes are far above any model's; they keep products of sizes from overflowing, and lists from filling the memory.
RANGES: dict[str, tuple[float, float]] = {
    "n_layers": (1, 10_000),
    "d_model": (1, 1 << 20),
    "n_heads": (1, 1 << 16),
    "n_kv_heads": (1, 1 << 16),
    "d_head": (2, 1 << 16),
    "n_experts": (1, 1 << 16),
    "n_active": (1, 1 << 16),
    "d_mlp": (1, 1 << 20),
    "d_vocab": (1, 1 << 24),
    "n_ctx": (1, (1 << 31) - 1),
    "window": (1, (1 << 31) - 1),
    "eps": (1e-12, 0.1),
    "swiglu_limit": (0.01, 1e6),
    "swiglu_alpha": (0.01, 100),
    "rope_theta": (2, 1e12),  # at 1, all pairs would rotate alike, and YaRN divides by its logarithm
    "rope_factor": (1, 10_000),
    "rope_beta_fast": (0.001, 10_000),
    "rope_beta_slow": (0.001, 10_000),
    "rope_original": (1, (1 << 31) - 1),
}
DENSE = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def top_shapes(c: Config) -> dict[str, Shape]:
    """Field of Weights -> shape, without the blocks."""
    return {"embed": (c.d_vocab, c.d_model), "ln_final": (c.d_model,), "unembed": (c.d_vocab, c.d_model)}


def block_shapes(c: Config) -> dict[str, Shape]:
    """Field of Block or Experts -> shape in the internal form; matrices are [out, in]."""
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
    """The shapes of the MXFP4 blocks and scales of a matrix [..., in]."""
    *rows, n = shape
    if n % 32:
        raise CheckpointError(f"{where}: MXFP4 experts need input dimensions divisible by 32, got {n} in the config.")
    return (*rows, n // 32, 16), (*rows, n // 32)


def check_tensors(expected: Mapping[str, Shape], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError unless `tensors` have exactly the expected names and shapes, and a valid dtype.

    Names that end in "blocks" or "scales" need uint8, all others a float dtype of `DENSE`.
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


def check_shapes(expected: Mapping[str, Shape], shapes: Mapping[str, Shape], where: str) -> None:
    """Raises a CheckpointError that lists all missing and unexpected tensors and all wrong shapes."""
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} is {list(shapes[name])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    complaints = [
        listed(names, one, many)
        for names, one, many in (
            (missing, "tensor is missing", "tensors are missing"),
            (extra, "tensor is unexpected", "tensors are unexpected"),
            (wrong, "tensor has a wrong shape", "tensors have wrong shapes"),
        )
        if names
    ]
    if complaints:
        advice = "Does config.json belong to these weights, and is every file here? Fetch or export the model again."
        raise CheckpointError(f"{where} does not match its config: {'; '.join(complaints)}. {advice}")


def check_scales(name: str, scales: Tensor, where: str) -> None:
    """Raises CheckpointError for a scale of 255, NaN in MXFP4: no published gpt-oss has one, so the file is damaged."""
    if scales.numel() and int(scales.max()) == 255:
        count = int((scales == 255).sum())
        raise CheckpointError(
            f"{where}: {name} has {count} scale bytes with the value 255, which MXFP4 defines as NaN. "
            f"Fetch or export it again."
        )


def packed(name: str, blocks: Tensor, scales: Tensor, where: str, device: torch.device) -> Packed:
    """The packed matrices of a layer. Raises CheckpointError for a scale that is NaN."""
    usual = native.safe_scales(scales) if native.isa() or native.decode() else False
    if not usual:
        check_scales(name, scales, where)
    return Packed(blocks.to(device), scales.to(device), usual)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError for NaN or infinity in a vector (norms, biases, sinks).

    Matrices are not checked: all of them would have to be read from disk.
    """
    bad = [n for n, t in tensors.items() if t.ndim == 1 and t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{where}: {listed(bad, 'tensor contains NaN or infinity', 'tensors contain NaN or infinity')}."
        )


def listed(names: Iterable[str], one: str, many: str, *, first: int = 4) -> str:
    """The number of names and the first few of them, for an error message.

    >>> listed(["a", "b", "c"], "tensor is missing", "tensors are missing", first=2)
    '3 tensors are missing: a, b, … (1 more)'
    """
    names = list(names)
    rest = f", … ({len(names) - first} more)" if len(names) > first else ""
    return f"{len(names)} {one if len(names) == 1 else many}: {', '.join(brief(n, 200) for n in names[:first])}{rest}"


def check_config(c: Config, where: str, keys: Mapping[str, str]) -> Config:
    """The config itself. Raises CheckpointError if a number is out of its range, or if two contradict each other.

    `keys`: for fields of Config, their names in the file, for the message.
    """
    for field, (low, high) in RANGES.items():
        value = getattr(c, field)
        if not low <= value <= high:  # also refuses NaN
            key = keys.get(field, field)
            name = field if key == field else f"{key} ({field})"
            raise CheckpointError(f"{where}: {name} must be between {low:,} and {high:,}, got {brief(value)}.")
    if c.rope_beta_fast < c.rope_beta_slow:
        raise CheckpointError(
            f"{where}: rope_beta_fast must be at least rope_beta_slow (YaRN keeps the fast rotations and stretches the "
            f"slow ones), got {c.rope_beta_fast} and {c.rope_beta_slow}."
        )
    if c.n_heads % c.n_kv_heads:
        raise CheckpointError(f"{where}: n_heads must be a multiple of n_kv_heads, got {c.n_heads} and {c.n_kv_heads}.")
    if c.n_active > c.n_experts:
        raise CheckpointError(
            f"{where}: n_active must be at most n_experts, got {c.n_active} of {c.n_experts} experts."
        )
    if c.d_head % 2:
        raise CheckpointError(f"{where}: d_head must be even (RoPE rotates pairs), got {c.d_head}.")
    if len(c.layer_types) != c.n_layers:
        raise CheckpointError(
            f"{where}: layer_types must have one entry for each layer, got "
            f"{len(c.layer_types)} layer_types for {c.n_layers} layers."
        )
    known = ("sliding_attention", "full_attention")
    if unknown := sorted({t for t in c.layer_types if t not in known}):
        raise CheckpointError(f"{where}: unknown layer type {brief(unknown[0])!r}; gpt-oss has {' and '.join(known)}.")
    return c


def default_dtype(config: Config, dtype: torch.dtype | None) -> torch.dtype:
    """`dtype` itself; for None, float32 below 1e9 parameters and bfloat16 above."""
    return dtype or (torch.float32 if config.n_params < 1e9 else torch.bfloat16)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a checkpoint is loaded: onto which device, in which dtype, and with which memory mode."""

    device: torch.device
    dtype: torch.dtype
    memory: str  # "fast" | "small"

    def keeps_packed(self, config: Config) -> bool:
        """Whether experts stored in MXFP4 stay packed; those of a small model are dequantized."""
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
    """The device, dtype and memory mode to load a checkpoint with.

    Args:
        config: the config of the checkpoint.
        where: the checkpoint's name in error messages.
        dtype: None for the default of `default_dtype`.
        device: the device to load onto.
        memory: "auto", "fast" or "small".
        packed: whether the experts are stored in MXFP4.
        mapped: whether the bytes of the file can be used without conversion.

    Raises:
        BudgetError: the checkpoint would not fit the memory; no tensor has been read.
    """
    target, free = default_dtype(config, dtype), free_memory(device)
    if memory == "auto":
        whole = config.n_packed * PACKED_BYTES + (config.n_params - config.n_packed) * 2
        memory = (
            "small"
            if mapped and device.type == "cpu" and can_release_pages() and whole > FAST_FRACTION * free
            else "fast"
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
        advice = "" if packed else " The published format, with experts in MXFP4, takes a third or less."
        raise BudgetError(
            f"{where}: its {config.n_params:,} parameters take {size_text(need)} in {_short(target)}, but {device} has "
            f"only {size_text(free)} free.{advice} Use a machine or a GPU with more memory{smaller}."
        )
    return plan


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
