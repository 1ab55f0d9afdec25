"""Patching and knockouts: which activations, paths, experts and attention edges an output depends on."""

from workbench.experiments.activation_patching import activation_patching as activation_patching
from workbench.experiments.activation_patching import logit_diff as logit_diff
from workbench.experiments.attention_knockout import attention_knockout as attention_knockout
from workbench.experiments.attribution_patching import attribution_patching as attribution_patching
from workbench.experiments.expert_knockout import expert_knockout as expert_knockout
from workbench.experiments.head_knockout import head_knockout as head_knockout
from workbench.experiments.path_patching import path_patching as path_patching

__all__ = [
    "activation_patching",
    "attention_knockout",
    "attribution_patching",
    "expert_knockout",
    "head_knockout",
    "logit_diff",
    "path_patching",
]
