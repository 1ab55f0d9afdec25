"""Compares what lies outside of the layers: the embedding, the last norm and the unembedding."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.model import gpt_oss
from workbench.model.checkpoints.tensors import Weights
from workbench.model.config import Config
from workbench.model.kernels.rows import rms_norm
from workbench.model_check.layers import TOLERANCE, difference, gap
from workbench.model_check.line import Line, compared
from workbench.model_check.raw_tensors import RawTensors

if TYPE_CHECKING:
    from transformers import GptOssConfig

ROWS = 8192  # of the vocabulary at a time: 94 MB in float32 for gpt-oss
EMBED, UNEMBED, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def check_table(weights: Weights, raw: RawTensors, name: str) -> Line:
    """The line about all rows of the embedding or the unembedding."""
    start, loaded = time.perf_counter(), weights.embed if name == EMBED else weights.unembed
    worst, wrong = 0.0, -1
    for first in range(0, len(loaded), ROWS):
        part = loaded[first : first + ROWS]
        found = difference(part.float(), raw.rows(name, first, first + len(part)).to(loaded.dtype).float())
        if found > worst:
            worst, wrong = found, first
    note = "" if wrong < 0 else f"first in rows {wrong} to {min(wrong + ROWS, len(loaded)) - 1}"
    return compared("weights", None, name, worst, 0.0, time.perf_counter() - start, note)


def logits_of(c: Config, weights: Weights, resid: Tensor) -> Tensor:
    """workbench's logits (pos d_vocab) for a last residual stream (pos d_model), in its dtype, in parts."""
    parts = []
    for first in range(0, len(weights.unembed), ROWS):
        wide = replace(weights, unembed=weights.unembed[first : first + ROWS].to(resid.dtype))
        parts.append(gpt_oss.unembed(c, replace(wide, ln_final=weights.ln_final.to(resid.dtype)), resid[None])[0])
    return torch.cat(parts, -1)


def check_ends(c: Config, weights: Weights, resid: Tensor, config: "GptOssConfig", raw: RawTensors) -> list[Line]:
    """The lines about the last norm and the logits, for a last residual stream (pos d_model)."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

    start, dtype = time.perf_counter(), resid.dtype
    norm = GptOssRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    scale = raw.tensor(NORM)
    norm.load_state_dict({"weight": scale.to(dtype)}, assign=True)
    stored = compared("weights", None, NORM, difference(weights.ln_final.to(dtype), scale.to(dtype)), 0.0)
    expected = norm(resid)
    computed = rms_norm(resid, weights.ln_final.to(dtype), c.eps)
    lines = [stored, compared("layers", None, "model.norm", gap(computed, expected), TOLERANCE[dtype])]
    logits = logits_of(c, weights, resid)
    gaps = []
    for first in range(0, logits.shape[-1], ROWS):
        rows = raw.rows(UNEMBED, first, min(first + ROWS, logits.shape[-1])).to(dtype)
        gaps.append((logits[:, first : first + len(rows)] - expected @ rows.T).abs().max())
    worst = float(torch.stack(gaps).max()) / max(1e-30, float(logits.abs().max()))  # torch's max keeps NaN
    lines.append(compared("layers", None, "lm_head", worst, TOLERANCE[dtype], time.perf_counter() - start))
    return lines
