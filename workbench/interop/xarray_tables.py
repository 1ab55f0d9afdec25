"""A trace as one xarray Dataset, which can be written to zarr and netCDF and read back, and as pandas tables.

No number is rounded and no name changed. Texts are as the model wrote them, in data, where nothing executes them
(display them through `workbench.text`). A Dataset carries its manifest with the hash of every array, as a folder does.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import hooks
from workbench.checks import check_choice, check_texts, check_type, require
from workbench.errors import ArgumentError, NotRecorded, TraceCorrupt
from workbench.files import atomic_path
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Chunk, Trace
from workbench.traces.authorship import writer_of_each
from workbench.traces.format import DTYPES, raw
from workbench.traces.reader import decode_manifest, encode_manifest
from workbench.traces.steps import steps
from workbench.units import labels

if TYPE_CHECKING:
    import pandas as pd

PART = "part-00000.safetensors"  # the file that the arrays would be in if the trace were a folder


def to_xarray(trace: Trace, names: str | Iterable[str] | None = None) -> xr.Dataset:
    """A trace as one Dataset: a variable for each hook point and summary, with the axes that `workbench.hooks` names.

    A hook point recorded in every layer is one variable under its short name (`resid_post`: layer pos d_model). One
    recorded in only some layers is a variable for each layer, under its full name. `names` selects them, short or full;
    by default all except the state that an interrupted generation keeps for `resume`. Where an axis has several
    lengths, the longest has the axis's name and the others the name with their length (`rank` and `rank_5`). bfloat16
    is widened to float32. The coordinates `token`, `text`, `writer`, `role` and `channel` are those of each `pos`.
    `attrs` summarize the run. The variable `manifest` is the whole manifest in bytes, from which `from_xarray` restores
    the trace.

    >>> data = to_xarray(trace, ["resid_post", "logprob"])
    >>> data["resid_post"].dims, data["logprob"].attrs["units"], data.attrs["trace"] == trace.id
    (('layer', 'pos', 'd_model'), 'nats', True)

    `data.to_zarr(path, consolidated=False)` and `data.to_netcdf(path)` write it (extra: [export]). netCDF cannot hold a
    NUL, so in `text`, `role`, `channel` and `attrs` it is written as ␀ (U+2400). Nothing is lost, because the manifest
    has the exact texts.

    Raises NotRecorded or HookNameError for a name that the trace does not hold.
    """
    check_type("to_xarray", trace, Trace)
    requested = _requested(trace, names)
    n_layers = trace.config["n_layers"]
    points: dict[str, list[str]] = {}
    for name in requested:
        points.setdefault(hooks.point_of(name), []).append(name)
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for point, members in points.items():
        infos = [trace.manifest.tensors[name] for name in members]
        if "*" in point and len(members) == n_layers and len({(i.shape, i.dtype, i.source) for i in infos}) == 1:
            arrays[hooks.short_name(point)] = ("layer", *infos[0].axes), np.stack([trace[name] for name in members])
        else:
            arrays |= {name: (info.axes, trace[name]) for name, info in zip(members, infos)}
    longest: dict[str, int] = {}
    for axes, array in arrays.values():
        for axis, size in zip(axes, array.shape):
            longest[axis] = max(size, longest.get(axis, 0))
    data: dict[str, Any] = {}
    for name, (axes, array) in arrays.items():
        dims = [axis if size == longest[axis] else f"{axis}_{size}" for axis, size in zip(axes, array.shape)]
        data[name] = (dims, array, _attributes(trace, name))
    infos = {}
    for name in requested:
        info = trace.manifest.tensors[name]
        infos[name] = replace(info, chunks=(Chunk(PART, info.shape, _hash(trace.raw(name))),))
    data["manifest"] = "byte", np.frombuffer(encode_manifest(replace(trace.manifest, tensors=infos)), np.uint8)
    role, channel = _roles_and_channels(trace)
    coords = {
        "pos": np.arange(len(trace)),
        "token": ("pos", np.array(trace.tokens, np.int64)),
        "text": ("pos", _texts(trace.str_tokens)),
        "writer": ("pos", _texts(writer_of_each(trace.written))),
        "role": ("pos", _texts(role)),
        "channel": ("pos", _texts(channel)),
    }
    if "layer" in longest:
        coords["layer"] = np.arange(longest["layer"])
    attrs = {
        key: value.replace("\0", "␀") if isinstance(value, str) else value for key, value in _provenance(trace).items()
    }
    return xr.Dataset(data, coords, attrs)


def from_xarray(data: xr.Dataset) -> Trace:
    """The trace that `to_xarray` exported, from memory, zarr or netCDF: the arrays in the Dataset, bit for bit.

    >>> restored = from_xarray(to_xarray(trace))
    >>> restored.id == trace.id, bool((restored["resid_post", 3] == trace["resid_post", 3]).all())
    (True, True)

    Raises TraceCorrupt if a number differs from the recorded one or an array was cut, ArgumentError for a Dataset that
    does not hold a trace.
    """
    check_type("from_xarray", data, xr.Dataset, "to_xarray")
    if "manifest" not in data or data["manifest"].dtype != np.uint8:
        raise ArgumentError("this Dataset holds no trace: the variable `manifest`, which to_xarray writes, is missing.")
    manifest = decode_manifest(data["manifest"].values.tobytes())
    arrays: dict[str, np.ndarray] = {}
    for name, info in manifest.tensors.items():
        short, layer = hooks.short_name(hooks.point_of(name)), hooks.layer_of(name)
        if name in data:
            array = data[name].values
        elif layer is not None and short in data and layer in data["layer"].values:
            array = data[short].sel(layer=layer).values
        else:
            continue
        if array.shape != info.shape:
            raise TraceCorrupt(f"{visible(name)} has shape {list(array.shape)}, not {list(info.shape)}: it was cut")
        array = np.asarray(array, dtype=DTYPES[info.dtype], order="C")
        if _hash(array) != info.chunks[0].sha256:
            raise TraceCorrupt(f"{visible(name)} is not what was recorded: its numbers were changed or damaged")
        arrays[name] = array
    tensors = {name: replace(manifest.tensors[name], chunks=()) for name in arrays}
    return Trace(replace(manifest, tensors=tensors), arrays)


def to_pandas(trace: Trace, what: str = "tokens") -> "pd.DataFrame":
    """A table of a trace. `what` is one of:

    `tokens`: a row for each position (token, text, whether the model generated it, its writer, role, channel, step,
    logprob, entropy)
    `steps`: the steps of the chain of thought (start, stop, tokens, kind, text)
    `messages`: the messages, with their spans and texts
    `predictions`: the most likely next tokens (pos rank: token, text, logprob)
    `routing`: the chosen experts (layer pos choice: expert, weight, logit)
    `layers`: all summaries over (layer pos)

    Log-probabilities and entropies are in nats; `attrs` summarize the run.

    >>> to_pandas(trace, "routing").columns.tolist()
    ['layer', 'pos', 'choice', 'expert', 'weight', 'logit']

    Raises ArgumentError for another value of `what`.
    """
    import pandas as pd

    check_type("to_pandas", trace, Trace)
    check_choice("what", what, list(TABLES))
    table = pd.DataFrame(TABLES[what](trace))
    if "step" in table:
        table["step"] = table["step"].astype("Int64")  # nullable: not every token is in a step
    table.attrs.update(_provenance(trace))
    return table


def to_parquet(trace: Trace, what: str, path: os.PathLike[str] | str) -> Path:
    """Writes a table of `to_pandas` as Parquet and returns the path. It replaces a file in full or not at all.

    `pandas.read_parquet` restores it with its `attrs`; polars, DuckDB and R read it as well.

    >>> to_parquet(trace, "tokens", "tokens.parquet")  # doctest: +SKIP
    PosixPath('tokens.parquet')

    Raises ArgumentError for another value of `what`, MissingDependency without pyarrow, FileError if the file cannot be
    written.
    """
    path = expanded(path)
    table = to_pandas(trace, what)
    require("pyarrow", extra="export")
    with atomic_path(path) as beside:
        table.to_parquet(beside, index=False)
    return path


# The tables: name of a column -> its values.

Columns = dict[str, Any]


def _tokens(trace: Trace) -> Columns:
    role, channel = _roles_and_channels(trace)
    step_of_token: list[int | None] = [None] * len(trace)
    for number, step in enumerate(steps(trace)):
        step_of_token[step.start : step.stop] = [number] * len(step)
    return {
        "pos": np.arange(len(trace)),
        "token": trace.tokens,
        "text": trace.str_tokens,
        "generated": np.isin(np.arange(len(trace)), trace.written_by("model")),
        "writer": writer_of_each(trace.written),
        "role": role,
        "channel": channel,
        "step": step_of_token,
        **{name: trace[name] for name in ("logprob", "entropy") if name in trace},
    }


def _steps(trace: Trace) -> Columns:
    all_steps = steps(trace)
    return {
        "step": np.arange(len(all_steps)),
        "start": [step.start for step in all_steps],
        "stop": [step.stop for step in all_steps],
        "tokens": [len(step) for step in all_steps],
        "kind": [step.kind for step in all_steps],
        "text": [step.text for step in all_steps],
    }


def _messages(trace: Trace) -> Columns:
    fields = (
        "start",
        "stop",
        "content_start",
        "content_stop",
        "role",
        "channel",
        "recipient",
        "author",
        "content_type",
    )
    columns = {name: [getattr(span, name) for span in trace.spans] for name in fields}
    columns["complete"] = [span.complete for span in trace.spans]
    str_tokens = trace.str_tokens
    columns["text"] = ["".join(str_tokens[span.content]) for span in trace.spans]
    return {"message": np.arange(len(trace.spans)), **columns}


def _predictions(trace: Trace) -> Columns:
    ids = np.asarray(trace["top_ids"])
    vocab_text = trace.vocab_text
    columns = _long(("pos", "rank"), ids.shape)
    token = ids.ravel()
    texts = [vocab_text.get(int(i)) for i in token]
    return columns | {"token": token, "text": texts, "logprob": np.asarray(trace["top_logprobs"]).ravel()}


def _routing(trace: Trace) -> Columns:
    experts = np.asarray(trace["expert_indices"])
    columns = _long(("layer", "pos", "choice"), experts.shape) | {"expert": experts.ravel()}
    for column, name in (("weight", "expert_weights"), ("logit", "router_logits")):
        if name in trace:
            columns[column] = np.take_along_axis(np.asarray(trace[name]), experts, -1).ravel()
    return columns


def _layers(trace: Trace) -> Columns:
    summaries = [name for name, axes in hooks.SUMMARIES.items() if axes == ("layer", "pos") and name in trace]
    if not summaries:
        raise NotRecorded("this trace holds no summary over (layer pos), such as margin or resid_norm")
    columns = _long(("layer", "pos"), trace[summaries[0]].shape)
    return columns | {name: np.asarray(trace[name]).ravel() for name in summaries}


TABLES: dict[str, Callable[[Trace], Columns]] = {
    "tokens": _tokens,
    "steps": _steps,
    "messages": _messages,
    "predictions": _predictions,
    "routing": _routing,
    "layers": _layers,
}


def _long(axes: tuple[str, ...], shape: tuple[int, ...]) -> Columns:
    return dict(zip(axes, (index.ravel() for index in np.indices(shape)), strict=True))


def _roles_and_channels(trace: Trace) -> tuple[list[str | None], list[str | None]]:
    """Role and channel of every position."""
    role: list[str | None] = [None] * len(trace)
    channel = list(role)
    for span in trace.spans:
        here = slice(span.start, span.stop)
        role[here] = [span.role] * (span.stop - span.start)
        channel[here] = [span.channel] * (span.stop - span.start)
    return role, channel


def _provenance(trace: Trace) -> dict[str, Any]:
    """A summary of the run in types that netCDF and Parquet can hold: texts and whole numbers."""
    manifest = trace.manifest
    return {
        "trace": trace.id,
        "model": manifest.model["name"],
        "weights": manifest.model["weights_digest"],
        "status": manifest.status,
        "created": manifest.created,
        "record": " ".join(manifest.record),
        "prompt_length": manifest.prompt_length,
        "verified": int(trace.verified),
    }


def _texts(texts: Iterable[str | None]) -> np.ndarray:
    return np.array([(text or "").replace("\0", "␀") for text in texts], object)


def _attributes(trace: Trace, variable: str) -> dict[str, str]:
    is_short = variable not in trace.manifest.tensors  # then it holds every layer
    first = hooks.full_name(variable, 0) if is_short else variable
    info = trace.manifest.tensors[first]
    attributes = {
        "hook_point": hooks.point_of(first) if is_short else variable,
        "source": info.source,
        "dtype": info.dtype,
    }
    return attributes | labels(first)


def _requested(trace: Trace, names: str | Iterable[str] | None) -> list[str]:
    if names is None:
        return [name for name in trace.names() if hooks.point_of(name) not in hooks.GENERATION_STATE]
    requested: list[str] = []
    for word in [names] if isinstance(names, str) else check_texts("names", names):
        matching = [name for name in trace.names() if word in (name, hooks.point_of(name), hooks.short_name(name))]
        if not matching:
            trace[word]  # raises the error that says why it is missing
        requested += [name for name in matching if name not in requested]
    return requested


def _hash(array: np.ndarray) -> str:
    return sha256(raw(array)).hexdigest()
