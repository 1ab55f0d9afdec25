"""The native kernels of native.c with tensors as arguments and results, if this machine has them.

The library is compiled when workbench is installed and a C compiler is available (build.py). Without it `isa()` is
None, `status()` returns one line with the remedy, and every caller computes the same with torch. If numba is installed,
`decode()` is "numba", and numba computes the products of single tokens (jit.py).
"""

import ctypes
import importlib.util
import os
from collections.abc import Sequence

import torch  # before the library: both then share torch's OpenMP and its threads
from torch import Tensor

from workbench.checks import check_expert
from workbench.errors import ArgumentError
from workbench.model.kernels import build
from workbench.model.kernels.reference import BYTES, GROUP

LEVELS = {"avx512-bf16": 3, "avx2": 2, "neon": 1, "portable": 0}  # best first
SAFE_SCALES = (47, 207)  # scale bytes whose products with activations from 2^-30 to 2^30 are normal in every form
DECODE_MAX_ROWS = 4  # rows of x that numba computes at once, see jit.py
DTYPES = (torch.bfloat16, torch.float32)
VARIABLE = "WORKBENCH_KERNELS"  # the environment variable that selects the kernels
INSTALL_NUMBA = "pip install numba"

_I, _L, _P, _F = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_U, _D = ctypes.c_uint64, ctypes.c_double
_SIGNATURES = {
    "wb_linear": (_I, [_I, _I, _I, _I, _P, _L, _P, _L, _P, _L, _L, _L, _P, _L, _L, _P, _L, _L, _L, _P, _L]),
    "wb_linear_planes": (_I, [_I, _I, _P, _L, _L, *[_P] * 6, _L, _L, _P]),
    "wb_upper_bytes": (None, [_I, _P, _L, _L, _L, _P]),
    "wb_pack_planes": (None, [_I, _P, _L, _L, _L, *[_P] * 5]),
    "wb_unpack_planes": (None, [_I, _I, *[_P] * 5, _L, _L, _P]),
    "wb_dequantize": (None, [_I, _I, _I, _P, _P, _L, _P]),
    "wb_within": (_I, [_I, _P, _L, _I, _I]),
    "wb_rms_norm": (None, [_I, _I, _I, _P, _L, _L, _P, _F, _P]),
    "wb_swiglu": (None, [_I, _I, _I, _P, _L, _L, _F, _F, _P]),
    "wb_log_softmax": (None, [_I, _I, _I, _P, _L, _L, _P]),
    "wb_entropy": (None, [_I, _I, _P, _P, _L, _L, _P]),
    "wb_mixture": (None, [_I, _I, _I, _P, _P, _L, _L, _L, _P]),
    "wb_rotate": (None, [_I, _I, _I, _P, _L, _L, _L, _L, _P, _P, _P]),
    "wb_scores": (_I, [_I, _I, _I, _P, *[_L] * 7, _P, *[_L] * 7, _P]),
    "wb_softmax": (None, [_I, _I, _P, _L, _L, _L, _L, _L, _P, _P]),
    "wb_mix": (_I, [_I, _I, _I, _P, *[_L] * 4, _P, *[_L] * 6, _P]),
    "wb_noise": (None, [_I, _I, _U, _U, _L, _P]),
    "wb_screen_copy": (None, [_I, _I, _P, _L, _L, _L, _L, _P, _P, _P, _P]),
    "wb_screen": (_L, [_I, _I, _P, _L, _L, _L, _P, _P, _P, _P, _D, _U, _U, _P, _P, _P, _P, _L]),
    "wb_runs": (_I, [_I]),
    "wb_threaded": (_I, []),
    "wb_source": (ctypes.c_char_p, []),
}


class _State:
    """The loaded library and the requested level; set at first use, so that importing costs nothing."""

    loaded = False
    library: ctypes.CDLL | None = None
    missing = ""  # the reason if there is no library
    requested: str | None = None
    level: int | None = None  # None: computed by torch
    name: str | None = None  # of the level
    levels: tuple[str, ...] = ()
    decoder: str | None = None  # "numba" if it computes the products of single tokens
    broken = ""  # the reason if numba is installed but cannot be used


