"""Methods that read attention, hide a step, change its value or generate it again."""

import re

import numpy as np
import torch

from benchmarks.ground_truth.cases import Case, Matrix
from workbench.analysis.heads import MIN_DISTANCE, receiver_heads
from workbench.experiments.cached_run import divergence
from workbench.experiments.sampling import rollouts
from workbench.experiments.suppression import suppression
from workbench.pocket.vocabulary import str_tokens

N_RECEIVERS = 4  # receiver heads that are averaged
N_SAMPLES = 8  # continuations from each point
SPARE_TOKENS = 8  # that a continuation may be longer than the solution


def attention_all(case: Case) -> Matrix:
    """The mean attention of the later step to the earlier one, over all heads."""
    return case.attention.mean(("layer", "head")).values


def attention_full(case: Case) -> Matrix:
    """The same over the heads of the layers without a sliding window."""
    full = [layer for layer, kind in enumerate(case.model.config_dict["layer_types"]) if kind == "full_attention"]
    return case.attention.sel(layer=full).mean(("layer", "head")).values


def receivers(case: Case) -> Matrix:
    """The attention that the earlier step gets from all distant later steps, in the heads with the largest kurtosis.

    It is the same for all later steps, and NaN if the chain is too short, or for a step without distant later steps.
    """
    n = len(case.segments)
    if n < MIN_DISTANCE + 3:
        return np.full((n, n), np.nan)
    heads = receiver_heads(case.attention).stack(at=("layer", "head"))
    kurtosis = heads["kurtosis"].fillna(-np.inf).values.round(6)  # ties go to the first heads
    best = heads["vertical"].isel(at=np.argsort(-kurtosis, kind="stable")[:N_RECEIVERS])
    return np.tile(best.mean("at", skipna=False).values, (n, 1))


def suppression_later(case: Case) -> Matrix:
    """The change of predictions in the later step if its tokens and all others after the earlier step cannot see it."""
    return case.hidden["effect"].values


def suppression_all(case: Case) -> Matrix:
    """The same if the earlier step's own tokens cannot see it either, as in the paper."""
    return suppression(case.model, case.trace, case.segments, queries="all")["effect"].values


def suppression_frozen(case: Case) -> Matrix:
    """The effect of suppression with the experts and their weights of the unedited run."""
    return suppression(case.model, case.trace, case.segments, split_routing=True)["content"].values


def routing_shift(case: Case) -> Matrix:
    """The share of experts in the later step that change if the earlier one is hidden."""
    return case.hidden["routing"].values


@torch.inference_mode()
def value_change(case: Case) -> Matrix:
    """The change of predictions in the later step if the earlier one has another value."""
    model, segments = case.model, case.segments
    effects = np.zeros((len(segments), len(segments)))
    last = model.config.n_layers
    for j, changed in enumerate(case.changed_runs):
        kl = divergence(model, case.run.resid(last), changed.resid(last))[0].double().numpy()
        for i in range(j + 1, len(segments)):  # a token is predicted one position earlier
            effects[i, j] = kl[segments[i].start - 1 : segments[i].stop - 1].mean()
    return effects


def resampling(case: Case) -> Matrix:
    """How much more often continuations have the later step if the earlier one stands than if it is sampled again.

    Sentence-to-sentence importance (Thought Anchors, arXiv 2506.19143) with equal texts as matches: the share of
    continuations from after the earlier step that contain the later step, minus that from before the earlier step.
    """
    ids, segments, steps = case.token_ids, case.segments, case.problem.steps
    points = [*(segment.start for segment in segments), segments[-1].stop]
    share = np.zeros((len(points), len(steps)))
    for point, start in enumerate(points[:-1]):
        continuations = rollouts(
            case.model, ids[:start], N_SAMPLES, max_tokens=len(ids) - start + SPARE_TOKENS, seed=point
        )
        for continuation in continuations:
            written = {text.strip() for text in re.split(r"[,.<]", "".join(str_tokens(continuation)))}
            share[point] += [step.text in written for step in steps]
    share /= N_SAMPLES
    n = len(steps)
    return np.array([[share[j + 1, i] - share[j, i] if j < i else 0.0 for j in range(n)] for i in range(n)])
