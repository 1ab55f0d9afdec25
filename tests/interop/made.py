"""One tiny gpt-oss in the hands of every library: all dimensions different, sinks, and a text beyond the window."""

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
SCRATCH = tempfile.TemporaryDirectory()  # as long as the tests run: a bridge reads its tokenizer's folder again
EVERYTHING = "everything lens steps"
# Of the largest value, in fp32. Against fp64 our own values are off by up to 5.6e-6 on every processor, those of
# transformers by up to 8.9e-6, depending on how its BLAS adds on this processor.
TOLERANCE = 2e-5


def tokens(n: int = POSITIONS, seed: int = 323) -> list[int]:
    """A text on which `hf()` has no near ties: `ours` checks it."""
    return torch.randint(0, 170, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def hf(dtype: torch.dtype = torch.float32, seed: int = 3) -> Any:
    """A new GptOssForCausalLM, for a test to do with as it likes."""
    return Random(seed=seed).transformers(dtype)


@cache
def ours() -> Trace:
    """Our own runner's trace of it: no expert, token or rank is chosen by rounding, so all libraries' are equal."""
    trace = Model(hf()).trace(tokens(), record=EVERYTHING)
    likeliest = np.sort(trace["logits"], -1)[:, : -hooks.RANKS["top_ids"] - 2 : -1]
    assert trace["margin"].min() > 1e-3
    assert -np.diff(likeliest).max() > 1e-4 and -np.diff(trace["lens_logprobs"]).max() > 1e-4
    return trace


@cache
def tokenizer() -> Any:
    """TransformerLens boots no bridge without one."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(169)} | {"<end>": 169}, unk_token="w0"))
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(SCRATCH.name)
    return AutoTokenizer.from_pretrained(Path(SCRATCH.name))


def bridge(model: Any = None, name: str = "openai/gpt-oss-20b") -> Any:
    """A new TransformerBridge; it works inside the model that it is given."""
    from transformer_lens.model_bridge import TransformerBridge

    model = hf() if model is None else model
    return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer())


def gaps(theirs: Trace, own: Trace) -> dict[str, float]:
    """Of every array that both have: the largest difference, relative to the largest value of `own`."""
    found = {}
    for name in theirs.names():
        if name not in own.names():
            continue
        a, b = theirs[name].astype(np.float64), own[name].astype(np.float64)
        assert a.shape == b.shape, (name, a.shape, b.shape)
        finite = np.isfinite(b)
        assert (finite == np.isfinite(a)).all(), name
        if finite.any():
            found[name] = float(np.abs(a[finite] - b[finite]).max() / max(np.abs(b[finite]).max(), 1e-30))
    return found


def statuses(found: list[dict]) -> dict[str, str]:
    return {f["identity"]: f["status"] for f in found}
