"""What a recording needs of a model: the `Source` protocol, and our own Model as one.

The models of other libraries are sources too: `workbench.interop.adapter.ForeignSource`. The rest of this package works
with any source, and does not know whose model runs.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward, unembed
from workbench.model.kernels import native
from workbench.recording import budget
from workbench.taps import Tap
from workbench.traces.spans import Span
from workbench.traces.steps import steps

if TYPE_CHECKING:
    from workbench.model.model import Model
    from workbench.recording.verify import Probe

PROBE_POSITIONS = 160  # at most: past the 128-token window of the published models
PROBE_STRIDE = 7919  # a prime: the probe's tokens come from all over the vocabulary


class Reader(Protocol):
    """What a trace needs of a tokenizer; workbench's own is one."""

    digest: str

    def encode(self, text: str) -> list[int]: ...
    def str_tokens(self, ids: Iterable[int]) -> list[str]: ...


class Source(Protocol):
    """A model that can be recorded."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...  # as the manifest has it
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
    def edits(self) -> Sequence[Edit]: ...  # those that every run of this source is under
    @property
    def rows_independent(self) -> bool: ...  # whether a position's bits do not depend on what is computed beside it
    @property
    def in_chunks(self) -> bool: ...  # whether a long text can be read in chunks, with a cache
    @property
    def replays(self) -> bool: ...  # whether `run` plays back an earlier run: then it cannot be compared with another
    @property
    def notes(self) -> Sequence[str]: ...  # for the manifest
    @property
    def derived(self) -> Collection[str]: ...  # hook points that are computed beside the run
    @property
    def sinks(self) -> np.ndarray | None: ...  # layer head: the learned sink logits, in fp32 or better
    @property
    def read_out(self) -> Callable[[Tensor], Tensor] | None: ...  # the logits of a residual stream
    @property
    def probed(self) -> "Probe | None": ...  # what the last probe found, as long as it still holds
    @property
    def probe_logits(self) -> slice: ...  # the positions of a probe at which logits are compared

    def identity(self) -> dict[str, Any]:
        """Which model it is, for the manifest."""
        ...

    def numerics(self) -> dict[str, Any]:
        """How it computes, for the manifest."""
        ...

    def run(
        self, tokens: Tensor, tap: Tap | None = None, cache: KVCache | None = None, logits_at: slice = slice(None)
    ) -> Tensor:
        """The logits (batch pos d_vocab) of one pass over token ids (batch pos); `tap` is called at each hook point."""
        ...

    def new_cache(self, whole: bool) -> KVCache | None:
        """An empty cache, for a text that is read in chunks; `whole` if patterns are wanted."""
        ...

    def weights_for_checks(self, layer: int) -> Mapping[str, np.ndarray]:
        """What the identities of a layer need besides its values: b_o, sinks."""
        ...

    def probe_text(self, tokens: Sequence[int]) -> Sequence[int]:
        """The short text that is read to check this source, when `tokens` are to be recorded."""
        ...

    def learn(self, probe: "Probe") -> None:
        """Keep what a probe found, as `probed`."""
        ...

    def available(self, tokens: Sequence[int]) -> Collection[str]:
        """The hook points and lanes that can be recorded."""
        ...

    def why_absent(self, word: str, wanted: Sequence[str]) -> str:
        """Why none of the hook points and lanes that `word` stands for is available."""
        ...

    def entry(self, name: str, n_pos: int, n_steps: int) -> tuple[str, tuple[int, ...]]:
        """The safetensors dtype word and the shape that a hook point or lane will have."""
        ...

    def working_memory(self, n_pos: int, wanted: Sequence[str], chunk: int) -> int:
        """About the bytes that a run takes besides weights and recording, `chunk` of `n_pos` positions at a time."""
        ...


class ModelSource:
    """Our own Model, under the edits that are in force when the source is made."""

    is_gpt_oss = True
    replays = False
    notes: Sequence[str] = ()
    derived: Collection[str] = frozenset()
    probe_logits = slice(-16, None)  # all that comes before is in them, and an unembedding is large

    def __init__(self, model: "Model"):
        self.model, self.name, self.device = model, model.name, str(model.device)
        self.edits: Sequence[Edit] = model.active_edits()
        self.config, self.dtype, self.n_layers = model.config_dict, model.dtype_name, model.config.n_layers
        self.reader: Reader | None = model.tokenizer

    @property
    def rows_independent(self) -> bool:
        return self.model.rows_independent

    @property
    def in_chunks(self) -> bool:
        return not self.edits  # an edit may look at all positions together

    @property
    def sinks(self) -> np.ndarray:
        return np.stack([exact(block.sinks) for block in self.model.weights.blocks])

    @property
    def probed(self) -> "Probe | None":
        kernels, found = self.model.probed or (None, None)
        return found if kernels == native.in_use() else None

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.model.format,
            "weights_digest": self.model.digest,
            "tokenizer_digest": self.reader.digest if self.reader else None,
            "config": self.config,
            **({"adapter": self.model.adapter} if self.model.adapter else {}),
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

    def read_out(self, resid: Tensor) -> Tensor:
        return unembed(self.model.config, self.model.weights, resid)

    def new_cache(self, whole: bool) -> KVCache:
        return KVCache(self.model.config, whole)

    def weights_for_checks(self, layer: int) -> Mapping[str, np.ndarray]:
        block = self.model.weights.blocks[layer]
        return {"b_o": exact(block.b_o), "sinks": exact(block.sinks)}

    def probe_text(self, tokens: Sequence[int]) -> Sequence[int]:
        """A text of its own: what a trace says of the model must not depend on which texts the model met before."""
        c = self.model.config
        n = min(probe_length(c.window), c.n_ctx)
        return [i * PROBE_STRIDE % c.d_vocab for i in range(1, n + 1)]

    def learn(self, probe: "Probe") -> None:
        self.model.probed = native.in_use(), probe

    def available(self, tokens: Sequence[int]) -> Collection[str]:
        return {*hooks.all_points(self.n_layers), *hooks.SUMMARIES}

    def why_absent(self, word: str, wanted: Sequence[str]) -> str:
        return "this model has none"

    def entry(self, name: str, n_pos: int, n_steps: int) -> tuple[str, tuple[int, ...]]:
        return budget.word(name, self.dtype), budget.shape(self.model.config, name, n_pos, n_steps)

    def working_memory(self, n_pos: int, wanted: Sequence[str], chunk: int) -> int:
        return budget.working_memory(self.model.config, self.dtype, n_pos, wanted, chunk)


def probe_length(window: int) -> int:
    """The positions of a probe: past the window where that is short, so that its end is seen."""
    return min(PROBE_POSITIONS, max(window + 32, 64))


@dataclass(frozen=True)
class Text:
    """The messages and the text of every token: what `steps` reads of a trace, for a text that has none yet."""

    spans: list[Span]
    str_tokens: list[str]

    @property
    def steps(self) -> list:
        return steps(self)


def text_of(source: Source, tokens: Sequence[int]) -> Text:
    """Harmony's messages for gpt-oss; for another model, or without a tokenizer, one message that is not parsed."""
    reader, n = source.reader, len(tokens)
    if isinstance(reader, Tokenizer) and source.is_gpt_oss:
        return Text(parse(tokens, reader), reader.str_tokens(tokens))
    return Text([Span(0, n, 0, n, "unparsed")], reader.str_tokens(tokens) if reader else [f"⟨{t}⟩" for t in tokens])


def batch_of(tokens: Sequence[int]) -> Tensor:
    """A batch of one text."""
    return torch.tensor([list(tokens)])
