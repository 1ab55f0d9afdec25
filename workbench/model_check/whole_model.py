"""What the whole model does: identities, perplexity, a needle past the window, and other settings of the machine."""

import math
import os
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.conversation.chat import chat
from workbench.conversation.o200k import GPT_OSS_DIGEST, is_o200k
from workbench.errors import BudgetError, VerificationWarning, WorkbenchError
from workbench.model.model import Model
from workbench.model_check.line import FAILS, HOLDS, NOT_CHECKED, Line, compared
from workbench.model_check.published import published
from workbench.model_check.settings import first_difference
from workbench.model_check.texts import ANSWER, GETTYSBURG, NEEDLE, OTHER_NEEDLE, QUESTION, plain_ids

if TYPE_CHECKING:
    from workbench.traces import Trace

POSITIONS = 300  # more than two windows of the published models
LAST = 32  # positions whose logits are compared
NEEDLE_TOKENS = 100  # more than the needle, the question and the answer have
LEARNED = 0.5  # of a uniform guess's nats: above it a model has not learned this language


def token_ids(model: Model, n: int = POSITIONS) -> list[int]:
    """The first `n` tokens of the Gettysburg Address; ids from the whole vocabulary without a tokenizer."""
    n = min(n, model.config.n_ctx)
    ids = model.tokenizer.encode(GETTYSBURG)[:n] if model.tokenizer else []
    return ids if len(ids) == n else plain_ids(n, model.config.d_vocab)


def check_tokenizer(model: Model) -> list[Line]:
    """Lines about the tokenizer, and about harmony's rendering of a fixed question."""
    if model.tokenizer is None:
        return [Line("files", None, "tokenizer.json", NOT_CHECKED, note="there is none; give wb.Model a tokenizer")]
    if not is_o200k(model.tokenizer):
        note = f"not gpt-oss's own vocabulary: {len(model.tokenizer):,} tokens"
        return [Line("files", None, "vocabulary", NOT_CHECKED, note=note)]
    same = model.tokenizer.digest == GPT_OSS_DIGEST
    note = "the published tokenizer.json" if same else "the published vocabulary, in another tokenizer.json"
    expected = published()["rendering"]
    tokens, _ = model.render(chat(expected["question"], reasoning=expected["reasoning"]))
    right = list(tokens) == expected["token_ids"]
    rendering = "as openai-harmony renders it" if right else f"got {list(tokens)[:12]} …"
    return [
        Line("files", None, "vocabulary", HOLDS, 0.0, 0.0, note=note),
        compared("files", None, "rendering of a question", 0.0 if right else 1.0, 0.0, note=rendering),
    ]


