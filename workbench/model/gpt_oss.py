"""gpt-oss in one file: a forward pass that calls `x = tap(name, x)` at every hook point.

Differences from a textbook transformer:
- every head has a learned sink logit, which takes part in the softmax but has no value vector, so a row of the pattern
  sums to 1 - sink; q, k, v and o all have biases;
- even layers attend to a sliding window (the token itself and window - 1 before it), odd layers to all positions;
- RoPE with YaRN frequencies; the first half of a head is rotated with the second half; cos and sin are scaled by
  0.1 ln(factor) + 1;
- the router takes the top k logits and then the softmax over these k;
- experts use a clamped SwiGLU, (up + 1) · gate · sigmoid(1.702 gate), with gate and up interleaved;
- embedding and unembedding are two matrices.

This module is independent of tokenizers, text, traces and files. Tensors have a batch axis first, then the axes of the
hook point (see workbench.hooks). Positions are absolute, also with a cache.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from workbench.errors import CacheError
from workbench.model.batch import BatchRow, RowsTap
from workbench.model.cache import KVCache
from workbench.model.checkpoints.tensors import Block, Weights
from workbench.model.config import Config
from workbench.model.kernels import attention as attend
from workbench.model.kernels import independence
from workbench.model.kernels.experts import active_experts, run_experts
from workbench.model.kernels.linear import linear
from workbench.model.kernels.rows import mixture, rms_norm, rotate, softmax
from workbench.taps import Chain, Tap

LOGITS_CHUNK = 256  # positions: 256 x 201,088 logits in fp32 are 206 MB


@lru_cache(maxsize=16)
def rope_frequencies(c: Config, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): the angle per position of each pair (d_head / 2), and the factor on cos and sin.

    High frequencies are unchanged, low ones are divided by `rope_factor`, and a linear ramp connects the two. They are
    computed in fp64 and rounded to `dtype`, because powers in fp32 differ between processors.
    """
    base = c.rope_theta ** (torch.arange(0, c.d_head, 2, dtype=torch.float64) / c.d_head)
    if c.rope_factor == 1.0:
        return (1 / base).to(dtype), 1.0

    def edge(rotations: float) -> float:
        """The pair that makes this many rotations within the original context."""
        return c.d_head * math.log(c.rope_original / (rotations * 2 * math.pi)) / (2 * math.log(c.rope_theta))

    low, high = edge(c.rope_beta_fast), edge(c.rope_beta_slow)
    if c.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, c.d_head - 1)
    pair = torch.arange(c.d_head // 2, dtype=torch.float64)
    stretched = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    frequency = stretched / (c.rope_factor * base) + (1 - stretched) / base
    return frequency.to(dtype), 0.1 * math.log(c.rope_factor) + 1.0


def rope_table(c: Config, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for positions, each pos 1 d_head, as `rotate` multiplies them.

    Angles are rounded as in the reference implementation; their cos and sin are computed in fp64 and rounded.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequency, scale = rope_frequencies(c, dtype)
    angle = (positions.to(dtype)[:, None] * frequency).double()
    cos, sin = ((f(angle).to(dtype) * scale)[:, None].to(like.device) for f in (torch.cos, torch.sin))
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def attention(
    c: Config, w: Block, layer: int, x: Tensor, rope: tuple[Tensor, Tensor], tap: Tap, rows: Sequence[BatchRow]
) -> Tensor:
    """The attention output of one layer. x: batch pos d_model, normalized; rope: cos and sin of its positions.

    The positions of each of `rows` attend to positions of that row alone.
    """
    prefix = f"blocks.{layer}.attn."
    n_batch, n_pos, _ = x.shape
    q = tap(prefix + "hook_q", linear(x, w.w_q, w.b_q).view(n_batch, n_pos, c.n_heads, c.d_head))
    k = tap(prefix + "hook_k", linear(x, w.w_k, w.b_k).view(n_batch, n_pos, c.n_kv_heads, c.d_head))
    v = tap(prefix + "hook_v", linear(x, w.w_v, w.b_v).view(n_batch, n_pos, c.n_kv_heads, c.d_head))
    q = tap(prefix + "hook_rot_q", rotate(q, *rope))
    k = tap(prefix + "hook_rot_k", rotate(k, *rope))
    z = tap(prefix + "hook_z", _join_rows([_heads(c, w.sinks, layer, q, k, v, row) for row in rows]))

    out = linear(z.reshape(n_batch, n_pos, -1), w.w_o, w.b_o)
    if tap.wants(prefix + "hook_result"):
        by_head = w.whole("w_o").view(c.d_model, c.n_heads, c.d_head)
        result = z.new_empty(n_batch, n_pos, c.n_heads, c.d_model)  # the largest value of a pass: allocated once
        for head in range(c.n_heads):
            # with an adapter, the matrix is wider than a model in bf16
            result[:, :, head] = linear(z[:, :, head].to(by_head.dtype), by_head[:, head])
        if (edited := tap(prefix + "hook_result", result)) is not result:
            changed = (edited != result).flatten(2).any(-1, keepdim=True)  # unedited positions keep their bits
            out = torch.where(changed | edited.requires_grad, sum(edited.unbind(2)) + w.b_o, out)
    return out


def _heads(c: Config, sinks: Tensor, layer: int, q: Tensor, k: Tensor, v: Tensor, row: BatchRow) -> Tensor:
    """The heads' outputs for one row of a pass, batch pos head d_head. q, k, v: batch pos head d_head of the pass."""
    prefix = f"blocks.{layer}.attn."
    start, q, (k, v) = row.n_before(layer), q[:, row.span], (x[:, row.span].transpose(1, 2) for x in (k, v))
    if row.cache:
        k, v = row.cache.extend(layer, k, v)
    window = c.window if c.is_sliding(layer) else None
    n_dropped = start + q.shape[1] - k.shape[2]  # keys that the cache has dropped; positions below count from there
    needs_all_keys = row.tap.wants(prefix + "hook_attn_scores") or row.tap.wants(prefix + "hook_pattern")
    attend_heads = _full_pattern if needs_all_keys else _by_blocks
    return attend_heads(q, k, v, sinks, start - n_dropped, window, prefix, row.tap, n_dropped)


def _join_rows(parts: Sequence[Tensor]) -> Tensor:
    """What was computed for each row of a pass, beside each other along the positions."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)


def _by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    start: int,
    window: int | None,
    prefix: str,
    tap: Tap,
    n_dropped: int,
) -> Tensor:
    """The heads' outputs, batch pos head d_head, computed one block of queries at a time."""
    z = []
    on_pattern = tap.pattern_rows(prefix)
    for block in attend.blocks(q.shape[1], k.shape[2], window):
        pattern, sink = attend.normalize(attend.scores(q, k, block, start, window), sinks, n_dropped + block.first)
        pattern = _gate(pattern, sink, tap(prefix + "hook_sink", sink, block.start))
        if on_pattern:
            on_pattern(pattern, block.start, n_dropped + block.first)
        z.append(attend.mix(pattern, v, block, n_dropped))
    return z[0] if len(z) == 1 else torch.cat(z, 1)


def _full_pattern(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    start: int,
    window: int | None,
    prefix: str,
    tap: Tap,
    n_dropped: int,
) -> Tensor:
    """The same outputs from the same blocks, with full scores and pattern that a tap can read and replace."""
    if n_dropped:
        raise CacheError(
            f"a pattern over all keys needs a cache with all keys, and this one has dropped {n_dropped}. Make it with "
            f"KVCache(config), without whole=False."
        )
    n_batch, n_pos, n_heads, _ = q.shape
    blocks = list(attend.blocks(n_pos, k.shape[2], window))
    parts = [attend.scores(q, k, block, start, window) for block in blocks]
    scores = _join(parts, blocks, parts[0].new_full((n_batch, n_heads, n_pos, k.shape[2]), -torch.inf))
    if (edited := tap(prefix + "hook_attn_scores", scores)) is not scores:
        blocks = [_widened(block, edited, -torch.inf) for block in blocks]
        parts = [_rows(edited, block) for block in blocks]
    normalized = [attend.normalize(part, sinks, block.first) for part, block in zip(parts, blocks, strict=True)]
    patterns, sink = zip(*normalized, strict=True)
    pattern = _join(patterns, blocks, torch.zeros_like(scores))
    sink = torch.cat(sink, -1)
    pattern = _gate(pattern, sink, tap(prefix + "hook_sink", sink))
    pattern = pattern.to(v.dtype)  # rounded as for the product with the values
    if (edited := tap(prefix + "hook_pattern", pattern)) is not pattern:
        blocks = [_widened(block, edited, 0.0) for block in blocks]
    on_pattern, z = tap.pattern_rows(prefix), []
    for block in blocks:
        rows = _rows(edited, block)
        if on_pattern:
            on_pattern(rows, block.start, block.first)
        z.append(attend.mix(rows, v, block))
    return torch.cat(z, 1)


def _rows(whole: Tensor, block: attend.Block) -> Tensor:
    return whole[:, :, block.start : block.stop, block.first : block.last].contiguous()


def _widened(block: attend.Block, edited: Tensor, masked: float) -> attend.Block:
    """The block, extended to all keys if an edit changed the `masked` value of a key outside of it."""
    rows = edited[:, :, block.start : block.stop]
    before, after = rows[..., : block.first], rows[..., block.last :]
    outside = bool((before != masked).any() or (after != masked).any())
    return block._replace(first=0, last=edited.shape[-1]) if outside else block


def _join(parts, blocks: list[attend.Block], whole: Tensor) -> Tensor:
    for part, block in zip(parts, blocks, strict=True):
        whole[:, :, block.start : block.stop, block.first : block.last] = part
    return whole


def _gate(pattern: Tensor, sink: Tensor, edited: Tensor) -> Tensor:
    """The pattern under an edited sink: the keys share 1 - sink in unchanged proportions."""
    if edited is sink:
        return pattern
    keep = torch.where(sink < 1, (1 - edited) / (1 - sink), 1)
    return pattern * keep[..., None]


def experts(c: Config, weights: Weights, layer: int, x: Tensor, tap: Tap, rows: Sequence[BatchRow]) -> Tensor:
    """The output of one layer's experts, batch pos d_model. x: batch pos d_model, normalized."""
    w = weights.blocks[layer]
    prefix = f"blocks.{layer}.mlp."
    logits = tap(prefix + "router.hook_out", linear(x, w.w_router, w.b_router))
    top = logits.topk(c.n_active, -1).indices
    chosen = tap(prefix + "hook_expert_indices", top)
    router_weight = torch.zeros_like(logits).scatter(-1, chosen, softmax(logits.gather(-1, chosen)))
    weight = tap(prefix + "hook_expert_weights", router_weight)
    if chosen is top and weight is router_weight:
        return _mixed_experts(c, weights, layer, x, chosen.reshape(-1, c.n_active), weight, tap)
    parts = []
    for row in rows:  # an edit in one row may give weight to more experts than run in the others
        row_weight = weight[:, row.span]
        indices = active_experts(chosen[:, row.span].reshape(-1, c.n_active), row_weight.reshape(-1, c.n_experts))
        parts.append(_mixed_experts(c, weights, layer, x[:, row.span], indices, row_weight, row.tap))
    return _join_rows(parts)


def _mixed_experts(
    c: Config, weights: Weights, layer: int, x: Tensor, indices: Tensor, weight: Tensor, tap: Tap
) -> Tensor:
    """The outputs of the experts `indices` (pos choice), weighted by `weight` (batch pos expert): batch pos d_model."""
    flat, weight = x.reshape(-1, c.d_model), weight.reshape(-1, c.n_experts)
    active_weight = weight.gather(-1, indices)
    if weights.residency.streams:
        weights.residency.require(layer, indices.unique().tolist())
    m = weights.blocks[layer].experts
    out = run_experts(
        flat, indices, active_weight, m.up, m.up_bias, m.down, m.down_bias, c.swiglu_alpha, c.swiglu_limit
    )
    out = tap(f"blocks.{layer}.mlp.hook_expert_out", out.view(*x.shape[:2], -1, c.d_model))
    return mixture(active_weight.view(out.shape[:3]), out)


def predicted_experts(c: Config, w: Block, x: Tensor) -> list[int]:
    """The experts that a layer would choose for the residual stream `x` of an earlier point, to load them ahead."""
    logits = linear(rms_norm(x, w.ln2, c.eps), w.w_router, w.b_router)
    return logits.topk(c.n_active, -1).indices.unique().tolist()


def unembed(c: Config, weights: Weights, resid: Tensor) -> Tensor:
    """The logits of a residual stream as if it were the last (the logit lens): batch pos d_vocab."""
    return linear(rms_norm(resid, weights.ln_final, c.eps), weights.unembed)


def rows_independent(c: Config, weights: Weights) -> bool:
    """True if a row's bits do not depend on the rows beside it, in this model's products with the kernels in use."""
    w, e = weights.blocks[0], weights.blocks[0].experts
    device = weights.embed.device
    one, first = torch.ones(1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)

    def expert(x: Tensor) -> Tensor:
        indices, weight = first.expand(len(x), 1), one.expand(len(x), 1)
        out = run_experts(x, indices, weight, e.up, e.up_bias, e.down, e.down_bias, c.swiglu_alpha, c.swiglu_limit)
        return out[:, 0]

    def attended(x: Tensor) -> Tensor:
        """Attention with each row as a query to the same keys."""
        q = x.view(1, len(x), 1, c.d_head)
        keys = torch.linspace(-1, 1, 64 * c.d_head, device=x.device, dtype=x.dtype).view(1, 1, 64, c.d_head)
        block = attend.Block(0, len(x), 0, 64)
        pattern, _ = attend.normalize(attend.scores(q, keys, block, 63, None), w.sinks[:1])
        return attend.mix(pattern, keys, block)[0, :, 0]

    products = [
        (lambda x: linear(x, w.w_q, w.b_q), c.d_model),
        (lambda x: linear(x, w.w_o, w.b_o), c.n_heads * c.d_head),
        (lambda x: linear(x, weights.unembed[:1024]), c.d_model),
        (lambda x: rms_norm(x, w.ln1, c.eps), c.d_model),
        (expert, c.d_model),
        (attended, c.d_head),
    ]
    return independence.rows_independent(products, weights.embed)


def forward(
    c: Config,
    weights: Weights,
    tokens: Tensor,
    tap: Tap | None = None,
    cache: KVCache | None = None,
    logits_at: slice = slice(None),
) -> Tensor:
    """Logits (batch pos d_vocab) at the positions `logits_at` of this pass. tokens: batch pos.

    With a cache, `tokens` continue the positions in it, and their keys and values are appended to it.
    """
    row = BatchRow(0, tokens.shape[1], tap or Tap(), cache, logits_at)
    [logits] = _from_embedding(c, weights, tokens, row.tap, [row])
    return logits


def forward_rows(
    c: Config, weights: Weights, tokens: Tensor, rows: Sequence[BatchRow], tap: Tap | None = None
) -> list[Tensor]:
    """One pass over the new tokens of several texts: for each text, the logits (1 pos d_vocab) at its `logits_at`.

    `tokens` (pos) are those of `rows`, one row after the other. The rows' taps get the values of their rows; `tap` then
    gets the values of all rows. With kernels that are independent of the number of rows, each text has the bits of a
    pass alone.
    """
    return _from_embedding(c, weights, tokens[None], Chain(RowsTap(rows), *([tap] if tap else [])), rows)


def forward_from(
    c: Config,
    weights: Weights,
    resid: Tensor,
    layer: int,
    tap: Tap | None = None,
    cache: KVCache | None = None,
    logits_at: slice = slice(None),
) -> Tensor:
    """The rest of a forward pass, from `hook_resid_pre` of `layer` on.

    `resid` (batch pos d_model) continues the positions that `cache` has for that layer. A change at one layer and
    position therefore costs only the layers above and the positions after it.
    """
    row = BatchRow(0, resid.shape[1], tap or Tap(), cache, logits_at)
    row.tap.begin(row.n_before(layer), resid.shape[1])
    [logits] = _blocks(c, weights, resid, layer, row.tap, [row])
    return logits


def _from_embedding(c: Config, weights: Weights, tokens: Tensor, tap: Tap, rows: Sequence[BatchRow]) -> list[Tensor]:
    for row in rows:
        row.tap.begin(row.n_before(0), row.stop - row.start)
    x = tap("hook_embed", weights.embed[tokens])
    weights.residency.after_embedding()
    return _blocks(c, weights, x, 0, tap, rows)


def _blocks(c: Config, weights: Weights, x: Tensor, first: int, tap: Tap, rows: Sequence[BatchRow]) -> list[Tensor]:
    starts = [row.cache.common_length(first) if row.cache else 0 for row in rows]
    positions = [torch.arange(start, start + row.stop - row.start) for start, row in zip(starts, rows)]
    rope = rope_table(c, torch.cat(positions), x)
    for layer in range(first, c.n_layers):
        w, prefix = weights.blocks[layer], f"blocks.{layer}."
        x = tap(prefix + "hook_resid_pre", x)
        normed = tap(prefix + "ln1.hook_normalized", rms_norm(x, w.ln1, c.eps))
        x = x + tap(prefix + "hook_attn_out", attention(c, w, layer, normed, rope, tap, rows))
        x = tap(prefix + "hook_resid_mid", x)
        load_ahead = weights.residency.streams and layer + 1 < c.n_layers
        if load_ahead and x.shape[1] > 1:  # many positions use most experts: an early guess is good and gains time
            weights.residency.prefetch(layer + 1, predicted_experts(c, weights.blocks[layer + 1], x))
        normed = tap(prefix + "ln2.hook_normalized", rms_norm(x, w.ln2, c.eps))
        x = x + tap(prefix + "hook_mlp_out", experts(c, weights, layer, normed, tap, rows))
        weights.residency.release(layer)
        x = tap(prefix + "hook_resid_post", x)
        if load_ahead and x.shape[1] == 1:  # few experts: most would be predicted wrong before the MLP output
            weights.residency.prefetch(layer + 1, predicted_experts(c, weights.blocks[layer + 1], x))
    x = tap("ln_final.hook_normalized", rms_norm(x, weights.ln_final, c.eps))
    return _logits(weights, x, rows)


def _logits(weights: Weights, x: Tensor, rows: Sequence[BatchRow]) -> list[Tensor]:
    """The logits of each row at its `logits_at`, computed a few hundred positions at a time.

    If the tap of a row requests logits, it gets those of all its positions.
    """
    parts: list[list[Tensor]] = [[] for _ in rows]
    pieces = list(_logit_pieces(rows))
    for together in _grouped(pieces):
        at = torch.cat([x[:, rows[r].start + i : rows[r].start + j] for r, i, j in together], 1)
        logits = linear(at, weights.unembed)
        for (r, i, _), own in zip(together, logits.split([j - i for _, i, j in together], 1), strict=True):
            first, last, _ = rows[r].logits_at.indices(rows[r].stop - rows[r].start)
            part = rows[r].tap("hook_logits", own, i)
            parts[r].append(part[:, max(first - i, 0) : max(last - i, 0)])
    if pieces:
        weights.residency.after_unembedding(sum(j - i for _, i, j in pieces))
    nothing = x.new_empty(x.shape[0], 0, weights.unembed.shape[0])
    return [_join_rows(row_parts) if row_parts else nothing for row_parts in parts]


def _logit_pieces(rows: Sequence[BatchRow]) -> Iterator[tuple[int, int, int]]:
    """(row, start, stop) of the positions of each row whose logits are computed, at most LOGITS_CHUNK at a time."""
    for r, row in enumerate(rows):
        n = row.stop - row.start
        begin, end = (0, n) if row.tap.wants("hook_logits") else row.logits_at.indices(n)[:2]
        for i in range(begin, end, LOGITS_CHUNK):
            yield r, i, min(i + LOGITS_CHUNK, end)


def _grouped(pieces: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """The pieces in groups of at most LOGITS_CHUNK positions."""
    group: list[tuple[int, int, int]] = []
    for piece in pieces:
        if group and sum(j - i for _, i, j in [*group, piece]) > LOGITS_CHUNK:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
