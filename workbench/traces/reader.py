"""Reads a trace on disk: every array is compared with its hash before it is returned.

    <name>/part-00000.safetensors …   what was recorded; a part is a prefill or some decoded tokens
    <name>/manifest.json              written last, with its own hash around it

Nothing is memory-mapped: a verified array is a private copy, so it cannot change or vanish afterwards.
"""

import codecs
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from workbench.errors import TraceCorrupt, TraceError, TraceNotFound, TraceUnsafe
from workbench.paths import absolute, expanded
from workbench.traces.canonical_json import canonical, check_values, parse
from workbench.traces.format import MAX_HEADER, Slot, check_shape, from_raw, header_length, parse_header
from workbench.traces.manifest import Manifest
from workbench.traces.recorded_values import check_recorded
from workbench.traces.tensor_parts import join
from workbench.traces.untrusted_files import open_dir, open_file, read, refuse_pointer, require_memory, show

MANIFEST = "manifest.json"
MAX_MANIFEST = 64 << 20  # bytes
MAX_MANIFEST_VALUES = 3_000_000  # of JSON: 131,072 tokens and their texts, and 300,000 pieces of tensors
CACHE_BYTES = 256 << 20  # of verified arrays
_BEFORE, _BETWEEN, _AFTER = b'{"manifest":', b',"sha256":"', b'"}\n'


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json. Raises TraceUnsafe if they are too many for a reader to accept."""
    return encode_fields(manifest.to_json())


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """The same from `Manifest.to_json`, which may describe a run that is only planned."""
    body = canonical(fields)
    data = _BEFORE + body + _BETWEEN + sha256(body).hexdigest().encode() + _AFTER
    if len(data) > MAX_MANIFEST:
        raise TraceUnsafe(f"a manifest of {len(data)} bytes is over the limit of {MAX_MANIFEST}; write fewer parts")
    check_values(body, "the manifest", MAX_MANIFEST_VALUES)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in the bytes of manifest.json.

    Raises TraceCorrupt if the bytes differ from their own hash or do not describe a trace, TraceVersion for another
    schema.
    """
    body = _body(data)
    if body is None:
        refuse_pointer(MANIFEST, data)
        if _body(_with_restored_line_ends(data)) is not None:
            raise TraceCorrupt(
                f"only the line endings of {MANIFEST} were changed, as git's core.autocrlf and some editors do. To "
                f"undo it in git: run git config core.autocrlf false, delete the trace's folder, and run git checkout "
                f"-- FOLDER. To prevent it, add a line '*.trace/** -text' to .gitattributes"
            )
        raise TraceCorrupt("the manifest does not match its own hash")
    return Manifest.from_json(parse(body, "the manifest", MAX_MANIFEST_VALUES))


def _body(data: bytes) -> bytes | None:
    """The bytes that the hash in manifest.json covers; None if they have another hash."""
    body, between, end = data.removeprefix(_BEFORE).rpartition(_BETWEEN)
    matches = data.startswith(_BEFORE) and between and end == sha256(body).hexdigest().encode() + _AFTER
    return body if matches else None


def _with_restored_line_ends(data: bytes) -> bytes:
    return data.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") + b"\n"


