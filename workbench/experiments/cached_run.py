"""One pass over a text, and what later passes need of it: keys and values, residual streams, routes.

An edit at a layer and a position changes nothing before that position and below that layer. So a pass with an edit
starts from what was read: from the cache, cut back to the position, and from the residual stream of the layer.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from workbench import hooks
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import unembed
from workbench.model.kernels.rows import divergence as kl_divergence
from workbench.model.kernels.rows import log_softmax
from workbench.model.model import Model
from workbench.model.prefill import chunks
from workbench.recording.taps import Recorder
from workbench.taps import Chain, Tap

LOGITS = 64  # positions whose logits are held at a time


class SingleHookTap(Tap):
    """Changes a copy of the value at one hook point, and nothing else."""

    name: str

    def wants(self, name: str) -> bool:
        return name == self.name

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        return self.changed(x.clone()) if name == self.name else x

    def changed(self, x: Tensor) -> Tensor:
        """What the pass goes on with; `x` may be written into."""
        raise NotImplementedError


class CachedRun:
    """A text that was read under the edits in force: its cache, and what was kept of it, batch axis first.

    What enters each layer and the experts that ran are always kept; `record` names more hook points. What enters is
    what the layer before it left: a pass that starts there meets the edits at the layer's own hook points once.
    """

    @torch.inference_mode()
    def __init__(self, model: Model, tokens: Sequence[int], record: Iterable[str] = ()):
        model.check_prompt(tokens)
        self.model, self.tokens = model, list(tokens)
        self.cache = KVCache(model.config)
        wanted = ["blocks.*.hook_resid_post", "blocks.*.mlp.hook_expert_indices"]
        wanted = [hooks.at_layer(point, layer) for point in wanted for layer in range(model.config.n_layers)]
        self.seen = Recorder(["hook_embed", *wanted, *record], device=model.device)
        ids = torch.tensor([self.tokens], device=model.device)
        for start, stop in chunks(len(self.tokens)):
            model.forward(ids[:, start:stop], self.seen, self.cache, slice(0, 0))

    def __len__(self) -> int:
        return len(self.tokens)

    def resid(self, layer: int) -> Tensor:
        """The residual stream that enters a layer, or that the last one leaves (batch pos d_model)."""
        return self.seen["hook_embed" if layer == 0 else hooks.at_layer("blocks.*.hook_resid_post", layer - 1)]

    def routes(self, layer: int) -> Tensor:
        """The experts that ran (batch pos choice)."""
        return self.seen[hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer)]

    def logits(self, at: slice = slice(None)) -> Tensor:
        """Predictions at some positions (batch pos d_vocab)."""
        return unembed(self.model.config, self.model.weights, self.resid(self.model.config.n_layers)[:, at])

    def rerun_from(self, start: int, tap: Tap, *, n: int = 1, record: Iterable[str] = ()) -> Recorder:
        """Reads from position `start` on once more, under `tap`, in `n` rows; what is before is as it was.

        The last residual stream and the routes are kept, and the hook points in `record`.
        """
        model, last = self.model, self.model.config.n_layers - 1
        wanted = [hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer) for layer in range(model.config.n_layers)]
        seen = Recorder([*wanted, hooks.at_layer("blocks.*.hook_resid_post", last), *record], device=model.device)
        cache = self.cache.fork(n, start)
        ids = torch.tensor([self.tokens[start:]], device=model.device).expand(n, -1)
        model.forward(ids, Chain(tap, seen), cache, slice(0, 0))
        return seen


def divergence(model: Model, p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of what two last residual streams predict (batch pos d_model each): batch pos."""
    found = []
    for start in range(0, p.shape[1], LOGITS):
        a, b = (log_softmax(unembed(model.config, model.weights, x[:, start : start + LOGITS])) for x in (p, q))
        found.append(kl_divergence(a, b))
    return torch.cat(found, 1) if found else p.new_zeros(p.shape[:2])
