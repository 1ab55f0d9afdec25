"""The MXFP4 reference implementation equals the definition of MXFP4 for every scale and code."""

from fractions import Fraction

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.model.kernels import reference
from workbench.model.kernels.reference import FP4, dequantize_mxfp4, dequantize_mxfp4_ggml

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
BYTES = torch.tensor([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2, dtype=torch.uint8)  # codes 0..15, twice
SCALES = torch.arange(256, dtype=torch.uint8)


def every_value() -> torch.Tensor:
    """[scale, code] in float64, in which all values are exact."""
    exact = [[float(Fraction(c) * Fraction(2) ** (s - 127)) for c in FP4] for s in range(256)]
    values = torch.tensor(exact, dtype=torch.float64)
    return values.copysign(torch.tensor(FP4, dtype=torch.float64))  # Fraction has no -0


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_scale_and_code_is_the_exact_value_rounded_to_the_dtype(dtype):
    values = dequantize_mxfp4(BYTES.expand(256, 1, 16), SCALES[:, None], dtype=dtype)
    expected = every_value().to(dtype).repeat(1, 2)
    assert torch.equal(bits(values[:255]), bits(expected[:255]))
    assert values[255].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_scale_and_code_is_the_same_in_ggmls_order(dtype):
    codes = torch.arange(16, dtype=torch.uint8)
    rows = torch.cat((SCALES[:, None], (codes | codes.flip(0) << 4).expand(256, 16)), 1)
    values = dequantize_mxfp4_ggml(rows, dtype=dtype)
    expected = every_value().to(dtype)
    assert torch.equal(bits(values[:255]), bits(torch.cat((expected, expected.flip(1)), 1)[:255]))
    assert values[255].isnan().all()


def test_every_byte_gives_its_low_nibble_first():
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16)
    values = dequantize_mxfp4(blocks, torch.full((16,), 127, dtype=torch.uint8)).view(256, 2)
    assert values.tolist() == [[FP4[b & 15], FP4[b >> 4]] for b in range(256)]


def test_a_long_tensor_decoded_in_chunks_equals_the_whole(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 7)
    blocks = torch.randint(0, 256, (3, 5, 4, 16), dtype=torch.uint8)
    scales = torch.randint(0, 255, (3, 5, 4), dtype=torch.uint8)
    whole = torch.stack(
        [dequantize_mxfp4(b, s) for b, s in zip(blocks.view(-1, 1, 16), scales.view(-1, 1), strict=True)]
    )
    assert torch.equal(dequantize_mxfp4(blocks, scales).view(-1, 32), whole)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_rows_of_ggml_equal_those_of_the_package_gguf(seed, rows, groups):
    raw = np.random.default_rng(seed).integers(0, 255, (rows, 17 * groups), dtype=np.uint8)
    raw[:, ::17] %= 253  # with larger scales numpy warns of an overflow to infinity
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(dequantize_mxfp4_ggml(torch.from_numpy(raw)).numpy(), expected)


def test_views_and_empty_tensors_are_dequantized():
    blocks = torch.randint(0, 256, (4, 6, 2, 16), dtype=torch.uint8)
    scales = torch.randint(0, 255, (4, 6, 2), dtype=torch.uint8)
    assert torch.equal(dequantize_mxfp4(blocks[:, ::2], scales[:, ::2]), dequantize_mxfp4(blocks, scales)[:, ::2])
    assert dequantize_mxfp4(blocks[:0], scales[:0]).shape == (0, 6, 64)


def test_another_dtype_or_shape_is_refused():
    blocks, scales = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="float16"):
        dequantize_mxfp4(blocks, scales, dtype=torch.float16)
    with pytest.raises(ValueError, match="do not match"):
        dequantize_mxfp4(blocks, scales[:1])
    with pytest.raises(ValueError, match="multiple of 17"):
        dequantize_mxfp4_ggml(blocks)
