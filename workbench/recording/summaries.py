"""The summaries of a run: predictions, logit lens, norms, attention between steps, router margins."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.model.kernels.linear import linear
from workbench.model.kernels.rows import divergence, entropy, log_softmax, norm
from workbench.recording.taps import Recorder
from workbench.taps import Tap

LOGIT_CHUNK = 16  # positions per softmax: each needs several fp32 copies of the vocabulary

# In a generated trace these and the router margin are recorded live, while decoding.
LIVE_POINTS = ("blocks.*.mlp.router.hook_out", "blocks.*.mlp.hook_expert_indices", "blocks.*.mlp.hook_expert_weights")


class Predictions(Tap):
    """Log-probability, entropy and the top next tokens at every position; with the lens, also of every layer.

    The logits come in blocks of a few hundred positions and are not stored. For the lens, the residual streams of the
    pass are stored until the final prediction is known.
    """

    def __init__(self, n_layers: int, d_vocab: int, read_out: Callable[[Tensor], Tensor] | None = None):
        """`read_out`: residual stream (batch pos d_model) -> logits; with it, the lens is recorded too."""
        self.n_layers, self.d_vocab, self.read_out = n_layers, d_vocab, read_out
        self.rows: dict[str, list[Tensor]] = {}
        self._target = slice(0, 0), 0  # the slice of the newest rows for this block of predictions, and their length
        self._resid: dict[int, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name == "hook_logits"

    def reads(self, name: str) -> bool:
        return name == "hook_logits" or (self.read_out is not None and name.endswith("hook_resid_post"))

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name == "hook_logits":
            n, step = x.shape[1], x.shape[1] if self.read_out else LOGIT_CHUNK
            with torch.no_grad():
                for i in range(0, n, step):
                    self._target = slice(i, min(i + step, n)), n
                    self._predict(x[0, i : i + step], offset + i)
        elif self.read_out and name.endswith("hook_resid_post"):
            layer = hooks.layer_of(name)
            assert layer is not None
            self._resid[layer] = x.detach()
        return x

    def _predict(self, logits: Tensor, offset: int) -> None:
        final = log_softmax(logits)
        self._keep("entropy", entropy(final))
        k = min(hooks.RANKS["top_ids"], self.d_vocab)
        self._keep_top("top", final, k)
        if self.read_out is None:
            return
        at = slice(offset, offset + logits.shape[0])
        last, k = self.n_layers - 1, min(hooks.RANKS["lens_ids"], self.d_vocab)
        for layer in range(self.n_layers):
            p = final if layer == last else log_softmax(self.read_out(self._resid[layer][:, at])[0])
            self._keep_top(f"lens {layer}", p, k)
            self._keep(f"lens_entropy {layer}", entropy(p))
            self._keep(f"lens_kl {layer}", divergence(final, p))

    def _keep(self, name: str, x: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """Copies into rows that are allocated once per call, so that temporary blocks do not fragment the memory."""
        at, n = self._target
        rows = self.rows.setdefault(name, [])
        if at.start == 0:
            rows.append(torch.empty(n, *x.shape[1:], dtype=dtype))
        rows[-1][at] = x.to("cpu", dtype)

    def _keep_top(self, name: str, p: Tensor, k: int) -> None:
        top = p.topk(k, -1)
        self._keep(f"{name} logprobs", top.values)
        self._keep(f"{name} ids", top.indices, torch.int32)

    def summaries(self) -> dict[str, np.ndarray]:
        joined = {name: torch.cat(rows).numpy() for name, rows in self.rows.items()}
        summaries = {
            "entropy": joined["entropy"],
            "top_ids": joined["top ids"],
            "top_logprobs": joined["top logprobs"],
        }
        if self.read_out:
            layers = range(self.n_layers)
            for name, row in (
                ("lens_ids", "lens {} ids"),
                ("lens_logprobs", "lens {} logprobs"),
                ("lens_entropy", "lens_entropy {}"),
                ("lens_kl", "lens_kl {}"),
            ):
                summaries[name] = np.stack([joined[row.format(layer)] for layer in layers])
        return summaries


class TokenLogprobs(Tap):
    """The log-probability of each token of a text, given the ones before; NaN for the first.

    While generating, `append` adds each new token, with its log-probability in the last prediction.
    """

    def __init__(self, tokens: Sequence[int]):
        self.tokens = torch.tensor(list(tokens))
        self.logprob = [torch.full((1,), torch.nan)]
        self.last = torch.empty(0)  # log-probabilities of the token after the last processed one
        self._start = 0

    def wants(self, name: str) -> bool:
        return name == "hook_logits"

    def reads(self, name: str) -> bool:
        return name == "hook_logits"

    def begin(self, start: int, n: int) -> None:
        self._start = start

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name == "hook_logits":
            with torch.no_grad():
                first = self._start + offset + 1  # the position of the token that the first row predicts
                next_ids = self.tokens[first : first + x.shape[1]].to(x.device)
                logprob = torch.empty(len(next_ids))
                for i in range(0, x.shape[1], LOGIT_CHUNK):
                    logp, ids = log_softmax(x[0, i : i + LOGIT_CHUNK]), next_ids[i : i + LOGIT_CHUNK]
                    logprob[i : i + len(ids)] = logp[: len(ids)].gather(-1, ids[:, None])[:, 0].to("cpu", torch.float32)
                    self.last = logp[-1].clone()
                self.logprob.append(logprob)
        return x

    def start_after(self, logits: Tensor) -> None:
        """Starts in the middle of a text: `logits` predict the next token, and the summary begins with that token."""
        self.logprob, self.last = [], log_softmax(logits)

    def take_over(self, other: "TokenLogprobs", n: int) -> None:
        """Starts with the first `n` tokens of another text, which has processed them and begins with the same ones."""
        self.logprob, self.last = [torch.cat(other.logprob)[:n]], other.last
        for token in self.tokens[n : n + 1].tolist():
            self.append(token)

    def append(self, token: int) -> None:
        self.logprob.append(self.last[token].to("cpu", torch.float32)[None])

    def summaries(self) -> dict[str, np.ndarray]:
        return {"logprob": torch.cat(self.logprob).numpy()}


class Norms(Tap):
    """L2 norms of the residual stream, the attention output and the MLP output, layer by layer."""

    def __init__(self, n_layers: int):
        self.summary_of = {
            "hook_resid_post": "resid_norm",
            "hook_attn_out": "attn_out_norm",
            "hook_mlp_out": "mlp_out_norm",
        }
        self.rows: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in range(n_layers)] for name in self.summary_of.values()
        }

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if summary := self.summary_of.get(name.rpartition(".")[2]):
            layer = hooks.layer_of(name)
            assert layer is not None
            self.rows[summary][layer].append(norm(x.detach()[0]).to("cpu", torch.float32))
        return x

    def summaries(self) -> dict[str, np.ndarray]:
        complete = {name: by_layer for name, by_layer in self.rows.items() if all(by_layer)}  # recorded in every layer
        return {name: np.stack([torch.cat(rows).numpy() for rows in by_layer]) for name, by_layer in complete.items()}


class StepAttention(Tap):
    """Mean attention between steps (layer head step key_step): the mean over one step's queries of the mass on another.

    Rows sum to 1 - mean sink - the mass on tokens outside all steps. The patterns are pooled block by block and never
    stored.
    """

    def __init__(self, n_layers: int, n_heads: int, n_pos: int, steps: Sequence[slice]):
        self.member = torch.zeros(len(steps), n_pos)
        for i, step in enumerate(steps):
            self.member[i, step] = 1
        self.size = self.member.sum(1).clamp(min=1)
        self.pooled = torch.zeros(n_layers, n_heads, len(steps), len(steps))
        self._start = 0

    def begin(self, start: int, n: int) -> None:
        self._start = start

    def pattern_rows(self, prefix: str):
        layer = hooks.layer_of(prefix)
        assert layer is not None

        def add(pattern: Tensor, first_query: int, first_key: int) -> None:
            p = pattern.detach()[0].to("cpu", torch.float32)
            at = self._start + first_query
            query = self.member[:, at : at + p.shape[1]]
            key = self.member[:, first_key : first_key + p.shape[2]]
            mass = linear(p, key)  # head query step
            self.pooled[layer] += linear(mass.transpose(1, 2), query).transpose(1, 2)

        return add

    def summaries(self) -> dict[str, np.ndarray]:
        return {"step_attention": (self.pooled / self.size[:, None]).numpy()}


def margins(recorder: Recorder, n_layers: int, n_active: int) -> np.ndarray:
    """Router margin (layer pos): logit of the last chosen expert - first one not chosen; NaN without a router."""
    rows: list[np.ndarray | None] = []
    for layer in range(n_layers):
        name = f"blocks.{layer}.mlp.router.hook_out"
        if name not in recorder.seen:
            rows.append(None)
            continue
        logits = recorder[name][0].float()
        if n_active == logits.shape[-1]:
            rows.append(np.full(len(logits), np.inf))
            continue
        top = logits.topk(n_active + 1, -1).values
        rows.append((top[:, -2] - top[:, -1]).cpu().numpy())
    n_pos = next(len(row) for row in rows if row is not None)
    return np.stack([np.full(n_pos, np.nan) if row is None else row for row in rows]).astype(np.float32)
