"""The second reading of the files: MXFP4 by its definition, for all bytes and scales, equals the package gguf's."""

import numpy as np
import pytest

from workbench.model_check.raw_tensors import FP4, mxfp4


def test_every_byte_and_every_scale_has_the_defined_value():
    blocks = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(256, 0)  # all bytes, once for each scale
    scales = np.arange(256, dtype=np.uint8)[:, None].repeat(16, 1)
    values = mxfp4(blocks, scales).numpy().reshape(256, 256, 2)
    exact = np.stack((FP4[np.arange(256) & 15], FP4[np.arange(256) >> 4]), -1).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = np.ldexp(exact[None], np.arange(255)[:, None, None] - 127).astype(np.float32)
    assert np.isinf(expected[254]).any()  # 6 times 2 to the power of 127
    assert np.array_equal(values[:255].view(np.uint32), expected.view(np.uint32))


def test_it_equals_the_package_gguf():
    quants = pytest.importorskip("gguf").quants
    kind = pytest.importorskip("gguf").GGMLQuantizationType.MXFP4
    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (7, 3, 16), np.uint8), rng.integers(90, 160, (7, 3), np.uint8)
    codes = np.stack((blocks & 15, blocks >> 4), -1).reshape(7, 3, 32)
    ggml = np.concatenate((scales[..., None], codes[..., :16] | (codes[..., 16:] << 4)), -1).reshape(7, -1)
    assert np.array_equal(mxfp4(blocks, scales).numpy(), quants.dequantize(ggml, kind))
