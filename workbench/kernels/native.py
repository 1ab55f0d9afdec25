"""The native kernels, where this machine has them: what native.c computes, with tensors in and out.

The library is compiled when workbench is installed and a C compiler is there (build.py). Without it `isa()` is None,
`why()` says in one line what to do, and every caller computes the same with torch; where numba is installed,
`decode()` says so and the products of single tokens are left to it (jit.py).
"""

import ctypes
import importlib.util
import os
from collections.abc import Sequence

import torch  # before the library: both then share torch's OpenMP and its threads
from torch import Tensor

from . import build
from .reference import BYTES, GROUP

LEVELS = {"avx512-bf16": 3, "avx2": 2, "neon": 1, "portable": 0}  # best first
SAFE = (47, 207)  # scale bytes whose numbers, times activations from 2^-30 to 2^30, stay normal in every form
FEW = 4  # rows that `linear_bf16` takes
DTYPES = (torch.bfloat16, torch.float32)
WANTED = "WORKBENCH_KERNELS"
INSTALL = "pip install numba"

_I, _L, _P, _F = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_SIGNATURES = {
    "wb_linear_mxfp4": (_I, [_I, _I, _I, _I, _P, _P, _L, _P, _L, _L, _P, _L, _L, _P, _L, _L, _L, _P]),
    "wb_linear_bf16": (_I, [_I, _I, _P, _L, _P, _L, _P, _L, _L, _P]),
    "wb_dequantise": (None, [_I, _I, _I, _P, _P, _L, _P]),
    "wb_within": (_I, [_I, _P, _L, _I, _I]),
    "wb_swiglu": (None, [_I, _I, _I, _P, _L, _L, _F, _F, _P]),
    "wb_scores": (_I, [_I, _I, _I, _P, _L, _L, _L, _P, _L, _L, _L, _L, _P]),
    "wb_softmax_sink": (None, [_I, _I, _P, _L, _L, _P, _P]),
    "wb_mix": (_I, [_I, _I, _I, _P, _L, _L, _P, _L, _L, _L, _L, _P]),
    "wb_runs": (_I, [_I]),
    "wb_threaded": (_I, []),
    "wb_source": (ctypes.c_char_p, []),
}


class _State:
    """What is loaded and what is wanted; filled at first use, so that importing costs nothing."""

    loaded = False
    library: ctypes.CDLL | None = None
    missing = ""  # why there is no library
    wanted: str | None = None
    level: int | None = None  # None: torch computes
    levels: tuple[str, ...] = ()
    decoder: str | None = None  # "numba": it computes what torch is slow at
    broken = ""  # why numba, which is installed, cannot be used


def _load() -> None:
    """Open the library once and choose the best level, or what WORKBENCH_KERNELS asks for."""
    if _State.loaded:
        return
    _State.library, _State.levels, _State.missing = None, (), ""
    try:
        _State.library = _open()
        _State.levels = tuple(name for name, i in LEVELS.items() if _State.library.wb_runs(i))
    except (OSError, AttributeError, build.CannotBuild) as e:
        _State.missing = str(e)
    _State.loaded = True
    wanted = os.environ.get(WANTED) or None
    try:
        use(wanted)
    except ValueError as e:
        use("torch" if _State.library is None else None)
        _State.missing = f"{WANTED}: {e}"


def _open() -> ctypes.CDLL:
    if not build.LIBRARY.exists():
        raise build.CannotBuild(f"not compiled: {build.HOW}")
    library = ctypes.CDLL(str(build.LIBRARY))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if build.SOURCE.exists() and library.wb_source().decode() != build.digest():
        raise build.CannotBuild("compiled from another native.c; run: python -m workbench.kernels.build")
    return library


def use(level: str | None) -> None:
    """Compute with this level from now on: one of `kinds()`, or None for the best there is."""
    can = kinds()
    if level is not None and level not in can:
        raise ValueError(f"{level} kernels do not run here; what does: {', '.join(can)}")
    _State.wanted = level
    chosen = level or can[0]
    _State.level = LEVELS.get(chosen)
    _State.decoder = "numba" if chosen == "numba" else None


def kinds() -> list[str]:
    """What this machine can compute with, best first: `levels()`, "numba" for single tokens only, "torch" for all."""
    return [*levels(), *(["numba"] if _has_numba() else []), "torch"]


def _has_numba() -> bool:
    return not _State.broken and importlib.util.find_spec("numba") is not None


