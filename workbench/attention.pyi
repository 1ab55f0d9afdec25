"""Attention: patterns, what heads attend to, and the attention sink."""

from workbench.analysis.attention import pattern as pattern
from workbench.analysis.attention import pattern_band as pattern_band
from workbench.analysis.attention import pattern_pooled as pattern_pooled
from workbench.analysis.heads import breakdown as breakdown
from workbench.analysis.heads import head_scores as head_scores
from workbench.analysis.heads import receiver_heads as receiver_heads
from workbench.analysis.heads import retrieval_scores as retrieval_scores
from workbench.analysis.heads import rollout as rollout
from workbench.analysis.heads import sink_mass as sink_mass
from workbench.analysis.heads import step_attention as step_attention

__all__ = [
    "breakdown",
    "head_scores",
    "pattern",
    "pattern_band",
    "pattern_pooled",
    "receiver_heads",
    "retrieval_scores",
    "rollout",
    "sink_mass",
    "step_attention",
]
