"""Lenses: what each layer would predict, by the model's own unembedding or a trained one."""

from workbench.analysis.lens import logit_lens as logit_lens
from workbench.analysis.lens import prediction_depth as prediction_depth
from workbench.experiments.tuned_lens import lens_kl as lens_kl
from workbench.experiments.tuned_lens import load_tuned_lens as load_tuned_lens
from workbench.experiments.tuned_lens import train_tuned_lens as train_tuned_lens
from workbench.experiments.tuned_lens import tuned_lens as tuned_lens

__all__ = [
    "lens_kl",
    "load_tuned_lens",
    "logit_lens",
    "prediction_depth",
    "train_tuned_lens",
    "tuned_lens",
]
