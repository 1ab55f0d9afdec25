"""A trace for other people's tools: one xarray Dataset, which goes to zarr and netCDF and comes back; pandas tables.

Nothing is rounded, renamed or made safe on the way: texts are as the model wrote them, in data, where nothing runs them
(show them through `workbench.text`). A Dataset carries its manifest with the hash of every array, as a folder does.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import hooks as hooks
from workbench.checks import require
from workbench.errors import ArgumentError, NotRecorded, TraceCorrupt
from workbench.files import atomic_path
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Chunk, Trace
from workbench.traces.format import DTYPES, raw
from workbench.traces.reader import decode_manifest, encode_manifest
from workbench.traces.steps import steps

if TYPE_CHECKING:
    import pandas as pd

PART = "part-00000.safetensors"  # where the arrays would lie if the trace were a folder
NATS = {"logprob", "entropy", "top_logprobs", "lens_logprobs", "lens_entropy", "lens_kl"}


def to_xarray(trace: Trace, names: str | Iterable[str] | None = None) -> xr.Dataset:
    """A trace as one Dataset: a variable for each point and lane, with the axes that `workbench.hooks` gives.

    A point that every layer holds is one variable under its short name (`resid_post`: layer pos d_model); one that
    only some layers hold is a variable for each, under its full name. `names` are those to take, short or full; by
    default all but what an interrupted generation keeps to go on from. Where an axis has several lengths the longest
    keeps its name, and another is named with its length (`rank` and `rank_5`). bfloat16 is widened to float32.
    Coordinates: `token`, `text`, `role` and `channel` of each `pos`. `attrs` say what the run was, and the variable
    `manifest` says it all, in bytes: with it `from_xarray` gives the trace back.

    >>> data = to_xarray(trace, ["resid_post", "logprob"])
    >>> data["resid_post"].dims, data["logprob"].attrs["units"], data.attrs["trace"] == trace.id
    (('layer', 'pos', 'd_model'), 'nats', True)

    `data.to_zarr(path, consolidated=False)` and `data.to_netcdf(path)` write it, with the extra [export]. netCDF holds
    no text with a NUL in it: `data.drop_vars("text")` leaves out only what the manifest says as well.

    Raises NotRecorded or HookNameError for a name that the trace does not hold.
    """
    wanted = _wanted(trace, names)
    n_layers = trace.config["n_layers"]
    points: dict[str, list[str]] = {}
    for name in wanted:
        points.setdefault(hooks.point_of(name), []).append(name)
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for point, members in points.items():
        infos = [trace.manifest.tensors[name] for name in members]
        if "*" in point and len(members) == n_layers and len({(i.shape, i.dtype, i.source) for i in infos}) == 1:
            found[hooks.short_name(point)] = ("layer", *infos[0].axes), np.stack([trace[name] for name in members])
        else:
            found |= {name: (info.axes, trace[name]) for name, info in zip(members, infos)}
    longest: dict[str, int] = {}
    for axes, array in found.values():
        for axis, size in zip(axes, array.shape):
            longest[axis] = max(size, longest.get(axis, 0))
    data: dict[str, Any] = {}
    for name, (axes, array) in found.items():
        dims = [axis if size == longest[axis] else f"{axis}_{size}" for axis, size in zip(axes, array.shape)]
        data[name] = (dims, array, _about(trace, name))
    infos = {}
    for name in wanted:
        info = trace.manifest.tensors[name]
        infos[name] = replace(info, chunks=(Chunk(PART, info.shape, _hash(trace.raw(name))),))
    data["manifest"] = "byte", np.frombuffer(encode_manifest(replace(trace.manifest, tensors=infos)), np.uint8)
    role, channel = _said(trace)
    coords = {
        "pos": np.arange(len(trace)),
        "token": ("pos", np.array(trace.tokens, np.int64)),
        "text": ("pos", np.array(trace.str_tokens, object)),
        "role": ("pos", np.array([r or "" for r in role], object)),
        "channel": ("pos", np.array([c or "" for c in channel], object)),
    }
    if "layer" in longest:
        coords["layer"] = np.arange(longest["layer"])
    return xr.Dataset(data, coords, _provenance(trace))


def from_xarray(data: xr.Dataset) -> Trace:
    """The trace that `to_xarray` took: from memory, zarr or netCDF, with the arrays that are there, bit for bit.

    >>> again = from_xarray(to_xarray(trace))
    >>> again.id == trace.id, bool((again["resid_post", 3] == trace["resid_post", 3]).all())
    (True, True)

    Raises TraceCorrupt if a number differs from what was recorded or an array was cut, ArgumentError for a Dataset
    that is no trace.
    """
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
            raise TraceCorrupt(f"{visible(name)} was {list(info.shape)} and is {list(array.shape)}: it was cut")
        array = np.asarray(array, dtype=DTYPES[info.dtype], order="C")
        if _hash(array) != info.chunks[0].sha256:
            raise TraceCorrupt(f"{visible(name)} is not what was recorded: its numbers were changed, or damaged")
        arrays[name] = array
    tensors = {name: replace(manifest.tensors[name], chunks=()) for name in arrays}
    return Trace(replace(manifest, tensors=tensors), arrays)


def to_pandas(trace: Trace, what: str = "tokens") -> "pd.DataFrame":
    """A table of a trace: `what` is one of

    `tokens` (a row for each position: token, text, whether it was generated, role, channel, step, logprob, entropy),
    `steps` (of the chain of thought: start, stop, tokens, kind, text), `messages`, `predictions` (pos rank: token,
    text, logprob), `routing` (layer pos choice: expert, weight, logit) or `layers` (layer pos: all lanes of that
    shape). Log-probabilities and entropies are in nats; `attrs` say what the run was.

    >>> to_pandas(trace, "routing").columns.tolist()
    ['layer', 'pos', 'choice', 'expert', 'weight', 'logit']

    Raises ArgumentError for another table.
    """
    import pandas as pd

    if what not in TABLES:
        raise ArgumentError(f"what must be one of {', '.join(TABLES)}, got {what!r}.")
    table = pd.DataFrame(TABLES[what](trace))
    if "step" in table:
        table["step"] = table["step"].astype("Int64")  # whole numbers, where there is one
    table.attrs.update(_provenance(trace))
    return table


def to_parquet(trace: Trace, what: str, path: os.PathLike | str) -> Path:
    """Writes a table of `to_pandas` as Parquet, in place of what was there, whole or not at all; gives the path.

    `pandas.read_parquet` gives it back with its `attrs`; polars, DuckDB and R read it as well.

    >>> to_parquet(trace, "tokens", "tokens.parquet")  # doctest: +SKIP
    PosixPath('tokens.parquet')

    Raises ArgumentError for another table, MissingDependency without pyarrow.
    """
    path = expanded(path)
    table = to_pandas(trace, what)
    require("pyarrow", extra="export")
    with atomic_path(path) as beside:
        table.to_parquet(beside, index=False)
    return path


# What tables are made of: name of a column -> its values.

Columns = dict[str, Any]


def _tokens(trace: Trace) -> Columns:
    role, channel = _said(trace)
    held: list[int | None] = [None] * len(trace)
    for number, step in enumerate(steps(trace)):
        held[step.start : step.stop] = [number] * len(step)
    return {
        "pos": np.arange(len(trace)),
        "token": trace.tokens,
        "text": trace.str_tokens,
        "generated": np.arange(len(trace)) >= trace.prompt_length,
        "role": role,
        "channel": channel,
        "step": held,
        **{name: trace[name] for name in ("logprob", "entropy") if name in trace},
    }


def _steps(trace: Trace) -> Columns:
    found = steps(trace)
    return {
        "step": np.arange(len(found)),
        "start": [step.start for step in found],
        "stop": [step.stop for step in found],
        "tokens": [len(step) for step in found],
        "kind": [step.kind for step in found],
        "text": [step.text for step in found],
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
    columns["text"] = ["".join(trace.str_tokens[span.content]) for span in trace.spans]
    return {"message": np.arange(len(trace.spans)), **columns}


def _predictions(trace: Trace) -> Columns:
    ids = np.asarray(trace["top_ids"])
    words = trace.vocab_text
    columns = _long(("pos", "rank"), ids.shape)
    token = ids.ravel()
    texts = [words.get(int(i)) for i in token]
    return columns | {"token": token, "text": texts, "logprob": np.asarray(trace["top_logprobs"]).ravel()}


def _routing(trace: Trace) -> Columns:
    experts = np.asarray(trace["expert_indices"])
    columns = _long(("layer", "pos", "choice"), experts.shape) | {"expert": experts.ravel()}
    for column, name in (("weight", "expert_weights"), ("logit", "router_logits")):
        if name in trace:
            columns[column] = np.take_along_axis(np.asarray(trace[name]), experts, -1).ravel()
    return columns


def _layers(trace: Trace) -> Columns:
    lanes = [name for name, axes in hooks.SUMMARIES.items() if axes == ("layer", "pos") and name in trace]
    if not lanes:
        raise NotRecorded("this trace holds no lane of the shape (layer pos), such as margin or resid_norm")
    columns = _long(("layer", "pos"), trace[lanes[0]].shape)
    return columns | {name: np.asarray(trace[name]).ravel() for name in lanes}


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


def _said(trace: Trace) -> tuple[list[str | None], list[str | None]]:
    """Role and channel of every position."""
    role: list[str | None] = [None] * len(trace)
    channel = list(role)
    for span in trace.spans:
        here = slice(span.start, span.stop)
        role[here] = [span.role] * (span.stop - span.start)
        channel[here] = [span.channel] * (span.stop - span.start)
    return role, channel


def _provenance(trace: Trace) -> dict[str, Any]:
    """What the run was, in what netCDF and Parquet can hold: texts and whole numbers."""
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


def _about(trace: Trace, variable: str) -> dict[str, str]:
    layer = variable not in trace.manifest.tensors  # a short name: every layer's
    first = hooks.full_name(variable, 0) if layer else variable
    info = trace.manifest.tensors[first]
    about = {"hook_point": hooks.point_of(first) if layer else variable, "source": info.source, "dtype": info.dtype}
    return about | ({"units": "nats"} if variable in NATS else {})


def _wanted(trace: Trace, names: str | Iterable[str] | None) -> list[str]:
    if names is None:
        return [name for name in trace.names() if hooks.point_of(name) not in hooks.GENERATION_STATE]
    wanted: list[str] = []
    for asked in [names] if isinstance(names, str) else names:
        held = [name for name in trace.names() if asked in (name, hooks.point_of(name), hooks.short_name(name))]
        if not held:
            trace[asked]  # raises what says why
        wanted += [name for name in held if name not in wanted]
    return wanted


def _hash(array: np.ndarray) -> str:
    return sha256(raw(array)).hexdigest()