class StoredArrays(Mapping[str, np.ndarray]):
    """The arrays of a trace on disk, in their stored dtype, read on first access, and read-only.

    May be used from several threads. Raises TraceNotFound, TraceCorrupt, TraceUnsafe or TraceVersion.
    """

    def __init__(self, path: os.PathLike[str] | str):
        self.path = absolute(path)
        with _with_path(self.path), open_dir(self.path) as folder:
            try:
                with open_file(folder, MANIFEST, MAX_MANIFEST) as (fd, size):
                    self.manifest = decode_manifest(read(fd, 0, size).tobytes())
            except TraceNotFound:
                raise TraceNotFound("the folder has no manifest.json, so it is not a trace") from None
            self._parts = _parts(self.manifest)
        self._slots: dict[str, tuple[int, dict[str, Slot]]] = {}
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self):
        """Pickled as the path and the hash of the content: see `reopened`."""
        return reopened, (str(self.path), self.manifest.content_hash)

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.tensors)

    def __len__(self) -> int:
        return len(self.manifest.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.tensors

    def __getitem__(self, name: str) -> np.ndarray:
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name]
        array = self.read(name)
        with self._lock:
            self._cache[name] = array
            while sum(cached.nbytes for cached in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return array

    def table(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """name -> (dtype code, shape), from the manifest."""
        return {name: (info.dtype, info.shape) for name, info in self.manifest.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads an array from the disk, without the cache in memory."""
        info = self.manifest.tensors[name]
        arrays = []
        with _with_path(self.path), open_dir(self.path) as folder:
            require_memory(info.nbytes)
            for part, shape, digest in info.chunks:
                with _open_part(folder, part, self._parts[part]) as (fd, size):
                    slot = self._header(fd, size, part)[name]
                    data = read(fd, slot.start, slot.stop)
                if sha256(data.data).hexdigest() != digest:
                    raise TraceCorrupt(f"the bytes of {name!r} in {part} do not match their hash")
                arrays.append(from_raw(data, info.dtype, shape))
            try:
                array = join(name, info.dtype, info.axes, arrays)
            except MemoryError:
                raise TraceUnsafe(f"{name!r} has {info.nbytes} bytes, which do not fit into memory") from None
            check_recorded(name, array, self.manifest)
            return array

    def _header(self, fd: int, size: int, part: str) -> dict[str, Slot]:
        """The place of each tensor in a part. Raises TraceCorrupt if the header and the manifest differ."""
        if self._slots.get(part, (None,))[0] != size:
            refuse_pointer(part, read(fd, 0, min(64, size)).tobytes())
            length = header_length(read(fd, 0, min(8, size)).tobytes(), size)
            slots = parse_header(read(fd, 0, length).tobytes(), size)
            if {name: (slot.dtype, slot.shape) for name, slot in slots.items()} != self._parts[part]:
                raise TraceCorrupt(f"the header of {part} and the manifest describe different tensors")
            self._slots[part] = size, slots
        return self._slots[part][1]


def reopened(path: str, content_hash: str) -> StoredArrays:
    """The trace on disk that was pickled. Raises TraceNotFound if it was moved, TraceCorrupt if another is there."""
    try:
        stored = StoredArrays(path)
    except TraceNotFound as error:
        raise TraceNotFound(
            f"{error}. The pickle of a trace on disk contains its path, not its numbers: leave the folder there, "
            f"or load the trace from its new path"
        ) from None
    if stored.manifest.content_hash != content_hash:
        raise TraceCorrupt(f"the trace at {show(path)} is not the one that was pickled; load it by its path")
    return stored


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `verify`: how much was read, and the problems in it."""

    path: Path
    tensors: int  # number of tensors with the right hash
    bytes: int  # total size of these tensors
    problems: tuple[TraceError, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        text = f"{self.tensors} tensors, {self.bytes:,} bytes, all match their hashes"
        if self.problems:
            text = (
                f"{len(self.problems)} of {self.tensors + len(self.problems)} tensors are damaged: {self.problems[0]}"
            )
        return f"{show(self.path)}: {text}"


def verify(path: os.PathLike[str] | str) -> Report:
    """A Report on a trace on disk: every tensor is compared with its hash. Damage is collected, not raised.

    >>> verify("traces/first").ok  # doctest: +SKIP
    True

    Raises what `load` raises if the manifest itself cannot be trusted: TraceNotFound, TraceCorrupt, TraceUnsafe,
    TraceVersion.
    """
    stored = StoredArrays(path)
    count = size = 0
    problems = []
    for name in stored:
        try:
            size += stored.read(name).nbytes
            count += 1
        except TraceError as error:
            problems.append(error)
    return Report(expanded(path), count, size, tuple(problems))


def _parts(manifest: Manifest) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """The tensors that each part must hold: part -> name -> (dtype code, shape)."""
    parts: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, info in manifest.tensors.items():
        if not info.chunks:
            raise TraceCorrupt(f"the manifest names no part for {name!r}")
        for chunk in info.chunks:
            parts.setdefault(chunk.file, {})[name] = info.dtype, chunk.shape
    return parts


@contextmanager
def _open_part(folder: int, part: str, table: dict[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[int, int]]:
    limit = 8 + MAX_HEADER + sum(check_shape(*entry) for entry in table.values())
    try:
        with open_file(folder, part, limit) as opened:
            yield opened
    except TraceNotFound as error:
        raise TraceCorrupt(str(error)) from None


@contextmanager
def _with_path(path: Path) -> Iterator[None]:
    """Puts the path of the trace in front of the message of a TraceError."""
    try:
        yield
    except TraceError as error:
        if show(path) in str(error):
            raise
        raise type(error)(f"{show(path)}: {error}") from error.__cause__
