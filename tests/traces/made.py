"""Small traces for tests: every axis has a different size, and every number follows from the seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from workbench.traces import Manifest, Trace, TraceWriter
from workbench.traces.authorship import prompt_then_model
from workbench.traces.spans import Span

LAYERS, WIDTH, HEADS, KV, HEAD, EXPERTS, ACTIVE, VOCAB = 3, 10, 4, 2, 6, 7, 2, 11
CONFIG = {
    "n_layers": LAYERS,
    "d_model": WIDTH,
    "n_heads": HEADS,
    "n_kv_heads": KV,
    "d_head": HEAD,
    "n_experts": EXPERTS,
    "n_active": ACTIVE,
    "d_vocab": VOCAB,
    "window": 4,
    "eps": 1e-5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
GENERATION = {"max_tokens": 8, "temperature": 0, "top_p": None, "seed": 1, "stop": [9], "finish_reason": "stop"}
HOLDS = {"identity": "pattern + sink = 1", "status": "holds", "max_error": 1e-7, "tolerance": 1e-5, "reason": ""}


def manifest(count: int = 9, *, seed: int = 0, **changes: Any) -> Manifest:
    """A manifest of `count` tokens, all of the prompt; `changes` replace its fields.

    `prompt_length=4` says that the model wrote all tokens after the first four.
    """
    rng = np.random.default_rng(seed)
    made = Manifest(
        model={
            "name": "made",
            "format": "hf-bf16",
            "weights_digest": f"w{seed}",
            "tokenizer_digest": "t",
            "config": CONFIG,
        },
        tokens=rng.integers(0, VOCAB, count),  # type: ignore[arg-type]
        str_tokens=[f" w{n}" for n in range(count)],
        written=prompt_then_model(count, count),
        spans=[Span(0, count, min(1, count), count, "user")] if count else [],
        record=["residuals"],
        numerics={"dtype": "float32", "device": "cpu", "kernels": "reference", "threads": 1},
        verification=[HOLDS],
        created="2026-01-02T03:04:05+00:00",
    )
    if "prompt_length" in changes:
        n_tokens = len(changes.get("tokens", made.tokens))
        changes["written"] = prompt_then_model(changes.pop("prompt_length"), n_tokens)
    return replace(made, **changes)


def tokens(value: list[int]) -> dict[str, Any]:
    """The fields of a manifest that follow from its tokens."""
    texts = [f"<{token}>" for token in value]
    return {"tokens": value, "str_tokens": texts, "written": prompt_then_model(len(value), len(value)), "spans": []}


def arrays(count: int = 9, *, seed: int = 0, before: int = 0) -> dict[str, np.ndarray]:
    """The arrays of `count` positions after `before` others: all hook axes, five dtypes."""
    rng = np.random.default_rng((seed, before, count))
    values: dict[str, np.ndarray] = {"logprob": rng.normal(size=count).astype("f4")}
    values["margin"] = rng.normal(size=(LAYERS, count)).astype("f4")
    values["hook_logits"] = rng.normal(size=(count, VOCAB)).astype("f2")
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        values[f"{block}.hook_resid_post"] = rng.normal(size=(count, WIDTH)).astype(ml_dtypes.bfloat16)
        values[f"{block}.attn.hook_pattern"] = rng.random((HEADS, count, before + count)).astype("f4")
        values[f"{block}.attn.hook_attn_scores"] = rng.normal(size=(HEADS, count, before + count)).astype("f4")
        values[f"{block}.attn.hook_sink"] = rng.random((HEADS, count)).astype("f4")
        experts = np.tile(np.arange(EXPERTS), (count, 1))
        values[f"{block}.mlp.hook_expert_indices"] = rng.permuted(experts, axis=1)[:, :ACTIVE].copy()
    return values


def trace(count: int = 9, *, seed: int = 0, **changes: Any) -> Trace:
    return Trace(manifest(count, seed=seed, **changes), arrays(count, seed=seed))


def streamed(path: Path, counts: tuple[int, ...] = (5, 3, 1), *, seed: int = 0, **changes: Any) -> Path:
    """A trace in several parts, as generation writes it."""
    total = sum(counts)
    with TraceWriter(path, manifest(total, seed=seed, **changes)) as writer:
        before = 0
        for count in counts:
            writer.append(arrays(count, seed=seed, before=before), source="live")
            before += count
    return path


def joined(counts: tuple[int, ...] = (5, 3, 1), *, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays that `streamed` must read back, made without workbench's code."""
    parts, before = [], 0
    for count in counts:
        parts.append(arrays(count, seed=seed, before=before))
        before += count
    whole = {}
    for name in parts[0]:
        pieces = [part[name] for part in parts]
        if "pattern" in name or "scores" in name:
            fill = -np.inf if "scores" in name else 0
            pieces = [
                np.pad(piece, ((0, 0), (0, 0), (0, before - piece.shape[2])), constant_values=fill) for piece in pieces
            ]
        second = any(word in name for word in ("pattern", "scores", "sink", "margin"))
        whole[name] = np.concatenate(pieces, axis=1 if second else 0)
    return whole


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit, NaN payloads too."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
