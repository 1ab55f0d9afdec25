"""Reference for the native kernels in plain torch: dequantization of MXFP4. Independent of models and files.

MXFP4 (OCP Microscaling Formats 1.0): 32 consecutive values along the input dimension share one scale byte s, and each
has a four-bit code c: the value is FP4[c] * 2**(s - 127). Scale 255 means NaN.
"""

import torch
from torch import Tensor

from workbench.errors import ArgumentError

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
GROUP = 32  # values that share a scale
BYTES = GROUP // 2  # bytes of codes in a group
CHUNK = 1 << 14  # groups decoded at once: fits the processor's cache and limits the working memory to about 10 MB

# A byte contains two codes. Reading the pair of numbers as one wider element needs only one lookup.
_PAIR = {torch.bfloat16: torch.int32, torch.float32: torch.int64, torch.float64: torch.complex128}


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values rounded to `dtype`: uint8 [..., group, 16] and [..., group] become [..., 32*group].

    Byte i of a group contains element 2i in its low and 2i + 1 in its high nibble, as in every safetensors release.
    ArgumentError for a dtype other than float32, bfloat16, float64, and for shapes that do not match.

    >>> blocks = torch.zeros(1, 16, dtype=torch.uint8)
    >>> blocks[0, :2] = torch.tensor([0x2B, 0xF1])
    >>> dequantize_mxfp4(blocks, torch.tensor([122], dtype=torch.uint8))[:4].tolist()
    [-0.046875, 0.03125, 0.015625, -0.1875]
    """
    if blocks.shape != (*scales.shape, BYTES):
        raise ArgumentError(f"blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not match")
    out = torch.empty(scales.numel(), BYTES, 2, dtype=dtype, device=blocks.device)
    _decode(blocks.reshape(-1, BYTES), scales.reshape(-1), out)
    return out.view(*scales.shape[:-1], GROUP * scales.shape[-1])


def dequantize_mxfp4_ggml(rows: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantize ggml's rows: uint8 [..., 17*group] become [..., 32*group].

    A group is its scale, then 16 bytes; byte j contains element j in its low and j + 16 in its high nibble.

    >>> row = torch.tensor([127] + [0x21] * 16, dtype=torch.uint8)
    >>> dequantize_mxfp4_ggml(row)[[0, 15, 16, 31]].tolist()
    [0.5, 0.5, 1.0, 1.0]
    """
    return dequantize_mxfp4(*repack_mxfp4_ggml(rows), dtype=dtype)


def repack_mxfp4_ggml(rows: Tensor) -> tuple[Tensor, Tensor]:
    """ggml's rows in the layout of safetensors: blocks [..., group, 16] and scales [..., group].

    >>> row = torch.tensor([127] + [0x21] * 16, dtype=torch.uint8)
    >>> blocks, scales = repack_mxfp4_ggml(row)
    >>> blocks[0, 7:9].tolist(), scales.tolist()
    ([17, 34], [127])
    """
    if rows.shape[-1] % (1 + BYTES):
        raise ArgumentError(
            f"the length of a row of ggml's MXFP4 must be a multiple of {1 + BYTES} bytes, got {rows.shape[-1]}"
        )
    groups = rows.unflatten(-1, (rows.shape[-1] // (1 + BYTES), 1 + BYTES))
    even, odd = groups[..., 1::2], groups[..., 2::2]
    first = (even & 15) | (odd << 4)  # uint8 drops the bits that are shifted out
    second = (even >> 4) | (odd & 0xF0)
    return torch.cat((first, second), -1), groups[
        ..., 0
    ].contiguous()  # the kernels need a row's scales to be contiguous


def _decode(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """Fill `out` [group, byte, nibble] from codes [group, byte] and scales [group]."""
    if out.dtype not in _PAIR:
        raise ArgumentError(f"MXFP4 is dequantized to float32, bfloat16 or float64, got {out.dtype}.")
    byte = torch.arange(256, device=codes.device)
    value = torch.tensor(FP4, dtype=out.dtype, device=codes.device)
    pairs = torch.stack((value[byte & 15], value[byte >> 4]), -1).view(_PAIR[out.dtype]).flatten()
    powers = torch.ldexp(torch.ones(256, dtype=torch.float64, device=codes.device), byte - 127)
    powers[255] = torch.nan
    powers = powers.to(out.dtype)  # exact: 2**-127 is a denormal of float32 and of bfloat16, and is kept
    for i in range(0, len(codes), CHUNK):
        pair = torch.take(pairs, codes[i : i + CHUNK].long()).view(out.dtype).view(-1, BYTES, 2)
        torch.mul(pair, powers[scales[i : i + CHUNK].int()][:, None, None], out=out[i : i + CHUNK])
