"""The bytes that one decoded token has to read, for the bound of the memory bus.

A new way to store a matrix is added to `matrix_bytes`, a new way to choose a token without all logits to
`unembedding_bytes`; nothing else here depends on the storage.
"""

from collections.abc import Sequence

from torch import Tensor

from workbench.model.checkpoints.tensors import Weights
from workbench.model.config import Config
from workbench.model.kernels.lora import Adapted
from workbench.model.kernels.packed import Packed
from workbench.model.kernels.planes import Planes


def matrix_bytes(matrix: Tensor | Packed | Planes | Adapted) -> int:
    """The bytes that a product of one row with this matrix, or with those of all experts, reads."""
    if isinstance(matrix, Adapted):
        return matrix_bytes(matrix.matrix) + matrix.a.nbytes + matrix.b.nbytes
    if isinstance(matrix, Packed):
        return matrix.blocks.nbytes + matrix.scales.nbytes
    return matrix.nbytes  # of planes: of the 12-bit copy


def unembedding_bytes(weights: Weights, row: str) -> int:
    """The bytes of the unembedding for a token of this row of the benchmark: "generate" or "all logits"."""
    if row == "generate" and weights.screen is not None:
        return weights.screen.nbytes
    return matrix_bytes(weights.unembed)


def token_bytes(c: Config, weights: Weights, row: str, contexts: Sequence[int]) -> dict:
    """Bytes of a token by part, for a row of the benchmark: "generate" or "all logits".

    Returns "attention" (matrices and vectors outside the experts), "experts" (the chosen ones), "unembedding", and
    "keys": by context, the keys and values that a token after it reads.
    """
    attention, chosen = matrix_bytes(weights.ln_final), 0.0
    for block in weights.blocks:
        attention += sum(matrix_bytes(getattr(block, name)) for name in block.__slots__ if name != "experts")
        m = block.experts
        all_experts = sum(matrix_bytes(matrix) for matrix in (m.up, m.up_bias, m.down, m.down_bias))
        chosen += all_experts * c.n_active / c.n_experts
    position = 2 * c.n_kv_heads * c.d_head * weights.embed.itemsize
    attended = {n: sum(min(n, c.window) if c.is_sliding(layer) else n for layer in range(c.n_layers)) for n in contexts}
    return {
        "attention": attention,
        "experts": chosen,
        "unembedding": unembedding_bytes(weights, row),
        "keys": {n: position * positions for n, positions in attended.items()},
    }