def without_numba(reason: str) -> None:
    """From now on torch computes what numba would have."""
    _State.broken = reason.splitlines()[0]
    _State.decoder = None


def isa() -> str | None:
    """The level in use; None where torch computes."""
    _load()
    return None if _State.level is None else next(name for name, i in LEVELS.items() if i == _State.level)


def takes(x: Tensor) -> bool:
    """Whether C computes with this here: on the CPU, in bf16 or fp32, and no gradient is wanted."""
    plain = x.device.type == "cpu" and x.dtype in DTYPES
    return plain and isa() is not None and not (torch.is_grad_enabled() and x.requires_grad)


def decode() -> str | None:
    """ "numba" where it computes the products of single tokens, see jit.py; None where C does, or torch."""
    _load()
    return _State.decoder


def levels() -> list[str]:
    """What this machine can run, best first; empty without the library."""
    _load()
    return list(_State.levels)


def why() -> str:
    """One line for people: which kernels are in use, or why none are and how to get them."""
    name = isa()
    if name is None:
        off = _State.wanted in ("torch", "numba") and not _State.missing
        reason = "switched off" if off else _State.missing
        if decode():
            rest = "numba decodes (compiling takes seconds once), for the rest torch computes"
            return f"no native kernels, {rest}: {reason}"
        if _State.broken:
            reason += f" (numba is installed but fails: {_State.broken})"
        elif not off and not _has_numba():
            reason += f"; or, for tokens one by one: {INSTALL}"
        return f"no native kernels, torch computes: {reason}"
    threads = "" if _library().wb_threaded() else ", compiled without OpenMP: one thread"
    asked = f" ({_State.missing})" if _State.missing else ""
    return f"native kernels: {name}{threads}{asked}"


def safe_scales(scales: Tensor) -> bool:
    """Whether every scale byte lies where all forms are exact; outside, `dequantise` and torch are the way."""
    _check(scales.dtype == torch.uint8, "scales are uint8", scales)
    if decode() == "numba":
        low, high = torch.aminmax(scales) if scales.numel() else SAFE
        return SAFE[0] <= int(low) and int(high) <= SAFE[1]
    flat = _cpu(scales).contiguous()
    inside = _library().wb_within(_threads(), flat.data_ptr(), flat.numel(), *SAFE)
    return bool(_memory(inside))


def linear_mxfp4(
    x: Tensor, groups: Sequence[tuple[int, int, int]], blocks: Tensor, scales: Tensor, bias: Tensor, few: bool
) -> Tensor:
    """x W^T + b, every expert for its rows, in fp32 and rounded once; W is never written out.

    x: row in, sorted by expert; groups: (expert, first row, last row), which cover the rows in order; blocks: uint8
    expert out group 16; scales: uint8 expert out group; bias: expert out, as x. `few` streams the weights, which is
    best up to four rows an expert; otherwise they are decoded once for many. Within a form the bits of a row do not
    depend on the other rows. ValueError for what does not belong together; scales must be `safe_scales`.
    """
    flat = check_mxfp4(x, groups, blocks, scales, bias)
    n_out, n_groups = scales.shape[1:]
    out = x.new_empty(x.shape[0], n_out)
    if not out.numel() or not n_groups:
        return out if not out.numel() else out.copy_(torch.cat([bias[e].expand(b - a, -1) for e, a, b in groups]))
    ends = (ctypes.c_int64 * len(flat))(*flat)
    _memory(
        _library().wb_linear_mxfp4(
            _level(), _threads(), x.dtype == torch.bfloat16, few, x.data_ptr(), ends, len(flat) // 3,
            blocks.data_ptr(), *blocks.stride()[:2], scales.data_ptr(), *scales.stride()[:2],
            bias.data_ptr(), bias.stride(0), n_out, n_groups, out.data_ptr(),
        )
    )  # fmt: skip
    return out


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for 1 to 4 rows in bf16: sums in fp32, rounded once; the bits of a row do not depend on the others."""
    check_bf16(x, weight, bias)
    n_out = weight.shape[0]
    x = x.contiguous()
    out = x.new_empty(x.shape[0], n_out)
    where = None if bias is None else bias.data_ptr()
    _memory(
        _library().wb_linear_bf16(
            _level(), _threads(), x.data_ptr(), x.shape[0], weight.data_ptr(), weight.stride(0), where,
            x.shape[1], n_out, out.data_ptr(),
        )
    )  # fmt: skip
    return out


def dequantise(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`reference.dequantise_mxfp4`, bit for bit, in fp32 or bf16."""
    _check(blocks.dtype == scales.dtype == torch.uint8, "blocks and scales are uint8", blocks)
    if blocks.shape != (*scales.shape, BYTES):
        raise ValueError(f"blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not belong together")
    if dtype not in DTYPES:
        raise ValueError(f"MXFP4 is dequantised to float32 or bfloat16 here, not {dtype}")
    blocks, scales = _cpu(blocks).contiguous(), _cpu(scales).contiguous()
    out = torch.empty(*scales.shape[:-1], GROUP * scales.shape[-1], dtype=dtype)
    _library().wb_dequantise(
        _level(),
        _threads(),
        dtype == torch.bfloat16,
        blocks.data_ptr(),
        scales.data_ptr(),
        scales.numel(),
        out.data_ptr(),
    )
    return out


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """`experts.swiglu`: x [..., 2n] with gate 0, up 0, gate 1, …; in fp32, rounded once."""
    _check(x.dtype in DTYPES and x.ndim >= 1 and x.shape[-1] % 2 == 0, "x is bf16 or fp32 [..., 2n]", x)
    x = _cpu(x).contiguous()
    n = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], n)
    rows = out.numel() // n if n else 0
    _library().wb_swiglu(
        _level(), _threads() if out.numel() > 1 << 15 else 1, x.dtype == torch.bfloat16, x.data_ptr(), rows, n, alpha,
        limit, out.data_ptr(),
    )  # fmt: skip
    return out


