"""The parts of the forward pass that are not large matrix products, as plain functions that torch.compile can fuse.

`OPS` contains the functions in use: the plain ones, or after `compile_all()` the compiled ones. Compiled, they take
about half the time; the first step of a run then takes a minute, later runs use torch's cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMSNorm, computed in fp32."""
    t = x.float()
    return (t * torch.rsqrt(t.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)


def add_norm(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, and its RMSNorm."""
    x = x + y
    return x, norm(x, scale, eps)


def attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, sinks: Tensor, n_heads: int, n_kv: int, d_head: int
) -> Tensor:
    """The heads' outputs (batch pos head*d_head), from queries, keys and values before RoPE."""
    n_batch, n_pos, _ = qkv.shape
    qk, v = qkv.split([(n_heads + n_kv) * d_head, n_kv * d_head], -1)
    a, b = qk.view(n_batch, n_pos, n_heads + n_kv, d_head).float().chunk(2, -1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    qk = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(qkv.dtype)
    q, k = qk.split([n_heads, n_kv], 2)
    group = n_heads // n_kv  # query heads that share keys
    q = q.view(n_batch, n_pos, n_kv, group, d_head).permute(0, 2, 3, 1, 4).reshape(-1, group * n_pos, d_head)
    k = k.permute(0, 2, 3, 1).reshape(-1, d_head, n_pos)
    v = v.view(n_batch, n_pos, n_kv, d_head).transpose(1, 2).reshape(-1, n_pos, d_head)
    scores = torch.bmm(q, k).view(n_batch, n_kv, group, n_pos, n_pos).float() * d_head**-0.5 + mask
    sink = sinks.view(1, n_kv, group, 1, 1)
    top = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()
    pattern = torch.exp(scores - top)
    pattern = (pattern / (pattern.sum(-1, keepdim=True) + torch.exp(sink - top))).to(qkv.dtype)
    z = torch.bmm(pattern.view(-1, group * n_pos, n_pos), v)
    z = z.view(n_batch, n_kv, group, n_pos, d_head).permute(0, 3, 1, 2, 4)
    return z.reshape(n_batch, n_pos, n_heads * d_head)


def route(logits: Tensor, real: Tensor, load: Tensor, n_active: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights and choices of each token (token choice), load of each expert, balance loss and z-loss.

    `real` is 1 where a token is not padding; `load` is the running mean of earlier loads: because of it, one batch may
    use few experts as long as the batches together use all. Repeated maxima, because topk is slow on a CPU.
    """
    rest = logits = logits.float()
    n_experts = logits.shape[1]
    number = torch.arange(n_experts)
    values, choices, hits = [], [], torch.zeros_like(logits)
    for _ in range(n_active):
        value = rest.amax(-1, keepdim=True)
        choice = torch.where(rest >= value, number, n_experts).amin(-1, keepdim=True)
        hit = number == choice
        values.append(value)
        choices.append(choice)
        hits = hits + hit.float()
        rest = torch.where(hit, -1e30, rest)
    n = real.sum()
    now = (hits * real[:, None]).sum(0) / n / n_active
    mean = (logits.softmax(-1) * real[:, None]).sum(0) / n
    balance = n_experts * ((0.97 * load + 0.03 * now).detach() * mean).sum()
    z_loss = (logits.logsumexp(-1).square() * real).sum() / n
    return torch.cat(values, -1).softmax(-1), torch.cat(choices, -1), now.detach(), balance, z_loss


def swiglu(hidden: Tensor, alpha: float, limit: float) -> Tensor:
    """(up + 1) · gate · sigmoid(alpha gate), both clamped; the gate is the first half."""
    gate, up = hidden.float().chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return ((up + 1) * gate * torch.sigmoid(alpha * gate)).to(hidden.dtype)


def swiglu_backward(hidden: Tensor, d_active: Tensor, alpha: float, limit: float) -> Tensor:
    """The gradient of `hidden`, from the gradient of the output."""
    raw_gate, raw_up = hidden.float().chunk(2, -1)
    d_active = d_active.float()
    gate, up = raw_gate.clamp(max=limit), raw_up.clamp(-limit, limit)
    s = torch.sigmoid(alpha * gate)
    d_gate = d_active * (up + 1) * (s + alpha * gate * s * (1 - s)) * (raw_gate <= limit)
    d_up = d_active * gate * s * (raw_up.abs() <= limit)
    return torch.cat((d_gate, d_up), -1).to(hidden.dtype)


def combined(output: Tensor, d_out: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of share · output with respect to output and share, row by row."""
    wide = d_out.float()
    return (wide * share.float()[:, None]).to(d_out.dtype), (output.float() * wide).sum(-1)


PLAIN: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (norm, add_norm, attention, route, swiglu, swiglu_backward, combined)
}
OPS = dict(PLAIN)


def compile_all() -> None:
    """Replaces all `OPS` by compiled functions, for any batch size and length."""
    for name, function in PLAIN.items():
        OPS[name] = torch.compile(function, dynamic=True)
