"""A Trace: the record of one run of a model. Needs numpy but not torch, and holds no model."""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import ml_dtypes
import numpy as np

from workbench import hooks
from workbench.checks import check_flag, check_type, resolve_layer
from workbench.errors import ArgumentError, ArgumentTypeError, HookNameError, NotRecorded, TraceCorrupt
from workbench.lazy_imports import upward
from workbench.text import shown, visible
from workbench.traces import exchange, recorded_names, writer
from workbench.traces.authorship import Stretch, positions_by
from workbench.traces.calls import Call
from workbench.traces.format import from_raw, raw, table_of
from workbench.traces.labels import labeled
from workbench.traces.manifest import Manifest, tensor_table
from workbench.traces.occurrences import occurrences
from workbench.traces.private_copies import Original, locked
from workbench.traces.reader import StoredArrays
from workbench.traces.recorded_names import Key, keys
from workbench.traces.spans import Span, check_message_name, selected_turns
from workbench.traces.summary import sources, state, summary

if TYPE_CHECKING:
    import xarray as xr

_NARROW = {np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)}


class Trace:
    """The record of one run: its manifest and its arrays. It cannot be changed.

    `trace["resid_post", 3]` is one layer (pos d_model), `trace["resid_post"]` all layers (layer pos d_model). Full
    names work too, as in `trace["blocks.3.hook_resid_post"]`, and summaries, as in `trace["logprob"]`. Arrays are
    read-only copies: nothing done to them, by torch.from_numpy for instance, reaches the trace. `workbench.hooks` gives
    the order of their axes. bfloat16 is widened to float32, which is exact.

    >>> trace = Trace(manifest, {"blocks.0.hook_resid_post": np.zeros((74, 128), "f4")})  # doctest: +SKIP
    >>> trace["resid_post", 0].shape  # doctest: +SKIP
    (74, 128)

    The arrays given here are not copied: do not change them afterwards. An array that `manifest.tensors` does not list
    counts as recorded in a forward pass. Raises ArgumentError if an array differs from its entry in `manifest.tensors`.

    A copy of a trace is the trace itself. The pickle of a loaded trace contains its path and its hash.
    """

    __slots__ = ("_arrays", "_manifest")

    def __init__(self, manifest: Manifest, arrays: Mapping[str, np.ndarray]):
        check_type("Trace", manifest, Manifest)
        self._arrays: StoredArrays | dict[str, Original]
        if not isinstance(arrays, StoredArrays):
            check_type("Trace", arrays, Mapping)
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    raise ArgumentTypeError(f"arrays[{shown(name)}] must be an array of numpy, got {shown(array)}.")
            table = tensor_table(manifest.tensors, table_of(arrays))
            for name, info in manifest.tensors.items():
                if (info.dtype, info.shape) != (table[name].dtype, table[name].shape):
                    raise ArgumentError(
                        f"{name!r} is {table[name].dtype} {list(table[name].shape)}; "
                        f"the manifest has {info.dtype} {list(info.shape)}"
                    )
            manifest = replace(manifest, tensors=table)
            self._arrays = {name: Original(array) for name, array in arrays.items()}
        else:
            self._arrays = arrays
        self._manifest = manifest

    def __copy__(self) -> Self:
        """The trace itself: nothing in it can be changed."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self):
        """Pickled as its path if it is on disk, otherwise as its numbers and their hashes, which unpickling checks."""
        if isinstance(self._arrays, StoredArrays):
            return _of_stored, (self._arrays,)
        own = {name: held.array for name, held in self._arrays.items()}
        arrays = {name: (entry, raw(own[name]).tobytes()) for name, entry in table_of(own).items()}
        hashes = {name: sha256(data).hexdigest() for name, (_, data) in arrays.items()}
        return _of_bytes, (self._manifest, arrays, hashes)

    # The run.

    @property
    def manifest(self) -> Manifest:
        """All about the run except its arrays: model, settings, tokens, messages, edits, notes, checks."""
        return self._manifest

    @property
    def id(self) -> str:
        """32 hex digits, equal for every run of the same spec."""
        return self._manifest.id

    @property
    def status(self) -> str:
        """ "complete", or "partial" if the run was stopped."""
        return self._manifest.status

    @property
    def tokens(self) -> list[int]:
        """The token ids of the whole text: the prompt and what was generated."""
        return list(self._manifest.tokens)

    @property
    def str_tokens(self) -> list[str]:
        """The text of each token, unescaped: use `workbench.text` to show it."""
        return list(self._manifest.str_tokens)

    @property
    def vocab_text(self) -> dict[int, str]:
        """token id -> text, for the tokens of the text and those among the top predictions."""
        predicted = {int(token): text for token, text in self._manifest.vocab_text.items()}
        return predicted | dict(zip(self._manifest.tokens, self._manifest.str_tokens, strict=True))

    @property
    def spans(self) -> list[Span]:
        """The harmony messages in order, each with its role, channel and token positions (start, stop, content)."""
        return list(self._manifest.spans)

    @property
    def prompt_length(self) -> int:
        """The number of tokens of the prompt. Of those after it, `written_by("model")` gives the model's own."""
        return self._manifest.prompt_length

    @property
    def written(self) -> list[Stretch]:
        """Who wrote which tokens: stretches (start, stop, who) in order; who is "prompt", "model" or a tool's name."""
        return list(self._manifest.written)

    def written_by(self, who: str) -> np.ndarray:
        """The positions of the tokens that `who` wrote (int64): "prompt", "model", or a tool such as "functions.calc".

        >>> own = trace.written_by("model")
        >>> int(own[0]) == trace.prompt_length, bool(trace["logprob"][own].sum() <= 0)
        (True, True)

        Raises ArgumentError for a writer that this text does not have; "prompt" and "model" may have written nothing.
        """
        return positions_by(self._manifest.written, who)

    @property
    def calls(self) -> list[Call]:
        """The calls of the model to tools in this run: tool, arguments, result, positions, times, error."""
        return list(self._manifest.calls)

    @property
    def follows(self) -> str | None:
        """The id of the trace that this one continues, such as that of the previous question; None if there is none."""
        return self._manifest.follows

    @property
    def took(self) -> dict[str, Any] | None:
        """What the run took: "seconds", "phases" (name: seconds) and more; None if it was not measured."""
        return deepcopy(self._manifest.took)

    @property
    def config(self) -> dict[str, Any]:
        """The shape of the model: n_layers, d_model, n_heads, … Raises NotRecorded for a key that it lacks."""
        config = self._manifest.model["config"]
        return _Config({name: list(value) if isinstance(value, list) else value for name, value in config.items()})

    @property
    def edits(self) -> list[dict[str, Any]]:
        """The edits: glob, function, positions, points, n_calls, n_changed_calls, n_positions, relative_change."""
        return deepcopy(self._manifest.edits)

    @property
    def verification(self) -> list[dict[str, Any]]:
        """The checked identities: identity, status ("holds", "fails", "not checked"), max_error, tolerance, reason."""
        return deepcopy(self._manifest.verification)

    @property
    def verified(self) -> bool:
        """True if at least one identity was checked and none of them fails."""
        states = {line["status"] for line in self._manifest.verification}
        return "holds" in states and "fails" not in states

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self._manifest.tokens)

    def text(
        self, channel: str | None = None, *, role: str | None = None, turn: int | Literal["all"] | None = None
    ) -> str:
        """The text of one turn's messages on a channel or of a role, joined; without arguments, of all tokens.

        `turn` is 0 for the first question and its answer, -1 for the last, or "all". With a channel or a role, the
        default is the last turn: `channel="final"` is the answer of this run, `channel="analysis"` the thoughts that
        led to it. Tool calls and their results are not on a channel; a `role` includes them. Without channel and role,
        the text includes every token of the turn, headers too.

        >>> trace.text(channel="final")  # doctest: +SKIP
        'c = 14'
        >>> trace.text(role="user", turn=0)  # doctest: +SKIP
        'What is 7+8?'

        Raises NotRecorded if there is no such turn, ArgumentError for a channel or role that neither harmony nor a
        message has.
        """
        pieces, spans = self._manifest.str_tokens, self._manifest.spans
        if channel is not None:
            check_message_name("channel", channel, spans)
        if role is not None:
            check_message_name("role", role, spans)
        if channel is None and role is None:
            if turn is None or turn == "all":
                return "".join(pieces)
            messages = selected_turns(spans, turn)[0].messages
            return "".join("".join(pieces[message.start : message.stop]) for message in messages)
        return "".join(
            "".join(pieces[message.content])
            for one in selected_turns(spans, -1 if turn is None else turn)
            for message in (one.messages if channel is None or role else one.on(channel))
            if channel in (None, message.channel) and role in (None, message.role)
        )

    @property
    def question(self) -> str:
        """The text of the last message of the user; '' if there is none.

        >>> trace.question
        'What is 247+138?'
        """
        of_user = [span for span in self._manifest.spans if span.role == "user"]
        return "".join(self._manifest.str_tokens[of_user[-1].content]) if of_user else ""

    @property
    def answer(self) -> str:
        """The text of the final message, `trace.text(channel="final")`; '' if there is none.

        >>> trace.answer
        'It is 385.'
        """
        return self.text(channel="final")

    def find(self, text: str) -> list[slice]:
        """The slices of positions whose tokens cover `text`, one for each place where it occurs, in order.

        Upper and lower case differ, and places do not overlap. The whole text is searched, the prompt and what was
        generated; a token of which the text takes only a part is included. An empty list means that it does not occur.

        >>> trace.find("138"), trace.str_tokens[trace.find("138")[0]]
        ([slice(17, 20, None)], ['1', '3', '8'])

        Raises ArgumentError for an empty text.
        """
        return occurrences(self._manifest.str_tokens, text)

    # The arrays.

    def names(self) -> list[str]:
        """The full names of all arrays, in the order of the forward pass, then the summaries."""
        return recorded_names.ordered_names(self._manifest)

    def __contains__(self, key: object) -> bool:
        try:
            recorded_names.find(self._manifest, key)
        except (LookupError, ArgumentTypeError):
            return False
        return True

    def __getitem__(self, key: Key) -> np.ndarray:
        """The array of a hook point or summary, or of a hook point in one layer.

        Raises NotRecorded if this trace does not hold it, SelectionError if the model has no such layer, HookNameError
        if no hook point has that name; and, for a trace on disk, TraceCorrupt or TraceUnsafe if its bytes were changed
        since they were written.
        """
        own, held = self._own(key)
        return locked(own.astype(np.float32, order="C")) if own.dtype in _NARROW else _private(own, held)

    def raw(self, key: Key) -> np.ndarray:
        """The same array in its recorded dtype: bfloat16 stays bfloat16 (of `ml_dtypes`)."""
        return _private(*self._own(key))

    def array(self, name: str, layer: int | None = None) -> "xr.DataArray":
        """`trace[name]` or `trace[name, layer]` as a labeled array, which the views and figures label themselves.

        Its axes are named as in `workbench.hooks`. Positions have their tokens as the coordinate `text` (of `pos`),
        `query_text` or `key_text`. `attrs` has `long_name`, `units`, `n` (the number of tokens), `trace`, `model`,
        `source` and, for one layer, `layer`.

        >>> entropy = trace.array("entropy")
        >>> entropy.dims, entropy.attrs["units"], entropy["text"].values[12:15].tolist()
        (('pos',), 'nats', [' ', '2', '4'])
        >>> trace.array("sink", 3).dims
        ('head', 'query')

        Raises what `trace[name]` raises.
        """
        key = name if layer is None else (name, layer)
        full, index, stacks = recorded_names.find(self._manifest, key)
        axes = self._manifest.tensors[full[0]].axes
        axes = ("layer", *axes) if stacks else axes[index is not None :]
        attrs = {"trace": self.id, "model": self._manifest.model["name"], "source": self.source(key)}
        if layer is not None:
            attrs["layer"] = resolve_layer(layer, self._manifest.model["config"]["n_layers"])
        return labeled(full[0], self[key], axes, self._manifest.str_tokens, attrs)

    def _ipython_key_completions_(self) -> list[Key]:
        """The keys for which there is an array, for `trace["<Tab>`."""
        return keys(self.names(), self._manifest.model["config"]["n_layers"])

    def layers(self, name: str) -> tuple[int, ...]:
        """The layers in which a hook point was recorded. In some models, for example, only some layers have experts.

        >>> trace.layers("expert_indices")  # doctest: +SKIP
        (0, 1, 2, 3, 4, 5)

        Raises NotRecorded if it was not recorded in any layer, HookNameError if no hook point has that name.
        """
        point = hooks.full_name(name)
        if "*" not in point:
            raise HookNameError(f"{visible(name)!r} is one array without a layer axis; use trace[{visible(name)!r}]")
        return tuple(recorded_names.layers_of(self._manifest, point))

    def source(self, key: Key) -> str:
        """The origin of the array: "forward", "live", "replay" or "derived"; joined by commas if layers differ."""
        return sources(self._manifest, recorded_names.find(self._manifest, key)[0])

    def save(self, path: os.PathLike[str] | str, *, overwrite: bool = False) -> Path:
        """The absolute path of the folder to which the trace was written. It is written completely or not at all.

        If the same trace is already at `path`, nothing happens. If another trace is there, `overwrite=True` replaces
        it once the new one is complete; arrays that were not yet read from the old one are then gone. Anything but a
        trace is never replaced: TraceExists.

        >>> trace.save("traces/first")  # doctest: +SKIP
        PosixPath('/home/me/traces/first')
        """
        write = exchange.replace if check_flag("overwrite", overwrite) else writer.write
        if isinstance(self._arrays, StoredArrays):
            return write(path, self._manifest, self._arrays)
        return write(path, self._manifest, {name: held.array for name, held in self._arrays.items()})

    # Text and notebook output.

    def __repr__(self) -> str:
        manifest = self._manifest
        requested_first = sorted(self.names(), key=lambda name: hooks.point_of(name) in hooks.ALWAYS_RECORDED)
        short_names = list(dict.fromkeys(visible(hooks.short_name(name)) for name in requested_first))
        contents = ", ".join(short_names[:4]) + (", …" if len(short_names) > 4 else "")
        size = f"{len(self)} tokens, {manifest.model['config']['n_layers']} layers"
        size += ", partial" if manifest.status == "partial" else ""
        trust = visible(state(manifest))
        return f"<Trace {visible(manifest.model['name'])}: {size}; {trust}; {contents or 'no arrays'}>"

    def _ipython_display_(self) -> None:
        """Shows the compact score sheet in a notebook; elsewhere `repr` is shown."""
        upward(__name__, "workbench.views.score_sheet_view").compact(self)._ipython_display_()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        score_sheet = upward(__name__, "workbench.views.score_sheet_view").compact(self)
        return score_sheet._repr_mimebundle_(include, exclude)

    def summary(self) -> str:
        """Several lines of text: the run, the recorded arrays, and whether the trace verifies."""
        return summary(self._manifest, self.names())

    def _own(self, key: Key) -> tuple[np.ndarray, Original | None]:
        """The trace's own array for a key, or a new one of stacked layers; and its Original, if it is all of that."""
        full, layer, stacks = recorded_names.find(self._manifest, key)
        if not stacks:
            held = self._arrays[full[0]]
            if layer is None and isinstance(held, Original):
                return held.array, held
            own = _array(held)
            return (own if layer is None else own[layer]), None
        if len({self._manifest.tensors[name].shape for name in full}) > 1:
            raise NotRecorded(
                f"{key!r} does not have the same shape in every layer, so the layers cannot be stacked. "
                f"Select one: trace[{key!r}, 0]."
            )
        return np.stack([_array(self._arrays[name]) for name in full]), None


