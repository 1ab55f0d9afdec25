"""Reasoning: which steps of a chain of thought the answer depends on, and when it is settled."""

from workbench.analysis.lens import forking_tokens as forking_tokens
from workbench.experiments.faithfulness import faithfulness as faithfulness
from workbench.experiments.forced_answers import forced_answer as forced_answer
from workbench.experiments.resampling import resampling as resampling
from workbench.experiments.suppression import suppression as suppression
from workbench.pocket.attribution import score_attribution as score_attribution

__all__ = [
    "faithfulness",
    "forced_answer",
    "forking_tokens",
    "resampling",
    "score_attribution",
    "suppression",
]
