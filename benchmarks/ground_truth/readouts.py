"""Methods that read the residual stream of one pass: the logit lens and a trained probe."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import workbench as wb
from benchmarks.ground_truth.cases import Case, Matrix, pair_indices
from benchmarks.ground_truth.values import value_positions
from workbench.checks import require
from workbench.model.gpt_oss import unembed
from workbench.pocket.problems import Problem

L2_PENALTIES = np.logspace(0, 5, 11)  # of the probe; chosen by leave-one-out on the fitting problems


@torch.inference_mode()
def lens_rank(case: Case) -> Matrix:
    """How high the logit lens ranks the earlier step's value where the later step is predicted.

    The score is -log(1 + rank) of the best rank over layers and positions, averaged over the tokens of the value.
    """
    n_layers = case.model.config.n_layers
    segments, steps = case.segments, case.problem.steps
    values = [
        [case.token_ids[at] for at in value_positions(case.token_ids, segment, step)]
        for segment, step in zip(segments, steps)
    ]
    scores = np.zeros((len(steps), len(steps)))
    for i, segment in enumerate(segments):
        resid = torch.stack(
            [case.run.resid(layer)[0, segment.start - 1 : segment.stop - 1] for layer in range(1, n_layers + 1)]
        )
        logits = unembed(case.model.config, case.model.weights, resid).flatten(0, 1)  # (layer and position, d_vocab)
        for j in range(i):
            scores[i, j] = -np.mean([np.log1p(_best_rank(logits, token)) for token in values[j]])
    return scores


def _best_rank(logits: Tensor, token: int) -> int:
    """The smallest number of tokens with a larger logit, over the rows of `logits`."""
    return int((logits > logits[:, token, None]).sum(-1).min())


class PairProbe:
    """A ridge regression from the residual streams of two steps to whether the later one uses the earlier one.

    Its inputs are the residual stream where the later step's value is predicted, that at the earlier step's value, and
    the product of both, two thirds into the model. It is fitted on other problems, whose true graphs it needs.
    """

    def __init__(self, model: wb.Model, problems: Sequence[Problem]):
        features, used = [], []
        for problem in problems:
            later, earlier, truth = pair_indices(problem)
            features.append(self._features(Case(model, problem))[later, earlier])
            used.append(truth)
        ridge = require("sklearn.linear_model", extra="lab").RidgeCV(L2_PENALTIES)
        scaler = require("sklearn.preprocessing", extra="lab").StandardScaler()
        pipeline = require("sklearn.pipeline", extra="lab").make_pipeline(scaler, ridge)
        self.regression = pipeline.fit(np.concatenate(features), np.concatenate(used).astype(float))

    @staticmethod
    def _features(case: Case) -> np.ndarray:
        resid = case.run.resid(2 * case.model.config.n_layers // 3)[0].double().numpy()
        values = [value_positions(case.token_ids, *pair) for pair in zip(case.segments, case.problem.steps)]
        predicting = resid[[positions[0] - 1 for positions in values]][:, None]
        written = resid[[positions[-1] for positions in values]][None]
        later, earlier = np.broadcast_arrays(predicting, written)
        return np.concatenate([later, earlier, later * earlier], -1)  # (later earlier feature)

    def __call__(self, case: Case) -> Matrix:
        """The regression's output for each pair."""
        features = self._features(case)
        return self.regression.predict(features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])
