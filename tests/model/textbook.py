"""gpt-oss in textbook style: numpy, fp64, one position and one expert at a time, without code of workbench."""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def frequencies(c):
    """YaRN with truncate false, as in its paper: frequencies with fewer than beta_slow rotations are interpolated,
    those with more than beta_fast are unchanged, with a ramp in between.
    """
    result = []
    for i in range(c.d_head // 2):
        f = c.rope_theta ** (-2 * i / c.d_head)

        def pair_with_rotations(n):
            return c.d_head * math.log(c.rope_original / (n * 2 * math.pi)) / (2 * math.log(c.rope_theta))

        low, high = pair_with_rotations(c.rope_beta_fast), pair_with_rotations(c.rope_beta_slow)
        low, high = max(low, 0.0), min(high, c.d_head - 1.0)
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        result.append(f * (1 - ramp) + f / c.rope_factor * ramp)
    return np.array(result), 0.1 * math.log(c.rope_factor) + 1


def rotate(x, position, freq, scale):
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        cos, sin = math.cos(position * freq[i]) * scale, math.sin(position * freq[i]) * scale
        out[i] = x[i] * cos - x[i + half] * sin
        out[i + half] = x[i + half] * cos + x[i] * sin
    return out


def expert(x, up, up_bias, down, down_bias, c):
    h = up @ x + up_bias
    gate, linear = np.minimum(h[0::2], c.swiglu_limit), np.clip(h[1::2], -c.swiglu_limit, c.swiglu_limit)
    return down @ (gate / (1 + np.exp(-c.swiglu_alpha * gate)) * (linear + 1)) + down_bias


def logits(c, weights, tokens):
    """pos d_vocab for one sequence of token ids."""
    n = lambda t: t.detach().double().numpy()  # noqa: E731
    freq, scale = frequencies(c)
    x = n(weights.embed)[tokens]
    for layer, w in enumerate(weights.blocks):
        h = norm(x, n(w.ln1), c.eps)
        q = (h @ n(w.w_q).T + n(w.b_q)).reshape(len(x), c.n_heads, c.d_head)
        k = (h @ n(w.w_k).T + n(w.b_k)).reshape(len(x), c.n_kv_heads, c.d_head)
        v = (h @ n(w.w_v).T + n(w.b_v)).reshape(len(x), c.n_kv_heads, c.d_head)
        z = np.zeros((len(x), c.n_heads, c.d_head))
        for head in range(c.n_heads):
            kv_head = head // (c.n_heads // c.n_kv_heads)
            keys = [rotate(k[j, kv_head], j, freq, scale) for j in range(len(x))]
            for i in range(len(x)):
                query = rotate(q[i, head], i, freq, scale)
                seen = [j for j in range(i + 1) if layer % 2 == 1 or i - j < c.window]
                s = [query @ keys[j] / math.sqrt(c.d_head) for j in seen] + [n(w.sinks)[head]]
                for p, j in zip(softmax(np.array(s))[:-1], seen, strict=True):
                    z[i, head] += p * v[j, kv_head]
        x = x + z.reshape(len(x), -1) @ n(w.w_o).T + n(w.b_o)
        h = norm(x, n(w.ln2), c.eps)
        r = h @ n(w.w_router).T + n(w.b_router)
        e = w.experts
        out = np.zeros_like(x)
        for i in range(len(x)):
            top = np.argsort(-r[i])[: c.n_active]
            for weight, a in zip(softmax(r[i, top]), top, strict=True):
                out[i] += weight * expert(h[i], n(e.up[a]), n(e.up_bias[a]), n(e.down[a]), n(e.down_bias[a]), c)
        x = x + out
    return norm(x, n(weights.ln_final), c.eps) @ n(weights.unembed).T
