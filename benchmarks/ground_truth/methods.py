"""The methods and baselines of the table, with what each needs.

A new method is a function from a `Case` to a matrix (later step, earlier step), with one line in `METHODS`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import workbench as wb
from benchmarks.ground_truth import hiding, patching, readouts
from benchmarks.ground_truth.baselines import CHAIN_RULES, named_in_question
from benchmarks.ground_truth.cases import Case, Matrix
from benchmarks.ground_truth.fitted_rules import FittedChainRule, PositionRule
from workbench.pocket.problems import Problem

QUESTION_RULE = "named in the question"  # parses the graph from the question; a check, not a baseline
PROBE = "probe"
N_FITTING_TEXTS = 1000  # problems for the fitted rules, which read texts only
N_FITTING_RUNS = 200  # problems for the probe


class Method(NamedTuple):
    """A method of the table."""

    scores: Callable[[Case], Matrix]
    needs: str


METHODS: dict[str, Method] = {
    "attention, all layers": Method(hiding.attention_all, "attention"),
    "attention, full layers": Method(hiding.attention_full, "attention"),
    "receiver heads": Method(hiding.receivers, "attention, 7 steps"),
    "suppression, later": Method(hiding.suppression_later, "masked attention"),
    "suppression, all": Method(hiding.suppression_all, "masked attention"),
    "suppression, routing frozen": Method(hiding.suppression_frozen, "masked attention, fixed experts"),
    "routing shift": Method(hiding.routing_shift, "masked attention, experts"),
    "value change": Method(hiding.value_change, "changed texts"),
    "resampling": Method(hiding.resampling, f"{hiding.N_SAMPLES} continuations per step"),
    "attribution patching": Method(patching.attribution_patching, "changed texts, gradients"),
    "activation patching": Method(patching.activation_patching, "changed texts, patched activations"),
    "logit-lens rank": Method(readouts.lens_rank, "residuals, unembedding"),
}
PROBE_NEEDS = f"residuals, {N_FITTING_RUNS} problems with known graphs"


def baselines(fitting: Sequence[Problem]) -> dict[str, Callable[[Problem], Matrix]]:
    """The rules that read the chain alone; the last two are fitted on problems of the same family and wording."""
    fitted = {"positions, fitted": PositionRule(fitting), "chain, fitted": FittedChainRule(fitting)}
    return CHAIN_RULES | fitted


def methods(model: wb.Model, fitting: Sequence[Problem]) -> dict[str, Method]:
    """All methods, with the probe fitted on these problems."""
    return METHODS | {PROBE: Method(readouts.PairProbe(model, fitting), PROBE_NEEDS)}


def question_rule(problems: Sequence[Problem]) -> list[Matrix] | None:
    """The matrices of the rule that parses the question; None for families without labels."""
    matrices = [named_in_question(problem) for problem in problems]
    defined = [matrix for matrix in matrices if matrix is not None]
    return defined if len(defined) == len(problems) else None
