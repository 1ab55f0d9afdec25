"""The same weights in transformers, and how fast workbench writes."""

import time
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch

from workbench.checks import require
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.pocket.eval.share import share
from workbench.pocket.eval.writing import write
from workbench.pocket.families import FAMILIES, make
from workbench.pocket.rendering import EFFORTS, prompt, render
from workbench.pocket.vocabulary import encode


@torch.inference_mode()
def parity(model: Model, folder: str | Path, n: int, *, max_tokens: int = 220) -> dict[str, Any]:
    """The largest difference of fp32 logits over `n` conversations, and the share of `n` prompts answered alike.

    Raises MissingDependency without transformers.
    """
    transformers = require("transformers", extra="interop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it unpacks MXFP4 on a CPU
        theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = Random("parity")
    asked = [(make(rng.choice(list(FAMILIES)), rng, split="test"), rng.choice(EFFORTS)) for _ in range(n)]
    apart = size = 0.0
    for problem, effort in asked:
        ids = torch.tensor([render(problem, effort).ids])
        logits = theirs(ids).logits
        apart = max(apart, float((forward(model.config, model.weights, ids) - logits).abs().max()))
        size = max(size, float(logits.abs().max()))
    prompts = [encode(prompt(p, effort)) for p, effort in asked]
    ours = write(model, prompts, max_tokens=max_tokens, desc="ours")
    alike = []
    for ids, text in zip(prompts, ours):
        wrote = theirs.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)[0, len(ids) :]
        assert model.tokenizer is not None
        alike.append(model.tokenizer.decode(wrote.tolist()) == text)
    return {"logits_differ_by": apart, "largest_logit": size, "texts_alike": share(alike)}


@torch.inference_mode()
def speed(model: Model, n: int = 200) -> float:
    """Tokens a second of CPU time, one after the other with a cache, on one thread."""
    cache = KVCache(model.config)
    ids = torch.tensor([encode(prompt(make("addition", Random(0), length=3), "high"))])
    ids = forward(model.config, model.weights, ids, None, cache, slice(-1, None)).argmax(-1)
    began = time.process_time()
    for _ in range(n):
        ids = forward(model.config, model.weights, ids, None, cache, slice(-1, None)).argmax(-1)
    return round(n / (time.process_time() - began))
