"""A Model: weights, tokenizer and device, with the edits now in force. Analyses are functions elsewhere."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.conversation.chat import Chat
from workbench.conversation.render import render
from workbench.conversation.template import read_template
from workbench.conversation.tokenizer import Tokenizer
from workbench.edits.edit import Edit
from workbench.edits.library import Patch
from workbench.edits.stack import Editing, EditStack
from workbench.errors import CheckpointError, EditError, PromptError
from workbench.lazy_imports import upward
from workbench.model import gpt_oss, prompts
from workbench.model.cache import KVCache
from workbench.model.checkpoints import POCKET, Loadable, load
from workbench.model.checkpoints.adapter import read_adapter
from workbench.model.interrupts import Interrupt, interruptible
from workbench.model.kernels import native
from workbench.model.threads import one_thread
from workbench.paths import absolute, expanded
from workbench.taps import Chain, Tap
from workbench.traces import Trace, check_writable

if TYPE_CHECKING:
    from workbench.recording.budget import Estimate

Prompt = str | Chat | Trace | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | Tensor | np.ndarray
SMALL = 5e7  # parameters: below, one thread is faster than two


class Model:
    """A gpt-oss model, ready to run.

    `where` is "pocket" (the embedded model), a folder with a checkpoint (Hugging Face MXFP4 or bf16, OpenAI's
    original/, GGUF), a name in the local Hugging Face cache such as "openai/gpt-oss-20b", or a `GptOssForCausalLM`
    made by transformers, whose memory it then shares. Nothing is ever downloaded.

    `dtype` is float32, bfloat16 or float64 (a torch dtype or its name); by default float32 below 1e9 parameters and
    bfloat16 above. float16 is refused: gpt-oss's activations overflow it.

    Experts in MXFP4 stay packed, and weights are read where they lie in the file, never copied: gpt-oss-20b runs on a
    computer with 16 GB. `memory="small"` gives each layer's pages back after its use and needs about 3 GB, "fast"
    keeps them; "auto" is "fast" where the file fits into what is free. Models below 256 MB are dequantised.

    >>> model = wb.Model("pocket")
    >>> model
    <Model pocket: 6 layers, 32 experts, float32 on cpu>

    Raises ModelNotFound, CheckpointError.
    """

    def __init__(
        self,
        where: Loadable = "pocket",
        *,
        dtype: torch.dtype | str | None = None,
        device: str | None = None,
        memory: str = "auto",
        tokenizer: str | os.PathLike[str] | None = None,
    ):
        checkpoint = load(where, dtype=_dtype(dtype), device=device, memory=memory)
        self._source = _source(where, checkpoint.weights.embed.dtype, device, memory, tokenizer)
        self.config, self.weights = checkpoint.config, checkpoint.weights
        self.name, self.format, self.digest = checkpoint.name, checkpoint.format, checkpoint.digest
        self.stop_ids = frozenset(checkpoint.stop_ids)
        self.device = str(self.weights.embed.device)
        self.dtype: torch.dtype = self.weights.embed.dtype
        folder = expanded(tokenizer) if tokenizer else checkpoint.folder
        readable = tokenizer or (folder and (folder / "tokenizer.json").is_file())  # without one, token ids only
        self.tokenizer: Tokenizer | None = Tokenizer.from_folder(folder) if folder and readable else None
        self.template = read_template(folder) if folder else None
        self._adapter_at: tuple[str, float] | None = None  # its folder and scale
        self.adapter: dict | None = None  # for the manifest: which adapter is in force, how strongly, on which weights
        self.partial: Trace | None = None  # what the last generation had written when it was interrupted, or failed
        self.probed: tuple | None = None  # the kernels of the last probe, and what it found
        self._independent: tuple[tuple, bool] | None = None  # the kernels that were tried, and what came of it
        self._stack = EditStack()
        self._running: list[Interrupt] = []
        _ = self.rows_independent  # tried now, so that the first run does not wait for it

    def __copy__(self) -> "Model":
        """A Model of its own, without edits, that shares the weights with this one."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.partial, other.probed, other._independent = None, None, None
        other._stack, other._running = EditStack(), []
        return other

    def __reduce__(self):
        """Pickled and deep-copied as the place that it was loaded from, which is read again."""
        if self._source is None:
            raise CheckpointError(
                f"{self.name} shares the memory of an object and has no files to be loaded from again, so it cannot be "
                f"pickled or deep-copied. Call save_pretrained on the object and give that folder to wb.Model, or make "
                f"the Model where it is needed."
            )
        if edits := self.active_edits():
            raise EditError(
                f"{self.name} has edits in force ({', '.join(e.glob for e in edits)}), which hold in this context "
                f"alone. Pickle or deep-copy it outside of the `with`, and edit the copy."
            )
        set_by_hand = {"stop_ids": self.stop_ids, "template": self.template}
        return _reloaded, (self._source, self._adapter_at, self.digest), set_by_hand

    def __repr__(self) -> str:
        c, edits = self.config, [e.glob for e in self.active_edits()]
        editing = f", editing {', '.join(edits)}" if edits else ""
        shape = f"{c.n_layers} layers, {c.n_experts} experts"
        return f"<Model {self.name}: {shape}, {self.dtype_name} on {self.device}{editing}>"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def config_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()}

    @property
    def rows_independent(self) -> bool:
        """Whether a position's bits are the same whatever is computed beside it: other positions, texts, a cache.

        True by the native kernels; of torch and GPUs a few rows of each kind of product tell, tried when the model is
        loaded and again when other kernels are chosen.
        """
        kernels = native.in_use()
        if self._independent is None or self._independent[0] != kernels:
            # numba computes a few rows in its own order, and leaves more to torch
            tried = native.decode() is None and gpt_oss.rows_independent(self.config, self.weights)
            self._independent = kernels, tried
        return self._independent[1]

    # -- running

    def trace(
        self,
        prompt: Prompt,
        *,
        record: str | Sequence[str] = "auto",
        budget: float | None = None,
        to: str | os.PathLike[str] | None = None,
    ) -> Trace:
        """A Trace of a text that is already there: the model reads it and writes nothing.

        `prompt`: a question (str; rendered as `wb.chat` does), a `wb.chat(…)`, messages ([{"role": …, "content": …}]),
        token ids (a list, an array or tensor of one row, what a tokenizer gives), or another Trace (its text).
        `record`: presets, hook points, globs, or "auto": all that fits `budget` bytes (a quarter of the free memory).
        `to`: a path where the trace is written while it is recorded, so that it may be larger than the memory.

        A long text is read in passes of 1,024 positions, with the same numbers as in one; with edits in force it is
        read in one. Raises PromptError, HookNameError, BudgetError (before anything runs), TraceExists.
        """
        tokens, notes = self.render(prompt)
        self.check_prompt(tokens)
        recording = upward(__name__, "workbench.recording.record")
        return recording.trace_model(self, tokens, record, budget, notes, _place(to))

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        record: str | Sequence[str] = "auto",
        stop: Sequence[int | str] = (),
        budget: float | None = None,
        to: str | os.PathLike[str] | None = None,
    ) -> Trace:
        """Lets the model think and answer, and gives the Trace of prompt and answer.

        Greedy at temperature 0, otherwise drawn with `seed`. It ends at one of the model's stop tokens (`<|return|>`,
        `<|call|>`, `<|endoftext|>`), at one of `stop` (ids or texts), or after `max_tokens`. Routes and predictions
        are recorded while it writes, the rest by reading the finished text; `trace.source(name)` says which. With `to`,
        a path, the trace is written there while it is recorded, so that it may be larger than the memory.

        Ctrl-C raises KeyboardInterrupt and keeps what there is in `model.partial`, a trace that can be saved and that
        `model.resume` goes on with. Before the prompt was read there is nothing to keep.

        Raises PromptError, HookNameError, BudgetError (before anything runs); NotFinite where a token is to be
        drawn and the logits hold NaN.
        """
        tokens, notes = self.render(prompt)
        generation = upward(__name__, "workbench.recording.generation")
        return generation.generate(
            self, tokens, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
            request=record, stop=stop, budget=budget, to=_place(to), notes=notes,
        )  # fmt: skip

    def resume(self, partial: Trace, *, to: str | os.PathLike[str] | None = None) -> Trace:
        """Goes on with an interrupted generation, and gives the Trace that it would have left.

        `partial`: `model.partial`, or that trace saved and loaded in another process. It holds the keys and values of
        the positions that were read, so nothing is read or drawn twice, and on the same machine with the same kernels
        and threads id, tokens and every array are those of a run that was never interrupted, bit for bit. Elsewhere a
        note says how the first positions were written. May be interrupted again.

        >>> half = wb.load("half.trace")  # doctest: +SKIP
        >>> model.resume(half).status  # doctest: +SKIP
        'complete'

        Raises ResumeError unless the model has the same weights, tokenizer and dtype, and the same edits are in force;
        BudgetError, TraceExists (before anything runs).
        """
        return upward(__name__, "workbench.recording.generation").resume(self, partial, to=_place(to))

    def estimate(self, prompt: Prompt, *, record: str | Sequence[str] = "auto", max_tokens: int = 0) -> "Estimate":
        """How big the trace would be, before it is made: bytes on disk, memory while it runs, and what fits."""
        tokens = self.to_tokens(prompt)
        self.check_prompt(tokens, max_tokens)
        return upward(__name__, "workbench.recording.plan").estimate(self, tokens, record, len(tokens) + max_tokens)

    def forward(
        self, tokens: Tensor, tap: Tap | None = None, cache: KVCache | None = None, logits_at: slice = slice(None)
    ) -> Tensor:
        """Logits (batch pos d_vocab) for token ids (batch pos), under the edits in force; see `gpt_oss.forward`."""
        return gpt_oss.forward(self.config, self.weights, tokens, self._under_edits(tap), cache, logits_at)

    def forward_from(
        self,
        resid: Tensor,
        layer: int,
        tap: Tap | None = None,
        cache: KVCache | None = None,
        logits_at: slice = slice(None),
    ) -> Tensor:
        """The rest of a pass from `resid_pre` of `layer` on (batch pos d_model), under the edits in force."""
        return gpt_oss.forward_from(self.config, self.weights, resid, layer, self._under_edits(tap), cache, logits_at)

    def stop(self) -> None:
        """Ends the run that is under way on another thread, at its next hook point."""
        for flag in list(self._running):
            flag.stopped = True

    # -- editing

    def edit(self, where: str, fn: Callable, *, positions: int | slice | Sequence[int] | None = None) -> Editing:
        """`with model.edit(glob, fn):` replaces the value at every hook point that `where` names by `fn(value)`.

        `fn(x)`, `fn(x, hook)` or `fn(x, *, hook)` gets a copy (batch axis first) and returns a tensor of that shape;
        `hook` has name, layer and absolute positions. `positions`: an int, a slice or several ints, absolute. Edits
        nest in the order of entry and are undone however the block is left. They hold for this thread, and within it
        for this task of an event loop; one that a generator entered rests while the generator does. The trace's
        manifest says how often each fired and how much it changed; one that never fires raises EditError.

        >>> with model.edit("blocks.1.hook_mlp_out", lambda x: 0 * x): ablated = model.generate("What is 12+30?")
        >>> ablated.edits[0]["n_calls"] > 0
        True

        Raises HookNameError if nothing matches, EditError for a function that cannot be called so.
        """
        points = hooks.match(where, self.config.n_layers)
        return Editing(self._stack, Edit(where, fn, points, self.config, positions), self)

    def patch(self, where: str, source: Trace, *, positions: int | slice | Sequence[int] | None = None) -> Editing:
        """`with model.patch(glob, trace):` takes the values at `where` from another trace, at the same positions.

        Positions that the trace does not have keep their own values. Raises NotRecorded if it lacks a hook point.
        """
        points = hooks.match(where, self.config.n_layers)
        fn = Patch(source)
        for name in points:
            fn.values(name)  # NotRecorded now, not in the middle of a run
        return Editing(self._stack, Edit(where, fn, points, self.config, positions), self)

    def active_edits(self) -> list[Edit]:
        """The edits that a run here and now would be under, in order."""
        return self._stack.in_force()

    def with_adapter(self, folder: str | os.PathLike[str], *, scale: float = 1.0) -> "Model":
        """The same model with a LoRA adapter in force: a Model of its own, that shares the weights with this one.

        `folder`: what PEFT's `save_pretrained` leaves (adapter_config.json, adapter_model.safetensors), for q_proj,
        k_proj, v_proj, o_proj, mlp.router.weight, mlp.experts.gate_up_proj and mlp.experts.down_proj; or a folder with
        one such folder inside. `scale` times the change is added to what each matrix gives (any finite number: 0 is
        this model to the last bit, 1 what was trained). Nothing is merged: experts stay packed, and a further scale
        costs no memory. Traces tell folder, digest and scale, and have another `weights_digest`.

        >>> changed = model.with_adapter("my-adapter", scale=0.5)  # doctest: +SKIP
        >>> changed  # doctest: +SKIP
        <Model pocket + 0.5 my-adapter: 6 layers, 32 experts, float32 on cpu>

        Raises ModelNotFound if there is no adapter, CheckpointError if it is damaged, no plain LoRA, or made for
        another model, EditError for a second adapter, or a scale that is no finite number.
        """
        scale = float(scale)
        if not math.isfinite(scale):
            raise EditError(f"an adapter has a finite scale, not {scale}")
        if self.adapter:
            raise EditError(f"{self.name} has an adapter already: call with_adapter on the model without one")
        found = read_adapter(expanded(folder), self.config)
        other = copy(self)
        other._adapter_at = (str(absolute(folder)), scale)
        other.weights = found.on(self.weights, scale)
        other.adapter = {"name": found.name, "digest": found.digest, "scale": scale, "base": self.digest}
        other.digest = f"sha256:{sha256(repr((self.digest, found.digest, scale)).encode()).hexdigest()}"
        other.name = f"{self.name} + {scale:g} {found.name}"
        return other

    # -- prompts

    def to_tokens(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt: a question or messages become a chat; ids and traces are taken as they are."""
        return self.render(prompt)[0]

    def render(self, prompt: Prompt) -> tuple[list[int], list[str]]:
        """The token ids of a prompt, and a note for the manifest on who made them of a chat."""
        read = prompts.read(prompt)
        if isinstance(read, list):
            return read, []
        if self.tokenizer is None:
            raise PromptError("this model has no tokenizer: give token ids, or wb.Model(…, tokenizer=folder)")
        made = render(read, self.tokenizer, self.template)
        return list(made.ids), [f"the prompt was rendered by {made.how}"]

    def check_prompt(self, tokens: Sequence[int], more: int = 0) -> None:
        """Raises PromptError for an empty prompt, an id that the model does not have, or too many positions."""
        if not len(tokens):
            raise PromptError("the prompt is empty; give at least one token")
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.config.d_vocab:
            wrong = low if low < 0 else high
            raise PromptError(f"token id {wrong} is out of range: {self.name} has ids 0..{self.config.d_vocab - 1}")
        if len(tokens) + more > self.config.n_ctx:
            raise PromptError(
                f"{len(tokens)} tokens of prompt and {more} to write are more than the {self.config.n_ctx} positions "
                f"of {self.name}; shorten the prompt or set max_tokens lower"
            )

    @contextmanager
    def interruptible(self) -> Iterator[Interrupt]:
        """While a run is on: Ctrl-C, or `stop()` on another thread, ends it at the next hook point."""
        with interruptible() as flag, one_thread(self.config.n_params < SMALL):
            self._running.append(flag)
            try:
                yield flag
            finally:
                self._running.remove(flag)

    def _under_edits(self, tap: Tap | None) -> Tap:
        edits = self.active_edits()
        return Chain(*edits, *([tap] if tap else []))


def _source(
    where: Loadable, dtype: torch.dtype, device: str | None, memory: str, tokenizer: str | os.PathLike[str] | None
) -> dict | None:
    """The arguments that load the same model again from anywhere on this machine; None for an object in memory."""
    if not isinstance(where, str | os.PathLike):
        return None
    place = str(where) if where == POCKET or not expanded(where).exists() else str(absolute(where))
    found = str(absolute(tokenizer)) if tokenizer else None
    return {"where": place, "dtype": dtype, "device": device, "memory": memory, "tokenizer": found}


def _reloaded(source: dict, adapter_at: tuple[str, float] | None, digest: str) -> Model:
    model = Model(**source)
    if adapter_at is not None:
        model = model.with_adapter(adapter_at[0], scale=adapter_at[1])
    if model.digest != digest:
        raise CheckpointError(
            f"{source['where']!r} holds other weights now than when the model was pickled: load it by its name instead"
        )
    return model


def _place(to: str | os.PathLike[str] | None) -> Path | None:
    """Where a trace is to be written while it is recorded; TraceError, before anything runs, if it cannot be."""
    if to is None:
        return None
    check_writable(to)
    return expanded(to)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(dtype, str) and not isinstance(found, torch.dtype):
        raise CheckpointError(f"{dtype!r} is no dtype; gpt-oss runs in 'float32', 'bfloat16' or 'float64'")
    return found
