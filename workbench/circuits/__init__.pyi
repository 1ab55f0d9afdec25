"""Circuits read from the weights alone, in terms of tokens: heads, routers and experts, without running the model."""

from workbench.circuits.experts import expert_logit_effects as expert_logit_effects
from workbench.circuits.experts import router_tokens as router_tokens
from workbench.circuits.heads import ov_circuit as ov_circuit
from workbench.circuits.heads import qk_circuit as qk_circuit
from workbench.circuits.heads import qk_distance as qk_distance
from workbench.circuits.heads import sink_logits as sink_logits

__all__ = [
    "expert_logit_effects",
    "ov_circuit",
    "qk_circuit",
    "qk_distance",
    "router_tokens",
    "sink_logits",
]
