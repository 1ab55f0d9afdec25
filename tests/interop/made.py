"""One tiny gpt-oss for every library: all dimensions different, sinks, and a text longer than the window."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoints import Random
from workbench import hooks
from workbench.model.model import Model
from workbench.traces import Trace

POSITIONS = 70  # the window is 12
SCRATCH = tempfile.TemporaryDirectory()  # kept until the tests end: a bridge loads its tokenizer's folder once more
EVERYTHING = "everything lens steps"
# Relative to the largest value, in fp32. Against fp64, workbench's own values are off by up to 5.6e-6 on every
# processor, those of transformers by up to 8.9e-6, depending on how its BLAS adds on this processor.
TOLERANCE = 2e-5


def tokens(n: int = POSITIONS, seed: int = 323) -> list[int]:
    """A text on which `hf()` has no near ties: `workbench_trace` checks it."""
    return torch.randint(0, 170, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def hf(dtype: torch.dtype = torch.float32, seed: int = 3) -> Any:
    """A new GptOssForCausalLM that a test may modify."""
    return Random(seed=seed).transformers(dtype)


@cache
def workbench_trace() -> Trace:
    """The trace of workbench's own runner. Rounding decides no expert, token or rank, so all libraries must agree."""
    trace = Model(hf()).trace(tokens(), record=EVERYTHING)
    top_logits = np.sort(trace["logits"], -1)[:, : -hooks.RANKS["top_ids"] - 2 : -1]
    assert trace["margin"].min() > 1e-3
    assert -np.diff(top_logits).max() > 1e-4 and -np.diff(trace["lens_logprobs"]).max() > 1e-4
    return trace


@cache
def tokenizer() -> Any:
    """A tokenizer of words, because TransformerLens boots no bridge without one."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(169)} | {"<end>": 169}, unk_token="w0"))
    special_tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(SCRATCH.name)
    return AutoTokenizer.from_pretrained(Path(SCRATCH.name))


def bridge(model: Any = None, name: str = "openai/gpt-oss-20b") -> Any:
    """A new TransformerBridge; it modifies the model that it is given."""
    from transformer_lens.model_bridge import TransformerBridge

    model = hf() if model is None else model
    return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer())


def gaps(trace: Trace, reference: Trace) -> dict[str, float]:
    """For every array in both: the largest difference, relative to the largest value of `reference`."""
    largest = {}
    for name in trace.names():
        if name not in reference.names():
            continue
        a, b = trace[name].astype(np.float64), reference[name].astype(np.float64)
        assert a.shape == b.shape, (name, a.shape, b.shape)
        finite = np.isfinite(b)
        assert (finite == np.isfinite(a)).all(), name
        if finite.any():
            largest[name] = float(np.abs(a[finite] - b[finite]).max() / max(np.abs(b[finite]).max(), 1e-30))
    return largest


def statuses(findings: list[dict]) -> dict[str, str]:
    return {finding["identity"]: finding["status"] for finding in findings}
