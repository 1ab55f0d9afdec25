"""Attention with learned sinks, in blocks of queries: nothing of size query x key is held unless somebody wants it.

A sliding layer's block meets only the keys inside its window, so the cost there grows with the text and not with its
square. A block's shape depends on positions alone, never on values, and the same blocks are used whether or not the
pattern is wanted: that is why recording changes no bit.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.kernels import native
from workbench.model.kernels.linear import widens

BLOCK = 64  # queries in a block: the scores of 16 heads x 64 queries x 2,048 keys are 8 MB, about what a cache holds


class Block(NamedTuple):
    """Queries `start:stop` (counted within this pass) and the keys `first:last` (absolute) that they may see."""

    start: int
    stop: int
    first: int
    last: int


def blocks(n_queries: int, n_keys: int, window: int | None) -> Iterator[Block]:
    """The blocks of a pass whose last query stands at the last key.

    >>> [tuple(b) for b in blocks(70, 70, 16)]
    [(0, 64, 0, 64), (64, 70, 49, 70)]
    """
    offset = n_keys - n_queries
    for start in range(0, n_queries, BLOCK):
        stop = min(start + BLOCK, n_queries)
        first = 0 if window is None else max(0, offset + start - window + 1)
        yield Block(start, stop, first, offset + stop)


def scores(q: Tensor, k: Tensor, block: Block, offset: int, window: int | None) -> Tensor:
    """q·k / sqrt(d_head) of one block, -inf where a key may not be seen.

    q: batch pos head d_head; k: batch kv_head key d_head (all keys so far). Result: batch head query key of the block.
    Head h reads the keys of kv_head h // (heads per kv_head).
    """
    n_batch, _, n_heads, d_head = q.shape
    n_kv = k.shape[1]
    if native.takes(q) and native.takes(k):
        late = offset + block.start - block.first
        return native.scores(q[:, block.start : block.stop], k[:, :, block.first : block.last], late, window)
    rows = q[:, block.start : block.stop].transpose(1, 2)  # batch head query d_head
    n_rows = rows.shape[2]
    rows = rows.reshape(n_batch, n_kv, n_heads // n_kv * n_rows, d_head)
    keys = k[:, :, block.first : block.last]
    stored = rows.dtype
    if widens(rows):
        rows, keys = rows.float(), keys.float()
    # the scale rides along in the product: one pass less over what is as long as the text
    s = torch.baddbmm(
        rows.new_zeros(1, 1, 1), rows.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), beta=0, alpha=d_head**-0.5
    )
    s = s.view(n_batch, n_heads, n_rows, keys.shape[2]).to(stored).to(torch.promote_types(stored, torch.float32))
    return hide(s, block, offset, window)


def hide(s: Tensor, block: Block, offset: int, window: int | None) -> Tensor:
    """Writes -inf where a key lies after its query or outside the window: only in the block's two ends can it."""
    n = block.stop - block.start
    if n == 1:  # a block's keys are those of its first query up to its last: with one, all may be seen
        return s
    query = torch.arange(offset + block.start, offset + block.stop, device=s.device)[:, None]
    key = torch.arange(block.first, block.last, device=s.device)
    s[..., -n:].masked_fill_(key[-n:] > query, -torch.inf)
    if window is not None:
        s[..., :n].masked_fill_(key[:n] <= query - window, -torch.inf)
    return s


def normalise(s: Tensor, sinks: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """The softmax over keys and sink, in fp32 or better: the pattern (rows sum to 1 - sink) and the sink's share.

    s: batch head query key; sinks: head; first: the absolute position of the first key. A row with no key at all gives
    a pattern of zeros and a sink of exactly 1.
    """
    if native.takes(s) and s.dtype == torch.float32 and not (torch.is_grad_enabled() and sinks.requires_grad):
        return s, native.softmax_(s, sinks, first)
    sink = sinks.to(s.dtype)[:, None, None]
    # the shift cancels, so it needs no gradient; detached, the two steps below may reuse the memory of s
    top = torch.maximum(s.detach().amax(-1, keepdim=True), sink.detach())
    e, e_sink = exp_or_zero(s - top), (sink - top).exp()
    total = e.sum(-1, keepdim=True) + e_sink
    return e.mul_(total.reciprocal()), (e_sink / total)[..., 0]


def exp_or_zero(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, in the memory of x; what would leave the normal numbers is exactly 0.

    exp into the subnormal numbers takes ten times as long, and half of a long row of scores ends there.
    """
    tiny = torch.finfo(x.dtype).tiny
    return F.threshold(x.clamp_(min=math.log(tiny) + 1).exp_(), 4 * tiny, 0.0)


def mix(pattern: Tensor, v: Tensor, block: Block, gone: int = 0) -> Tensor:
    """The values weighted by one block of the pattern: batch query head d_head.

    pattern: batch head query key of the block; v: batch kv_head key d_head, all keys so far but for the first `gone`.
    """
    n_batch, n_heads, n_rows, n_keys = pattern.shape
    n_kv, d_head = v.shape[1], v.shape[-1]
    if native.takes(pattern) and native.takes(v):
        return native.mix(pattern.float().contiguous(), v[:, :, block.first : block.last], gone + block.first)
    p = pattern.to(v.dtype).reshape(n_batch, n_kv, n_heads // n_kv * n_rows, n_keys)
    keys = v[:, :, block.first : block.last]
    z = torch.matmul(p.float(), keys.float()).to(v.dtype) if widens(p) else torch.matmul(p, keys)
    return z.view(n_batch, n_heads, n_rows, d_head).transpose(1, 2)
