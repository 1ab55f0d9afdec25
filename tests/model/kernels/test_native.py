"""The native kernels equal the reference at every level of this machine, and AVX-512 is emulated if unavailable."""

import itertools
import platform
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.levels import AT_START
from workbench.errors import ArgumentError, SelectionError
from workbench.model.kernels import attention, build, experts, native, reference
from workbench.model.kernels.packed import Packed
from workbench.traces import manifest

TOLERANCE = 4e-7  # of the largest value, for fp32
BF16 = 2**-8  # half a step of bf16, relative
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(native.isa() is None and not build.compiler(), reason=native.status())


@pytest.fixture(autouse=True)
def restored():
    yield
    native.use(AT_START)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(n_experts, n_out, n_groups, seed=0, low=117, high=124, aligned=True):
    """Blocks, scales and bias; misaligned ones start at an odd byte, as can happen in a mapped file."""
    g = torch.Generator().manual_seed(seed)
    n = n_experts * n_out * n_groups
    blocks = torch.randint(0, 256, (16 * n + 1,), generator=g, dtype=torch.uint8)
    scales = torch.randint(low, high, (n + 1,), generator=g, dtype=torch.uint8)
    a, b = (0, -1) if aligned else (1, None)
    shape = (n_experts, n_out, n_groups)
    return blocks[a:b].view(*shape, 16), scales[a:b].view(shape), torch.randn(n_experts, n_out, generator=g)


def grouped(counts):
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    return [(e, a, b) for e, (a, b) in enumerate(itertools.pairwise(ends)) if b > a]


def truth(x, groups, blocks, scales, bias):
    w = reference.dequantize_mxfp4(blocks, scales, dtype=torch.float64)
    return torch.cat([x[a:b].double() @ w[e].T + bias[e].double() for e, a, b in groups])


def norm(x, groups, blocks, scales):
    """The size of a product of random vectors of these norms, for relative errors of few values, which may all cancel.

    With many values it is smaller than the largest product.
    """
    w = reference.dequantize_mxfp4(blocks, scales, dtype=torch.float64)
    return max(float(x[a:b].double().norm(dim=1).max() * w[e].norm(dim=1).max()) for e, a, b in groups)


def close(actual, expected, dtype, min_scale=0.0):
    """True if fp32 is within TOLERANCE of the largest value; bf16 has half a step more."""
    error = (actual.double() - expected).abs()
    limit = TOLERANCE * max(float(expected.abs().max()), min_scale)
    return bool((error <= limit + (BF16 * expected.abs() if dtype == torch.bfloat16 else 0)).all())


