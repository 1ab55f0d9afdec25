"""transformers' own GptOssDecoderLayer, holding one layer at a time, with one expert dequantized at a time."""

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.model_check.raw_tensors import DOWN, GATE_UP, RawTensors

if TYPE_CHECKING:
    from transformers import GptOssConfig

# Called for each expert with its number, its gate_up_proj and its down_proj as stored, [out, in].
OnExpert = Callable[[int, Tensor, Tensor], None]


class Chosen(NamedTuple):
    """Inputs of the experts (pos d_model), and the experts chosen for them (pos choice)."""

    x: Tensor
    indices: Tensor


class OneExpertAtATime(nn.Module):
    """Stands in for the layer's GptOssExperts: the same class, with one expert, for each expert in turn.

    While it runs, `others` get their experts' outputs too, and `on_expert` sees every expert's matrices.
    """

    def __init__(self, config: "GptOssConfig", raw: RawTensors, layer: int, dtype: torch.dtype):
        super().__init__()
        self.config, self.raw, self.layer, self.dtype = config, raw, layer, dtype
        at = f"model.layers.{layer}.mlp.experts."
        self.up_bias = raw.tensor(at + "gate_up_proj_bias").to(dtype)
        self.down_bias = raw.tensor(at + "down_proj_bias").to(dtype)
        self.one = _one_expert(config)
        self.others: list[Chosen] = []
        self.out_of_others: list[Tensor] = []  # pos choice d_model, without the router's weights
        self.on_expert: OnExpert | None = None

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        own = Chosen(hidden_states, router_indices)
        outputs = [each.x.new_zeros(*each.indices.shape, each.x.shape[-1]) for each in (own, *self.others)]
        for expert in range(self.config.num_local_experts):
            chosen = [
                (each, out, each.indices == expert) for each, out in zip((own, *self.others), outputs, strict=True)
            ]
            if self.on_expert is None and not any(bool(here.any()) for _, _, here in chosen):
                continue
            up, down = (self.raw.expert(self.layer, name, expert) for name in (GATE_UP, DOWN))
            if self.on_expert is not None:
                self.on_expert(expert, up, down)
            run = self._single(expert, up.to(self.dtype), down.to(self.dtype))
            for each, out, here in chosen:
                pos, choice = here.nonzero(as_tuple=True)
                if len(pos):
                    one = torch.zeros(len(pos), 1, dtype=torch.long)
                    out[pos, choice] = run(each.x[pos], one, torch.ones(len(pos), 1, dtype=each.x.dtype))
        self.out_of_others = outputs[1:]
        return (outputs[0] * routing_weights[..., None]).sum(1)

    def _single(self, expert: int, up: Tensor, down: Tensor) -> nn.Module:
        """transformers' experts, which are one: this one."""
        weights = {
            GATE_UP: up.T[None],
            "gate_up_proj_bias": self.up_bias[None, expert],
            DOWN: down.T[None],
            "down_proj_bias": self.down_bias[None, expert],
        }
        self.one.load_state_dict(weights, assign=True)
        return self.one


def _one_expert(config: "GptOssConfig") -> nn.Module:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = copy(config)
    config.num_local_experts = 1
    with torch.device("meta"):
        return GptOssExperts(config)


def reference_layer(config: "GptOssConfig", raw: RawTensors, layer: int, dtype: torch.dtype) -> nn.Module:
    """transformers' decoder layer with the weights in the files; its experts are a `OneExpertAtATime`."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer

    with torch.device("meta"):
        module = GptOssDecoderLayer(config, layer)
    module.mlp.experts = OneExpertAtATime(config, raw, layer, dtype)
    names = [name for name in module.state_dict() if not name.startswith("mlp.experts.")]
    stored = {name: raw.tensor(f"model.layers.{layer}.{name}").to(dtype) for name in names}
    module.load_state_dict(stored, assign=True, strict=False)
    return module.eval().requires_grad_(False)


class Surroundings(NamedTuple):
    """What GptOssModel makes for its layers: cos and sin of the positions, and a mask for each kind of layer."""

    positions: tuple[Tensor, Tensor]
    masks: dict[str, Any]  # a Tensor; None where the mask lets all pass


def surroundings(config: "GptOssConfig", n_positions: int, dtype: torch.dtype) -> Surroundings:
    """The Surroundings of one text of `n_positions` tokens."""
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    x = torch.zeros(1, n_positions, config.hidden_size, dtype=dtype)
    position_ids = torch.arange(n_positions)[None]
    cos, sin = GptOssRotaryEmbedding(config)(x, position_ids)
    inputs = {"config": config, "inputs_embeds": x, "attention_mask": None, "past_key_values": None}
    masks = {
        "full_attention": create_causal_mask(**inputs),
        "sliding_attention": create_sliding_window_causal_mask(**inputs),
    }
    return Surroundings((cos, sin), masks)
