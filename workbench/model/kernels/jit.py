"""The products of decoding without a C compiler: the "few" forms of native.c, compiled by numba at first use.

They are used if native.py finds no library and numba is installed (`native.decode()`). As in C, products are computed
directly from MXFP4 or bf16: one row of weights is one stream, decoded in registers (into fp32, where C on AVX2
multiplies integers). Plain loops would be eight times slower, so a row is written in LLVM's vector instructions, which
numba compiles for the current processor.
"""

import ctypes
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels import native
from workbench.model.kernels.reference import BYTES, GROUP

DECODE_MAX_ROWS = native.DECODE_MAX_ROWS  # rows of x that are multiplied with a row of weights at once
STEP = 64  # rows of weights in a work item
AHEAD = 8192  # bytes from the load address to the prefetch address

# The high and the low byte of each FP4 number as bf16
HIGH = [0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x80, 0xBF, 0xBF, 0xBF, 0xC0, 0xC0, 0xC0, 0xC0]
LOW = [0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0, 0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0]


class Compiled(NamedTuple):
    """Addresses of the two compiled functions; each takes a job (an array of int64) and runs until it is done."""

    mxfp4: int
    bf16: int
    keep: Sequence[Any]  # owners of the compiled code: it is freed with them


def supports_decode(x: Tensor) -> bool:
    """True if numba computes the products of these few rows [row, in]: on the CPU and without gradients.

    Compiles at the first supported call. If that fails, torch computes from then on and `native.status()` has the
    reason.
    """
    if native.decode() != "numba" or x.ndim != 2 or not 1 <= x.shape[0] <= DECODE_MAX_ROWS or x.device.type != "cpu":
        return False
    if x.dtype not in native.DTYPES or (torch.is_grad_enabled() and x.requires_grad):
        return False
    try:
        compiled()
    except Exception as e:  # any error of a broken or unknown numba: torch computes the same
        native.without_numba(f"{type(e).__name__}: {e}")
        return False
    return True


