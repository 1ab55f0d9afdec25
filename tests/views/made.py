"""Synthetic runs for tests of the views: harmony messages with every lane, with numbers drawn from a seed."""

import re
from typing import Any

import numpy as np

from workbench.traces import Manifest, Trace
from workbench.traces.authorship import prompt_then_model
from workbench.traces.spans import Span

Message = tuple[str, str | None, list[str]]  # role, channel, the texts of its tokens


def words(text: str) -> list[str]:
    """The text split into tokens: words with the space before them, white space, punctuation."""
    return re.findall(r" ?\w+|\s|[^\w\s]", text)


TALK: list[Message] = [
    ("system", None, words("Reasoning: high")),
    ("user", None, words("Mod 10: a=3, b=a+4, c=b+2. Find c.")),
    ("assistant", "analysis", words("c=b+2, b=a+4, a=3.\nb=3+4=7. c=7+2=9.\nCheck: 3+4+2=9. So c=9.")),
    ("assistant", "final", words("It is 9.")),
]
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    "</title><img src=x onerror=alert(3)>",
    "\"' onmouseover=alert(4) x='",
    "\u202ecod.exe\u2066",
    "\x00",
    "\u200b",
    "]]><!--",
    "&lt;b&gt;",
    "javascript:alert(5)",
    "`${alert(6)}`",
    "\ud800",
    "",
    "\n\n",
]


def run(talk: list[Message] = TALK, *, lanes: bool = True, layers: int = 4, seed: int = 0, **changes: Any) -> Trace:
    """A trace of the conversation; `changes` replace fields of its manifest."""
    str_tokens: list[str] = []
    spans: list[Span] = []
    for role, channel, texts in talk:
        start = len(str_tokens)
        str_tokens += ["<|start|>", role, *(["<|channel|>", channel] if channel else []), "<|message|>"]
        content = len(str_tokens)
        str_tokens += texts
        spans.append(Span(start, len(str_tokens) + 1, content, len(str_tokens), role, channel))
        str_tokens.append("<|end|>")
    ids: dict[str, int] = {}
    tokens = [ids.setdefault(text, 100 + len(ids)) for text in str_tokens]
    prompt_length = next((span.start for span in spans if span.role == "assistant"), len(str_tokens))
    fields: dict[str, Any] = {
        "model": {
            "name": "made",
            "format": "hf-bf16",
            "weights_digest": "3f" * 32,
            "tokenizer_digest": None,
            "config": {
                "n_layers": layers,
                "n_heads": 8,
                "window": 9,
                "layer_types": (["sliding_attention", "full_attention"] * layers)[:layers],
            },
        },
        "tokens": tokens,
        "str_tokens": str_tokens,
        "spans": spans,
        "record": ["auto"],
        "numerics": {"dtype": "float32", "device": "cpu"},
        "generation": {"max_tokens": 64, "temperature": 0, "top_p": 1, "seed": 0, "stop": [], "finish_reason": "stop"},
        "verification": [
            {
                "identity": "pattern + sink = 1",
                "status": "holds",
                "max_error": 1.2e-7,
                "tolerance": 2e-5,
                "reason": "layer 3",
            }
        ],
        "created": "2026-01-02T03:04:05+00:00",
    }
    fields |= changes
    prompt_length = fields.pop("prompt_length", prompt_length)
    fields = {"written": prompt_then_model(prompt_length, len(fields["tokens"])), **fields}
    return Trace(Manifest(**fields), arrays(tokens, layers, seed) if lanes else {})


def arrays(tokens: list[int], layers: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = len(tokens)
    lanes: dict[str, np.ndarray] = {
        "logprob": np.r_[np.nan, -rng.exponential(0.7, max(n - 1, 0))][:n].astype("f4"),
        "entropy": rng.gamma(0.5, 0.6, n).astype("f4"),
        "top_ids": rng.integers(90, 110, (n, 20)).astype("i4"),
        "top_logprobs": np.sort(np.log(rng.dirichlet(np.full(20, 0.3), n) + 1e-9))[:, ::-1].astype("f4"),
        "margin": rng.gamma(1.2, 0.5, (layers, n)).astype("f4"),
        "resid_norm": rng.gamma(9, 5, (layers, n)).astype("f4"),
        "lens_ids": rng.integers(0, 3, (layers, n, 5)).astype("i4"),
    }
    for layer in range(layers):
        lanes[f"blocks.{layer}.attn.hook_sink"] = rng.beta(2, 2, (8, n)).astype("f4")
    return lanes