def scores(q: Tensor, k: Tensor) -> Tensor:
    """q·k / sqrt(d_head) of one query, rounded to the dtype of q, in fp32: head key.

    q: head d_head; k: kv_head key d_head, a view of a cache if need be. Head h reads kv_head h // (heads / kv_heads).
    """
    _check(q.dtype in DTYPES and q.ndim == 2 and q.shape[1] > 0, "q is [head, d_head], bf16 or fp32", q)
    _check(q.shape[1] <= 1 or q.stride(1) == 1, "a head of q lies together", q)
    _keys(q.dtype, q.shape[0], q.shape[1], k)
    s = torch.empty(q.shape[0], k.shape[1], dtype=torch.float32)
    _memory(
        _library().wb_scores(
            _level(), _threads(), q.dtype == torch.bfloat16, _cpu(q, k).data_ptr(), q.stride(0), q.shape[0], q.shape[1],
            k.data_ptr(), k.shape[0], k.shape[1], k.stride(0), k.stride(1), s.data_ptr(),
        )
    )  # fmt: skip
    return s


def softmax_sink_(s: Tensor, sinks: Tensor) -> Tensor:
    """Scores [head, key] become the pattern in place, rows summing to 1 - sink; gives the sink's share by head."""
    _check(s.dtype == torch.float32 and s.ndim == 2 and s.is_contiguous(), "s is fp32 [head, key], contiguous", s)
    _check(sinks.shape == s.shape[:1], "one sink a head", sinks)
    sinks = _cpu(sinks, s).to(torch.float32).contiguous()
    mass = torch.empty(s.shape[0])
    _library().wb_softmax_sink(
        _level(), _threads(), s.data_ptr(), s.shape[0], s.shape[1], sinks.data_ptr(), mass.data_ptr()
    )
    return mass


def mix(pattern: Tensor, v: Tensor) -> Tensor:
    """The values weighted by the pattern, which is rounded to their dtype first: head d_head.

    pattern: fp32 head key; v: kv_head key d_head.
    """
    _check(pattern.dtype == torch.float32 and pattern.ndim == 2, "pattern is fp32 [head, key]", pattern)
    _check(pattern.is_contiguous(), "pattern is contiguous", pattern)
    _check(v.dtype in DTYPES, "v is bf16 or fp32", v)
    _keys(v.dtype, pattern.shape[0], v.shape[-1] if v.ndim else 0, v)
    _check(v.shape[1] == pattern.shape[1], f"{pattern.shape[1]} keys", v)
    out = torch.empty(pattern.shape[0], v.shape[2], dtype=v.dtype)
    _memory(
        _library().wb_mix(
            _level(), _threads(), v.dtype == torch.bfloat16, _cpu(pattern, v).data_ptr(), *pattern.shape, v.data_ptr(),
            v.shape[0], v.shape[2], v.stride(0), v.stride(1), out.data_ptr(),
        )
    )  # fmt: skip
    return out


