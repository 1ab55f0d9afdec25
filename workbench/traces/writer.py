"""Writes traces: a trace appears at its path complete or not at all, and never replaces another.

Everything is written into a folder beside the target, synced to the disk, and renamed into place. `reader.py` reads it.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from workbench.errors import ArgumentError, TraceError, TraceExists, TraceNotFound
from workbench.files import sync, sync_file, write_all
from workbench.paths import absolute
from workbench.signals import shielded
from workbench.text import visible
from workbench.traces.format import MAX_TENSORS, check_shape, encode_header, raw, table_of, write_part
from workbench.traces.manifest import Chunk, Manifest, TensorInfo, first_positions, tensor_table
from workbench.traces.reader import MANIFEST, StoredArrays, encode_fields, encode_manifest
from workbench.traces.tensor_parts import joined_shape, position_axis
from workbench.traces.untrusted_files import Staging, show

_log = logging.getLogger(__name__)
NOT_DURABLE = (
    "The trace is at %s, but its file system cannot sync file names to the disk (fsync): "
    "a power cut soon after could undo it."
)
PART_BYTES = 1 << 30  # `write` starts a new part when the next tensor would make this one larger
MAX_PARTS = 100_000
MAX_PIECES = 300_000  # keeps the manifest within the reader's size limit


def write(path: os.PathLike[str] | str, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> Path:
    """The path of the complete trace that was written. If the same trace is there already, nothing is written.

    `manifest.tensors` may give the source and the axes of arrays; see `tensor_table`.

    >>> write("traces/first", manifest, {"logprob": np.zeros(74, "f4")})  # doctest: +SKIP
    PosixPath('/home/me/traces/first')

    Ctrl-C takes effect when it is written: the trace is what the user wants to keep.

    Raises TraceExists if anything else is at `path` (it is never touched), TraceError if the disk is full or cannot
    be written (nothing is left behind), ArgumentError or HookNameError for arrays that do not fit the manifest.
    """
    target = absolute(path)
    tensors = table_of(arrays)
    table = tensor_table(manifest.tensors, tensors)
    manifest = replace(manifest, tensors=table)
    existing = _existing(target, manifest)
    if existing is not None:
        _require_same(existing, manifest, arrays)
        return target
    with shielded(), TraceWriter(target, manifest) as writer:
        for names in split(tensors):
            writer.append(_Subset(arrays, {name: tensors[name] for name in names}))
        return writer.commit()


def check_writable(path: os.PathLike[str] | str) -> None:
    """Raises TraceError, before a run, if a trace could not be written to `path`. Leaves no file.

    >>> check_writable("traces/first")
    """
    target = absolute(path)
    try:
        existing = next((folder for folder in target.parents if folder.exists()), target)
        staging = Staging(existing / target.name)
        try:
            sync(staging.path)
        finally:
            staging.abort()
    except OSError as error:
        raise _failure(target, error) from error


def predicted_bytes(manifest: Manifest, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> int:
    """The exact number of bytes that `write` needs on disk for `tensors`: name -> (dtype code, shape).

    >>> predicted_bytes(manifest, {"logprob": ("F32", (74,))})  # doctest: +SKIP
    1874

    Raises what `write` raises for tensors that do not fit the manifest.
    """
    table, total = tensor_table(manifest.tensors, tensors), 0
    for number, names in enumerate(split(tensors)):
        total += len(encode_header({name: tensors[name] for name in names}))
        for name in names:
            total += table[name].nbytes
            table[name] = replace(table[name], chunks=(Chunk(part_name(number), table[name].shape, "0" * 64),))
    # not a Manifest of these tensors: before a generation, there are more positions than tokens
    planned = manifest.to_json() | {"tensors": {name: info.to_json() for name, info in table.items()}}
    return total + len(encode_fields(planned))


def split(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> list[list[str]]:
    """The names of the tensors in each part that `write` makes: in their order, up to `PART_BYTES` a part."""
    parts: list[list[str]] = []
    size = 0
    for name, entry in tensors.items():
        nbytes = check_shape(*entry)
        if not parts or size + nbytes > PART_BYTES or len(parts[-1]) == MAX_TENSORS // 2:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += nbytes
    return parts


class TraceWriter:
    """Writes a trace during the run; the trace appears at `path` when it is committed.

    >>> with TraceWriter("traces/long", manifest, keep_partial=True) as writer:  # doctest: +SKIP
    ...     writer.append(prefill, source="live")  # {"blocks.0.hook_resid_post": [pos d_model], …}
    ...     writer.append(decoded, source="live")  # the next positions; any number of them
    ...     writer.commit(finished_manifest)

    The end of the `with` block commits, unless the trace was committed or aborted before. An exception in the block
    (Ctrl-C too) leaves nothing behind. With `keep_partial`, it commits everything appended so far, with the status
    "partial" and `writer.manifest`, which you may replace during the run. Not for use from several threads.

    Raises TraceExists at once if another trace, or anything else, is at `path`; TraceError if the disk fails.
    """

    def __init__(self, path: os.PathLike[str] | str, manifest: Manifest, *, keep_partial: bool = False):
        self.path = absolute(path)
        self.manifest = manifest
        self.keep_partial = keep_partial
        self.done = False  # committed or aborted
        self._written: list[dict[str, tuple[TensorInfo, str]]] = []  # by part: the entry of each piece, and its hash
        self._whole: dict[str, TensorInfo] = {}  # the entry of each tensor so far
        self._pieces = 0
        _existing(self.path, manifest)
        try:
            self._staging = Staging(self.path)
        except OSError as error:
            raise _failure(self.path, error) from error

    def append(self, arrays: Mapping[str, np.ndarray], *, source: str | None = None) -> None:
        """Writes one part: a whole prefill, or the next positions. Arrays of a name are joined along "pos" or "query".

        `source` is "live", "replay" or "forward"; the default is the one in the manifest's table. Returns when the
        bytes are on the disk.

        Raises ArgumentError or HookNameError, before anything is written, for arrays that do not fit the earlier ones;
        TraceError if the disk is full or fails, and then the whole trace is removed.
        """
        self._must_be_open()
        if not arrays:
            return
        number = len(self._written)
        known = {name: info for name, info in self.manifest.tensors.items() if name in arrays}
        pieces = tensor_table(known, table_of(arrays), source=source)
        whole = {name: _grown(name, self._whole.get(name), piece) for name, piece in pieces.items()}
        if number >= MAX_PARTS or self._pieces + len(pieces) > MAX_PIECES:
            raise ArgumentError(
                f"a trace has at most {MAX_PARTS} parts and {MAX_PIECES} pieces: append more positions at a time."
            )
        with self._aborting_on_error():
            try:
                fd = self._staging.create(part_name(number))
                try:
                    hashes = write_part(fd, arrays)
                finally:
                    os.close(fd)
            except BaseException:
                self._staging.remove(part_name(number))
                raise
        self._whole = self._whole | whole
        self._pieces += len(pieces)
        self._written = [*self._written, {name: (piece, hashes[name]) for name, piece in pieces.items()}]

    def commit(self, manifest: Manifest | None = None, *, status: str | None = None) -> Path:
        """The path of the trace, renamed into place. `manifest` is the final manifest; the default is `self.manifest`.

        Raises TraceExists if something else is now at the path, or the same run with other numbers; TraceError if the
        disk fails. Then nothing of this trace is left.
        """
        self._must_be_open()
        final = manifest or self.manifest
        final = replace(final, tensors=self._tensors(), status=status or final.status)
        with shielded(), self._aborting_on_error():
            self._write_manifest(final)
            while True:
                existing = _existing(self.path, final)
                if existing is not None:
                    _require_same(existing, final, StoredArrays(self._staging.path))
                    self.abort()
                    return self.path
                try:
                    self._staging.commit()
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    continue  # another process was faster: check what it wrote
                self.done = True
                if not self._staging.durable:
                    _log.warning(NOT_DURABLE, show(self.path))
                return self.path

    def so_far(self) -> StoredArrays:
        """Everything appended so far, read back from the disk: to be verified before it is committed."""
        self._must_be_open()
        with self._aborting_on_error():
            self._write_manifest(replace(self.manifest, tensors=self._tensors(), status="partial"))
        return StoredArrays(self._staging.path)

    def abort(self) -> None:
        """Removes everything that was written. Does nothing after a commit."""
        if not self.done:
            self.done = True
            self._staging.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.done:
            return
        try:
            if kind is None:
                self.commit()
            elif self.keep_partial and self._written:
                self.commit(self._manifest_of_the_written(), status="partial")
        finally:
            self.abort()

    def _manifest_of_the_written(self) -> Manifest:
        """The manifest of the positions that were appended: the run was interrupted before it had written all."""
        lengths = [i.shape[a] for i in self._whole.values() if (a := position_axis(i.axes)) is not None]
        return first_positions(self.manifest, min(lengths, default=len(self.manifest.tokens)))

    def _write_manifest(self, manifest: Manifest) -> None:
        data = encode_manifest(manifest)
        fd = self._staging.create(MANIFEST)
        try:
            write_all(fd, data)
            sync_file(fd)
        finally:
            os.close(fd)

    def _tensors(self) -> dict[str, TensorInfo]:
        chunks: dict[str, list[Chunk]] = {}
        for number, part in enumerate(self._written):
            for name, (piece, digest) in part.items():
                chunks.setdefault(name, []).append(Chunk(part_name(number), piece.shape, digest))
        return {name: replace(self._whole[name], chunks=tuple(pieces)) for name, pieces in chunks.items()}

    def _must_be_open(self) -> None:
        if self.done:
            raise ArgumentError(f"the writer of {show(self.path)} is closed: it was committed or aborted")

    @contextmanager
    def _aborting_on_error(self) -> Iterator[None]:
        """Aborts the trace on an error. An OSError becomes a TraceError with the path and the reason."""
        try:
            yield
        except OSError as error:
            self.abort()
            raise _failure(self.path, error) from error
        except TraceError:
            self.abort()
            raise


def _failure(target: Path, error: OSError) -> TraceError:
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            free = f"{shutil.disk_usage(target.parent).free:,} bytes are free"
        except OSError:
            free = "the free space is unknown"
        why = f"the disk is full ({free} now)"
    return TraceError(
        f"the trace could not be written to {show(target)}: {why}. Nothing of it was left there, and no existing "
        f"file was touched."
    )


def part_name(number: int) -> str:
    """The name of the file of a part."""
    return f"part-{number:05d}.safetensors"


def _grown(name: str, before: TensorInfo | None, piece: TensorInfo) -> TensorInfo:
    """The entry of the tensor with one more piece. Raises ArgumentError if the piece does not fit."""
    if before is None:
        return piece
    for what, old, new in (
        ("dtype", before.dtype, piece.dtype),
        ("source", before.source, piece.source),
        ("axes", before.axes, piece.axes),
    ):
        if old != new:
            raise ArgumentError(f"{name!r} has the {what} {old} in earlier parts, and {new} in this one")
    try:
        return replace(before, shape=joined_shape(before.axes, [before.shape, piece.shape]))
    except ValueError as error:
        raise ArgumentError(f"{name!r}: {error}") from None


def _existing(target: Path, manifest: Manifest) -> StoredArrays | None:
    """The trace of the same run at `target`; None if nothing is there. Raises TraceExists for anything else."""
    advice = "Nothing was written. Choose another path, or move the existing one first."
    instead = f"{advice[:-1]}, or replace it: trace.save(path, overwrite=True)."
    try:
        stored = StoredArrays(target)
    except TraceNotFound:
        if not os.path.lexists(target):
            return None
        if os.path.lexists(target / MANIFEST):  # another process wrote it just now
            return _existing(target, manifest)
        if target.is_dir() and not any(target.iterdir()):
            return None
        kind = "a folder with other things in it" if target.is_dir() else "a file"
        raise TraceExists(f"{show(target)} is {kind}. {advice}") from None
    except TraceError as error:
        raise TraceExists(f"there is something at {show(target)} that cannot be read: {error}. {advice}") from error
    existing = stored.manifest
    if existing.id != manifest.id:
        raise TraceExists(
            f"another trace is at {show(target)}: {existing.id[:8]} of {visible(existing.model['name'])}, "
            f"{len(existing.tokens)} tokens; this one is {manifest.id[:8]}. {instead}"
        )
    return stored


def _require_same(existing: StoredArrays, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises TraceExists with the names of what differs, unless both traces are equal; their parts may differ."""
    old, new = existing.manifest, manifest
    old_content, new_content = old.content(), new.content()
    differ = [key for key in old_content if key != "tensors" and old_content[key] != new_content[key]]
    differ += sorted(set(old.tensors) ^ set(new.tensors))
    for name in sorted(old.tensors.keys() & new.tensors.keys()):
        if replace(old.tensors[name], chunks=()) != replace(new.tensors[name], chunks=()):
            differ.append(name)
            continue
        try:
            if raw(existing.read(name)) != raw(arrays[name]):
                differ.append(name)
        except TraceError as error:
            raise TraceExists(f"the trace at {show(existing.path)} is damaged: {error}. Move it first.") from error
    if not differ:
        return
    if "status" in differ:
        why = f"The existing one is {old.status}, this one is {new.status}."
    elif set(differ) <= {"written", "calls", "follows"}:
        why = "The numbers are equal: other things were said about the same text."
    else:
        why = "Is the run not deterministic?"
    raise TraceExists(
        f"the same run ({new.id[:8]}) is already at {show(existing.path)}, with other content: "
        f"{', '.join(differ[:5])}{', …' if len(differ) > 5 else ''}. {why} Nothing was written. "
        f"Save this one at another path to compare them, move the existing one, or replace it with "
        f"trace.save(path, overwrite=True)."
    )


class _Subset(Mapping[str, np.ndarray]):
    """Some entries of a mapping; each is looked up on access."""

    def __init__(self, arrays: Mapping[str, np.ndarray], table: dict[str, tuple[str, tuple[int, ...]]]):
        self._arrays, self._table = arrays, table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def table(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return self._table
