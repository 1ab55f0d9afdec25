"""The native kernels equal the plain ones: every level that runs here, and AVX-512 emulated where it does not."""

import functools
import itertools
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.levels import AT_START
from workbench.kernels import attention, build, experts, native, reference

TOLERANCE = 4e-7  # of the largest value, for fp32
BF16 = 2**-8  # half a step of bf16, relative
DTYPES = [torch.float32, torch.bfloat16]
EMULATED = "avx512-bf16, emulated"

pytestmark = pytest.mark.skipif(native.isa() is None and not build.compiler(), reason=native.why())
LEVELS = [*native.levels()]
if "avx512-bf16" not in LEVELS and platform.machine() == "x86_64" and build.compiler():
    LEVELS.append(EMULATED)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The library with AVX-512 in plain C (avx512.h); None where the compiler cannot."""
    flags = ("-O1", "-w", "-include", str(build.HERE.parents[1] / "tests/kernels/avx512.h"))
    try:
        return build.build(tmp_path_factory.mktemp("native") / build.LIBRARY.name, flags=flags)
    except build.CannotBuild as e:
        pytest.skip(f"AVX-512 cannot be emulated here: {e}")


@pytest.fixture(autouse=True)
def restored():
    yield
    native.use(AT_START)


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    if request.param == EMULATED:
        monkeypatch.setattr(build, "LIBRARY", request.getfixturevalue("emulated"))
        monkeypatch.setattr(native._State, "loaded", False)
        native.use("avx512-bf16")
        yield "avx512-bf16"
        monkeypatch.undo()
        native._State.loaded = False
        return
    native.use(request.param)
    yield request.param


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(n_experts, n_out, n_groups, seed=0, low=117, high=124, aligned=True):
    """Blocks, scales, bias; misaligned ones start at an odd byte, as they may in a mapped file."""
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
    w = reference.dequantise_mxfp4(blocks, scales, dtype=torch.float64)
    return torch.cat([x[a:b].double() @ w[e].T + bias[e].double() for e, a, b in groups])


def norm(x, groups, blocks, scales):
    """What a product of these vectors comes to by chance: the measure where few values are compared, all of which may
    cancel; with many it is smaller than the largest."""
    w = reference.dequantise_mxfp4(blocks, scales, dtype=torch.float64)
    return max(float(x[a:b].double().norm(dim=1).max() * w[e].norm(dim=1).max()) for e, a, b in groups)


def close(got, want, dtype, at_least=0.0):
    """fp32 to TOLERANCE of the largest value; bf16 half a step more."""
    error = (got.double() - want).abs()
    room = TOLERANCE * max(float(want.abs().max()), at_least)
    return bool((error <= room + (BF16 * want.abs() if dtype == torch.bfloat16 else 0)).all())


SHAPES = [
    (1, 1, [1]), (3, 5, [4, 0, 2]), (2, 33, [1, 1, 1]), (9, 70, [40, 1, 13]), (33, 100, [2, 17]), (31, 31, [6, 12, 5]),
    (40, 64, [3, 25]),
]  # fmt: skip


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_groups", "n_out", "counts"), SHAPES)
def test_experts_are_computed_straight_from_mxfp4(level, n_groups, n_out, counts, dtype, few):
    for aligned in (True, False):
        blocks, scales, bias = packed(len(counts), n_out, n_groups, aligned=aligned)
        bias, groups = bias.to(dtype), grouped(counts)
        x = rand(sum(counts), 32 * n_groups, dtype=dtype)
        got = native.linear_mxfp4(x, groups, blocks, scales, bias, few)
        want = truth(x, groups, blocks, scales, bias)
        assert got.dtype == dtype and close(got, want, dtype, norm(x, groups, blocks, scales))


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_a_view_of_larger_matrices_is_read_in_place(level, few):
    blocks, scales, bias = packed(4, 50, 5)
    some = (blocks[::2, 3:43], scales[::2, 3:43], bias[::2, 3:43])
    x = rand(9, 160)
    got = native.linear_mxfp4(x, [(1, 0, 6), (0, 6, 9)], *some, few)
    assert torch.equal(got, native.linear_mxfp4(x, [(1, 0, 6), (0, 6, 9)], *(t.contiguous() for t in some), few))


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_with_every_safe_scale_is_exact(level, dtype, few):
    """x picks one weight after the other, so each output is one weight and must be that weight."""
    low, high = native.SAFE
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = (codes | codes.flip(0) << 4).expand(1, high - low + 1, 1, 16).contiguous()
    scales = torch.arange(low, high + 1, dtype=torch.uint8).view(1, -1, 1)
    bias = torch.zeros(1, high - low + 1, dtype=dtype)
    got = native.linear_mxfp4(torch.eye(32, dtype=dtype), [(0, 0, 32)], blocks, scales, bias, few)
    assert torch.equal(got, reference.dequantise_mxfp4(blocks[0], scales[0], dtype=dtype).T)


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_every_safe_scale_a_product_is_as_close_as_in_the_middle(level, dtype, few):
    low, high = native.SAFE
    for size in (2.0**-30, 1.0, 2.0**30):
        x = rand(6, 96, dtype=dtype) * size
        for scale in range(low, high + 1, 20):
            blocks, scales, bias = packed(1, 40, 3, low=scale, high=scale + 1)
            want = truth(x, [(0, 0, 6)], blocks, scales, bias * 0)
            assert close(native.linear_mxfp4(x, [(0, 0, 6)], blocks, scales, (bias * 0).to(dtype), few), want, dtype)


def test_scales_are_safe_only_if_all_are():
    low, high = native.SAFE
    for n in (1, 100, (1 << 20) + 3):
        scales = torch.full((n,), low, dtype=torch.uint8)
        scales[n // 2 :] = high
        assert native.safe_scales(scales)
        for bad in (0, low - 1, high + 1, 255):
            for at in (0, n - 1):
                scales[at], was = bad, int(scales[at])
                assert not native.safe_scales(scales)
                scales[at] = was
    assert native.safe_scales(torch.empty(0, dtype=torch.uint8))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_never_knows_its_neighbours(data):
    for name in native.levels():
        native.use(name)
        counts = data.draw(st.lists(st.integers(0, 14), min_size=1, max_size=4).filter(any))
        n_groups, n_out = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 70))
        dtype, few = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
        alone_is_alone(counts, n_groups, n_out, dtype, few)


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_never_knows_its_neighbours_at_any_level(level, dtype, few):
    alone_is_alone([14, 0, 3, 1], 3, 37, dtype, few)


def alone_is_alone(counts, n_groups, n_out, dtype, few):
    blocks, scales, bias = packed(len(counts), n_out, n_groups)
    x, groups = rand(sum(counts), 32 * n_groups, dtype=dtype), grouped(counts)
    run = functools.partial(native.linear_mxfp4, blocks=blocks, scales=scales, bias=bias.to(dtype), few=few)
    together = run(x, groups)
    for e, a, b in groups:
        for row in {a, (a + b) // 2, b - 1}:
            assert torch.equal(run(x[row : row + 1], [(e, 0, 1)])[0], together[row])


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 3), (64, 65), (96, 7), (301, 130)])
def test_a_bf16_matrix_is_multiplied_as_one_stream(level, rows, n_in, n_out):
    x, w, b = (rand(*s, seed=i, dtype=torch.bfloat16) for i, s in enumerate([(rows, n_in), (n_out, n_in), (n_out,)]))
    got = native.linear_bf16(x, w, b)
    want = x.double() @ w.double().T
    size = float(x.double().norm(dim=1).max() * w.double().norm(dim=1).max())
    assert close(got, want + b.double(), torch.bfloat16, size)
    assert close(native.linear_bf16(x, w), want, torch.bfloat16, size)
    for row in range(rows):
        assert torch.equal(native.linear_bf16(x[row : row + 1], w, b)[0], got[row])
    wider = rand(n_out, n_in + 3, seed=1, dtype=torch.bfloat16)
    assert torch.equal(native.linear_bf16(x, wider[:, 3:]), native.linear_bf16(x, wider[:, 3:].contiguous()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_with_every_scale_byte_is_the_reference_bit_for_bit(level, dtype):
    pairs = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, 16, 16)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 16)
    got, want = native.dequantise(pairs, scales, dtype), reference.dequantise_mxfp4(pairs, scales, dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert got.isnan().equal(want.isnan()) and got[255].isnan().all()  # torch has several NaN, depending on the machine
    assert torch.equal(got[:255].view(bits), want[:255].view(bits))
    assert native.dequantise(pairs[:0], scales[:0], dtype).shape == (0, 512)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_is_the_plain_one(level, dtype):
    x = rand(5, 3, 2 * 333, dtype=dtype) * 8
    x[0, 0, :10] = torch.tensor([0.0, 0, 1e30, -1e30, -1e30, 1e30, -60, 7, -7, 60])
    want = experts.swiglu(x.double(), 1.702, 7.0)
    got = native.swiglu(x, 1.702, 7.0)
    assert got.shape == want.shape and got.dtype == dtype and close(got, want, dtype)
    odd = torch.tensor(
        [torch.nan, 1, 1, torch.nan, torch.inf, 2, -torch.inf, 3, 3, torch.inf, 2, -torch.inf], dtype=dtype
    )
    assert torch.equal(native.swiglu(odd, 1.702, 7.0).isnan(), experts.swiglu(odd, 1.702, 7.0).isnan())
    assert native.swiglu(x[:0], 1.702, 7.0).shape == (0, 3, 333)


HEADS = [(64, 8, 64, 1000), (4, 2, 16, 70), (6, 6, 10, 5), (3, 1, 34, 1), (8, 2, 32, 513)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv", "d_head", "keys"), HEADS)
def test_attention_of_one_query_is_the_plain_one(level, heads, kv, d_head, keys, dtype):
    q = rand(heads, d_head, dtype=dtype)
    cache = rand(2, kv, keys + 7, d_head, seed=1, dtype=dtype)
    k, v = cache[0, :, 2 : 2 + keys], rand(keys, kv, d_head, seed=2, dtype=dtype).transpose(0, 1)
    sinks = rand(heads, seed=3)

    got = native.scores(q, k)
    exact = (q.double().view(kv, -1, d_head) @ k.double().transpose(1, 2)).view(heads, keys) / d_head**0.5
    assert got.dtype == torch.float32 and close(got, exact, dtype, float(q.double().norm(dim=1).max()))
    block = attention.Block(0, 1, 0, keys)
    plain = attention.scores(q[None, None], k[None], block, keys - 1, None)[0, :, 0]
    assert close(got, plain.double(), dtype, float(q.double().norm(dim=1).max()))

    got[:, : keys // 3] = -torch.inf
    want, want_sink = attention.normalise(got.double()[None, :, None].clone(), sinks)
    pattern = got.clone()
    sink = native.softmax_sink_(pattern, sinks)
    assert close(pattern, want[0, :, 0], torch.float32) and close(sink, want_sink[0, :, 0], torch.float32)
    assert (pattern[:, : keys // 3] == 0).all()

    exact = (pattern.to(dtype).double().view(kv, -1, keys) @ v.double()).view(heads, d_head)
    z = native.mix(pattern, v)
    assert z.dtype == dtype and close(z, exact, dtype, float(v.double().abs().max()) * keys**-0.5)


def test_a_query_that_sees_nothing_gives_zeros_and_a_sink_of_one(level):
    s = torch.full((3, 100), -torch.inf)
    s[1, 7] = 0.5
    sink = native.softmax_sink_(s, torch.tensor([0.0, -1.0, -200.0]))
    assert sink[0] == 1 and sink[2] == 1 and (s[0] == 0).all() and (s[2] == 0).all()
    assert s[1, 7] + sink[1] == pytest.approx(1) and int((s[1] != 0).sum()) == 1
    none = torch.empty(3, 0)
    assert native.softmax_sink_(none, torch.zeros(3)).tolist() == [1, 1, 1]
    assert native.scores(torch.ones(2, 4), torch.ones(1, 0, 4)).shape == (2, 0)
    assert native.mix(torch.empty(2, 0), torch.ones(1, 0, 4)).tolist() == [[0] * 4] * 2


def test_what_would_leave_the_normal_numbers_is_exactly_zero(level):
    s = torch.linspace(0, -120, 1000)[None]
    want, _ = attention.normalise(s[None, :, None].clone(), torch.tensor([-300.0]))
    native.softmax_sink_(s, torch.tensor([-300.0]))
    assert s[0, -1] == 0 and not ((s > 0) & (s < torch.finfo(torch.float32).tiny / 1e4)).any()
    torch.testing.assert_close(s, want[0, :, 0], rtol=4e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_thread_and_two_give_equal_bits(level, dtype):
    blocks, scales, bias = packed(3, 200, 6)
    x, w = rand(20, 192, dtype=dtype), rand(300, 192, seed=1, dtype=torch.bfloat16)
    q, k, v = (rand(*s, seed=2, dtype=dtype) for s in [(16, 64), (4, 3000, 64), (4, 3000, 64)])

    def everything():
        pattern = native.scores(q, k)
        sink = native.softmax_sink_(pattern, torch.zeros(16))
        groups = grouped([1, 17, 2])
        return [
            *(native.linear_mxfp4(x, groups, blocks, scales, bias.to(dtype), few) for few in (True, False)),
            native.linear_bf16(x[:2].bfloat16(), w), native.swiglu(x, 1.7, 7), native.dequantise(blocks, scales),
            pattern, sink, native.mix(pattern, v),
        ]  # fmt: skip

    was = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything()
        torch.set_num_threads(2)
        two = everything()
    finally:
        torch.set_num_threads(was)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_go_through_as_in_torch(level, bad, dtype, few):
    blocks, scales, bias = packed(1, 40, 3)
    bias = bias.to(dtype)
    x = rand(7, 96, dtype=dtype)
    x[2, 50] = bad
    got = native.linear_mxfp4(x, [(0, 0, 7)], blocks, scales, bias, few)
    want = x @ reference.dequantise_mxfp4(blocks, scales, dtype=dtype)[0].T + bias
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isposinf(), want.isposinf())
    assert got[[0, 1, 3, 4, 5, 6]].isfinite().all()
    if dtype == torch.bfloat16 and few:
        w = rand(40, 96, dtype=dtype)
        assert torch.equal(native.linear_bf16(x[1:4], w).isnan(), (x[1:4] @ w.T).isnan())


def test_a_pass_without_rows_gives_no_rows(level):
    blocks, scales, bias = packed(2, 8, 3)
    assert native.linear_mxfp4(torch.empty(0, 96), [], blocks, scales, bias, True).shape == (0, 8)


def test_what_does_not_belong_together_raises():
    blocks, scales, bias = packed(2, 8, 3)
    x, groups = rand(4, 96), [(0, 0, 1), (1, 1, 4)]
    good = {"x": x, "groups": groups, "blocks": blocks, "scales": scales, "bias": bias, "few": True}
    native.linear_mxfp4(**good)
    bad = [
        {"x": x.half()}, {"x": x[:, :64]}, {"x": rand(96, 4).T}, {"x": x[0]},
        {"bias": bias.bfloat16()}, {"bias": bias[:, :7]},
        {"bias": rand(8, 2).T}, {"blocks": blocks[..., :15]}, {"blocks": blocks.int()}, {"blocks": blocks[:, :, :2]},
        {"blocks": torch.zeros(2, 8, 16, 3, dtype=torch.uint8).transpose(2, 3)}, {"scales": scales[:, :7]},
        {"scales": torch.zeros(2, 3, 8, dtype=torch.uint8).transpose(1, 2)}, {"scales": scales.char()},
        {"groups": [(0, 0, 1)]}, {"groups": [(0, 0, 1), (2, 1, 4)]}, {"groups": [(0, 0, 1), (-1, 1, 4)]},
        {"groups": [(0, 0, 2), (1, 1, 4)]}, {"groups": [(0, 0, 5)]}, {"groups": []}, {"x": x.to("meta")},
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(ValueError):
            native.linear_mxfp4(**{**good, **change})
    h = torch.bfloat16
    k = rand(2, 5, 8)
    for call in [
        lambda: native.linear_bf16(rand(5, 8, dtype=h), rand(3, 8, dtype=h)),
        lambda: native.linear_bf16(rand(1, 8), rand(3, 8)),
        lambda: native.linear_bf16(rand(1, 8, dtype=h), rand(8, 3, dtype=h).T),
        lambda: native.linear_bf16(rand(1, 8, dtype=h), rand(3, 9, dtype=h)),
        lambda: native.linear_bf16(rand(1, 8, dtype=h), rand(3, 8, dtype=h), rand(4, dtype=h)),
        lambda: native.dequantise(blocks, scales[:1]),
        lambda: native.dequantise(blocks, scales, torch.float16),
        lambda: native.dequantise(blocks.int(), scales),
        lambda: native.safe_scales(scales.int()),
        lambda: native.swiglu(rand(2, 7), 1.7, 7),
        lambda: native.swiglu(rand(2, 8).double(), 1.7, 7),
        lambda: native.scores(rand(3, 8), k),
        lambda: native.scores(rand(4, 9), k),
        lambda: native.scores(rand(4, 8, dtype=h), k),
        lambda: native.scores(rand(4, 8), k.transpose(1, 2)),
        lambda: native.softmax_sink_(rand(4, 8, dtype=h), rand(4)),
        lambda: native.softmax_sink_(rand(8, 4).T, rand(4)),
        lambda: native.softmax_sink_(rand(4, 8), rand(3)),
        lambda: native.mix(rand(4, 6), k),
        lambda: native.mix(rand(3, 5), k),
        lambda: native.mix(rand(4, 5, dtype=h), k),
    ]:
        with pytest.raises(ValueError):
            call()
