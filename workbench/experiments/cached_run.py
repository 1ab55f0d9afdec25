"""One forward pass over a text, with what later passes reuse: KV cache, residual streams and routing.

An edit at a layer and position changes nothing at earlier positions or in lower layers. A pass with such an edit can
therefore start from the cache, cut back to the position, and from the residual stream of the layer.
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

LOGIT_CHUNK = 64  # positions whose logits are in memory at a time


class SingleHookTap(Tap):
    """Changes a copy of the value at one hook point and leaves all others as they are."""

    name: str

    def wants(self, name: str) -> bool:
        return name == self.name

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        return self.changed(x.clone()) if name == self.name else x

    def changed(self, x: Tensor) -> Tensor:
        """The value with which the pass continues. May modify `x`."""
        raise NotImplementedError


class CachedRun:
    """A forward pass over a text under the edits in force: its KV cache and recorded values, with the batch axis first.

    The input of each layer and the experts that ran are always recorded; `record` names more hook points. The input of
    a layer is recorded as the output of the layer before it, so a pass that starts there applies the edits at the
    layer's own hook points once.
    """

    @torch.inference_mode()
    def __init__(self, model: Model, tokens: Sequence[int], record: Iterable[str] = ()):
        model.check_prompt(tokens)
        self.model, self.tokens = model, list(tokens)
        self.cache = KVCache(model.config)
        points = ["blocks.*.hook_resid_post", "blocks.*.mlp.hook_expert_indices"]
        points = [hooks.at_layer(point, layer) for point in points for layer in range(model.config.n_layers)]
        self.seen = Recorder(["hook_embed", *points, *record], device=model.device)
        ids = torch.tensor([self.tokens], device=model.device)
        for start, stop in chunks(len(self.tokens)):
            model.forward(ids[:, start:stop], self.seen, self.cache, slice(0, 0))

    def __len__(self) -> int:
        return len(self.tokens)

    def resid(self, layer: int) -> Tensor:
        """The residual stream before a layer; for layer n_layers, after the last layer (batch pos d_model)."""
        return self.seen["hook_embed" if layer == 0 else hooks.at_layer("blocks.*.hook_resid_post", layer - 1)]

    def routes(self, layer: int) -> Tensor:
        """The experts that ran (batch pos choice)."""
        return self.seen[hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer)]

    def logits(self, at: slice = slice(None)) -> Tensor:
        """Logits at some positions (batch pos d_vocab)."""
        return unembed(self.model.config, self.model.weights, self.resid(self.model.config.n_layers)[:, at])

    def rerun_from(self, start: int, tap: Tap, *, n: int = 1, record: Iterable[str] = ()) -> Recorder:
        """Reruns positions from `start` on under `tap`, in `n` identical rows; earlier ones come from the cache.

        Records the final residual stream, the experts that ran, and the hook points in `record`.
        """
        model, last = self.model, self.model.config.n_layers - 1
        points = [hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer) for layer in range(model.config.n_layers)]
        recorder = Recorder([*points, hooks.at_layer("blocks.*.hook_resid_post", last), *record], device=model.device)
        cache = self.cache.fork(n, start)
        ids = torch.tensor([self.tokens[start:]], device=model.device).expand(n, -1)
        model.forward(ids, Chain(tap, recorder), cache, slice(0, 0))
        return recorder


def divergence(model: Model, p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats (batch pos) of the predictions from two final residual streams (batch pos d_model)."""
    kl_chunks = []
    for start in range(0, p.shape[1], LOGIT_CHUNK):
        a, b = (log_softmax(unembed(model.config, model.weights, x[:, start : start + LOGIT_CHUNK])) for x in (p, q))
        kl_chunks.append(kl_divergence(a, b))
    return torch.cat(kl_chunks, 1) if kl_chunks else p.new_zeros(p.shape[:2])
