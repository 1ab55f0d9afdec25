"""Activation patching between steps, and its first-order estimate.

The residual stream at the tokens of the earlier step is replaced, at the input of one layer, by that of a text in which
this step has another value (`values.with_another_value`). The metric is the mean log-probability of the later step's
tokens. The score is the absolute change of the metric, averaged over layers. `wb.patching` has both methods for a
metric of the last position; a step has many positions, so they are done here for all later steps at once.
"""

import numpy as np
import torch
from torch import Tensor

from benchmarks.ground_truth.cases import Case, Matrix
from workbench import hooks
from workbench.model.gpt_oss import unembed
from workbench.recording.taps import Recorder


def step_logprobs(case: Case, final_resid: Tensor, start: int = 0) -> Tensor:
    """The mean log-probability of each step's tokens; `final_resid` (pos d_model) begins at position `start`.

    Steps whose predictions are made before `start` have the value 0.
    """
    logprobs = torch.log_softmax(unembed(case.model.config, case.model.weights, final_resid[None])[0].double(), -1)
    ids = torch.tensor(case.token_ids[start + 1 :])
    of_token = logprobs[:-1].gather(-1, ids[:, None])[:, 0]  # entry k is the prediction of token start + 1 + k
    by_step = [
        of_token[segment.start - 1 - start : segment.stop - 1 - start].mean()
        if segment.start > start
        else torch.zeros((), dtype=of_token.dtype)
        for segment in case.segments
    ]
    return torch.stack(by_step)


@torch.inference_mode()
def patched_effects(case: Case, layer: int, earlier: int, resid: Tensor) -> np.ndarray:
    """The change of each later step's metric if the step `earlier` has these residuals (pos d_model) before a layer."""
    segment, model, clean = case.segments[earlier], case.model, case.run
    last = hooks.at_layer("blocks.*.hook_resid_post", model.config.n_layers - 1)
    recorder = Recorder([last], device=model.device)
    patched = clean.resid(layer)[:, segment.start :].clone()
    patched[0, : segment.stop - segment.start] = resid
    model.forward_from(patched, layer, recorder, clean.cache.fork(1, segment.start), slice(0, 0))
    unchanged = clean.resid(model.config.n_layers)[0, segment.start :]
    change = step_logprobs(case, recorder[last][0], segment.start) - step_logprobs(case, unchanged, segment.start)
    return np.where(np.arange(len(case.segments)) > earlier, change.numpy(), 0.0)


def activation_patching(case: Case) -> Matrix:
    """One pass per step and layer, after a run of each changed text."""
    layers, effects = range(case.model.config.n_layers), []
    for j, (segment, changed) in enumerate(zip(case.segments, case.changed_runs)):
        by_layer = [patched_effects(case, layer, j, changed.resid(layer)[0, segment]) for layer in layers]
        effects.append(np.abs(by_layer).mean(0))
    return np.stack(effects, 1)


def gradients(case: Case) -> Tensor:
    """The gradient of each step's metric with respect to the input of each layer (step layer pos d_model)."""
    n_layers = case.model.config.n_layers
    points = [hooks.at_layer("blocks.*.hook_resid_pre", layer) for layer in range(n_layers)]
    last = hooks.at_layer("blocks.*.hook_resid_post", n_layers - 1)
    with torch.enable_grad():
        embedded = case.run.resid(0).clone().requires_grad_()
        recorder = Recorder([*points, last], device=case.model.device, keep_grad=True)
        case.model.forward_from(embedded, 0, recorder, None, slice(0, 0))
        inputs = [recorder[point] for point in points]
        by_step = [
            torch.stack(torch.autograd.grad(metric, inputs, retain_graph=True))[:, 0]
            for metric in step_logprobs(case, recorder[last][0])
        ]
    return torch.stack(by_step)


def attribution_patching(case: Case) -> Matrix:
    """(changed - clean) · gradient: one backward pass for each later step, and a run of each changed text."""
    gradient, effects = gradients(case), []
    for j, (segment, changed) in enumerate(zip(case.segments, case.changed_runs)):
        layers = range(case.model.config.n_layers)
        change = torch.stack([(changed.resid(layer) - case.run.resid(layer))[0, segment] for layer in layers])
        effect = torch.einsum("ilpd,lpd->il", gradient[:, :, segment].double(), change.double()).abs().mean(1)
        effects.append(np.where(np.arange(len(gradient)) > j, effect.numpy(), 0.0))
    return np.stack(effects, 1)
