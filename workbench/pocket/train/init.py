"""Initialization: random weights close to copying circuits (as in arXiv 2305.09828), and active sinks.

Nothing is frozen, but finding a structure that was built in here is not a discovery. Built in: queries and keys of
every head overlap, values and outputs of every head overlap, the unembedding is a faint copy of the embedding, half of
the heads of the first two sliding layers attend one, two or three tokens back, the matching heads of the full layers
read the output of those, and every sink has a logit of 2.
"""

import torch

from workbench.model.gpt_oss import rope_frequencies
from workbench.pocket.train.model import Pocket

SINK = 2.0
BACK = {0: (1, 2), 2: (1, 3)}  # layer -> distances that the heads of its first group attend back
PEAK = 4.0  # magnitude of the biases that make these heads attend back
PAIRS = 4  # how many of RoPE's fastest pairs the biases use; the fastest pairs give the sharpest pattern


@torch.no_grad()
def mimetic(model: Pocket) -> None:
    """Initializes the weights of a model in place; uses torch's global generator.

    >>> from workbench.pocket.train.model import SHAPE
    >>> model = Pocket(SHAPE)
    >>> mimetic(model)
    >>> model.blocks[0].sinks.tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    c = model.c
    group = c.n_heads // c.n_kv_heads
    previous_value: torch.Tensor | None = None  # the value matrix of the previous layer's first group
    for layer, block in enumerate(model.layers):
        key = torch.randn(c.n_kv_heads, c.d_model, c.d_head) / c.d_model**0.5
        value = torch.randn(c.n_kv_heads, c.d_model, c.d_head) / c.d_model**0.5
        sliding = c.is_sliding(layer)
        if not sliding and previous_value is not None:
            key[0] = previous_value
        previous_value = value[0].clone()
        queries = []
        for head in range(c.n_heads):
            first = head < group
            overlap = (0.0 if first and layer in BACK else 0.15) if sliding else (0.25 if first else 0.2)
            queries.append(overlap * key[head // group] + 0.3 * torch.randn(c.d_model, c.d_head) / c.d_model**0.5)
        block.w_qkv.copy_(torch.cat([*queries, *key, *value], 1))
        block.w_o.copy_(torch.cat([0.6 * value[head // group].t() for head in range(c.n_heads)], 0))
        block.sinks.fill_(SINK)
        if layer in BACK:
            block.b_qkv.copy_(attend_back(model, BACK[layer]))
    model.unembed.copy_(0.05 * model.embed)


def attend_back(model: Pocket, distances: tuple[int, ...]) -> torch.Tensor:
    """Biases of q, k and v that make the heads of the first group attend `distances` tokens back, for any tokens.

    A constant key, and a constant query rotated against it by the angle that RoPE rotates over that distance.
    """
    c = model.c
    frequency = rope_frequencies(c)[0][:PAIRS]
    q, k = torch.zeros(c.n_heads, c.d_head), torch.zeros(c.n_kv_heads, c.d_head)
    k[0, :PAIRS] = PEAK
    for head, distance in enumerate(distances):
        q[head, :PAIRS] = PEAK * torch.cos(frequency * distance)
        q[head, c.d_head // 2 : c.d_head // 2 + PAIRS] = -PEAK * torch.sin(frequency * distance)
    return torch.cat([q.flatten(), k.flatten(), torch.zeros(c.n_kv_heads * c.d_head)])
