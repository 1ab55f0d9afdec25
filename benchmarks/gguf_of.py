"""Converts a Hugging Face folder of gpt-oss to one .gguf file with the same weights, so that llama.cpp can run it.

    python -m benchmarks.gguf_of /work/synth/20b-6l 20b-6l-q8.gguf --dense q8_0     # or bf16

Experts are the same numbers in ggml's order of nibbles, with gate and up separated. Matrices outside the experts are
Q8_0, as in the .gguf files that llama.cpp's authors publish, or bf16, as in the checkpoint. Vectors and the router are
float32. The file has no vocabulary ("no_vocab"): it is for token ids and timing, not for text. Only one tensor is in
memory at a time. Needs the package gguf.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.model.checkpoints import gguf, hf
from workbench.model.checkpoints.folder_files import hf_files, mapped, read_json
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.config import Config

DENSE = ("q8_0", "bf16")
ROWS = 4096  # of a dense matrix, converted at a time
Piece = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]  # name, shape in elements, function that makes its data


def to_gguf(folder: Path, file: Path, *, dense: str = "q8_0") -> Path:
    """Writes `file` from the MXFP4 checkpoint in `folder`; `dense` is "q8_0" or "bf16". Never replaces a file.

    Raises FileExistsError if `file` exists; ValueError for another `dense` or a checkpoint without MXFP4 experts.
    """
    import gguf

    if dense not in DENSE:
        raise ValueError(f"dense must be one of {', '.join(DENSE)}, got {dense!r}.")
    if file.exists():
        raise FileExistsError(f"{file} exists already. Give another path.")
    config = parse_hf_config(read_json(folder / "config.json"), str(folder))
    tensors = mapped(hf_files(folder))
    if not hf.is_packed(tensors):
        raise ValueError(f"{folder} has no MXFP4 experts; only the published layout can be converted.")
    scratch = file.with_name(f".{file.name}.part")
    writer = gguf.GGUFWriter(scratch, "gpt-oss")
    _describe(writer, config, folder.name)
    pieces = list(_pieces(tensors, config, dense))
    kinds = gguf.GGMLQuantizationType
    try:
        for name, shape, _ in pieces:
            kind = kinds[_kind(name, shape, dense)]
            if kind == kinds.F32:
                writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
            else:
                stored = gguf.quant_shape_to_byte_shape(shape, kind)
                writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, _, data in pieces:
            writer.write_tensor_data(data())
        writer.close()
        scratch.rename(file)
    finally:
        scratch.unlink(missing_ok=True)
    return file


def pack_mxfp4_ggml(blocks: Tensor, scales: Tensor) -> Tensor:
    """Rows of ggml's MXFP4, uint8 [..., 17*group]: the reverse of `repack_mxfp4_ggml` (model/kernels/reference.py)."""
    first, second = blocks[..., :8], blocks[..., 8:]
    rows = torch.empty(*scales.shape, 17, dtype=torch.uint8)
    rows[..., 0] = scales
    rows[..., 1::2] = (first & 15) | (second << 4)  # uint8 drops what is shifted out
    rows[..., 2::2] = (first >> 4) | (second & 0xF0)
    return rows.flatten(-2)


def _pieces(tensors: dict[str, Tensor], c: Config, dense: str) -> Iterator[Piece]:
    """Every tensor of the .gguf, under the names that workbench's own reader expects."""

    def plain(name: str, t: Tensor) -> Piece:
        shape = tuple(t.shape)
        return name, shape, lambda: _stored(t, _kind(name, shape, dense))

    def experts(name: str, key: str, rows: slice) -> Piece:
        blocks, scales = tensors[key + "_blocks"], tensors[key + "_scales"]
        n, out, groups = scales[:, rows].shape
        return (
            name,
            (n, out, 32 * groups),
            lambda: np.stack([pack_mxfp4_ggml(b[rows], s[rows]).numpy() for b, s in zip(blocks, scales)]),
        )

    for field in ("embed", "unembed", "ln_final"):
        yield plain(gguf.TOP[field], tensors[hf.TOP[field]])
    for n in range(c.n_layers):
        hf_prefix, gguf_prefix = f"model.layers.{n}.", f"blk.{n}."
        for field, key in hf.BLOCK.items():
            yield plain(gguf_prefix + gguf.BLOCK[field], tensors[hf_prefix + key])
        for half, rows in enumerate((slice(0, None, 2), slice(1, None, 2))):  # gate, up
            yield experts(gguf_prefix + gguf.UP["up"][half], hf_prefix + hf.EXPERTS["up"], rows)
            yield plain(gguf_prefix + gguf.UP["up_bias"][half], tensors[hf_prefix + hf.EXPERTS["up_bias"]][:, rows])
        yield experts(gguf_prefix + gguf.DOWN["down"], hf_prefix + hf.EXPERTS["down"], slice(None))
        yield plain(gguf_prefix + gguf.DOWN["down_bias"], tensors[hf_prefix + hf.EXPERTS["down_bias"]])


def _kind(name: str, shape: tuple[int, ...], dense: str) -> str:
    if name.endswith("_exps.weight"):
        return "MXFP4"
    matrix = len(shape) == 2 and name.endswith(".weight") and "ffn_gate_inp" not in name
    return dense.upper() if matrix else "F32"


def _stored(t: Tensor, kind: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    if kind == "F32":
        return t.float().contiguous().numpy()
    if kind == "BF16":
        return t.contiguous().view(torch.uint8).numpy()
    q8 = GGMLQuantizationType.Q8_0
    return np.concatenate([quants.quantize(rows.float().numpy(), q8) for rows in t.split(ROWS)])


def _describe(writer, c: Config, name: str) -> None:
    import gguf

    writer.add_name(name)
    writer.add_block_count(c.n_layers)
    writer.add_context_length(c.n_ctx)
    writer.add_embedding_length(c.d_model)
    writer.add_feed_forward_length(c.d_mlp)
    writer.add_expert_feed_forward_length(c.d_mlp)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.d_head)
    writer.add_value_length(c.d_head)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_expert_count(c.n_experts)
    writer.add_expert_used_count(c.n_active)
    writer.add_sliding_window(c.window)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(c.rope_factor)
    writer.add_rope_scaling_orig_ctx_len(c.rope_original)
    writer.add_vocab_size(c.d_vocab)
    writer.add_tokenizer_model("no_vocab")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a Hugging Face folder in MXFP4")
    parser.add_argument("file", type=Path, help="the .gguf file; must not exist")
    parser.add_argument("--dense", choices=DENSE, default="q8_0", help="format outside the experts (default: q8_0)")
    args = parser.parse_args()
    start = time.perf_counter()
    file = to_gguf(args.folder, args.file, dense=args.dense)
    print(f"{file}: {file.stat().st_size:,} bytes in {time.perf_counter() - start:.0f} s")
