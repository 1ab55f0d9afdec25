"""The `Source` protocol: what a recording needs from a model. `ModelSource` is our own Model as one.

Models of other libraries are sources too: `workbench.interop.adapter.ForeignSource`. The rest of this package works
with any source and is independent of the library that runs the model.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer
from workbench.edits.edit import Edit
from workbench.model.arrays import exact
from workbench.model.batch import BatchRow
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward, forward_rows, unembed
from workbench.model.kernels import native
from workbench.recording import budget
from workbench.taps import Tap
from workbench.traces.spans import Span
from workbench.traces.steps import steps

if TYPE_CHECKING:
    from workbench.model.model import Model
    from workbench.recording.verify import Probe

MAX_PROBE_POSITIONS = 160  # longer than the 128-token window of the published models
PROBE_STRIDE = 7919  # a prime, so that the probe's tokens come from the whole vocabulary


class Reader(Protocol):
    """The part of a tokenizer that a trace needs; workbench's own tokenizer has it."""

    digest: str

    def encode(self, text: str) -> list[int]: ...
    def str_tokens(self, ids: Iterable[int]) -> list[str]: ...


class Source(Protocol):
    """A model that can be recorded."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...  # as in the manifest
    @property
    def n_layers(self) -> int: ...
    @property
    def is_gpt_oss(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def reader(self) -> Reader | None: ...
    @property
    def edits(self) -> Sequence[Edit]: ...  # in force in every run of this source
    @property
    def rows_independent(
        self,
    ) -> bool: ...  # whether the bits at a position are independent of the other positions in the pass
    @property
    def in_chunks(self) -> bool: ...  # whether a long text can be prefilled in chunks, with a KV cache
    @property
    def replays(
        self,
    ) -> bool: ...  # whether `run` plays back an earlier run, which cannot be compared with an untapped one
    @property
    def notes(self) -> Sequence[str]: ...  # for the manifest
    @property
    def derived(self) -> Collection[str]: ...  # hook points that are computed from others after the run
    @property
    def sinks(self) -> np.ndarray | None: ...  # layer head: the learned sink logits, in fp32 or better
    @property
    def read_out(self) -> Callable[[Tensor], Tensor] | None: ...  # residual stream -> logits
    @property
    def probed(self) -> "Probe | None": ...  # the last probe, as long as it is valid
    @property
    def probe_logits(self) -> slice: ...  # the positions of a probe whose logits are compared

    def identity(self) -> dict[str, Any]:
        """The model entry of the manifest: name, format, digests, config."""
        ...

    def numerics(self) -> dict[str, Any]:
        """The numerics of this source, for the manifest."""
        ...

    def run(
        self, tokens: Tensor, tap: Tap | None = None, cache: KVCache | None = None, logits_at: slice = slice(None)
    ) -> Tensor:
        """The logits (batch pos d_vocab) of one pass over token ids (batch pos); `tap` is called at each hook point."""
        ...

    def new_cache(self, whole: bool) -> KVCache | None:
        """An empty KV cache, for a text that is prefilled in chunks; `whole` if patterns are recorded."""
        ...

    def weights_for_checks(self, layer: int) -> Mapping[str, np.ndarray]:
        """The weights that the identities of a layer need besides its values: b_o, sinks."""
        ...

    def probe_text(self, tokens: Sequence[int]) -> Sequence[int]:
        """The short text of the probe of this source, for a recording of `tokens`."""
        ...

    def learn(self, probe: "Probe") -> None:
        """Stores a probe as `probed`."""
        ...

    def available(self, tokens: Sequence[int]) -> Collection[str]:
        """The hook points and summaries that can be recorded."""
        ...

    def why_absent(self, item: str, names: Sequence[str]) -> str:
        """The reason why none of `names`, the hook points and summaries of the requested `item`, is available."""
        ...

    def entry(self, name: str, n_pos: int, n_steps: int) -> tuple[str, tuple[int, ...]]:
        """The safetensors dtype code and the shape of a hook point or summary in the trace."""
        ...

    def working_memory(self, n_pos: int, names: Sequence[str], chunk: int) -> int:
        """Approximate bytes of a run besides weights and recording, with `chunk` of the `n_pos` positions per pass."""
        ...


class ModelSource:
    """Our own Model, under the edits that are in force when the source is made."""

    is_gpt_oss = True
    replays = False
    notes: Sequence[str] = ()
    derived: Collection[str] = frozenset()
    probe_logits = slice(-16, None)  # they depend on all earlier positions, and an unembedding is large

    def __init__(self, model: "Model"):
        self.model, self.name, self.device = model, model.name, str(model.device)
        self.edits: Sequence[Edit] = model.active_edits()
        for edit in self.edits:
            edit.begin_run()
        self.config, self.dtype, self.n_layers = model.config_dict, model.dtype_name, model.config.n_layers
        self.reader: Reader | None = model.tokenizer

    @property
    def rows_independent(self) -> bool:
        return self.model.rows_independent

    @property
    def in_chunks(self) -> bool:
        return not self.edits  # an edit may need all positions in one pass

    @property
    def sinks(self) -> np.ndarray:
        return np.stack([exact(block.sinks) for block in self.model.weights.blocks])

    @property
    def probed(self) -> "Probe | None":
        kernels, probe = self.model.probed or (None, None)
        return probe if kernels == native.in_use() else None

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.model.format,
            "weights_digest": self.model.digest,
            "tokenizer_digest": self.reader.digest if self.reader else None,
            "config": self.config,
            **({"adapter": self.model.adapter} if self.model.adapter else {}),
            **({"verified": self.model.verified} if self.model.verified else {}),
        }

    def numerics(self) -> dict[str, Any]:
        return {
            "arithmetic": native.arithmetic(self.model.dtype, self.model.device),
            "rows_independent": self.rows_independent,
            "kernels": (native.isa() or native.decode() or "torch") if self.device == "cpu" else "torch",
        }

    def run(
        self, tokens: Tensor, tap: Tap | None = None, cache: KVCache | None = None, logits_at: slice = slice(None)
    ) -> Tensor:
        return forward(self.model.config, self.model.weights, tokens.to(self.device), tap, cache, logits_at)

    def run_rows(self, tokens: Tensor, rows: Sequence[BatchRow], tap: Tap) -> list[Tensor]:
        """One pass over the new tokens (pos) of several texts: the logits of each; see `gpt_oss.forward_rows`."""
        return forward_rows(self.model.config, self.model.weights, tokens.to(self.device), rows, tap)

    def for_row(self, *edits: Edit) -> "ModelSource":
        """This source for one text of a batch, with `edits` after its own: their tallies count this text alone."""
        own = copy(self)
        own.edits = [edit.for_row() for edit in (*self.edits, *edits)]
        return own

    def read_out(self, resid: Tensor) -> Tensor:
        return unembed(self.model.config, self.model.weights, resid)

    def new_cache(self, whole: bool) -> KVCache:
        return KVCache(self.model.config, whole)

    def weights_for_checks(self, layer: int) -> Mapping[str, np.ndarray]:
        block = self.model.weights.blocks[layer]
        return {"b_o": exact(block.b_o), "sinks": exact(block.sinks)}

    def probe_text(self, tokens: Sequence[int]) -> Sequence[int]:
        """A fixed text, so that the verification of a trace does not depend on earlier texts."""
        c = self.model.config
        n = min(probe_length(c.window), c.n_ctx)
        return [i * PROBE_STRIDE % c.d_vocab for i in range(1, n + 1)]

    def learn(self, probe: "Probe") -> None:
        self.model.probed = native.in_use(), probe

    def available(self, tokens: Sequence[int]) -> Collection[str]:
        return {*hooks.all_points(self.n_layers), *hooks.SUMMARIES}

    def why_absent(self, item: str, names: Sequence[str]) -> str:
        return "this model has none"

    def entry(self, name: str, n_pos: int, n_steps: int) -> tuple[str, tuple[int, ...]]:
        return budget.dtype_code(name, self.dtype), budget.shape(self.model.config, name, n_pos, n_steps)

    def working_memory(self, n_pos: int, names: Sequence[str], chunk: int) -> int:
        return budget.working_memory(self.model.config, self.dtype, n_pos, names, chunk)


def probe_length(window: int) -> int:
    """The number of positions of a probe: more than the window if that is short, so that its end is tested."""
    return min(MAX_PROBE_POSITIONS, max(window + 32, 64))


@dataclass(frozen=True)
class Text:
    """The messages and the text of every token: the part of a trace that `steps` needs, for a text without a trace."""

    spans: list[Span]
    str_tokens: list[str]

    @property
    def steps(self) -> list:
        return steps(self)


def text_of(source: Source, tokens: Sequence[int]) -> Text:
    """The Text of tokens: Harmony messages for gpt-oss; one unparsed span for other models or without a tokenizer."""
    reader, n = source.reader, len(tokens)
    if isinstance(reader, Tokenizer) and source.is_gpt_oss:
        return Text(parse(tokens, reader), reader.str_tokens(tokens))
    return Text([Span(0, n, 0, n, "unparsed")], reader.str_tokens(tokens) if reader else [f"⟨{t}⟩" for t in tokens])


def batch_of(tokens: Sequence[int]) -> Tensor:
    """A batch of one text."""
    return torch.tensor([list(tokens)])