SHAPES = [
    (1, 1, [1]), (3, 5, [4, 0, 2]), (2, 33, [1, 1, 1]), (9, 70, [40, 1, 13]), (33, 100, [2, 17]), (31, 31, [6, 12, 5]),
    (40, 64, [3, 25]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_groups", "n_out", "counts"), SHAPES)
def test_experts_are_computed_directly_from_mxfp4(level, n_groups, n_out, counts, dtype):
    for aligned in (True, False):
        blocks, scales, bias = packed(len(counts), n_out, n_groups, aligned=aligned)
        bias, groups = bias.to(dtype), grouped(counts)
        x = rand(sum(counts), 32 * n_groups, dtype=dtype)
        actual = native.linear_experts(x, groups, (blocks, scales), bias)
        expected = truth(x, groups, blocks, scales, bias)
        assert actual.dtype == dtype and close(actual, expected, dtype, norm(x, groups, blocks, scales))


def test_views_of_larger_matrices_give_the_same_bits(level):
    blocks, scales, bias = packed(4, 50, 5)
    views = (blocks[::2, 3:43], scales[::2, 3:43])
    x, bias, groups = rand(9, 160), bias[::2, 3:43], [(1, 0, 6), (0, 6, 9)]
    actual = native.linear_experts(x, groups, views, bias)
    copies = (views[0].contiguous(), views[1].contiguous())
    assert torch.equal(actual, native.linear_experts(x, groups, copies, bias.contiguous()))
    wide = rand(4, 50, 170, seed=2)
    actual = native.linear_experts(rand(9, 166)[:, 3:163], groups, wide[::2, 3:43, 5:165], None)
    copies = wide[::2, 3:43, 5:165].contiguous()
    assert torch.equal(actual, native.linear_experts(rand(9, 166)[:, 3:163].contiguous(), groups, copies, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_with_every_safe_scale_is_exact(level, dtype):
    """x is the identity matrix, so each output must be exactly one weight."""
    low, high = native.SAFE_SCALES
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = (codes | codes.flip(0) << 4).expand(1, high - low + 1, 1, 16).contiguous()
    scales = torch.arange(low, high + 1, dtype=torch.uint8).view(1, -1, 1)
    bias = torch.zeros(1, high - low + 1, dtype=dtype)
    actual = native.linear_experts(torch.eye(32, dtype=dtype), [(0, 0, 32)], (blocks, scales), bias)
    assert torch.equal(actual, reference.dequantize_mxfp4(blocks[0], scales[0], dtype=dtype).T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_accurate_at_every_safe_scale(level, dtype):
    low, high = native.SAFE_SCALES
    for size in (2.0**-30, 1.0, 2.0**30):
        x = rand(6, 96, dtype=dtype) * size
        for scale in range(low, high + 1, 20):
            blocks, scales, bias = packed(1, 40, 3, low=scale, high=scale + 1)
            expected = truth(x, [(0, 0, 6)], blocks, scales, bias * 0)
            assert close(native.linear_experts(x, [(0, 0, 6)], (blocks, scales), None), expected, dtype)


def test_scales_are_safe_only_if_all_are():
    low, high = native.SAFE_SCALES
    for n in (1, 100, (1 << 20) + 3):
        scales = torch.full((n,), low, dtype=torch.uint8)
        scales[n // 2 :] = high
        assert native.safe_scales(scales)
        for bad in (0, low - 1, high + 1, 255):
            for at in (0, n - 1):
                scales[at], original = bad, int(scales[at])
                assert not native.safe_scales(scales)
                scales[at] = original
    assert native.safe_scales(torch.empty(0, dtype=torch.uint8))


SHAPES_OF_MODELS = [(128, 128), (64, 128), (128, 32), (2880, 64), (4096, 45), (77, 19)]  # in, out: pocket, the 20b, odd


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_bits_of_a_row_depend_on_that_row_alone(data):
    """Any rows, split anywhere, in any order, beside any other rows, at every level of this machine."""
    n_in, n_out = data.draw(st.sampled_from(SHAPES_OF_MODELS))
    dtype = data.draw(st.sampled_from(DTYPES))
    packs, turns = n_in % 32 == 0 and data.draw(st.booleans()), data.draw(st.booleans())
    rows = data.draw(st.integers(1, 300))
    seed = data.draw(st.integers(0, 2**16))
    x, w = rand(rows, n_in, seed=seed, dtype=dtype), rand(n_out, n_in, seed=seed + 1, dtype=dtype)
    bias = rand(1, n_out, seed=seed + 2, dtype=dtype)
    blocks, scales, _ = packed(1, n_out, max(1, n_in // 32), seed=seed)

    def product(x):
        weights = (blocks, scales) if packs else w.T.contiguous().T[None] if turns else w[None]
        return native.linear_experts(x, [(0, 0, len(x))], weights, bias)

    cut = data.draw(st.integers(0, rows))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    others = rand(data.draw(st.integers(1, 40)), n_in, seed=seed + 3, dtype=dtype)
    for name in native.levels():
        native.use(name)
        whole = product(x)
        assert torch.equal(torch.cat([product(x[:cut]), product(x[cut:])]), whole)
        assert torch.equal(product(x[order]), whole[order])
        assert torch.equal(product(torch.cat([others, x]))[len(others) :], whole)
        assert torch.equal(product(x[rows // 2 : rows // 2 + 1])[0], whole[rows // 2])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_bits_of_a_query_do_not_depend_on_other_queries_or_later_keys(data):
    n_heads, n_kv, d_head = data.draw(st.sampled_from([(4, 2, 32), (8, 1, 64), (3, 3, 10)]))
    n_keys, dtype = data.draw(st.integers(1, 300)), data.draw(st.sampled_from(DTYPES))
    n_queries = data.draw(st.integers(1, n_keys))
    window = data.draw(st.sampled_from([None, 16, 100]))
    q, sinks = rand(1, n_queries, n_heads, d_head, dtype=dtype), rand(n_heads, seed=3)
    k, v = (rand(1, n_kv, n_keys, d_head, seed=i, dtype=dtype) for i in (1, 2))
    one = data.draw(st.integers(0, n_queries - 1))
    stop = n_keys - n_queries + one + 1  # keys that this query attends to
    first = data.draw(st.integers(0, max(0, stop - window))) if window else 0  # keys that a cache has dropped

    def attend(q, k, v, n_dropped):
        s = native.scores(q, k, k.shape[2] - q.shape[1], window)
        sink = native.softmax_(s, sinks, n_dropped)
        return native.mix(s, v, n_dropped), sink

    for name in native.levels():
        native.use(name)
        whole, sink = attend(q, k, v, 0)
        alone, alone_sink = attend(q[:, one : one + 1], k[:, :, first:stop], v[:, :, first:stop], first)
        assert torch.equal(alone[0, 0], whole[0, one]) and torch.equal(alone_sink[0, :, 0], sink[0, :, one])


def test_values_at_later_positions_never_affect_a_query(level):
    """Not even NaN, although its weight is 0 and 0 times NaN is NaN."""
    k, v = rand(1, 2, 90, 16), rand(1, 2, 90, 16, seed=1)
    q = rand(1, 90, 4, 16, seed=2)
    k[:, :, 70:], v[:, :, 70:] = torch.nan, torch.nan
    s = native.scores(q, k, 0, None)
    native.softmax_(s, torch.zeros(4))
    assert native.mix(s, v)[:, :70].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [3, 50])
def test_experts_in_mxfp4_have_the_bits_of_dequantized_ones(level, dtype, rows):
    blocks, scales, bias = packed(2, 70, 12)
    x, groups, bias = rand(2 * rows, 384, dtype=dtype), [(0, 0, rows), (1, rows, 2 * rows)], bias.to(dtype)
    dense = native.linear_experts(x, groups, reference.dequantize_mxfp4(blocks, scales, dtype=dtype), bias)
    if (level, dtype) != ("avx512-bf16", torch.bfloat16):  # it uses codes in another order
        assert torch.equal(native.linear_experts(x, groups, (blocks, scales), bias), dense)


LEVELS_C = build.HERE.parents[2] / "tests/model/kernels/levels.c"


def hashes_by_level(command):
    """Level and dtype -> hashes of the results of every kernel; see levels.c."""
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {tuple(line.split()[:2]): line.split()[2:] for line in lines}


def linked(target, library):
    """levels.c, linked with a compiled library."""
    cc = build.compiler()
    assert cc is not None
    command = [*cc, "-O1", "-w", "-DLINKED", str(LEVELS_C), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*command, "-o", str(target), "-lm"], check=True)
    return target


@pytest.mark.skipif(not build.compiler(), reason="no C compiler")
def test_every_level_gives_the_same_bits(tmp_path, measured, request):
    results = hashes_by_level([str(linked(tmp_path / "here", build.LIBRARY))])
    portable = {dtype: results["portable", dtype] for dtype in ("float32", "bfloat16")}
    for (name, dtype), hashes in results.items():
        assert hashes[-1] == "rows=equal"
        if (name, dtype) != ("avx512-bf16", "bfloat16"):
            assert hashes == portable[dtype], (name, dtype)
    measured(f"kernels: {', '.join(sorted({name for name, _ in results}))} agree bit for bit in fp32")
    if platform.machine() == "x86_64":
        emulated = hashes_by_level([str(linked(tmp_path / "emulated", request.getfixturevalue("emulated")))])
        assert emulated["avx512-bf16", "float32"] == portable["float32"]
        assert emulated["avx512-bf16", "bfloat16"][-1] == "rows=equal"
        if ("avx512-bf16", "bfloat16") in results:
            assert emulated["avx512-bf16", "bfloat16"] == results["avx512-bf16", "bfloat16"]
    arm, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
    if arm and emulator:
        target = tmp_path / "arm"
        subprocess.run([arm, "-static", *build.FLAGS, "-w", str(LEVELS_C), "-o", str(target), "-lm"], check=True)
        neon = hashes_by_level([emulator, str(target)])
        assert {dtype: neon["neon", dtype] for dtype in portable} == portable
        assert {dtype: neon["portable", dtype] for dtype in portable} == portable
        measured("kernels: neon, under qemu, has the bits of this processor in fp32 and bf16")
    else:
        measured("kernels: neon not tried: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_with_every_scale_byte_equals_the_reference_bit_for_bit(level, dtype):
    pairs = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, 16, 16)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 16)
    actual, expected = native.dequantize(pairs, scales, dtype), reference.dequantize_mxfp4(pairs, scales, dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert (
        actual.isnan().equal(expected.isnan()) and actual[255].isnan().all()
    )  # the bits of NaN in torch depend on the machine
    assert torch.equal(actual[:255].view(bits), expected[:255].view(bits))
    assert native.dequantize(pairs[:0], scales[:0], dtype).shape == (0, 512)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_equals_the_reference(level, dtype):
    x = rand(5, 3, 2 * 333, dtype=dtype) * 8
    x[0, 0, :10] = torch.tensor([0.0, 0, 1e30, -1e30, -1e30, 1e30, -60, 7, -7, 60])
    expected = experts.swiglu(x.double(), 1.702, 7.0)
    actual = native.swiglu(x, 1.702, 7.0)
    assert actual.shape == expected.shape and actual.dtype == dtype and close(actual, expected, dtype)
    odd = torch.tensor(
        [torch.nan, 1, 1, torch.nan, torch.inf, 2, -torch.inf, 3, 3, torch.inf, 2, -torch.inf], dtype=dtype
    )
    assert torch.equal(native.swiglu(odd, 1.702, 7.0).isnan(), experts.swiglu(odd, 1.702, 7.0).isnan())
    assert native.swiglu(x[:0], 1.702, 7.0).shape == (0, 3, 333)


HEADS = [(64, 8, 64, 1, 1000), (4, 2, 16, 70, 70), (6, 6, 10, 3, 5), (3, 1, 34, 1, 1), (8, 2, 32, 65, 513)]


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv", "d_head", "queries", "keys"), HEADS)
def test_attention_equals_the_reference(level, heads, kv, d_head, queries, keys, dtype, window):
    q = rand(2, queries, heads, d_head, dtype=dtype)
    cache = rand(2, kv, keys + 7, d_head, seed=1, dtype=dtype)
    k, v = cache[:, :, 2 : 2 + keys], rand(2, keys, kv, d_head, seed=2, dtype=dtype).transpose(1, 2)
    sinks = rand(heads, seed=3)
    actual = native.scores(q, k, keys - queries, window)
    rows = q.double().transpose(1, 2).reshape(2, kv, -1, d_head)
    exact = (rows @ k.double().transpose(2, 3)).view(2, heads, queries, keys) / d_head**0.5
    behind = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)  # distance from a query back to a key
    exact[..., (behind < 0) | (behind >= (window or keys))] = -torch.inf
    seen = exact > -torch.inf
    assert actual.dtype == torch.float32 and torch.equal(actual > -torch.inf, seen)
    assert close(actual[seen], exact[seen], dtype, float(q.double().norm(dim=-1).max()))

    expected, expected_sink = attention.normalize(actual.double().clone(), sinks)
    pattern = actual.clone()
    sink = native.softmax_(pattern, sinks, 3)
    assert close(pattern, expected, torch.float32) and close(sink, expected_sink, torch.float32)
    assert (pattern[~seen] == 0).all()

    exact = (pattern.to(dtype).double().reshape(2, kv, -1, keys) @ v.double()).view(2, heads, queries, d_head)
    z = native.mix(pattern, v, 3)
    assert z.dtype == dtype and close(z, exact.transpose(1, 2), dtype, float(v.double().abs().max()) * keys**-0.5)


def test_a_query_without_keys_has_a_zero_pattern_and_a_sink_of_one(level):
    s = torch.full((1, 3, 1, 100), -torch.inf)
    s[0, 1, 0, 7] = 0.5
    sink = native.softmax_(s, torch.tensor([0.0, -1.0, -200.0]))[0, :, 0]
    assert sink[0] == 1 and sink[2] == 1 and (s[0, 0] == 0).all() and (s[0, 2] == 0).all()
    assert s[0, 1, 0, 7] + sink[1] == pytest.approx(1) and int((s[0, 1] != 0).sum()) == 1
    assert native.softmax_(torch.empty(1, 3, 1, 0), torch.zeros(3)).flatten().tolist() == [1, 1, 1]
    assert native.scores(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 0, 4), 0, None).shape == (1, 2, 1, 0)
    assert native.mix(torch.empty(1, 2, 1, 0), torch.ones(1, 1, 0, 4)).tolist() == [[[[0] * 4] * 2]]


def test_subnormal_probabilities_are_exactly_zero(level):
    s = torch.linspace(0, -120, 1000)[None, None, None]
    expected, _ = attention.normalize(s.double().clone(), torch.tensor([-300.0]))
    native.softmax_(s, torch.tensor([-300.0]))
    assert s[..., -1] == 0 and not ((s > 0) & (s < torch.finfo(torch.float32).tiny / 1e4)).any()
    torch.testing.assert_close(s.double(), expected, rtol=4e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_functions_of_rows_equal_the_reference(level, dtype):
    x, scale, share = rand(3, 5, 333, dtype=dtype) * 4, rand(333, seed=1), rand(3, 5, seed=2)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    assert close(native.rms_norm(x, scale, 1e-5), expected, dtype)
    assert close(native.norm(x), wide.norm(dim=-1), torch.float32)
    logp = native.log_softmax(x)
    assert logp.dtype == torch.float32 and close(logp, wide.log_softmax(-1), torch.float32)
    other = native.log_softmax(x.flip(-1))
    assert close(native.divergence(logp), -(logp.double().exp() * logp).sum(-1), torch.float32)
    assert close(native.divergence(logp, other), (logp.double().exp() * (logp.double() - other)).sum(-1), torch.float32)
    assert close(native.mixture(share, x), (share[..., None].double() * wide).sum(1), dtype)
    impossible = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert native.divergence(impossible).item() == 0 and native.log_softmax(impossible).tolist() == impossible.tolist()
    assert native.log_softmax(torch.zeros(2, 4)).allclose(torch.full((2, 4), 0.25).log())
    assert native.rms_norm(x[:0], scale, 1e-5).shape == (0, 5, 333) and native.norm(x[:0]).shape == (0, 5)


@pytest.mark.parametrize("heads", [2, 10, 140], ids="{} heads".format)  # of 2 groups; 64 heads are weighted at once
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_query_has_the_bits_it_has_among_many(level, dtype, heads):
    n, window = 200, 150
    q, (k, v) = rand(2, 9, heads, 24, dtype=dtype) * 9, rand(2, 2, 2, n, 24, seed=1, dtype=dtype)
    s = native.scores(q, k, n - 9, window)
    one = native.scores(q[:, -1:], k, n - 1, window)
    assert torch.equal(one, s[:, :, -1:])
    native.softmax_(s)
    native.softmax_(one)
    assert (one == 0).any() and torch.equal(native.mix(one, v, 5), native.mix(s, v, 5)[:, -1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotation_has_the_bits_of_torch(level, dtype):
    x, (cos, sin) = rand(2, 5, 3, 10, dtype=dtype), rand(2, 5, 1, 10, seed=1)
    x[0, 0, 0, 0] = torch.inf
    expected = (x.float() * cos + x.float().roll(5, -1) * sin).to(dtype)
    assert torch.equal(native.rotate(x, cos, sin), expected)
    by_head = x.transpose(1, 2).contiguous().transpose(1, 2)  # other strides
    assert torch.equal(native.rotate(by_head, cos, sin), expected)
    assert native.rotate(x[:0], cos, sin).shape == (0, 5, 3, 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_experts_of_one_position_have_the_bits_they_have_among_many(level, dtype):
    up, down = (Packed(*packed(4, n_out, 2, seed=n_out)[:2], True) for n_out in (128, 64))
    biases = [rand(4, n_out, dtype=dtype) for n_out in (128, 64)]
    x, weight = rand(3, 64, dtype=dtype), torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.0, 0.5]]).to(dtype)
    indices = torch.tensor([[3, 0, 2], [1, 3, 0], [2, 1, 0]])

    def run(i: slice):
        return experts.run_experts(x[i], indices[i], weight[i], up, biases[0], down, biases[1], 1.7, 7.0)

    assert torch.equal(torch.cat([run(slice(i, i + 1)) for i in range(3)]), run(slice(0, 3)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_thread_and_two_give_equal_bits(level, dtype):
    blocks, scales, bias = packed(3, 200, 6)
    x, w, bias = rand(20, 192, dtype=dtype), rand(3, 300, 192, seed=1, dtype=dtype), bias.to(dtype)
    q = rand(1, 3, 16, 64, seed=2, dtype=dtype)
    k, v = (rand(1, 4, 3000, 64, seed=2, dtype=dtype) for _ in range(2))

    def everything():
        pattern = native.scores(q, k, 2997, None)
        sink = native.softmax_(pattern, torch.zeros(16))
        groups = grouped([1, 17, 2])
        return [
            native.linear_experts(x, groups, (blocks, scales), bias), native.linear_experts(x, groups, w, None),
            native.swiglu(x, 1.7, 7), native.dequantize(blocks, scales), native.log_softmax(v),
            pattern, sink, native.mix(pattern, v),
        ]  # fmt: skip

    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything()
        torch.set_num_threads(2)
        two = everything()
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_propagate_as_in_torch(level, bad, dtype):
    blocks, scales, bias = packed(1, 40, 3)
    bias = bias.to(dtype)
    x = rand(7, 96, dtype=dtype)
    x[2, 50] = bad
    dense = reference.dequantize_mxfp4(blocks, scales, dtype=dtype)
    expected = x @ dense[0].T + bias
    for weights in ((blocks, scales), dense):
        for rows in (slice(0, 7), slice(1, 4)):
            actual = native.linear_experts(x[rows], [(0, 0, len(x[rows]))], weights, bias)
            assert torch.equal(actual.isnan(), expected[rows].isnan()) and torch.equal(
                actual.isposinf(), expected[rows].isposinf()
            )
            assert actual[[i for i in range(len(actual)) if i + rows.start != 2]].isfinite().all()


def test_a_product_without_rows_has_no_rows(level):
    blocks, scales, bias = packed(2, 8, 3)
    assert native.linear_experts(torch.empty(0, 96), [], (blocks, scales), bias).shape == (0, 8)
    assert native.linear(torch.empty(0, 96), rand(8, 96)).shape == (0, 8)


def test_a_product_with_a_matrix_without_columns_is_the_bias(level):
    for rows in (1, 3, 5, 40):
        bias = torch.arange(7.0)
        assert torch.equal(native.linear(torch.empty(rows, 0), torch.empty(7, 0), bias), bias.expand(rows, 7))


def test_native_arithmetic_is_listed_as_portable_in_manifests(level):
    names = {native.arithmetic(dtype, "cpu") for dtype in DTYPES}
    assert names <= set(manifest.PORTABLE) and native.arithmetic(torch.float32, "cpu") == "fixed order 1"
    assert native.arithmetic(torch.float64, "cpu") == native.arithmetic(torch.float32, "cuda:0") == "torch"


def test_arguments_that_do_not_match_raise():
    blocks, scales, bias = packed(2, 8, 3)
    x, groups = rand(4, 96), [(0, 0, 1), (1, 1, 4)]
    good = {"x": x, "groups": groups, "blocks": blocks, "scales": scales, "bias": bias}

    def run(x, groups, blocks, scales, bias):
        return native.linear_experts(x, groups, (blocks, scales), bias)

    run(**good)
    bad = [
        {"x": x.half()}, {"x": x[:, :64]}, {"x": rand(96, 4).T}, {"x": x[0]},
        {"bias": bias.bfloat16()}, {"bias": bias[:, :7]},
        {"bias": rand(8, 2).T}, {"blocks": blocks[..., :15]}, {"blocks": blocks.int()}, {"blocks": blocks[:, :, :2]},
        {"blocks": torch.zeros(2, 8, 16, 3, dtype=torch.uint8).transpose(2, 3)}, {"scales": scales[:, :7]},
        {"scales": torch.zeros(2, 3, 8, dtype=torch.uint8).transpose(1, 2)}, {"scales": scales.char()},
        {"groups": [(0, 0, 1)]}, {"groups": [(0, 0, 1), (-1, 1, 4)]},
        {"groups": [(0, 0, 2), (1, 1, 4)]}, {"groups": [(0, 0, 5)]}, {"groups": []}, {"x": x.to("meta")},
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(ArgumentError):
            run(**{**good, **change})
    with pytest.raises(SelectionError, match=r"^expert must be between 0 and 1, got 2\.$"):
        run(**{**good, "groups": [(0, 0, 1), (2, 1, 4)]})
    with pytest.raises(SelectionError, match=r"^expert must be between 0 and 0, got 1\.$"):
        native.linear_experts(x, groups, rand(1, 8, 96), None)
    h = torch.bfloat16
    k, q, p = rand(1, 2, 5, 8), rand(1, 1, 4, 8), rand(1, 4, 1, 5)
    for call in [
        lambda: native.linear(rand(1, 8, dtype=h), rand(3, 8)),
        lambda: native.linear(rand(1, 8), rand(3, 9)),
        lambda: native.linear(rand(1, 8), rand(3, 8), rand(4)),
        lambda: native.dequantize(blocks, scales[:1]),
        lambda: native.dequantize(blocks, scales, torch.float16),
        lambda: native.dequantize(blocks.int(), scales),
        lambda: native.safe_scales(scales.int()),
        lambda: native.swiglu(rand(2, 7), 1.7, 7),
        lambda: native.swiglu(rand(2, 8).double(), 1.7, 7),
        lambda: native.rms_norm(rand(2, 8), rand(7), 1e-5),
        lambda: native.rms_norm(rand(2, 8), rand(8).double(), 1e-5),
        lambda: native.rotate(rand(1, 2, 3, 7), rand(2, 1, 7), rand(2, 1, 7)),
        lambda: native.rotate(rand(1, 2, 3, 8), rand(3, 1, 8), rand(2, 1, 8)),
        lambda: native.log_softmax(rand(2, 8).double()),
        lambda: native.divergence(rand(2, 8), rand(2, 7)),
        lambda: native.mixture(rand(2, 3), rand(2, 4, 8)),
        lambda: native.scores(rand(1, 1, 3, 8), k, 0, None),
        lambda: native.scores(rand(1, 1, 4, 9), k, 0, None),
        lambda: native.scores(q.bfloat16(), k, 0, None),
        lambda: native.scores(rand(2, 1, 4, 8), k, 0, None),
        lambda: native.scores(q, k.transpose(2, 3), 0, None),
        lambda: native.softmax_(p.bfloat16(), rand(4)),
        lambda: native.softmax_(p.transpose(2, 3).expand(1, 4, 5, 2), rand(4)),
        lambda: native.softmax_(p, rand(3)),
        lambda: native.mix(rand(1, 4, 1, 6), k),
        lambda: native.mix(rand(1, 3, 1, 5), k),
        lambda: native.mix(rand(2, 4, 1, 5), k),
        lambda: native.mix(p, k.half()),
    ]:
        with pytest.raises(ArgumentError):
            call()


@pytest.mark.parametrize(
    ("function", "product"),
    [
        ("wb_linear", lambda: native.linear(torch.ones(2, 8), torch.ones(3, 8), None)),
        ("wb_scores", lambda: native.scores(torch.ones(1, 2, 2, 8), torch.ones(1, 1, 2, 8), 0, None)),
        ("wb_mix", lambda: native.mix(torch.ones(1, 2, 2, 2), torch.ones(1, 1, 2, 8))),
    ],
)
def test_a_product_without_memory_is_an_error_and_not_uninitialized_numbers(function, product, monkeypatch):
    without_memory = SimpleNamespace(**{function: lambda *args: 1})
    monkeypatch.setattr(native, "library", lambda: without_memory)
    with pytest.raises(MemoryError, match="no memory for the native kernels"):
        product()
