"""Functions of a row: norms, rotation, softmax, entropy. Torch is the reference; native kernels are used if available.

The native kernels have a fixed order of additions and their own exp, so a row has the same bits on every processor.
"""

import torch
from torch import Tensor

from workbench.model.kernels import native


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x² + eps) · scale over the last axis, computed in fp32 or wider, returned in the dtype of x."""
    if native.supports(x) and native.supports(scale):
        return native.rms_norm(x, scale.float().contiguous(), eps)
    t = widened(x)
    t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + eps)
    return (t * scale).to(x.dtype)


def norm(x: Tensor) -> Tensor:
    """sqrt(sum x²) over the last axis, in fp32 or wider."""
    if native.supports(x):
        return native.norm(x)
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys, rotated by the angles of their positions: x batch pos head d_head; cos and sin pos 1 d_head."""
    if native.supports(x) and x.ndim == 4:
        return native.rotate(x, cos, sin)
    wide = x.to(cos.dtype)
    return (wide * cos + wide.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def softmax(x: Tensor) -> Tensor:
    """Probabilities over the last axis, in the dtype of x."""
    if native.supports(x):
        p = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        native.softmax_(p.view(1, 1, -1, p.shape[-1]))
        return p.to(x.dtype)
    return x.softmax(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities over the last axis, in fp32 or wider."""
    return native.log_softmax(logits) if native.supports(logits) else widened(logits).log_softmax(-1)


def entropy(logp: Tensor) -> Tensor:
    """The entropy of log-probabilities over the last axis, in nats; a token with probability 0 counts 0."""
    if logp.dtype == torch.float32 and native.supports(logp):
        return native.divergence(logp)
    return -(logp.exp() * logp).nan_to_num(0.0).sum(-1)


def divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis, in nats, from log-probabilities; a token with p = 0 counts 0."""
    if logp.dtype == logq.dtype == torch.float32 and native.supports(logp) and native.supports(logq):
        return native.divergence(logp, logq)
    return (logp.exp() * (logp - logq)).nan_to_num(0.0).sum(-1)


def mixture(weight: Tensor, x: Tensor) -> Tensor:
    """The sum of the rows of x [..., choice, n] with weights [..., choice], in fp32 or wider and rounded once."""
    if native.supports(x) and native.supports(weight):
        n_choices, n = x.shape[-2:]
        out = native.mixture(weight.reshape(-1, n_choices).float(), x.reshape(-1, n_choices, n))
        return out.view(*x.shape[:-2], n)
    return torch.matmul(widened(weight)[..., None, :], widened(x))[..., 0, :].to(x.dtype)


def widened(x: Tensor) -> Tensor:
    """The values in fp32, or in fp64 if they are fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