def linear_mxfp4(
    x: Tensor, groups: Sequence[tuple[int, int, int]], blocks: Tensor, scales: Tensor, bias: Tensor
) -> Tensor:
    """`native.linear_experts` for MXFP4 and a few rows: the same arguments and result, but rounded differently."""
    native.check_groups(groups, x.shape[0])
    native.check_mxfp4(x, groups, blocks, scales, bias)
    n_out, n_groups = scales.shape[1:]
    y = torch.empty(x.shape[0], n_out, dtype=torch.float32, device="cpu")
    if not y.numel() or not n_groups:
        y.zero_()
    else:
        ordered = _reorder(x, packed=True)
        size = 4 * ordered.shape[1]
        chunks = [(e, t, min(DECODE_MAX_ROWS, b - t)) for e, a, b in groups for t in range(a, b, DECODE_MAX_ROWS)]
        pieces = [
            (
                blocks.data_ptr() + e * blocks.stride(0), scales.data_ptr() + e * scales.stride(0),
                ordered.data_ptr() + t * size, y.data_ptr() + 4 * n_out * t, m,
            )
            for e, t, m in chunks
        ]  # fmt: skip
        ranges = -(-n_out // STEP)
        head = (0, ranges * len(chunks), ranges, n_out, n_groups, blocks.stride(1), scales.stride(1), size)
        _each(compiled().mxfp4, head[1], [*head, *itertools.chain.from_iterable(pieces)])
    experts = torch.tensor([e for e, a, b in groups for _ in range(a, b)], dtype=torch.long)
    # index_select runs on one thread for few rows; bias[experts] would start all threads
    return y.add_(bias.index_select(0, experts)).to(x.dtype)


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for 1 to 4 rows in bf16: sums in fp32, rounded once."""
    native.check_bf16(x, weight, bias)
    rows, n = x.shape
    n_out = weight.shape[0]
    wide = _reorder(x, packed=False)
    y = torch.empty(rows, n_out, dtype=torch.float32, device="cpu")
    ranges = -(-n_out // STEP)
    _each(compiled().bf16, ranges, [
        0, ranges, n_out, n, weight.data_ptr(), 2 * weight.stride(0), wide.data_ptr(), 4 * wide.shape[1], y.data_ptr(),
        rows,
    ])  # fmt: skip
    return (y if bias is None else y.add_(bias)).to(x.dtype)


@functools.lru_cache(16)
def _input_order(n: int, packed: bool) -> Tensor:
    """The order in which the kernels use the n numbers of x, which are padded with zeros to whole steps.

    Packed: pairs of groups, see `_row_mxfp4`. Otherwise: of every 16 the even ones, then the odd ones; see `_row_bf16`.
    """
    if not packed:
        return torch.arange(-(-n // 16) * 16).view(-1, 8, 2).transpose(1, 2).flatten()
    # group of the pair, half of its bytes, four even and four odd bytes, low and high nibble
    pairs = torch.arange(-(-n // (2 * GROUP)) * 2 * GROUP).view(-1, 2, 2, 4, 2, 2)
    return pairs.permute(0, 5, 2, 4, 1, 3).flatten()


def _reorder(x: Tensor, packed: bool) -> Tensor:
    """x in fp32, in the order of `_input_order`."""
    order, wide = _input_order(x.shape[1], packed), x.float()
    if spare := len(order) - x.shape[1]:
        wide = torch.nn.functional.pad(wide, (0, spare))
    return wide.index_select(1, order)


# ---- threads: work items are assigned one by one, as in C ----

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _each(function: int, pieces: int, numbers: Iterable[int]) -> None:
    """Run a job on torch's number of threads. The first of its numbers is the counter of assigned work items."""
    values = [*numbers]
    job = (ctypes.c_int64 * len(values))(*values)
    threads = min(torch.get_num_threads(), pieces)
    if threads <= 1:
        return _Function(function)(ctypes.addressof(job))
    if (parallel := _openmp()) is not None:
        # always the same number of threads: otherwise libgomp stops and starts some
        return parallel(function, ctypes.addressof(job), torch.get_num_threads(), 0)
    run = _Function(function)  # ctypes releases the GIL during the call
    others = [_pool(threads - 1).submit(run, ctypes.addressof(job)) for _ in range(threads - 1)]
    run(ctypes.addressof(job))
    for other in others:
        other.result()
    return None


@functools.cache
def _openmp() -> Callable | None:
    """The entry point of the OpenMP that torch has loaded; another, such as numba's, would compete for cores."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        parallel = ctypes.CDLL("libgomp.so.1", mode=_LOADED).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.restype, parallel.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return parallel


_LOADED = 4 | 2  # RTLD_NOLOAD and RTLD_NOW on Linux: only a library that is already loaded


@functools.lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "workbench-decode")


# ---- compiling ----

_LOCK = threading.Lock()


def compiled() -> Compiled:
    """The compiled functions; the first call takes a few seconds."""
    with _LOCK:
        return _compiled(_has_table())


@functools.cache
def _has_table() -> bool:
    """True if 32 table lookups are one instruction (AVX2) and numba compiles for this processor."""
    import llvmlite.binding
    import numba

    return bool(llvmlite.binding.get_host_cpu_features().get("avx2")) and not numba.config.CPU_NAME  # type: ignore


@functools.cache
def _compiled(table: bool) -> Compiled:  # noqa: C901  two functions for numba, which cannot call Python functions
    from numba import cfunc, types

    next_item, step = _next_item(), STEP
    m1, m2, m3, m4 = (_row_mxfp4(m, table) for m in range(1, DECODE_MAX_ROWS + 1))
    b1, b2, b3, b4 = (_row_bf16(m) for m in range(1, DECODE_MAX_ROWS + 1))

    def mxfp4(job):
        pieces, ranges, n_out, n_groups = job[1], job[2], job[3], job[4]
        code_row, scale_row, size = job[5], job[6], job[7]
        while True:
            i = next_item(job)
            if i >= pieces:
                break
            at = 8 + 5 * (i // ranges)
            first = step * (i % ranges)
            codes, scales, x, out, m = job[at], job[at + 1], job[at + 2], job[at + 3], job[at + 4]
            for n in range(first, min(first + step, n_out)):
                c, s, y = codes + n * code_row, scales + n * scale_row, out + 4 * n
                if m == 1:
                    m1(c, s, n_groups, x, size, y, 4 * n_out)
                elif m == 2:
                    m2(c, s, n_groups, x, size, y, 4 * n_out)
                elif m == 3:
                    m3(c, s, n_groups, x, size, y, 4 * n_out)
                else:
                    m4(c, s, n_groups, x, size, y, 4 * n_out)

    def bf16(job):
        pieces, n_out, n, weight, row, x, size, out, m = (
            job[1], job[2], job[3], job[4], job[5], job[6], job[7], job[8], job[9],
        )  # fmt: skip
        while True:
            i = next_item(job)
            if i >= pieces:
                break
            for r in range(step * i, min(step * (i + 1), n_out)):
                w, y = weight + r * row, out + 4 * r
                if m == 1:
                    b1(w, n, x, size, y, 4 * n_out)
                elif m == 2:
                    b2(w, n, x, size, y, 4 * n_out)
                elif m == 3:
                    b3(w, n, x, size, y, 4 * n_out)
                else:
                    b4(w, n, x, size, y, 4 * n_out)

    both = [cfunc(types.void(types.CPointer(types.int64)))(f) for f in (mxfp4, bf16)]
    return Compiled(*(int(f.address or 0) for f in both), keep=both)


def _next_item() -> Any:
    """An intrinsic that returns the number of the next work item of a job (an atomic counter)."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def next_item(typing, job):
        def code(context, b, signature, args):
            return b.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

        return types.int64(types.CPointer(types.int64)), code

    return next_item


class _Emit:
    """Helpers that emit vector instructions for both kernels."""

    def __init__(self, builder):
        from llvmlite import ir

        self.ir, self.b = ir, builder
        self.i8, self.i32, self.i64, self.f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()

    def vector(self, kind, n):
        return self.ir.VectorType(kind, n)

    def const(self, kind, value):
        """A constant: a number, or a vector of one repeated number or of a list of numbers."""
        if isinstance(kind, self.ir.VectorType) and not isinstance(value, list):
            value = [value] * kind.count
        return self.ir.Constant(kind, value)

    def call(self, name, result, *args):
        from numba.core import cgutils

        function = self.ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, function, name), args)

    def pointer(self, address, kind):
        return self.b.inttoptr(address, kind.as_pointer())

    def load(self, address, kind):
        return self.b.load(self.pointer(address, kind), align=1)

    def plus(self, address, n):
        return self.b.add(address, self.const(self.i64, n))

    def shuffle(self, x, y, order):
        return self.b.shuffle_vector(x, y, self.const(self.vector(self.i32, len(order)), order))

    def fma(self, x, y, z):
        return self.call(f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)

    def split(self, x):
        """32 bytes of bf16 -> the numbers at even and at odd indices, in fp32."""
        of = self.vector(self.i32, 8)
        x = self.b.bitcast(x, of)
        parts = self.b.shl(x, self.const(of, 16)), self.b.and_(x, self.const(of, 0xFFFF0000))
        return [self.b.bitcast(part, self.vector(self.f32, 8)) for part in parts]

    def fetch(self, address):
        pointer = self.b.inttoptr(self.plus(address, AHEAD), self.ir.PointerType())
        read_and_keep = [self.const(self.i32, v) for v in (0, 3, 1)]
        self.call("llvm.prefetch.p0", self.ir.VoidType(), pointer, *read_and_keep)

    def total(self, x):
        """The sum of eight numbers, added in native.c's order."""
        a = self.b.fadd(self.shuffle(x, x, [0, 1, 2, 3]), self.shuffle(x, x, [4, 5, 6, 7]))
        a = self.b.fadd(a, self.shuffle(a, a, [2, 3, 2, 3]))
        first, second = (self.b.extract_element(a, self.const(self.i32, i)) for i in (0, 1))
        return self.b.fadd(first, second)

    def zeros(self, n):
        from numba.core import cgutils

        zero = self.const(self.vector(self.f32, 8), 0.0)
        return [cgutils.alloca_once_value(self.b, zero) for _ in range(n)]

    def store_totals(self, sums, out, out_row):
        for t, x in enumerate(sums):
            at = self.b.add(out, self.b.mul(out_row, self.const(self.i64, t)))
            self.b.store(self.total(x), self.pointer(at, self.f32), align=4)