class _Config(dict[str, Any]):
    """The config of a model. Traces of other libraries, and those made by hand, may lack a key that gpt-oss has."""

    def __missing__(self, key: str) -> NoReturn:
        raise NotRecorded(
            f"the config of this trace's model has no {visible(key)!r}, which this needs. "
            f"It has: {visible(', '.join(self))}."
        )


def load(path: os.PathLike[str] | str) -> Trace:
    """The trace in the folder at `path`. Only the manifest is read now; each array is read on first access.

    Every array is compared with its hash. A damaged trace is a typed error and never a wrong number. The trace reads
    from `path` as long as it is used. It may be used from several threads.

    >>> load("traces/first")  # doctest: +SKIP
    <Trace pocket: 74 tokens, 4 layers; verified (9 identities); resid_post, pattern, sink, logprob, …>

    Raises TraceNotFound if there is no trace, TraceCorrupt if it is damaged, TraceUnsafe if a part of it is a
    symlink, a FIFO, a device or over the size limit, TraceVersion if it has another schema.
    """
    stored = StoredArrays(path)
    return Trace(stored.manifest, stored)


def _of_stored(stored: StoredArrays) -> Trace:
    return Trace(stored.manifest, stored)


def _of_bytes(
    manifest: Manifest, arrays: dict[str, tuple[tuple[str, tuple[int, ...]], bytes]], hashes: dict[str, str]
) -> Trace:
    """A trace from its pickle. Its arrays are views of bytes, so nothing can make them writable."""
    arrays_by_name = {}
    for name, ((dtype, shape), data) in arrays.items():
        if sha256(data).hexdigest() != hashes[name]:
            raise TraceCorrupt(f"the bytes of {name!r} do not match their hash: the pickle is damaged")
        arrays_by_name[name] = from_raw(np.frombuffer(data, np.uint8), dtype, shape)
    return Trace(manifest, arrays_by_name)


def own_array(trace: Trace, key: Key) -> np.ndarray:
    """The same numbers as `trace[key]`, not copied: for functions that neither change the array nor return it."""
    own = own_raw(trace, key)
    return own.astype(np.float32) if own.dtype in _NARROW else own


def own_raw(trace: Trace, key: Key) -> np.ndarray:
    """The same numbers as `trace.raw(key)`, not copied: for functions that neither change the array nor return it."""
    return trace._own(key)[0]


def _array(held: Original | np.ndarray) -> np.ndarray:
    return held.array if isinstance(held, Original) else held


def _private(own: np.ndarray, held: Original | None) -> np.ndarray:
    """A copy for a caller who may do anything to it; stacked layers are one already."""
    if held is not None:
        return held.private_copy()
    return locked(own if own.flags.writeable else own.copy(order="C"))
