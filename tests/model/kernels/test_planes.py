"""Matrices in 12 bits a weight: no bit is lost, and products have the bits of those with the bf16 matrix."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.levels import AT_START
from tests.model.kernels.conftest import LEVELS
from workbench.errors import ArgumentError
from workbench.model.kernels import large_pages, native, planes
from workbench.model.kernels.linear import linear
from workbench.model.kernels.lora import Adapted, plain, whole

pytestmark = pytest.mark.skipif(not LEVELS, reason=native.status())


@pytest.fixture(autouse=True)
def restored():
    yield
    native.use(AT_START)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int16)


def packed(matrix: torch.Tensor) -> planes.Planes:
    result = planes.pack(matrix)
    assert result is not None
    return result


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def with_listed(n_rows: int, n: int, share: float, seed: int = 0) -> torch.Tensor:
    """A matrix in which about this share of the weights, among them NaN and infinity, has another upper byte."""
    g = torch.Generator().manual_seed(seed)
    matrix = normal(n_rows, n, seed=seed)
    other = torch.rand(n_rows, n, generator=g) < share
    rare = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, torch.inf, -torch.inf, torch.nan, 2.0**-90, -(2.0**70)])
    return torch.where(other, rare[torch.randint(0, len(rare), (n_rows, n), generator=g)], matrix).bfloat16()


@pytest.mark.parametrize("first", range(0, 256, 15))
def test_every_bit_pattern_survives(level, first):
    """All 65,536 patterns, 15 upper bytes at a time: NaN, infinities, subnormals and both zeros are among them."""
    patterns = torch.arange(65536, dtype=torch.int32)
    chosen = patterns[(patterns >> 8 >= first) & (patterns >> 8 < first + 15)]
    matrix = chosen.to(torch.int16).view(torch.bfloat16).view(-1, 64)
    assert torch.equal(bits(planes.unpack(packed(matrix))), bits(matrix))


def test_weights_with_other_upper_bytes_are_listed_with_all_their_bits(level):
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    matrix = normal(1024, 64 * 128)
    matrix.view(-1)[:: matrix.numel() // 65536][:65536] = patterns  # 0.8 % of the weights
    one = packed(matrix)
    assert torch.equal(bits(planes.unpack(one)), bits(matrix)) and len(one.listed) > 50_000


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 17, 64, 65, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_have_the_bits_of_those_with_the_bf16_matrix(level, n_rows, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n_out, n_in, share in ((1, 64, 0.0), (67, 192, 0.009), (130, 2880, 0.001), (64, 4096, 0.0)):
            matrix, x, bias = with_listed(n_out, n_in, share), normal(n_rows, n_in, seed=1), normal(n_out, seed=2)
            one = packed(matrix)
            for b in (None, bias):
                assert torch.equal(bits(planes.linear(x, one, b)), bits(native.linear(x, matrix, b)))
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_products_of_adversarial_values_have_the_same_bits(data):
    """Any upper bytes, listed weights at any places (first, last and several in one block), any scale of x."""
    n_out, n_in = data.draw(st.integers(1, 9)), 64 * data.draw(st.integers(1, 6))
    matrix = with_listed(n_out, n_in, 0.0, seed=data.draw(st.integers(0, 99)))
    for place in data.draw(st.lists(st.integers(0, n_out * n_in - 1), max_size=n_out * n_in // 100)):
        matrix.view(-1)[place] = data.draw(st.floats(width=32, allow_nan=False))
    x = normal(data.draw(st.integers(1, 6)), n_in, scale=10.0 ** data.draw(st.integers(-30, 30)))
    one = planes.pack(matrix)
    if one is None:
        return
    for name in native.levels():
        native.use(name)
        assert torch.equal(bits(planes.linear(x, one)), bits(native.linear(x, matrix)))


def test_a_view_of_rows_and_x_with_a_stride_give_the_same_bits(level):
    whole_matrix, wide = normal(40, 256), normal(3, 300, seed=1)
    matrix, x = whole_matrix[7:31, 64:192], wide[:, 5:133]
    assert torch.equal(bits(planes.linear(x, packed(matrix))), bits(native.linear(x, matrix)))
    assert planes.linear(x[:0], packed(matrix)).shape == (0, 24)


def test_what_cannot_be_packed_stays_as_it_is():
    spread = torch.linspace(-120, 120, 64 * 64).exp2().bfloat16().view(64, 64)  # exponents of equal frequency
    for matrix in (
        spread,
        normal(4, 63),
        normal(4, 64).float(),
        normal(64, 4).T[:, :64],
        normal(2, planes.MAX_ROW + 64),
    ):
        assert planes.pack(matrix) is None
    native.use("torch")
    assert planes.pack(normal(4, 64)) is None


def test_linear_uses_the_planes_only_while_they_are_those_of_the_matrix():
    matrix, x = normal(8, 64), normal(2, 64, seed=1)
    one = packed(matrix)
    one.blocks.zero_()  # so that a product shows what it used
    one.table.zero_()
    assert torch.equal(linear(x, one), torch.zeros(2, 8).bfloat16())
    matrix[0, 0] += 1
    assert not one.is_current and torch.equal(linear(x, one), linear(x, matrix))


def test_wide_rows_gradients_and_other_kernels_use_the_matrix():
    matrix = normal(8, 64)
    one, x = packed(matrix), normal(2, 64, seed=1)
    assert linear(x.float(), one._replace(matrix=matrix.float())).dtype == torch.float32
    needed = x.clone().requires_grad_()
    linear(needed, one).sum().backward()
    assert needed.grad is not None
    native.use("torch")
    assert torch.equal(linear(x, one), linear(x, matrix))


def test_an_adapter_adds_its_change_to_a_matrix_in_planes():
    matrix, x = normal(8, 64), normal(3, 64, seed=1)
    a, b = torch.randn(2, 64), torch.randn(8, 2)
    one = Adapted(packed(matrix), a, b, 0.5)
    assert torch.equal(linear(x, one), linear(x, Adapted(matrix, a, b, 0.5)))
    assert torch.equal(whole(one), whole(Adapted(matrix, a, b, 0.5))) and plain(one) is matrix
    assert torch.equal(whole(packed(matrix)), matrix)


def test_the_whole_matrix_comes_from_the_copy_unless_the_matrix_was_changed():
    matrix = normal(8, 64)
    one, expected = packed(matrix), matrix.clone()
    assert whole(one) is not matrix and torch.equal(whole(one), expected)
    native.use("torch")
    assert whole(one) is matrix
    native.use(AT_START)
    matrix[0, 0] += 1
    assert whole(one) is matrix


def test_rows_of_another_length_or_dtype_are_refused():
    one = packed(normal(8, 128))
    for x in (normal(2, 64), normal(2, 128).float(), normal(128)):
        with pytest.raises(ArgumentError):
            planes.linear(x, one)


def test_without_memory_the_product_raises(monkeypatch):
    class NoMemory:
        def wb_linear_planes(self, *_):
            return 1

    one, x = packed(normal(8, 64)), normal(1, 64)
    monkeypatch.setattr(native, "library", NoMemory)
    with pytest.raises(MemoryError):
        planes.linear(x, one)


def test_memory_in_large_pages_is_aligned_and_as_long_as_asked_for():
    for shape, dtype in (
        ((3, 5), torch.int8),
        ((9, 1 << 20), torch.int16),
        ((1 << 24,), torch.uint8),
        ((1 << 22,), torch.uint8),
    ):
        x = large_pages.empty(*shape, dtype=dtype)
        assert x.shape == shape and x.dtype == dtype and x.is_contiguous()
        x.fill_(7)
        assert int(x.view(-1)[-1]) == 7
        if x.nbytes >= large_pages.MIN_PAGES * large_pages.PAGE and sys.platform == "linux":
            assert x.data_ptr() % large_pages.PAGE == 0


def test_the_gradient_of_a_matrix_with_a_copy_is_that_of_the_matrix(level):
    x, vector = normal(3, 128, seed=1), normal(128, seed=2)
    gradients = []
    for matrix in (normal(20, 128), packed(normal(20, 128))):
        weight = plain(matrix)
        assert isinstance(weight, torch.Tensor)
        weight.requires_grad_(True)
        (linear(x, matrix).float().square().sum() + (whole(matrix) @ vector).float().square().sum()).backward()
        gradients.append(weight.grad)
    assert gradients[0].any() and torch.equal(*gradients)
