"""Agreement with transformers on the same weights, and the speed of generation."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from workbench.checks import require
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.pocket.eval.generation import generate
from workbench.pocket.eval.share import share
from workbench.pocket.families import CHAINS, CONTROLS, make
from workbench.pocket.rendering import EFFORTS, prompt, render
from workbench.pocket.vocabulary import encode


@torch.inference_mode()
def parity(
    model: Model,
    folder: str | Path,
    n: int,
    families: Sequence[str] = (*CHAINS, *CONTROLS, "calculator"),
    *,
    max_tokens: int = 220,
) -> dict[str, Any]:
    """The largest difference of fp32 logits over `n` conversations, and the share of `n` prompts with equal texts.

    Args:
        model: The model.
        folder: The folder of its weights, for transformers.
        n: Number of conversations.
        families: The families of the conversations.
        max_tokens: The largest number of tokens per text.

    Raises MissingDependency without transformers.
    """
    transformers = require("transformers", extra="interop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that MXFP4 is unpacked on a CPU
        reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = Random("parity")
    conversations = [(make(rng.choice(list(families)), rng, split="test"), rng.choice(EFFORTS)) for _ in range(n)]
    difference = largest = 0.0
    for problem, effort in conversations:
        ids = torch.tensor([render(problem, effort).ids])
        logits = reference(ids).logits
        difference = max(difference, float((forward(model.config, model.weights, ids) - logits).abs().max()))
        largest = max(largest, float(logits.abs().max()))
    prompts = [encode(prompt(p, effort)) for p, effort in conversations]
    texts = generate(model, prompts, max_tokens=max_tokens, desc="workbench")
    equal = []
    for ids, text in zip(prompts, texts):
        new_ids = reference.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)[0, len(ids) :]
        assert model.tokenizer is not None
        equal.append(model.tokenizer.decode(new_ids.tolist()) == text)
    return {"logits_differ_by": difference, "largest_logit": largest, "texts_alike": share(equal)}


@torch.inference_mode()
def speed(model: Model, n: int = 200) -> float:
    """Tokens per second of CPU time, decoded one by one with a KV cache, on one thread."""
    cache = KVCache(model.config)
    ids = torch.tensor([encode(prompt(make("addition", Random(0), length=3), "high"))])
    ids = forward(model.config, model.weights, ids, None, cache, slice(-1, None)).argmax(-1)
    start = time.process_time()
    for _ in range(n):
        ids = forward(model.config, model.weights, ids, None, cache, slice(-1, None)).argmax(-1)
    return round(n / (time.process_time() - start))