def _load() -> None:
    """Open the library once and choose the best level, or the one in WORKBENCH_KERNELS."""
    if _State.loaded:
        return
    _State.library, _State.levels, _State.missing = None, (), ""
    try:
        _State.library = _open()
        _State.levels = tuple(name for name, i in LEVELS.items() if _State.library.wb_runs(i))
    except (OSError, AttributeError, build.CannotBuild) as e:
        _State.missing = str(e)
    _State.loaded = True
    requested = os.environ.get(VARIABLE) or None
    try:
        use(requested)
    except ValueError as e:
        use("torch" if _State.library is None else None)
        _State.missing = f"{VARIABLE}: {e}"


def _open() -> ctypes.CDLL:
    if not build.LIBRARY.exists():
        raise build.CannotBuild(f"not compiled: {build.INSTRUCTIONS}")
    library = ctypes.CDLL(str(build.LIBRARY))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if build.SOURCE.exists() and library.wb_source().decode() != build.digest():
        raise build.CannotBuild(
            "compiled from another version of native.c; run: python -m workbench.model.kernels.build"
        )
    return library


def use(level: str | None) -> None:
    """Select a level: one of `available()`, or None for the best."""
    choices = available()
    if level is not None and level not in choices:
        raise ArgumentError(f"{level} kernels do not run here. Choose one of {', '.join(choices)}.")
    _State.requested = level
    chosen = level or choices[0]
    _State.level = LEVELS.get(chosen)
    _State.name = chosen if chosen in LEVELS else None
    _State.decoder = "numba" if chosen == "numba" else None


def available() -> list[str]:
    """The kernels this machine can use, best first: `levels()`, "numba" (for single tokens only), "torch"."""
    return [*levels(), *(["numba"] if _has_numba() else []), "torch"]


def _has_numba() -> bool:
    return not _State.broken and importlib.util.find_spec("numba") is not None


def without_numba(reason: str) -> None:
    """Replace numba by torch from now on, because of this error."""
    _State.broken = reason.splitlines()[0]
    _State.decoder = None


def isa() -> str | None:
    """The native level in use, or None if torch computes."""
    if not _State.loaded:
        _load()
    return _State.name


FIXED_ORDER, BF16_PAIRS = "fixed order 1", "avx512-bf16"  # see fixed_order.h; other names if the order ever changes


def in_use() -> tuple:
    """Everything but the tensors that determines how products are computed: level, decoder and number of threads.

    Equal values mean equal bits.
    """
    return isa(), decode(), torch.get_num_threads()


def arithmetic(dtype: torch.dtype, device: str) -> str:
    """The name of the arithmetic that determines the bits of a run in this dtype, besides weights and tokens.

    "fixed order 1" gives the same bits on every processor, "avx512-bf16" on every processor that has it. With "numba"
    and "torch" the bits also depend on versions, processor and number of threads.
    """
    if device != "cpu" or dtype not in DTYPES or isa() is None:
        return (decode() or "torch") if device == "cpu" else "torch"
    return BF16_PAIRS if dtype == torch.bfloat16 and isa() == "avx512-bf16" else FIXED_ORDER


def supports(x: Tensor) -> bool:
    """True if the native kernels compute with x: on the CPU, in bf16 or fp32, and without gradients."""
    # called dozens of times a layer: the cheap conditions are plain attributes
    supported = x.is_cpu and x.dtype in DTYPES and isa() is not None
    return supported and not (x.requires_grad and torch.is_grad_enabled())


def decode() -> str | None:
    """ "numba" if numba computes the products of single tokens (jit.py); None if C or torch does."""
    _load()
    return _State.decoder


def levels() -> list[str]:
    """The native levels this machine can run, best first; empty without the library."""
    _load()
    return list(_State.levels)


def status() -> str:
    """One line for users: the kernels in use, or why there are none and how to get them."""
    name = isa()
    if name is None:
        off = _State.requested in ("torch", "numba") and not _State.missing
        reason = "switched off" if off else _State.missing
        if decode():
            rest = "numba decodes (compiling takes seconds once), torch computes the rest"
            return f"no native kernels, {rest}: {reason}"
        if _State.broken:
            reason += f" (numba is installed but fails: {_State.broken})"
        elif not off and not _has_numba():
            reason += f"; or, for faster decoding: {INSTALL_NUMBA}"
        return f"no native kernels, torch computes: {reason}"
    threads = "" if library().wb_threaded() else ", compiled without OpenMP: one thread"
    note = f" ({_State.missing})" if _State.missing else ""
    return f"native kernels: {name}{threads}{note}"


