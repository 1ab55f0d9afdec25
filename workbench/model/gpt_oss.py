"""gpt-oss in one file: the forward pass says, by `x = tap(name, x)`, where every hook point is.

What differs from a textbook transformer:
- every head has a learned sink logit: it takes part in the softmax and has no value, so a row of the pattern sums to
  1 - sink; all of q, k, v and o have biases;
- even layers see a sliding window (the token itself and window - 1 before it), odd layers see everything;
- RoPE with YaRN frequencies, the halves of a head rotated against each other, cos and sin scaled by 0.1 ln(factor) + 1;
- the router takes the top k logits first and the softmax over those k after;
- experts use a clamped SwiGLU, (up + 1) · gate · sigmoid(1.702 gate), with gate and up interleaved;
- embedding and unembedding are two matrices.

It knows nothing of tokenizers, text, traces or files. Tensors have a batch axis first; the hook points' axes (see
workbench.hooks) follow it. Positions are absolute, also when a cache holds the ones before.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from workbench.errors import CacheError
from workbench.model.cache import KVCache
from workbench.model.checkpoints.tensors import Block, Weights
from workbench.model.config import Config
from workbench.model.kernels import attention as attend
from workbench.model.kernels import independence
from workbench.model.kernels.experts import choices, run
from workbench.model.kernels.linear import linear
from workbench.model.kernels.rows import mixture, rms_norm, softmax
from workbench.taps import Tap

LOGITS_AT_A_TIME = 256  # positions: 256 x 201,088 logits in fp32 are 206 MB


@lru_cache(maxsize=16)
def rope_frequencies(c: Config, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): angle per position of each pair, and the factor on cos and sin.

    High frequencies are left alone, low ones are divided by `rope_factor`, and a linear ramp joins the two. Computed in
    fp64 and rounded to `dtype`: powers in fp32 differ between processors.
    """
    base = c.rope_theta ** (torch.arange(0, c.d_head, 2, dtype=torch.float64) / c.d_head)
    if c.rope_factor == 1.0:
        return (1 / base).to(dtype), 1.0

    def edge(rotations: float) -> float:
        """The pair that turns this often within the original context."""
        return c.d_head * math.log(c.rope_original / (rotations * 2 * math.pi)) / (2 * math.log(c.rope_theta))

    low, high = edge(c.rope_beta_fast), edge(c.rope_beta_slow)
    if c.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, c.d_head - 1)
    pair = torch.arange(c.d_head // 2, dtype=torch.float64)
    stretched = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    frequency = stretched / (c.rope_factor * base) + (1 - stretched) / base
    return frequency.to(dtype), 0.1 * math.log(c.rope_factor) + 1.0


def rope_table(c: Config, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for positions start:stop, each pos 1 d_head, as the two halves of a head meet them.

    Angles are rounded as the reference rounds them; their cos and sin are computed in fp64 and rounded.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequency, scale = rope_frequencies(c, dtype)
    angle = (torch.arange(start, stop, dtype=dtype)[:, None] * frequency).double()
    cos, sin = ((f(angle).to(dtype) * scale)[:, None].to(like.device) for f in (torch.cos, torch.sin))
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys, turned by the angles of their positions."""
    wide = x.to(cos.dtype)
    return (wide * cos + wide.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def attention(
    c: Config, w: Block, layer: int, x: Tensor, rope: tuple[Tensor, Tensor], tap: Tap, cache: KVCache | None
) -> Tensor:
    """What the heads of one layer write. x: batch pos d_model, already normed; rope: cos and sin of its positions."""
    here = f"blocks.{layer}.attn."
    n_batch, n_pos, _ = x.shape
    start = cache.length(layer) if cache else 0
    q = tap(here + "hook_q", linear(x, w.w_q, w.b_q).view(n_batch, n_pos, c.n_heads, c.d_head))
    k = tap(here + "hook_k", linear(x, w.w_k, w.b_k).view(n_batch, n_pos, c.n_kv_heads, c.d_head))
    v = tap(here + "hook_v", linear(x, w.w_v, w.b_v).view(n_batch, n_pos, c.n_kv_heads, c.d_head))
    q = tap(here + "hook_rot_q", rotate(q, *rope))
    k = tap(here + "hook_rot_k", rotate(k, *rope))
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # batch kv_head key d_head
    if cache:
        k, v = cache.extend(layer, k, v)
    window = c.window if c.is_sliding(layer) else None
    gone = start + n_pos - k.shape[2]  # keys that a cache no longer holds; positions below count from there
    mixed = _whole if tap.wants(here + "hook_attn_scores") or tap.wants(here + "hook_pattern") else _streamed
    z = tap(here + "hook_z", mixed(q, k, v, w.sinks, start - gone, window, here, tap, gone))

    out = linear(z.reshape(n_batch, n_pos, -1), w.w_o, w.b_o)
    if tap.wants(here + "hook_result"):
        by_head = w.whole("w_o").view(c.d_model, c.n_heads, c.d_head)
        result = z.new_empty(n_batch, n_pos, c.n_heads, c.d_model)  # the largest value of a pass: there is one of it
        for head in range(c.n_heads):
            result[:, :, head] = linear(z[:, :, head], by_head[:, head])
        if (edited := tap(here + "hook_result", result)) is not result:
            changed = (edited != result).flatten(2).any(-1, keepdim=True)  # other positions keep their bits
            out = torch.where(changed | edited.requires_grad, sum(edited.unbind(2)) + w.b_o, out)
    return out


def _streamed(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, start: int, window: int | None, here: str, tap: Tap, gone: int
) -> Tensor:
    """The heads' outputs, batch pos head d_head, one block of queries after the other."""
    z = []
    see = tap.pattern_rows(here)
    for block in attend.blocks(q.shape[1], k.shape[2], window):
        pattern, sink = attend.normalise(attend.scores(q, k, block, start, window), sinks, gone + block.first)
        pattern = _gate(pattern, sink, tap(here + "hook_sink", sink, block.start))
        if see:
            see(pattern, block.start, gone + block.first)
        z.append(attend.mix(pattern, v, block, gone))
    return torch.cat(z, 1)


def _whole(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, start: int, window: int | None, here: str, tap: Tap, gone: int
) -> Tensor:
    """The same from the same blocks, with scores and pattern put together where a tap can see and replace them."""
    if gone:
        raise CacheError("a pattern over all keys needs a cache that holds them: KVCache(config), without whole=False")
    n_batch, n_pos, n_heads, _ = q.shape
    blocks = list(attend.blocks(n_pos, k.shape[2], window))
    parts = [attend.scores(q, k, block, start, window) for block in blocks]
    scores = _join(parts, blocks, parts[0].new_full((n_batch, n_heads, n_pos, k.shape[2]), -torch.inf))
    if (edited := tap(here + "hook_attn_scores", scores)) is not scores:
        blocks = [_opened(block, edited, -torch.inf) for block in blocks]
        parts = [_rows(edited, block) for block in blocks]
    found = [attend.normalise(part, sinks, block.first) for part, block in zip(parts, blocks, strict=True)]
    patterns, sink = zip(*found, strict=True)
    pattern = _join(patterns, blocks, torch.zeros_like(scores))
    sink = torch.cat(sink, -1)
    pattern = _gate(pattern, sink, tap(here + "hook_sink", sink)).to(v.dtype)  # as the values meet it
    if (edited := tap(here + "hook_pattern", pattern)) is not pattern:
        blocks = [_opened(block, edited, 0.0) for block in blocks]
    see, z = tap.pattern_rows(here), []
    for block in blocks:
        rows = _rows(edited, block)
        if see:
            see(rows, block.start, block.first)
        z.append(attend.mix(rows, v, block))
    return torch.cat(z, 1)


def _rows(whole: Tensor, block: attend.Block) -> Tensor:
    return whole[:, :, block.start : block.stop, block.first : block.last].contiguous()


def _opened(block: attend.Block, edited: Tensor, nothing: float) -> attend.Block:
    """The block, wide enough for every key that an edit opened outside of it."""
    rows = edited[:, :, block.start : block.stop]
    before, after = rows[..., : block.first], rows[..., block.last :]
    opened = bool((before != nothing).any() or (after != nothing).any())
    return block._replace(first=0, last=edited.shape[-1]) if opened else block


def _join(parts, blocks: list[attend.Block], whole: Tensor) -> Tensor:
    for part, block in zip(parts, blocks, strict=True):
        whole[:, :, block.start : block.stop, block.first : block.last] = part
    return whole


def _gate(pattern: Tensor, sink: Tensor, edited: Tensor) -> Tensor:
    """The pattern under an edited sink: what the sink gives up, the keys share as before."""
    if edited is sink:
        return pattern
    keep = torch.where(sink < 1, (1 - edited) / (1 - sink), 1)
    return pattern * keep[..., None]


def experts(c: Config, weights: Weights, layer: int, x: Tensor, tap: Tap) -> Tensor:
    """What the experts of one layer write. x: batch pos d_model, already normed."""
    w = weights.blocks[layer]
    here = f"blocks.{layer}.mlp."
    logits = tap(here + "router.hook_out", linear(x, w.w_router, w.b_router))
    top = logits.topk(c.n_active, -1).indices
    chosen = tap(here + "hook_expert_indices", top)
    spread = torch.zeros_like(logits).scatter(-1, chosen, softmax(logits.gather(-1, chosen)))
    weight = tap(here + "hook_expert_weights", spread)
    routed = chosen is top and weight is spread  # by the router alone

    flat, weight = x.reshape(-1, c.d_model), weight.reshape(-1, c.n_experts)
    ran = chosen.reshape(-1, c.n_active)
    if not routed:
        ran = choices(ran, weight)
    share = weight.gather(-1, ran)
    if weights.residency.streams:
        weights.residency.require(layer, ran.unique().tolist())
    m = w.experts
    said = run(flat, ran, share, m.up, m.up_bias, m.down, m.down_bias, c.swiglu_alpha, c.swiglu_limit)
    said = tap(here + "hook_expert_out", said.view(*x.shape[:2], -1, c.d_model))
    return mixture(share.view(said.shape[:3]), said)


def likely(c: Config, w: Block, x: Tensor) -> list[int]:
    """The experts that a layer would choose if nothing more were written before it: a guess at what to read ahead."""
    logits = linear(rms_norm(x, w.ln2, c.eps), w.w_router, w.b_router)
    return logits.topk(c.n_active, -1).indices.unique().tolist()


def unembed(c: Config, weights: Weights, resid: Tensor) -> Tensor:
    """The logits that a residual stream would give if it were the last: batch pos d_vocab (the logit lens)."""
    return linear(rms_norm(resid, weights.ln_final, c.eps), weights.unembed)


def rows_independent(c: Config, weights: Weights) -> bool:
    """Whether a row's bits do not depend on its neighbours, in the products of this model with the kernels in use."""
    w, e = weights.blocks[0], weights.blocks[0].experts
    device = weights.embed.device
    one, choice = torch.ones(1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)

    def expert(x: Tensor) -> Tensor:
        ran, share = choice.expand(len(x), 1), one.expand(len(x), 1)
        return run(x, ran, share, e.up, e.up_bias, e.down, e.down_bias, c.swiglu_alpha, c.swiglu_limit)[:, 0]

    def attended(x: Tensor) -> Tensor:
        """Each row a query, by itself or in a block, to the same keys."""
        q = x.view(1, len(x), 1, c.d_head)
        keys = torch.linspace(-1, 1, 64 * c.d_head, device=x.device, dtype=x.dtype).view(1, 1, 64, c.d_head)
        block = attend.Block(0, len(x), 0, 64)
        pattern, _ = attend.normalise(attend.scores(q, keys, block, 63, None), w.sinks[:1])
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
    """Logits, batch pos d_vocab, at the positions `logits_at` of this pass. tokens: batch pos.

    With a cache, `tokens` continue what it holds, and are added to it.
    """
    tap = tap or Tap()
    start = cache.length(0) if cache else 0
    tap.begin(start, tokens.shape[1])
    x = tap("hook_embed", weights.embed[tokens])
    weights.residency.after_embedding()
    return _blocks(c, weights, x, 0, tap, cache, logits_at)


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

    `resid` (batch pos d_model) continues the positions that `cache` holds for that layer, so a change at a layer and a
    position costs only the layers above and the positions after it.
    """
    tap = tap or Tap()
    tap.begin(cache.length(layer) if cache else 0, resid.shape[1])
    return _blocks(c, weights, resid, layer, tap, cache, logits_at)


def _blocks(c: Config, weights: Weights, x: Tensor, first: int, tap: Tap, cache: KVCache | None, logits_at: slice):
    start = cache.even_from(first) if cache else 0
    rope = rope_table(c, start, start + x.shape[1], x)
    for layer in range(first, c.n_layers):
        w, here = weights.blocks[layer], f"blocks.{layer}."
        x = tap(here + "hook_resid_pre", x)
        normed = tap(here + "ln1.hook_normalized", rms_norm(x, w.ln1, c.eps))
        x = x + tap(here + "hook_attn_out", attention(c, w, layer, normed, rope, tap, cache))
        x = tap(here + "hook_resid_mid", x)
        guess = weights.residency.streams and layer + 1 < c.n_layers
        if guess and x.shape[1] > 1:  # many choose most experts: the guess is good, and time is to be won
            weights.residency.prefetch(layer + 1, likely(c, weights.blocks[layer + 1], x))
        normed = tap(here + "ln2.hook_normalized", rms_norm(x, w.ln2, c.eps))
        x = x + tap(here + "hook_mlp_out", experts(c, weights, layer, normed, tap))
        weights.residency.release(layer)
        x = tap(here + "hook_resid_post", x)
        if guess and x.shape[1] == 1:  # of few experts most would be guessed wrong before the experts have written
            weights.residency.prefetch(layer + 1, likely(c, weights.blocks[layer + 1], x))
    x = tap("ln_final.hook_normalized", rms_norm(x, weights.ln_final, c.eps))
    return _logits(weights, x, tap, logits_at)


def _logits(weights: Weights, x: Tensor, tap: Tap, at: slice) -> Tensor:
    """All logits pass the tap if it wants them, a few hundred positions at a time; only those asked for are kept."""
    n = x.shape[1]
    first, last, _ = at.indices(n)
    begin, end = (0, n) if tap.wants("hook_logits") else (first, last)
    kept = []
    for i in range(begin, end, LOGITS_AT_A_TIME):
        j = min(i + LOGITS_AT_A_TIME, end)
        part = tap("hook_logits", linear(x[:, i:j], weights.unembed), i)
        kept.append(part[:, max(first - i, 0) : max(last - i, 0)])
    if end > begin:
        weights.residency.after_unembedding()
    return torch.cat(kept, 1) if kept else x.new_empty(x.shape[0], 0, weights.unembed.shape[0])
