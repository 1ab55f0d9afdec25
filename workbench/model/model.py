"""A Model: weights, tokenizer and device, with the active edits. Analyses are functions in other modules."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.checks import check_layer, check_real, check_type, check_whole
from workbench.conversation.chat import Chat, Effort
from workbench.conversation.render import render
from workbench.conversation.template import read_template
from workbench.conversation.tokenizer import Tokenizer
from workbench.edits.edit import Edit
from workbench.edits.library import Patch, PatchFrom
from workbench.edits.stack import Editing, EditStack
from workbench.errors import EditError, PromptError
from workbench.lazy_imports import upward
from workbench.model import gpt_oss, prompts, reloading
from workbench.model.arguments import (
    check_ids,
    check_loading,
    check_pass,
    check_tensor,
    checked_budget,
    checked_dtype,
    checked_path,
    warn_if_gpu_is_idle,
)
from workbench.model.arrays import tensor
from workbench.model.cache import KVCache
from workbench.model.checkpoints import Loadable, load
from workbench.model.checkpoints.adapter import read_adapter
from workbench.model.checkpoints.changes import current_digest, versions
from workbench.model.checkpoints.decoding_copies import copies_note
from workbench.model.interrupts import Interrupt, interruptible
from workbench.model.kernels import native
from workbench.model.memory import allocation_errors
from workbench.model.partial_traces import PartialTraces
from workbench.model.threads import SMALL, one_thread
from workbench.model.torch_defaults import torch_defaults
from workbench.model.verified import verification_note, verified
from workbench.paths import absolute, expanded
from workbench.taps import Chain, Tap
from workbench.text import visible
from workbench.traces import Call, Trace

if TYPE_CHECKING:
    from workbench.recording.budget import Estimate

Prompt = str | Chat | Trace | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | Tensor | np.ndarray


class Model(PartialTraces):
    """A gpt-oss model, ready to run.

    Experts in MXFP4 stay packed, and weights are memory-mapped, never copied: gpt-oss-20b runs on a computer with
    16 GB. Models below 256 MB are dequantized. Nothing is ever downloaded.

    Args:
        where: "pocket" (the embedded model), a folder with a checkpoint (Hugging Face MXFP4 or bf16, OpenAI's
            original/, GGUF), a name in the local Hugging Face cache such as "openai/gpt-oss-20b", or a
            `GptOssForCausalLM` of transformers, whose memory the Model then shares.
        dtype: float32, bfloat16 or float64 (a torch dtype or its name); by default float32 below 1e9 parameters and
            bfloat16 above. float16 is an error, because gpt-oss's activations overflow it.
        device: a torch device such as "cuda"; "auto" is the GPU if torch finds one, else the CPU. The default is the
            CPU; for a model above 1e9 parameters, a warning then says if a GPU is idle.
        memory: "small" releases each layer's pages after use and needs about 3 GB for gpt-oss-20b; "fast" keeps them,
            and copies that decode faster if they fit; "auto" is "fast" if the file fits into the free memory.
        tokenizer: a folder with the tokenizer, if not that of the checkpoint.

    >>> model = wb.Model("pocket")
    >>> model
    <Model pocket: 6 layers, 32 experts, float32 on cpu>

    Raises:
        ModelNotFound, CheckpointError
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
        check_loading(dtype, device, memory)
        with torch_defaults(), torch.inference_mode(False):  # gradients need ordinary tensors
            self._load(where, dtype, device, memory, tokenizer)

    def _load(self, where: Loadable, dtype: Any, device: str | None, memory: str, tokenizer: Any) -> None:
        checkpoint = load(where, dtype=checked_dtype(dtype), device=device, memory=memory)
        self.config, self.weights = checkpoint.config, checkpoint.weights
        self.name, self.format, self.digest = checkpoint.name, checkpoint.format, checkpoint.digest
        self._versions = versions(self.weights)
        self.folder, self.verified = checkpoint.folder, verified(checkpoint.digest, checkpoint.folder)
        self.stop_ids = frozenset(checkpoint.stop_ids)
        self.device = str(self.weights.embed.device)
        self.dtype: torch.dtype = self.weights.embed.dtype
        device_of_copy = self.device if device == "auto" else device
        self.loaded_with = reloading.load_arguments(where, self.dtype, device_of_copy, memory, tokenizer)
        warn_if_gpu_is_idle(self.name, device, self.device, self.config.n_params)
        folder = checkpoint.folder if tokenizer is None else expanded(tokenizer, "tokenizer")
        has_tokenizer = tokenizer is not None or (folder and (folder / "tokenizer.json").is_file())  # or ids only
        self.tokenizer: Tokenizer | None = Tokenizer.from_folder(folder) if folder and has_tokenizer else None
        self.template = read_template(folder) if folder else None
        self.adapter_at: tuple[str, float] | None = None  # folder and scale
        self.adapter: dict | None = None  # for the manifest: its name, digest and scale, and the digest of the base
        self.probed: tuple | None = None  # the kernels of the last probe, and its result
        self._independent: tuple[tuple, bool] | None = None  # the tested kernels, and the result
        self._stack, self._running = EditStack(), list[Interrupt]()
        self.forget_partials()
        _ = self.rows_independent  # tested now, so that the first run does not wait for it

    def __copy__(self) -> "Model":
        """A separate Model without edits that shares its weights with this one."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.probed = other._independent = None
        other.forget_partials()
        other._stack, other._running = EditStack(), []
        return other

    def __reduce__(self):
        """Pickled and deep-copied as its path, from which the copy is loaded."""
        return reloading.reduced(self)

    def __repr__(self) -> str:
        c, edits = self.config, ", ".join(e.glob for e in self.active_edits())
        shape = f"{c.n_layers} layers, {c.n_experts} experts, {self.dtype_name}"
        notes = copies_note(self.weights) + verification_note(self.verified) + (f", editing {edits}" if edits else "")
        return visible(f"<Model {self.name}: {shape} on {self.device}{notes}>")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def config_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()}

    @property
    def rows_independent(self) -> bool:
        """True if a position's bits do not depend on what is computed beside it: other positions, texts, a cache.

        Always true with the native kernels. For torch and GPUs, a few rows of each kind of product are tested when the
        model is loaded, and again after a change of kernels.
        """
        kernels = native.in_use()
        if self._independent is None or self._independent[0] != kernels:
            # numba computes a few rows in another order than torch, which computes more rows
            independent = native.decode() is None and gpt_oss.rows_independent(self.config, self.weights)
            self._independent = kernels, independent
        return self._independent[1]

    # -- running

    # listed here too, so that they are in the reference of this class
    partial, keep = PartialTraces.partial, PartialTraces.keep  # pyright: ignore[reportIncompatibleMethodOverride]
    partials = PartialTraces.partials  # pyright: ignore[reportIncompatibleMethodOverride]
    keep_many = PartialTraces.keep_many

    def trace(
        self,
        prompt: Prompt,
        *,
        record: str | Sequence[str] = "auto",
        budget: float | None = None,
        to: str | os.PathLike[str] | None = None,
        written: Sequence[tuple[int, int, str]] | None = None,
        calls: Sequence[Call] | None = None,
        follows: Trace | str | None = None,
    ) -> Trace:
        """A Trace of an existing text: the model runs on it and generates nothing.

        A long text is computed in passes of 1,024 positions, with the same numbers as in one pass. With active edits
        it is computed in one pass.

        Args:
            prompt: a question (str; rendered as a `wb.chat`), a `wb.chat(…)`, messages ([{"role": …, "content": …}]),
                token ids (a list, an array or tensor of one row, the output of a tokenizer), or another Trace (its
                text).
            record: presets (residuals, writes, attention, patterns, values, experts, logits, lens, steps, everything),
                hook points and globs, separated by spaces. "" records only what is always recorded: router logits,
                experts, sinks, log-probabilities and a few more summaries (`wb.hooks.ALWAYS_RECORDED`). "auto" adds as
                many of steps, lens, attention, residuals, writes, values and experts, in this order, as fit `budget`:
                usually all seven.
            budget: bytes; by default a quarter of the free memory.
            to: a path to which the trace is written during recording, so that it may be larger than the memory.
            written: who wrote which tokens, if not all are the prompt: stretches (start, stop, who) that cover the text
                in order. `who` is "prompt", "model", or the tool that the model called, such as "functions.calc".
            calls: the calls to tools (`workbench.traces.Call`); by default those in the messages that the model wrote,
                without times and errors.
            follows: the trace that this text continues, or its id.

        Raises:
            PromptError, HookNameError, ArgumentError, BudgetError (before anything runs), TraceExists
        """
        budget = checked_budget(budget)
        tokens, notes = self.render(prompt)
        self.check_prompt(tokens)
        recording = upward(__name__, "workbench.recording.record")
        authorship = recording.given_authorship(tokens, written, calls, follows)
        return recording.trace_model(self, tokens, record, budget, notes, checked_path(to), authorship)

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
        """A Trace of the prompt and the model's generated thinking and answer.

        Decoding is greedy at temperature 0 and sampled with `seed` otherwise. It ends at one of the model's stop tokens
        (`<|return|>`, `<|call|>`, `<|endoftext|>`), at one of `stop`, or after `max_tokens`. Routes (in small models
        predictions too) are recorded during decoding, the rest in a pass over the finished text: `trace.source(name)`.

        Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt. `model.partial` is then a trace of the run so far, which can
        be saved and continued with `model.resume`; before the end of the prefill there is none. After an error,
        `model.partial` has the tokens too.

        Args:
            prompt: as for `trace`.
            max_tokens: the maximum number of generated tokens.
            temperature: 0 for greedy decoding.
            top_p: nucleus sampling: the tokens with this total probability are sampled from.
            seed: the seed of the sampling.
            record: as for `trace`: presets, hook points and globs; "" for only what is always recorded; "auto" for the
                presets that fit.
            stop: token ids or texts at which generation ends.
            budget: as for `trace`.
            to: a path to which the trace is written during recording, so that it may be larger than the memory. Until
                it is complete, the partial trace is saved every minute, and when the run is interrupted or fails, as
                `<to>.partial` beside it. After the process was killed, `model.resume(wb.load("<to>.partial"), to=to)`
                continues it. A path `<to>.partial` that exists is not changed; it is then `<to>.partial-2`, ….

        Raises:
            PromptError, HookNameError, BudgetError: before anything runs.
            BudgetError: the memory ran out during the run; `model.partial` has the tokens.
            NotFinite: the logits of a token to sample contain NaN.
        """
        budget = checked_budget(budget)
        tokens, notes = self.render(prompt)
        generation = upward(__name__, "workbench.recording.generation")
        return generation.generate(
            self, tokens, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
            request=record, stop=stop, budget=budget, to=checked_path(to), notes=notes,
        )  # fmt: skip

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int | Sequence[int] = 1024,
        temperature: float | Sequence[float] = 0.0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        record: str | Sequence[str] = "auto",
        stop: Sequence[int | str] | Sequence[Sequence[int | str]] = (),
        reasoning: Effort | Sequence[Effort | None] | None = None,
        budget: float | None = None,
        max_rows: int = 64,
        ordered: bool = False,
    ) -> Iterator[Trace]:
        """The traces of several prompts that are generated together, each as soon as it is finished.

        Each trace is the one that `generate` gives for its prompt, with the same bits where `rows_independent` is true.
        The prompts may have any lengths. A beginning that several of them share is read once. Active edits apply to
        each prompt as in a run alone; a function with a state of its own sees the calls of all prompts.

        After Ctrl-C, `model.partials` has the traces of the prompts that were begun, by number of the prompt, and
        `resume` continues each of them. If one prompt fails, the others are finished first.

        Args:
            prompts: a list of prompts, each as for `trace`.
            max_tokens, temperature, top_p, seed, stop: as for `generate`; each of them is one value for all prompts,
                or a list with one entry for each (of lists, for `stop`).
            record: as for `trace`, for all prompts.
            reasoning: the effort, "low", "medium" or "high"; one for all prompts, or a list with one entry for each.
            budget: as for `trace`, for each prompt.
            max_rows: the largest number of prompts in progress at a time. Fewer are if the memory does not suffice.
            ordered: whether the traces come in the order of the prompts; otherwise as they are finished.

        Raises:
            PromptError, HookNameError, BudgetError, ArgumentError: before anything runs.
            BatchError: after all others are finished, if prompts failed; its `errors` has the reasons.

        >>> traces = model.generate_many(["What is 12+30?", "What is 7+8?"], max_tokens=[9, 5], ordered=True)
        >>> [len(trace) - trace.prompt_length for trace in traces]
        [9, 5]
        """
        return upward(__name__, "workbench.recording.many").generate_many(
            self, prompts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, record=record,
            stop=stop, reasoning=reasoning, budget=checked_budget(budget), max_rows=max_rows, ordered=ordered,
        )  # fmt: skip

    def resume(self, partial: Trace, *, to: str | os.PathLike[str] | None = None) -> Trace:
        """Continue an interrupted generation; returns the Trace of the complete run.

        `partial` is `model.partial`, or that trace after saving and loading it in another process. It contains the keys
        and values of its positions, so nothing is computed or sampled twice. On the same machine with the same kernels
        and number of threads, the id, the tokens and every array are bit for bit those of an uninterrupted run.
        Elsewhere, a note in the trace records how the first positions were computed. A resumed run can be interrupted
        again.

        >>> half = wb.load("half.trace")  # doctest: +SKIP
        >>> model.resume(half).status  # doctest: +SKIP
        'complete'

        Raises ResumeError unless the model has the same weights, tokenizer, dtype and active edits; BudgetError,
        TraceExists (before anything runs).
        """
        check_type("resume", partial, Trace)
        return upward(__name__, "workbench.recording.generation").resume(self, partial, to=checked_path(to))

    def estimate(self, prompt: Prompt, *, record: str | Sequence[str] = "auto", max_tokens: int = 0) -> "Estimate":
        """The size of a trace before it is made: bytes on disk, memory during the run, and what fits."""
        max_tokens, tokens = check_whole("max_tokens", max_tokens, 0), self.to_tokens(prompt)
        self.check_prompt(tokens, max_tokens)
        return upward(__name__, "workbench.recording.plan").estimate(self, tokens, record, len(tokens) + max_tokens)

    def forward(
        self, tokens: Tensor, tap: Tap | None = None, cache: KVCache | None = None, logits_at: slice = slice(None)
    ) -> Tensor:
        """Logits (batch pos d_vocab) for token ids (batch pos), under the active edits; see `gpt_oss.forward`.

        Args:
            tokens: token ids (batch pos).
            tap: called with the name and value of every hook point; what it returns replaces the value.
            cache: the keys and values of earlier positions; extended by those of `tokens`.
            logits_at: the positions whose logits are computed, as a slice of `tokens`.
        """
        check_tensor("tokens", tokens, 2)
        check_pass(tap, cache, logits_at)
        return gpt_oss.forward(self.config, self.weights, tokens, self._under_edits(tap), cache, logits_at)

    def forward_from(
        self,
        resid: Tensor,
        layer: int,
        tap: Tap | None = None,
        cache: KVCache | None = None,
        logits_at: slice = slice(None),
    ) -> Tensor:
        """Logits (batch pos d_vocab) of the rest of a pass, from the input of `layer` on, under the active edits.

        Args:
            resid: `resid_pre` of `layer` (batch pos d_model).
            layer: the first layer that runs.
            tap: called with the name and value of every later hook point; what it returns replaces the value.
            cache: the keys and values of earlier positions; extended by the later layers.
            logits_at: the positions whose logits are computed, as a slice of `resid`.
        """
        check_tensor("resid", resid, 3)
        check_pass(tap, cache, logits_at)
        layer = check_layer(layer, self.config.n_layers)
        return gpt_oss.forward_from(self.config, self.weights, resid, layer, self._under_edits(tap), cache, logits_at)

    def stop(self) -> None:
        """Ends the current runs on other threads, at their next hook point."""
        for flag in list(self._running):
            flag.stopped = True

    # -- editing

    def edit(
        self, where: str, fn: Callable[..., Tensor] | PatchFrom, *, positions: int | slice | Sequence[int] | None = None
    ) -> Editing:
        """`with model.edit(where, fn):` replaces the value at every hook point that matches `where` by `fn(value)`.

        `where` is a hook point, a glob such as "blocks.*.hook_mlp_out", or a short name: "router_logits" means all
        layers.

        `fn(x)`, `fn(x, hook)` or `fn(x, *, hook)` gets a copy (batch axis first) and returns a tensor of the same
        shape; `hook` has name, layer and absolute positions. `positions` is an int, a slice or several ints, absolute.

        Edits nest in the order of entry and are undone however the block ends. They are active in the current thread
        and, within it, in the current task of an event loop. An edit that was entered in a generator is inactive while
        the generator is suspended. The trace's manifest records how often each edit fired and how much it changed; an
        edit that never fires raises EditError.

        >>> with model.edit("blocks.1.hook_mlp_out", lambda x: 0 * x): ablated = model.generate("What is 12+30?")
        >>> ablated.edits[0]["n_calls"] > 0
        True

        Raises HookNameError if nothing matches, SelectionError for a layer that the model does not have, EditError for
        a function with another signature.
        """
        points = hooks.match(where, self.config.n_layers)
        if isinstance(fn, PatchFrom):
            fn = Patch({name: tensor(fn.source.raw(name)) for name in points}, fn.source.id)
        return Editing(self._stack, Edit(where, fn, points, self.config, positions), self)

    def patch(self, where: str, source: Trace, *, positions: int | slice | Sequence[int] | None = None) -> Editing:
        """`with model.patch(where, trace):` replaces the values at `where` by those of another trace, same positions.

        `where` is as for `edit`. Positions that the trace does not have keep their own values. Raises NotRecorded if it
        lacks a hook point.
        """
        check_type("model.patch", source, Trace)
        return self.edit(where, PatchFrom(source), positions=positions)

    def active_edits(self) -> list[Edit]:
        """The edits that apply to a run in the current context, in order."""
        return self._stack.active()

    def with_adapter(self, folder: str | os.PathLike[str], *, scale: float = 1.0) -> "Model":
        """The model with a LoRA adapter: a separate Model that shares its weights with this one.

        `folder` is the output of PEFT's `save_pretrained` (adapter_config.json, adapter_model.safetensors), for q_proj,
        k_proj, v_proj, o_proj, mlp.router.weight, mlp.experts.gate_up_proj and mlp.experts.down_proj; or a folder that
        contains one such folder. `scale` times the low-rank change is added to the output of each matrix; it may be any
        finite number: 0 is this model bit for bit, 1 is the trained adapter. Nothing is merged: experts stay packed,
        and another scale costs no memory. Traces record folder, digest and scale, and have another `weights_digest`.

        >>> changed = model.with_adapter("my-adapter", scale=0.5)  # doctest: +SKIP
        >>> changed  # doctest: +SKIP
        <Model pocket + 0.5 my-adapter: 6 layers, 32 experts, float32 on cpu>

        Raises ModelNotFound if there is no adapter; CheckpointError if it is damaged, not a plain LoRA, or for another
        model; EditError for a second adapter or a scale that is not finite.
        """
        scale = check_real("scale", scale)
        if not math.isfinite(scale):
            raise EditError(f"scale must be a finite number, got {scale}")
        if self.adapter:
            raise EditError(f"{self.name} already has an adapter. Call with_adapter on the model without one.")
        adapter = read_adapter(expanded(folder, "folder"), self.config)
        other = copy(self)
        other.adapter_at = (str(absolute(folder)), scale)
        other.weights = adapter.on(self.weights, scale)
        other._versions = versions(other.weights)
        other.adapter = {"name": adapter.name, "digest": adapter.digest, "scale": scale, "base": self.digest}
        other.digest = f"sha256:{sha256(repr((self.digest, adapter.digest, scale)).encode()).hexdigest()}"
        other.name, other.verified = f"{self.name} + {scale:g} {adapter.name}", None
        return other

    # -- prompts

    def to_tokens(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. A question or messages are rendered as a chat; ids and traces are not changed."""
        return self.render(prompt)[0]

    def render(self, prompt: Prompt) -> tuple[list[int], list[str]]:
        """The token ids of a prompt, and a note for the manifest on how a chat was rendered."""
        parsed = prompts.parse(prompt)
        if isinstance(parsed, list):
            return parsed, []
        if self.tokenizer is None:
            raise PromptError("this model has no tokenizer. Pass token ids, or use wb.Model(…, tokenizer=folder).")
        rendered = render(parsed, self.tokenizer, self.template)
        return list(rendered.ids), [f"the prompt was rendered by {rendered.how}"]

    def check_prompt(self, tokens: Sequence[int], max_tokens: int = 0) -> None:
        """Raises PromptError for an empty prompt, an id outside the vocabulary, or too many positions."""
        check_ids(tokens, max_tokens, self.name, self.config)

    @contextmanager
    def interruptible(self) -> Iterator[Interrupt]:
        """During the block, Ctrl-C, or `stop()` on another thread, ends the run at the next hook point.

        Raises BudgetError if the memory runs out.
        """
        small = self.config.n_params < SMALL
        with allocation_errors(), interruptible() as flag, torch_defaults(), one_thread(small):
            now = versions(self.weights)
            self.digest, self._versions = current_digest(self.digest, self._versions, now), now
            self._running.append(flag)
            try:
                yield flag
            finally:
                self._running.remove(flag)

    def identity_parts(self) -> list[Any]:
        """What the identity of an edit or a metric that uses this model depends on."""
        return [self.digest, self.dtype_name, self.device, [edit.identity() for edit in self.active_edits()]]

    def _under_edits(self, tap: Tap | None) -> Tap:
        edits = self.active_edits()
        return Chain(*edits, *([tap] if tap else []))
