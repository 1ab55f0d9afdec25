"""Attention with learned sinks, in blocks of queries: no tensor of size query x key is allocated unless requested.

In a sliding layer, a block is computed for the keys inside its window only, so the cost is linear in the length of the
text. A block's shape depends only on positions, never on values, and the blocks are the same whether or not the pattern
is recorded. Recording therefore changes no bit.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.kernels import native
from workbench.model.kernels.linear import needs_fp32

# Queries in a block. The scores of 16 heads x 64 queries x 2,048 keys are 8 MB, about the size of a processor cache.
BLOCK = 64


class Block(NamedTuple):
    """Queries `start:stop` (counted within this pass) and the keys `first:last` (absolute) that they attend to."""

    start: int
    stop: int
    first: int
    last: int


def blocks(n_queries: int, n_keys: int, window: int | None) -> Iterator[Block]:
    """The blocks of a pass whose last query is at the position of the last key.

    >>> [tuple(b) for b in blocks(70, 70, 16)]
    [(0, 64, 0, 64), (64, 70, 49, 70)]
    """
    offset = n_keys - n_queries
    for start in range(0, n_queries, BLOCK):
        stop = min(start + BLOCK, n_queries)
        first = 0 if window is None else max(0, offset + start - window + 1)
        yield Block(start, stop, first, offset + stop)


def scores(q: Tensor, k: Tensor, block: Block, offset: int, window: int | None) -> Tensor:
    """q·k / sqrt(d_head) of one block, with -inf at masked keys: batch head query key.

    q: batch pos head d_head; k: batch kv_head key d_head (all keys so far). Head h uses the keys of kv_head
    h // (heads per kv_head).
    """
    n_batch, _, n_heads, d_head = q.shape
    n_kv = k.shape[1]
    if native.supports(q) and native.supports(k):
        first_query = offset + block.start - block.first
        return native.scores(q[:, block.start : block.stop], k[:, :, block.first : block.last], first_query, window)
    rows = q[:, block.start : block.stop].transpose(1, 2)  # batch head query d_head
    n_rows = rows.shape[2]
    rows = rows.reshape(n_batch, n_kv, n_heads // n_kv * n_rows, d_head)
    keys = k[:, :, block.first : block.last]
    stored = rows.dtype
    if needs_fp32(rows):
        rows, keys = rows.float(), keys.float()
    # scaling within the product saves one pass over the scores
    s = torch.baddbmm(
        rows.new_zeros(1, 1, 1), rows.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), beta=0, alpha=d_head**-0.5
    )
    s = s.view(n_batch, n_heads, n_rows, keys.shape[2]).to(stored).to(torch.promote_types(stored, torch.float32))
    return apply_mask(s, block, offset, window)


def apply_mask(s: Tensor, block: Block, offset: int, window: int | None) -> Tensor:
    """Writes -inf, in place, where a key lies after its query or outside the window: only at the block's two ends."""
    n = block.stop - block.start
    if n == 1:  # a block has the keys from its first query's to its last query's: one query attends to all
        return s
    query = torch.arange(offset + block.start, offset + block.stop, device=s.device)[:, None]
    key = torch.arange(block.first, block.last, device=s.device)
    s[..., -n:].masked_fill_(key[-n:] > query, -torch.inf)
    if window is not None:
        s[..., :n].masked_fill_(key[:n] <= query - window, -torch.inf)
    return s


def normalize(s: Tensor, sinks: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """The softmax over keys and sink, in fp32 or wider: the pattern (rows sum to 1 - sink) and the sink's mass.

    s: batch head query key; sinks: head; first: the absolute position of the first key. A row whose keys are all masked
    has a pattern of zeros and a sink mass of exactly 1.
    """
    if native.supports(s) and s.dtype == torch.float32 and not (torch.is_grad_enabled() and sinks.requires_grad):
        return s, native.softmax_(s, sinks, first)
    sink = sinks.to(s.dtype)[:, None, None]
    # the shift cancels, so it needs no gradient; without one, the two steps below may reuse the memory of s
    top = torch.maximum(s.detach().amax(-1, keepdim=True), sink.detach())
    e, e_sink = exp_or_zero(s - top), (sink - top).exp()
    total = e.sum(-1, keepdim=True) + e_sink
    return e.mul_(total.reciprocal()), (e_sink / total)[..., 0]


def exp_or_zero(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, in place; a subnormal result is replaced by exactly 0.

    exp with a subnormal result takes ten times as long, and half of a long row of scores has one.
    """
    tiny = torch.finfo(x.dtype).tiny
    return F.threshold(x.clamp_(min=math.log(tiny) + 1).exp_(), 4 * tiny, 0.0)


def mix(pattern: Tensor, v: Tensor, block: Block, n_dropped: int = 0) -> Tensor:
    """The values weighted by one block of the pattern: batch query head d_head.

    pattern: batch head query key of the block; v: batch kv_head key d_head, all keys so far except the first
    `n_dropped`.
    """
    n_batch, n_heads, n_rows, n_keys = pattern.shape
    n_kv, d_head = v.shape[1], v.shape[-1]
    if native.supports(pattern) and native.supports(v):
        return native.mix(pattern.float().contiguous(), v[:, :, block.first : block.last], n_dropped + block.first)
    p = pattern.to(v.dtype).reshape(n_batch, n_kv, n_heads // n_kv * n_rows, n_keys)
    keys = v[:, :, block.first : block.last]
    z = torch.matmul(p.float(), keys.float()).to(v.dtype) if needs_fp32(p) else torch.matmul(p, keys)
    return z.view(n_batch, n_heads, n_rows, d_head).transpose(1, 2)