def safe_scales(scales: Tensor) -> bool:
    """True if every scale byte is in the range in which all forms are exact; otherwise use `dequantize` and torch."""
    _check(scales.dtype == torch.uint8, "scales must be uint8", scales)
    if decode() == "numba":
        low, high = torch.aminmax(scales) if scales.numel() else SAFE_SCALES
        return SAFE_SCALES[0] <= int(low) and int(high) <= SAFE_SCALES[1]
    flat = _cpu(scales).contiguous()
    inside = library().wb_within(_threads(), flat.data_ptr(), flat.numel(), *SAFE_SCALES)
    if inside < 0:
        raise MemoryError("no memory for the native kernels")
    return bool(inside)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in the dtype of x: sums in fp32, rounded once; the bits of a row do not depend on the other rows.

    x: row in; weight: out in, as x. Raises ArgumentError for unsupported shapes, dtypes and strides.
    """
    check_dense(x, weight, bias)
    rows, (n_out, n_in) = x.shape[0], weight.shape
    out = x.new_empty(rows, n_out)
    if not out.numel():
        return out
    check_memory(
        library().wb_linear(
            level(), _threads(), x.dtype == torch.bfloat16, x.dtype == torch.bfloat16, x.data_ptr(), x.stride(0),
            (ctypes.c_int64 * 3)(0, 0, rows), 1, weight.data_ptr(), 0, *weight.stride(), None, 0, 0,
            None if bias is None else bias.data_ptr(), 0, n_in, n_out, out.data_ptr(), n_out,
        )
    )  # fmt: skip
    return out


def linear_experts(
    x: Tensor, groups: Sequence[tuple[int, int, int]], weights: Tensor | tuple[Tensor, Tensor], bias: Tensor | None
) -> Tensor:
    """x W^T + b with each expert's matrix for its rows: sums in fp32, rounded once; a row's bits depend on it alone.

    Args:
        x: row in, sorted by expert; fp32 or bf16.
        groups: (expert, first row, last row); they must cover the rows in order.
        weights: expert out in, as x, with any strides; or MXFP4 as (blocks, scales): uint8 expert out group 16, and
            expert out group. Blocks are never dequantized as a whole; the scales must be `safe_scales`.
        bias: expert out, as x; or None.

    Returns:
        row out, as x.

    Raises:
        ArgumentError: shapes, dtypes or strides do not match.
    """
    flat = check_groups(groups, x.shape[0] if x.ndim == 2 else -1)
    if isinstance(weights, Tensor):
        check_experts(x, groups, weights, bias)
        n_out, n_in = weights.shape[1:]
        stored = int(weights.dtype == torch.bfloat16)
        matrix = (weights.data_ptr(), *weights.stride(), None, 0, 0)
    else:
        blocks, scales = weights
        check_mxfp4(x, groups, blocks, scales, bias)
        n_out, n_in = scales.shape[1], GROUP * scales.shape[2]
        stored = 2
        matrix = (blocks.data_ptr(), *blocks.stride()[:2], 1, scales.data_ptr(), *scales.stride()[:2])
    out = x.new_empty(x.shape[0], n_out)
    if not out.numel():
        return out
    check_memory(
        library().wb_linear(
            level(), _threads(), stored, x.dtype == torch.bfloat16, x.data_ptr(), x.stride(0),
            (ctypes.c_int64 * len(flat))(*flat), len(flat) // 3, *matrix,
            None if bias is None else bias.data_ptr(), 0 if bias is None else bias.stride(0), n_in, n_out,
            out.data_ptr(), n_out,
        )
    )  # fmt: skip
    return out


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`reference.dequantize_mxfp4`, bit for bit, in fp32 or bf16."""
    _check(blocks.dtype == scales.dtype == torch.uint8, "blocks and scales must be uint8", blocks)
    if blocks.shape != (*scales.shape, BYTES):
        raise ArgumentError(f"blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not match")
    if dtype not in DTYPES:
        raise ArgumentError(f"MXFP4 is dequantized to float32 or bfloat16 here, got {dtype}.")
    blocks, scales = _cpu(blocks).contiguous(), _cpu(scales).contiguous()
    out = torch.empty(*scales.shape[:-1], GROUP * scales.shape[-1], dtype=dtype, device="cpu")
    library().wb_dequantize(
        level(),
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
    _check(x.dtype in DTYPES and x.ndim >= 1 and x.shape[-1] % 2 == 0, "x must be bf16 or fp32 [..., 2n]", x)
    x = _cpu(x).contiguous()
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    library().wb_swiglu(*_row_arguments(x, out.shape[-1]), alpha, limit, out.data_ptr())
    return out


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`rows.rms_norm`: x / sqrt(mean x² + eps) · scale over the last axis, in fp32, rounded once. scale: fp32."""
    _check(x.dtype in DTYPES and x.ndim >= 1, "x must be bf16 or fp32 [..., n]", x)
    _check(
        scale.dtype == torch.float32 and scale.shape == x.shape[-1:] and scale.is_contiguous(),
        "scale must be fp32 [n], contiguous",
        scale,
    )
    x = _cpu(x, scale).contiguous()
    out = torch.empty_like(x)
    library().wb_rms_norm(*_row_arguments(x), scale.data_ptr(), eps, out.data_ptr())
    return out


def norm(x: Tensor) -> Tensor:
    """sqrt(sum x²) over the last axis, in fp32."""
    _check(x.dtype in DTYPES and x.ndim >= 1, "x must be bf16 or fp32 [..., n]", x)
    x = _cpu(x).contiguous()
    out = torch.empty(x.shape[:-1], dtype=torch.float32, device="cpu")
    library().wb_rms_norm(*_row_arguments(x), None, 0.0, out.data_ptr())
    return out


def log_softmax(x: Tensor) -> Tensor:
    """Log-probabilities over the last axis, in fp32."""
    _check(x.dtype in DTYPES and x.ndim >= 1, "x must be bf16 or fp32 [..., n]", x)
    x = _cpu(x).contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    library().wb_log_softmax(*_row_arguments(x), out.data_ptr())
    return out


def divergence(a: Tensor, b: Tensor | None = None) -> Tensor:
    """sum exp(a) (a - b) over the last axis for log-probabilities in fp32; without b, the entropy -sum exp(a) a."""
    for t in (a,) if b is None else (a, b):
        _check(
            t.dtype == torch.float32 and t.shape == a.shape and t.ndim >= 1,
            "log-probabilities must be fp32 [..., n]",
            t,
        )
    a, b = _cpu(a).contiguous(), None if b is None else _cpu(b).contiguous()
    out = torch.empty(a.shape[:-1], dtype=torch.float32, device="cpu")
    level_code, threads, _, address, rows, n = _row_arguments(a)
    library().wb_entropy(level_code, threads, address, None if b is None else b.data_ptr(), rows, n, out.data_ptr())
    return out


def mixture(weight: Tensor, x: Tensor) -> Tensor:
    """The sum, in fp32, of the rows of x (row choice n, bf16 or fp32) with weights (row choice, fp32): row n."""
    _check(x.dtype in DTYPES and x.ndim == 3, "x must be [row, choice, n], bf16 or fp32", x)
    _check(weight.dtype == torch.float32 and weight.shape == x.shape[:2], "weight must be fp32 [row, choice]", weight)
    x, weight = _cpu(x, weight).contiguous(), weight.contiguous()
    out = x.new_empty(x.shape[0], x.shape[2])
    library().wb_mixture(
        level(), _threads(), x.dtype == torch.bfloat16, x.data_ptr(), weight.data_ptr(), *x.shape, out.data_ptr()
    )
    return out


def noise(seed: int, position: int, n: int) -> Tensor:
    """`noise.gumbel`, bit for bit: n numbers in fp64. seed and position: at least 0 and below 2^64."""
    out = torch.empty(n, dtype=torch.float64, device="cpu")
    library().wb_noise(level(), _threads(), seed, position, n, out.data_ptr())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rows.rotate`, bit for bit: x * cos + (x, halves of the last axis exchanged) * sin, in fp32, rounded once.

    x: batch pos head d_head, bf16 or fp32; cos, sin: pos 1 d_head, fp32.
    """
    _check(
        x.dtype in DTYPES and x.ndim == 4 and x.shape[3] % 2 == 0, "x must be bf16 or fp32 [batch, pos, head, 2n]", x
    )
    n_batch, n_pos, n_heads, d_head = x.shape
    for table in (cos, sin):
        _check(
            table.dtype == torch.float32 and table.shape == (n_pos, 1, d_head) and table.is_contiguous(),
            "cos and sin must be fp32 [pos, 1, 2n], contiguous, with the positions of x",
            table,
        )
    x = _cpu(x, cos, sin).contiguous()
    out = torch.empty_like(x)
    if out.numel():
        library().wb_rotate(
            level(), _threads(), x.dtype == torch.bfloat16, x.data_ptr(), n_batch * n_pos, n_heads, d_head, n_pos,
            cos.data_ptr(), sin.data_ptr(), out.data_ptr(),
        )  # fmt: skip
    return out


def _row_arguments(x: Tensor, n: int | None = None) -> tuple:
    n = x.shape[-1] if n is None else n
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    return level(), _threads(), x.dtype == torch.bfloat16, x.data_ptr(), rows, n


def scores(q: Tensor, k: Tensor, first_query: int, window: int | None) -> Tensor:
    """q·k / sqrt(d_head), rounded to the dtype of q, in fp32: batch head query key; -inf at masked keys.

    q: batch query head d_head; k: batch kv_head key d_head, which may be a view of a cache. Head h uses kv_head
    h // (heads / kv_heads). Query i attends to the keys up to first_query + i, and with a window only to the last
    `window` of them.
    """
    _check(
        q.dtype in DTYPES and q.ndim == 4 and q.shape[3] > 0, "q must be [batch, query, head, d_head], bf16 or fp32", q
    )
    _check(q.shape[3] <= 1 or q.stride(3) == 1, "each head of q must be contiguous", q)
    _check_keys(q, q.shape[2], q.shape[3], k)
    s = torch.empty(q.shape[0], q.shape[2], q.shape[1], k.shape[2], dtype=torch.float32, device="cpu")
    check_memory(
        library().wb_scores(
            level(), _threads(), q.dtype == torch.bfloat16, _cpu(q, k).data_ptr(), *q.stride()[:3], *q.shape,
            k.data_ptr(), k.shape[1], k.shape[2], *k.stride()[:3], first_query, -1 if window is None else window,
            s.data_ptr(),
        )
    )  # fmt: skip
    return s


def softmax_(s: Tensor, sinks: Tensor | None = None, first: int = 0) -> Tensor:
    """Replaces scores [batch, head, query, key] by the pattern, in place; returns the sink mass (batch head query).

    sinks: one logit a head, or None. Rows sum to 1 - sink mass, without sinks to 1. first: the absolute position of the
    first key, so that a row's bits do not depend on how many masked keys (-inf) come before and after its own.
    """
    _check(s.dtype == torch.float32 and s.ndim == 4, "s must be fp32 [batch, head, query, key]", s)
    _check(s.is_contiguous(), "s must be contiguous", s)
    n_batch, n_heads, n_queries, n_keys = s.shape
    if sinks is not None:
        _check(sinks.shape == (n_heads,), "sinks must be [head]", sinks)
        sinks = _cpu(sinks).to(torch.float32).contiguous()
    mass = torch.empty(s.shape[:3], dtype=torch.float32, device="cpu")
    library().wb_softmax(
        level(), _threads(), _cpu(s).data_ptr(), n_batch, n_heads, n_queries, n_keys, first,
        None if sinks is None else sinks.data_ptr(), mass.data_ptr(),
    )  # fmt: skip
    return mass


def mix(pattern: Tensor, v: Tensor, first: int = 0) -> Tensor:
    """The values weighted by the pattern, which is first rounded to their dtype: batch query head d_head.

    pattern: fp32 batch head query key; v: batch kv_head key d_head; first: the absolute position of the first key.
    """
    _check(
        pattern.dtype == torch.float32 and pattern.ndim == 4, "pattern must be fp32 [batch, head, query, key]", pattern
    )
    _check(pattern.is_contiguous(), "pattern must be contiguous", pattern)
    _check(v.dtype in DTYPES, "v must be bf16 or fp32", v)
    n_batch, n_heads, n_queries, n_keys = pattern.shape
    _check_keys(v, n_heads, v.shape[-1] if v.ndim else 0, v)
    if v.shape[0] != n_batch or v.shape[2] != n_keys:
        raise _refusal(f"v must have batch size {n_batch} and {n_keys} keys", v)
    out = torch.empty(n_batch, n_queries, n_heads, v.shape[3], dtype=v.dtype, device="cpu")
    check_memory(
        library().wb_mix(
            level(), _threads(), v.dtype == torch.bfloat16, _cpu(pattern, v).data_ptr(), *pattern.shape, v.data_ptr(),
            v.shape[1], v.shape[3], *v.stride()[:3], first, out.data_ptr(),
        )
    )  # fmt: skip
    return out


def check_groups(groups: Sequence[tuple[int, int, int]], rows: int) -> list[int]:
    """The groups as one flat list. Raises ArgumentError unless they cover the rows in order."""
    row, flat = 0, []
    for expert, first, last in groups:
        if not (expert >= 0 and first == row <= last):
            raise ArgumentError(
                f"groups must cover the rows in order, with experts from 0 up, got {(expert, first, last)}."
            )
        row = last
        flat += (expert, first, last)
    if row != rows:
        raise ArgumentError(f"groups must end at row {rows}, the last one, got {row}.")
    return flat


def check_experts(x: Tensor, groups: Sequence[tuple[int, int, int]], weights: Tensor, bias: Tensor | None) -> None:
    """Raises ArgumentError for arguments that `linear_experts` does not support."""
    _check(
        x.dtype in DTYPES and x.ndim == 2 and _contiguous(x, 1),
        "x must be [row, in], bf16 or fp32, with contiguous rows",
        x,
    )
    _check(
        weights.dtype == x.dtype and weights.ndim == 3, "weights must be [expert, out, in], in the dtype of x", weights
    )
    if weights.shape[2] != x.shape[1]:
        raise _refusal(f"a row of weights must have {x.shape[1]} numbers", weights)
    _check_bias(x, groups, weights.shape[0], weights.shape[1], bias)
    _cpu(x, weights)


def check_dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ArgumentError for arguments that `linear` does not support."""
    _check(
        x.dtype in DTYPES and x.ndim == 2 and _contiguous(x, 1),
        "x must be [row, in], bf16 or fp32, with contiguous rows",
        x,
    )
    _check(weight.dtype == x.dtype and weight.ndim == 2, "weight must be [out, in], in the dtype of x", weight)
    if weight.shape[1] != x.shape[1]:
        raise _refusal(f"a row of the weight must have {x.shape[1]} numbers", weight)
    if bias is not None:
        _check(
            bias.dtype == x.dtype and bias.shape == weight.shape[:1] and _contiguous(bias, 1),
            "bias must be [out], in the dtype of x, contiguous",
            bias,
        )
        _cpu(bias)
    _cpu(x, weight)


def _check_bias(x: Tensor, groups, n_experts: int, n_out: int, bias: Tensor | None) -> None:
    if groups and (last := max(groups)[0]) >= n_experts:
        check_expert(last, n_experts)
    if bias is not None:
        _check(
            bias.dtype == x.dtype and bias.shape == (n_experts, n_out),
            "bias must be [expert, out], in the dtype of x",
            bias,
        )
        _check(n_out <= 1 or bias.stride(1) == 1, "the bias of each expert must be contiguous", bias)
        _cpu(bias)


def check_mxfp4(
    x: Tensor, groups: Sequence[tuple[int, int, int]], blocks: Tensor, scales: Tensor, bias: Tensor | None
) -> None:
    """Raises ArgumentError for MXFP4 arguments that `linear_experts` does not support."""
    _check(
        x.dtype in DTYPES and x.ndim == 2 and _contiguous(x, 1),
        "x must be [row, in], bf16 or fp32, with contiguous rows",
        x,
    )
    _check(blocks.dtype == torch.uint8 and blocks.ndim == 4, "blocks must be uint8 [expert, out, group, 16]", blocks)
    n_experts, n_out, n_groups, _ = blocks.shape
    if blocks.shape[3] != BYTES or x.shape[1] != GROUP * n_groups:
        raise _refusal(f"blocks must have rows of {x.shape[1]} numbers", blocks)
    _check(_contiguous(blocks, 2), "the codes of each row must be contiguous", blocks)
    _check(
        scales.dtype == torch.uint8 and scales.shape == blocks.shape[:3],
        "scales must be uint8 [expert, out, group], as the blocks",
        scales,
    )
    _check(_contiguous(scales, 1), "the scales of each row must be contiguous", scales)
    _check_bias(x, groups, n_experts, n_out, bias)
    _cpu(x, blocks, scales)


def check_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ArgumentError for arguments that `jit.linear_bf16` does not support."""
    _check(
        x.dtype == torch.bfloat16 and x.ndim == 2 and 1 <= x.shape[0] <= DECODE_MAX_ROWS,
        f"x must be bf16 [1 to {DECODE_MAX_ROWS}, in]",
        x,
    )
    _check(weight.dtype == torch.bfloat16 and weight.ndim == 2, "weight must be bf16 [out, in]", weight)
    _check(
        weight.shape[1] == x.shape[1] and _contiguous(weight, 1),
        f"weight must have contiguous rows of {x.shape[1]} numbers",
        weight,
    )
    n_out = weight.shape[0]
    if bias is not None:
        _check(
            bias.dtype == torch.bfloat16 and bias.shape == (n_out,) and bias.is_contiguous(),
            "bias must be bf16 [out], contiguous",
            bias,
        )
        _cpu(bias)
    _cpu(x, weight)


def _check_keys(of: Tensor, heads: int, d_head: int, cache: Tensor) -> None:
    if cache.dtype != of.dtype or cache.ndim != 4 or cache.shape[0] != of.shape[0]:
        raise _refusal(f"keys and values must be {of.dtype} [batch, kv_head, key, d_head]", cache)
    if cache.shape[3] != d_head or (d_head > 1 and cache.stride(3) != 1):
        raise _refusal(f"the last axis must be contiguous with d_head={d_head}", cache)
    if cache.shape[1] == 0 or heads % cache.shape[1]:
        raise _refusal(f"the number of heads, {heads}, must be a multiple of the number of kv heads", cache)


def _contiguous(x: Tensor, dims: int) -> bool:
    """True if the last `dims` dimensions are contiguous; the stride of a dimension of size 1 does not matter."""
    if x.is_contiguous():
        return True
    step = 1
    for size, stride in zip(reversed(x.shape[-dims:]), reversed(x.stride()[-dims:])):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _check(condition: bool, requirement: str, x: Tensor) -> None:
    if not condition:
        raise _refusal(requirement, x)


def _refusal(requirement: str, x: Tensor) -> ArgumentError:
    """The error of a tensor that does not meet a requirement. A text with values is composed only when it is needed."""
    return ArgumentError(f"{requirement}; got {x.dtype} {tuple(x.shape)} with strides {x.stride()}")


def _cpu(x: Tensor, *others: Tensor) -> Tensor:
    for t in (x, *others):
        if not t.is_cpu or t.layout != torch.strided:
            raise ArgumentError(f"the native kernels need tensors on the CPU, got one on {t.device}.")
    return x


def library() -> ctypes.CDLL:
    """The compiled library. Raises ArgumentError if there is none."""
    _load()
    if _State.library is None:
        raise ArgumentError(status())
    return _State.library


def level() -> int:
    """The number of the level in use, for the library. Raises ArgumentError if torch computes."""
    _load()
    if _State.level is None:
        raise ArgumentError(status())
    return _State.level


def _threads() -> int:
    return torch.get_num_threads()


def check_memory(status: int) -> None:
    """Raises MemoryError unless a product returned 0: its result would be uninitialized memory."""
    if status:
        raise MemoryError("no memory for the native kernels")
