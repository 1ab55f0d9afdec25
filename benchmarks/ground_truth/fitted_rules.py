"""Rules about the text of the chain that are fitted on other problems with known graphs.

They show how much the chain alone gives away: where the steps stand, and everything that the simple rules see.
"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.ground_truth.baselines import CHAIN_RULES, consistent_values
from benchmarks.ground_truth.cases import Matrix, pair_indices
from workbench.checks import require
from workbench.pocket.problems import Problem


class PositionRule:
    """How often the step at one position uses that at another, in chains with the same number of steps."""

    def __init__(self, problems: Sequence[Problem]):
        self.counts: dict[int, np.ndarray] = {}  # number of steps -> used and all pairs (2, later, earlier)
        for problem in problems:
            n = len(problem.steps)
            later, earlier, used = pair_indices(problem)
            counts = self.counts.setdefault(n, np.zeros((2, n, n)))
            counts[0, later, earlier] += used
            counts[1, later, earlier] += 1

    def __call__(self, problem: Problem) -> Matrix:
        """The share of used pairs, with half a count added to used and unused ones."""
        n = len(problem.steps)
        used, total = self.counts.get(n, np.zeros((2, n, n)))
        return (used + 0.5) / (total + 1)


class FittedChainRule:
    """A logistic regression on all rules that read the chain alone, on consistent values and on positions."""

    def __init__(self, problems: Sequence[Problem]):
        """Half of the problems are for the position rule, so that its counts do not contain the other half's truth."""
        half = len(problems) // 2
        self.rules: list[Callable[[Problem], Matrix]] = [*CHAIN_RULES.values(), consistent_values]
        self.rules.append(PositionRule(problems[:half]))
        features, used = [], []
        for problem in problems[half:]:
            later, earlier, truth = pair_indices(problem)
            features.append(self._features(problem)[later, earlier])
            used.append(truth)
        scaler = require("sklearn.preprocessing", extra="lab").StandardScaler()
        logistic = require("sklearn.linear_model", extra="lab").LogisticRegression()
        pipeline = require("sklearn.pipeline", extra="lab").make_pipeline(scaler, logistic)
        self.regression = pipeline.fit(np.concatenate(features), np.concatenate(used))

    def _features(self, problem: Problem) -> np.ndarray:
        return np.stack([rule(problem) for rule in self.rules], -1)  # (later earlier feature)

    def __call__(self, problem: Problem) -> Matrix:
        """The log-odds that the later step uses the earlier one."""
        features = self._features(problem)
        return self.regression.decision_function(features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])
