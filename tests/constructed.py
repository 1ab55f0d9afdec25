"""A gpt-oss whose weights are set by hand, so that the function of each head and expert is known exactly.

Layer 0, sliding: head 0 looks one token back and writes which token it saw; head 1 always sinks; heads 2 and 3 look at
all that the window shows, evenly. Layer 1, full: head 0 is an induction head, which looks at what followed earlier
places of the current token and predicts it, and sinks where there are none; the others always sink. Layer 2, sliding:
head 0 looks at its own token and writes the next one of the vocabulary; the others always sink. Routers read the token:
class c = token % 4 runs experts 2c and 2c + 1. Experts write nothing.
"""

from functools import cache

import torch

from tests.checkpoints import Random
from workbench.model.gpt_oss import rope_frequencies
from workbench.model.model import Model

V, D, HEAD, WINDOW, CLASSES = 64, 256, 128, 12, 4
TOKEN, BEFORE, NEXT = slice(0, V), slice(V, 2 * V), slice(2 * V, 3 * V)  # of the residual stream
SLOW = [*range(32, 64), *range(96, 128)]  # the numbers of a head that RoPE hardly turns: as many as tokens
SHAPE = {
    "n_layers": 3,
    "d_model": D,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": HEAD,
    "n_experts": 2 * CLASSES,
    "n_active": 2,
    "d_mlp": 32,
    "d_vocab": V,
    "window": WINDOW,
}


@cache
def constructed() -> Model:
    random = Random(seed=0, **SHAPE)
    hf = random.transformers(torch.float32)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            p.fill_(1.0 if "norm" in name else 0.0)
        hf.model.embed_tokens.weight[:, TOKEN] = torch.eye(V)
        hf.lm_head.weight[:, NEXT] = 20 * torch.eye(V)
        before, induction, own = (layer.self_attn for layer in hf.model.layers)
        for attention in (before, induction, own):
            attention.sinks.fill_(40.0)
        looks_back(before, random.config)
        copies(before, TOKEN, BEFORE, gain=1 / 16)  # the norm makes 16 of a single 1
        before.sinks[2:] = -40.0
        for i, n in enumerate(SLOW):
            induction.q_proj.weight[n, TOKEN.start + i] = 4.0
            induction.k_proj.weight[n, BEFORE.start + i] = 4.0
            own.q_proj.weight[n, TOKEN.start + i] = own.k_proj.weight[n, TOKEN.start + i] = 4.0
        copies(induction, TOKEN, NEXT)
        copies(own, TOKEN, NEXT, shift=1, gain=0.1)
        for layer in hf.model.layers:
            for expert in range(2 * CLASSES):
                layer.mlp.router.weight[expert, TOKEN.start + expert // 2 : TOKEN.stop : CLASSES] = 1.0 + 0.1 * (
                    expert % 2
                )
    model = Model(hf)
    model.stop_ids = frozenset()
    return model


def looks_back(attention, config) -> None:
    """Constant queries and keys that match best at a distance of one token."""
    frequency = rope_frequencies(config)[0][:4]
    attention.k_proj.bias[:4] = 30.0
    attention.q_proj.bias[:4] = 30.0 * torch.cos(frequency)
    attention.q_proj.bias[HEAD // 2 : HEAD // 2 + 4] = -30.0 * torch.sin(frequency)


def copies(attention, source: slice, target: slice, *, shift: int = 0, gain: float = 1.0) -> None:
    """Head 0 writes into `target` the token (or the one `shift` further) that it sees in `source`."""
    for i in range(V):
        attention.v_proj.weight[i, source.start + i] = 1.0
        attention.o_proj.weight[target.start + (i + shift) % V, i] = gain