def check_mxfp4(
    x: Tensor, groups: Sequence[tuple[int, int, int]], blocks: Tensor, scales: Tensor, bias: Tensor
) -> list[int]:
    """ValueError for what `linear_mxfp4` does not take; otherwise the groups, one number after the other."""
    _check(x.dtype in DTYPES and x.ndim == 2 and x.is_contiguous(), "x is [row, in], contiguous, bf16 or fp32", x)
    _check(blocks.dtype == torch.uint8 and blocks.ndim == 4, "blocks are uint8 [expert, out, group, 16]", blocks)
    n_experts, n_out, n_groups, _ = blocks.shape
    _check(blocks.shape[3] == BYTES and x.shape[1] == GROUP * n_groups, f"blocks hold rows of {x.shape[1]}", blocks)
    _check(_within(blocks, 2), "the codes of a row lie together", blocks)
    _check(scales.dtype == torch.uint8 and scales.shape == blocks.shape[:3], "scales go with the blocks", scales)
    _check(_within(scales, 1), "the scales of a row lie together", scales)
    _check(bias.dtype == x.dtype and bias.shape == (n_experts, n_out), "bias is [expert, out] as x", bias)
    _check(n_out <= 1 or bias.stride(1) == 1, "the bias of an expert lies together", bias)
    row, flat = 0, []
    for expert, first, last in groups:
        if not (0 <= expert < n_experts and first == row <= last):
            raise ValueError(
                f"groups cover the rows in order, with experts 0 to {n_experts - 1}: {expert, first, last}"
            )
        row = last
        flat += (expert, first, last)
    if row != x.shape[0]:
        raise ValueError(f"groups end at row {row} of {x.shape[0]}")
    _cpu(x, blocks, scales, bias)
    return flat


def check_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """ValueError for what `linear_bf16` does not take."""
    _check(x.dtype == torch.bfloat16 and x.ndim == 2 and 1 <= x.shape[0] <= FEW, f"x is bf16 [1 to {FEW}, in]", x)
    _check(weight.dtype == torch.bfloat16 and weight.ndim == 2, "weight is bf16 [out, in]", weight)
    _check(weight.shape[1] == x.shape[1] and _within(weight, 1), f"a row of weights is {x.shape[1]} together", weight)
    n_out = weight.shape[0]
    if bias is not None:
        _check(
            bias.dtype == torch.bfloat16 and bias.shape == (n_out,) and bias.is_contiguous(), "bias is bf16 [out]", bias
        )
        _cpu(bias)
    _cpu(x, weight)


def _keys(dtype: torch.dtype, heads: int, d_head: int, cache: Tensor) -> None:
    _check(cache.dtype == dtype and cache.ndim == 3, f"keys and values are {dtype} [kv_head, key, d_head]", cache)
    _check(cache.shape[2] == d_head and (d_head <= 1 or cache.stride(2) == 1), f"d_head is {d_head}, together", cache)
    _check(cache.shape[0] > 0 and heads % cache.shape[0] == 0, f"{heads} heads share the kv heads evenly", cache)


def _within(x: Tensor, dims: int) -> bool:
    """Whether the last `dims` dimensions lie as in a contiguous tensor; a dimension of one has no stride to mind."""
    if x.is_contiguous():
        return True
    step = 1
    for size, stride in zip(reversed(x.shape[-dims:]), reversed(x.stride()[-dims:])):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _check(holds: bool, must: str, x: Tensor) -> None:
    if not holds:
        raise ValueError(f"{must}; got {x.dtype} {tuple(x.shape)} with strides {x.stride()}")


def _cpu(x: Tensor, *others: Tensor) -> Tensor:
    for t in (x, *others):
        if t.device.type != "cpu" or t.layout != torch.strided:
            raise ValueError(f"the native kernels compute on the CPU, not on {t.device}")
    return x


def _library() -> ctypes.CDLL:
    _load()
    if _State.library is None:
        raise ValueError(why())
    return _State.library


def _level() -> int:
    _load()
    if _State.level is None:
        raise ValueError(why())
    return _State.level


def _threads() -> int:
    return torch.get_num_threads()


def _memory(result: int) -> int:
    """What C returned, unless it had no memory: 1 from a product, -1 from a scan."""
    if result < 0:
        raise MemoryError("no memory for the native kernels")
    return result