def _row_mxfp4(m: int, table: bool) -> Any:  # noqa: C901  its functions emit one kernel
    """The kernel for one row of weights with m rows of x.

    Arguments: codes, scales, number of groups; x and the bytes of its rows; out and the bytes of its rows. The
    operations for one row of x are the same for every m. Two groups are one register of 32 bytes.
    """
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def code(context, b, signature, args):
        codes, scales, groups, x, x_row, out, out_row = args
        e = _Emit(b)
        bytes32, wide = e.vector(e.i8, 32), e.vector(e.f32, 8)
        tables = [e.const(bytes32, 2 * row) for row in (HIGH, LOW)]
        sums = e.zeros(m)

        def numbers(nibbles):
            """Bytes 0, 2, 4, 6 of each half, then 1, 3, 5, 7, 8, 10, …; with two halves as in native.c's `numbers2`."""
            if table:
                high, low = (e.call("llvm.x86.avx2.pshuf.b", bytes32, row, nibbles) for row in tables)
            else:
                high, low = arithmetic(nibbles)
            pairs = []
            for first in (0, 8):
                bytes_of = [16 * half + first + i for half in (0, 1) for i in range(8)]
                pairs += e.split(e.shuffle(low, high, [v for i in bytes_of for v in (i, 32 + i)]))
            return pairs

        def arithmetic(nibbles):
            """The values of HIGH and LOW without table lookups, for any processor."""
            size, one = b.and_(nibbles, e.const(bytes32, 7)), e.const(bytes32, 1)
            high = b.select(
                b.icmp_unsigned("<", size, e.const(bytes32, 4)), e.const(bytes32, 0x3F), e.const(bytes32, 0x40)
            )
            high = b.select(b.icmp_unsigned("==", size, e.const(bytes32, 0)), e.const(bytes32, 0), high)
            high = b.or_(high, b.shl(b.and_(nibbles, e.const(bytes32, 8)), e.const(bytes32, 4)))
            low = b.select(b.icmp_unsigned("==", size, one), e.const(bytes32, 0), b.shl(nibbles, e.const(bytes32, 6)))
            return high, low

        def powers(scale_bytes):
            of = e.vector(e.i32, scale_bytes.type.count)
            bits = b.shl(b.zext(scale_bytes, of), e.const(of, 23))
            return b.bitcast(bits, e.vector(e.f32, scale_bytes.type.count))

        def pair(group, codes32, power, sums):
            """Adds two groups to the sums; `power` has the scale of each of the eight numbers of a register."""
            weights = numbers(b.and_(codes32, e.const(bytes32, 15))) + numbers(b.lshr(codes32, e.const(bytes32, 4)))
            here = b.add(x, b.mul(group, e.const(e.i64, 4 * GROUP)))
            after = []
            for t, total in enumerate(sums):
                y = b.add(here, b.mul(x_row, e.const(e.i64, t)))
                ys = [e.load(e.plus(y, 32 * i), wide) for i in range(8)]
                a, c = b.fmul(weights[0], ys[0]), b.fmul(weights[1], ys[1])
                for i in range(2, 8, 2):
                    a, c = e.fma(weights[i], ys[i], a), e.fma(weights[i + 1], ys[i + 1], c)
                after.append(e.fma(b.fadd(a, c), power, total))
            return after

        def loop(first, end, width):
            """Whole steps of `width` groups from `first` on; returns the index of the next group."""
            steps = b.udiv(b.sub(end, first), e.const(e.i64, width))
            with cgutils.for_range(b, steps) as step:
                group = b.add(first, b.mul(step.index, e.const(e.i64, width)))
                power = powers(e.load(b.add(scales, group), e.vector(e.i8, width)))
                so_far = [b.load(s) for s in sums]
                for i in range(0, width, 2):
                    at = e.plus(group, i)
                    here = b.add(codes, b.mul(at, e.const(e.i64, BYTES)))
                    if i % 4 == 0:
                        e.fetch(here)
                    spread = e.shuffle(power, power, [i] * 4 + [i + 1] * 4)
                    so_far = pair(at, e.load(here, bytes32), spread, so_far)
                for s, value in zip(sums, so_far):
                    b.store(value, s)
            return b.add(first, b.mul(steps, e.const(e.i64, width)))

        done = loop(loop(e.const(e.i64, 0), groups, 8), groups, 2)
        with b.if_then(b.icmp_unsigned("<", done, groups)):
            half = e.load(b.add(codes, b.mul(done, e.const(e.i64, BYTES))), e.vector(e.i8, 16))
            codes32 = e.shuffle(half, e.const(half.type, 0), list(range(32)))
            power = powers(e.load(b.add(scales, done), e.vector(e.i8, 1)))
            spread = e.shuffle(power, e.const(power.type, 0.0), [0] * 4 + [1] * 4)
            for s, value in zip(sums, pair(done, codes32, spread, [b.load(s) for s in sums])):
                b.store(value, s)
        e.store_totals([b.load(s) for s in sums], out, out_row)
        return context.get_dummy_value()

    @intrinsic
    def row(typing, codes, scales, groups, x, x_row, out, out_row):
        return types.void(*[types.int64] * 7), code

    return row


