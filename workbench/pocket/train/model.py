"""The model for training: gpt-oss's arithmetic, with a layout for fast forward and backward passes on a CPU.

Shapes differ from those of `workbench.model`, which everything else uses: q, k and v are one matrix, all matrices are
[in, out], gate and up are halves. It has no cache and no hook points, and is independent of file formats.
"""

import math
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import CheckpointError
from workbench.model.config import Config
from workbench.model.gpt_oss import rope_frequencies
from workbench.pocket.train.elementwise import OPS
from workbench.pocket.train.experts import Experts
from workbench.pocket.vocabulary import d_vocab

SHAPE = Config(
    n_layers=6,
    d_model=128,
    n_heads=4,
    n_kv_heads=2,
    d_head=32,
    n_experts=32,
    n_active=4,
    d_mlp=64,
    d_vocab=d_vocab(),
    window=16,
    layer_types=("sliding_attention", "full_attention") * 3,
)
MAX_POSITION = 2048  # position ids must be smaller
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def training_dtype(name: str) -> torch.dtype:
    """The torch dtype for a name. The caller chooses it; it does not depend on the processor.

    >>> training_dtype("bfloat16")
    torch.bfloat16

    Raises CheckpointError for any other than "float32" and "bfloat16".
    """
    if name not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(map(repr, DTYPES))} for training, got {name!r}")
    return DTYPES[name]


@dataclass(slots=True)
class Routing:
    """Statistics of the routers in one forward pass."""

    real: Tensor  # 1 where a flat position is not padding
    load: Tensor  # layer expert: the running mean so far
    now: list[Tensor] = field(default_factory=list)  # the loads of this pass, by layer
    balance: Tensor | float = 0.0
    z_loss: Tensor | float = 0.0


class Block(nn.Module):
    """One layer. Matrices are [in, out]; `w_up` has the gates, then the ups."""

    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.c, self.layer = c, layer
        heads, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        small = 1 / math.sqrt(2 * c.n_layers)  # for the matrices that write into the residual stream

        def matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * gain / math.sqrt(shape[-2]))

        self.ln1, self.ln2 = nn.Parameter(torch.ones(c.d_model)), nn.Parameter(torch.ones(c.d_model))
        self.w_qkv, self.b_qkv = matrix(c.d_model, heads + 2 * kv), nn.Parameter(torch.zeros(heads + 2 * kv))
        self.w_o, self.b_o = matrix(heads, c.d_model, gain=small), nn.Parameter(torch.zeros(c.d_model))
        self.sinks = nn.Parameter(torch.zeros(c.n_heads))
        self.w_router, self.b_router = matrix(c.d_model, c.n_experts), nn.Parameter(torch.zeros(c.n_experts))
        self.w_up = matrix(c.n_experts, c.d_model, 2 * c.d_mlp)
        self.b_up = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_mlp))
        self.w_down = matrix(c.n_experts, c.d_mlp, c.d_model, gain=small)
        self.b_down = nn.Parameter(torch.zeros(c.n_experts, c.d_model))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, routing: Routing) -> Tensor:
        c, dtype = self.c, x.dtype
        n_batch, n_pos, _ = x.shape
        normed = OPS["norm"](x, self.ln1, c.eps).view(-1, c.d_model)
        qkv = torch.addmm(self.b_qkv.to(dtype), normed, self.w_qkv.to(dtype)).view(n_batch, n_pos, -1)
        z = OPS["attention"](qkv, cos, sin, mask, self.sinks, c.n_heads, c.n_kv_heads, c.d_head)
        attn_out = torch.addmm(self.b_o.to(dtype), z.view(n_batch * n_pos, -1), self.w_o.to(dtype))
        x, normed = OPS["add_norm"](x, attn_out.view_as(x), self.ln2, c.eps)
        normed = normed.view(-1, c.d_model)
        logits = torch.addmm(self.b_router.to(dtype), normed, self.w_router.to(dtype))
        share, chosen, now, balance, z_loss = OPS["route"](logits, routing.real, routing.load[self.layer], c.n_active)
        routing.now.append(now)
        routing.balance = routing.balance + balance / c.n_layers
        routing.z_loss = routing.z_loss + z_loss / c.n_layers
        up, down = (self.w_up.to(dtype), self.b_up.to(dtype)), (self.w_down.to(dtype), self.b_down.to(dtype))
        y = Experts.apply(normed, share, chosen, *up, *down, c.swiglu_alpha, c.swiglu_limit)
        return x + y.view_as(x)


class Pocket(nn.Module):
    """Logits from token ids: `model(ids, routing, at)`, at the flat positions `at`, or at all positions.

    `position_ids` are the positions that RoPE uses, by default the actual ones; masks always use the actual positions.
    Parameters are float32; activations and products are in `dtype`, "float32" or "bfloat16"; norms, softmax and SwiGLU
    are in float32.

    >>> model = Pocket(SHAPE)
    >>> sum(p.numel() for p in model.parameters()) == SHAPE.n_params
    True
    """

    def __init__(self, c: Config, dtype: str = "float32"):
        super().__init__()
        self.c, self.dtype = c, training_dtype(dtype)
        self.embed = nn.Parameter(torch.randn(c.d_vocab, c.d_model) * 4 / math.sqrt(c.d_model))
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layers))
        self.ln_final = nn.Parameter(torch.ones(c.d_model))
        self.unembed = nn.Parameter(torch.randn(c.d_vocab, c.d_model) * 0.2 / math.sqrt(c.d_model))
        frequency, scale = rope_frequencies(c)
        angle = torch.outer(torch.arange(MAX_POSITION).float(), frequency)
        self._cos, self._sin = angle.cos() * scale, angle.sin() * scale  # position d_head/2
        self._mask_cache: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(
        self, ids: Tensor, routing: Routing | None = None, at: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        routing = routing or self.routing(torch.ones(ids.numel()))
        window, full = self._masks(ids.shape[1])
        if position_ids is None:
            position_ids = torch.arange(ids.shape[1]).expand_as(ids)
        cos, sin = self._cos[position_ids], self._sin[position_ids]
        x = F.embedding(ids, self.embed).to(self.dtype)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, window if self.c.is_sliding(layer) else full, routing)
        x = x.view(-1, self.c.d_model)
        if at is not None:
            x = x.index_select(0, at)
        return OPS["norm"](x, self.ln_final, self.c.eps) @ self.unembed.to(self.dtype).t()

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def routing(self, real: Tensor, load: Tensor | None = None) -> Routing:
        """Empty statistics; without `load`, the earlier load is assumed to be even."""
        even = torch.full((self.c.n_layers, self.c.n_experts), 1 / self.c.n_experts)
        return Routing(real, even if load is None else load)

    def _masks(self, n_pos: int) -> tuple[Tensor, Tensor]:
        """The masks of sliding and full layers (query key)."""
        if n_pos not in self._mask_cache:
            distance = torch.arange(n_pos)[:, None] - torch.arange(n_pos)
            full = torch.zeros(n_pos, n_pos).masked_fill(distance < 0, -1e9)
            window = full.masked_fill(distance >= self.c.window, -1e9)
            self._mask_cache[n_pos] = window, full
        return self._mask_cache[n_pos]