def check_identities(model: Model, ids: Sequence[int]) -> tuple[list[Line], "Trace"]:
    """The identities that every trace verifies, on a trace of `ids`."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerificationWarning)  # a line says it
        trace = model.trace(list(ids))
    seconds = (time.perf_counter() - start) / max(len(trace.verification), 1)
    return [
        Line("identities", None, v["identity"], v["status"], v["max_error"], v["tolerance"], seconds, v["reason"] or "")
        for v in trace.verification
    ], trace


def check_language(model: Model, trace: "Trace") -> list[Line]:
    """The perplexity of the text, and whether a needle farther back than the window is found.

    No source states the range of a right model's perplexity on this text, so it is shown and not judged. The needle is
    judged if the model has learned the language of the text: if it needs less than half of a uniform guess's nats.
    """
    start = time.perf_counter()
    logprob = trace["logprob"][1:]
    nats, uniform = float(-logprob.mean()), math.log(model.config.d_vocab)
    note = (
        f"perplexity {math.exp(min(nats, 300)):,.2f} per token over {len(logprob)} tokens (a uniform guess: "
        f"{model.config.d_vocab:,}). No source states the range of a right model"
    )
    text = "of the Gettysburg Address" if model.tokenizer else "of ids without a text"
    lines = [Line("identities", None, f"perplexity {text}", NOT_CHECKED, note=note)]
    name = "needle past the window"
    if model.tokenizer is None or nats > LEARNED * uniform:
        why = "the model has not learned the language of the text" if model.tokenizer else "there is no tokenizer"
        return [*lines, Line("identities", None, name, NOT_CHECKED, note=why)]
    if 2 * model.config.window + NEEDLE_TOKENS > model.config.n_ctx:
        why = f"the model's {model.config.n_ctx:,} positions are too few for it"
        return [*lines, Line("identities", None, name, NOT_CHECKED, note=why)]
    p, without = (_chance_of_answer(model, needle) for needle in (NEEDLE, OTHER_NEEDLE))
    note = f"p = {p:.3g} for the number that stands {2 * model.config.window} tokens before, {without:.3g} without it"
    seconds = time.perf_counter() - start
    return [*lines, Line("identities", None, name, HOLDS if p > 0.1 else FAILS, 1 - p, 0.9, seconds, note)]


def _chance_of_answer(model: Model, needle: str) -> float:
    """The probability of the number of `NEEDLE` after the question, two windows after `needle`."""
    assert model.tokenizer is not None
    encode = model.tokenizer.encode
    prompt = [*encode(needle), *encode(GETTYSBURG)[: 2 * model.config.window], *encode(QUESTION)]
    answer = encode(ANSWER)
    with torch.no_grad():
        logits = model.forward(torch.tensor([[*prompt, *answer[:-1]]]), logits_at=slice(len(prompt) - 1, None))[0]
    chances = torch.log_softmax(logits.float(), -1)
    return math.exp(sum(float(chances[i, token]) for i, token in enumerate(answer)))


def settings(model: Model) -> list[dict[str, Any]]:
    """The other settings in which this machine can load the model."""
    small = model.config.n_params < 1e9
    dtypes = ["float32", "bfloat16"] if small else ["bfloat16"]
    return [{"dtype": dtype, "memory": memory} for dtype in dtypes for memory in ("small", "fast")]


def last_logits(model: Model, ids: Sequence[int]) -> Tensor:
    """The log-probabilities (pos d_vocab) at the last positions, in float32."""
    with torch.no_grad():
        return torch.log_softmax(model.forward(torch.tensor([list(ids)]), logits_at=slice(-LAST, None))[0].float(), -1)


def check_setting(
    first: Model, where: str | os.PathLike[str], setting: dict[str, Any], ids: Sequence[int], reference: Tensor
) -> Line:
    """Whether one setting has the weights of the model that was checked, and how far its predictions are.

    Args:
        first: the model that was checked.
        where: from where it was loaded.
        setting: dtype and memory.
        ids: the text.
        reference: its log-probabilities in float32, one layer at a time.
    """
    start, name = time.perf_counter(), f"{setting['dtype']}, memory={setting['memory']!r}"
    try:
        model = Model(where, **setting)
        if wrong := first_difference(first.weights, model.weights):
            note = f"{wrong} is not as in the setting that was checked"
            return Line("numerics", None, name, FAILS, math.inf, 0.0, time.perf_counter() - start, note)
        logprobs = last_logits(model, ids)
    except BudgetError as error:
        return Line("numerics", None, name, NOT_CHECKED, note=f"does not fit this machine: {error}")
    except WorkbenchError as error:
        return Line("numerics", None, name, FAILS, math.inf, 0.0, time.perf_counter() - start, str(error))
    kl = float((reference.exp() * (reference - logprobs)).sum(-1).mean())
    same = float((reference.argmax(-1) == logprobs.argmax(-1)).float().mean())
    note = f"mean KL {kl:.2g} nats, the same first choice at {same:.0%} of {len(logprobs)} positions"
    seconds = time.perf_counter() - start
    if not math.isfinite(kl):
        return Line("numerics", None, name, FAILS, math.inf, 0.0, seconds, "predictions that are not finite")
    if setting["dtype"] == "float32":  # the same arithmetic, up to the order of some sums
        return compared("numerics", None, name, abs(kl), 1e-6, seconds, note)
    return Line("numerics", None, name, NOT_CHECKED, kl, None, seconds, f"{note}; a difference of rounding, not judged")