def _row_bf16(m: int) -> Any:
    """The kernel for one row of n weights with m rows of x, as `_row_mxfp4`; x is zero-padded to a multiple of 16."""
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def code(context, b, signature, args):
        weights, n, x, x_row, out, out_row = args
        e = _Emit(b)
        bytes32, wide = e.vector(e.i8, 32), e.vector(e.f32, 8)
        sums = e.zeros(2 * m)  # for each row of x: the sum of even indices, the sum of odd ones

        def sixteen(k, weights16, sums):
            even, odd = e.split(weights16)
            here = b.add(x, b.mul(k, e.const(e.i64, 4)))
            for t in range(m):
                y = b.add(here, b.mul(x_row, e.const(e.i64, t)))
                sums[2 * t] = e.fma(even, e.load(y, wide), sums[2 * t])
                sums[2 * t + 1] = e.fma(odd, e.load(e.plus(y, 32), wide), sums[2 * t + 1])

        def loop(first, width):
            steps = b.udiv(b.sub(n, first), e.const(e.i64, width))
            with cgutils.for_range(b, steps) as step:
                k = b.add(first, b.mul(step.index, e.const(e.i64, width)))
                so_far = [b.load(s) for s in sums]
                for i in range(0, width, 16):
                    at = e.plus(k, i)
                    here = b.add(weights, b.mul(at, e.const(e.i64, 2)))
                    if i % 32 == 0:
                        e.fetch(here)
                    sixteen(at, e.load(here, bytes32), so_far)
                for s, value in zip(sums, so_far):
                    b.store(value, s)
            return b.add(first, b.mul(steps, e.const(e.i64, width)))

        done = loop(loop(e.const(e.i64, 0), 64), 16)
        n_rest = b.sub(n, done)
        end = cgutils.alloca_once(b, e.ir.ArrayType(e.ir.IntType(16), 16))
        with b.if_then(b.icmp_unsigned("<", done, n)):  # the last weights, copied and padded with zeros
            b.store(e.const(bytes32, 0), b.bitcast(end, bytes32.as_pointer()), align=2)
            start = b.ptrtoint(end, e.i64)
            with cgutils.for_range(b, n_rest) as step:
                offset = b.mul(step.index, e.const(e.i64, 2))
                value = e.load(b.add(b.add(weights, b.mul(done, e.const(e.i64, 2))), offset), e.ir.IntType(16))
                b.store(value, e.pointer(b.add(start, offset), e.ir.IntType(16)), align=2)
            so_far = [b.load(s) for s in sums]
            sixteen(done, e.load(start, bytes32), so_far)
            for s, value in zip(sums, so_far):
                b.store(value, s)
        values = [b.load(s) for s in sums]
        totals = [b.fadd(values[2 * t], values[2 * t + 1]) for t in range(m)]
        e.store_totals(totals, out, out_row)
        return context.get_dummy_value()

    @intrinsic
    def row(typing, weights, n, x, x_row, out, out_row):
        return types.void(*[types.int64] * 6), code

    return row
