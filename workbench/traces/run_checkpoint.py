"""The partial trace of a run in progress, on disk: it can be loaded at every moment, also after the process was killed.

Each save writes new part files, then replaces the manifest by one that names them, and then removes the old ones.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from workbench.errors import TraceError
from workbench.files import atomic_write, sync
from workbench.paths import SCRATCH_BYTES, absolute
from workbench.signals import shielded
from workbench.traces.format import table_of, write_part
from workbench.traces.manifest import Chunk, Manifest, TensorInfo, tensor_table
from workbench.traces.reader import MANIFEST, encode_manifest
from workbench.traces.untrusted_files import show
from workbench.traces.writer import MAX_PARTS, part_name, split, write

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class RunCheckpoint:
    """The partial trace of a run that will be written to `target`: the folder `<target>.partial` beside it.

    If something is at that path already, such as the partial trace of an earlier run, it is `<target>.partial-2`, ….
    """

    def __init__(self, target: Path):
        self.target = absolute(target)
        self.path: Path | None = None  # once there is one
        self._parts: list[str] = []
        self._n_parts = 0  # written so far

    def save(self, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> Path:
        """Writes the trace, in place of the one of the last call. Raises TraceError if the disk fails; that one stays.

        While it is written, signals are only noted.
        """
        table = tensor_table(manifest.tensors, table_of(arrays))
        with shielded():
            if self.path is None:
                self.path = write(_unused(self.target), replace(manifest, tensors=table), arrays)
                self._parts = [part_name(i) for i in range(len(split(table_of(arrays))))]
                self._n_parts = len(self._parts)
                return self.path
            new: list[str] = []
            try:
                written = self._write_parts(self.path, arrays, table, new)
                atomic_write(self.path / MANIFEST, encode_manifest(replace(manifest, tensors=written)))
            except (OSError, TraceError) as error:
                self._remove(self.path, new)
                if isinstance(error, TraceError):
                    raise
                why = error.strerror or str(error)
                raise TraceError(f"the partial trace at {show(self.path)} could not be updated: {why}") from error
            old, self._parts = self._parts, new
            self._remove(self.path, old)
            return self.path

    def remove(self) -> None:
        """Removes the partial trace: the run is complete."""
        if self.path is not None:
            path, self.path = self.path, None
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that no moment shows a damaged trace
            shutil.rmtree(path, ignore_errors=True)

    def _write_parts(
        self, folder: Path, arrays: Mapping[str, np.ndarray], table: Mapping[str, TensorInfo], new: list[str]
    ) -> dict[str, TensorInfo]:
        """Writes the arrays into new parts, whose names it appends to `new`; the table of tensors with their chunks."""
        written = {}
        for names in split(table_of(arrays)):
            part = part_name(self._n_parts % MAX_PARTS)
            self._n_parts += 1
            fd = os.open(folder / part, _NEW, 0o666)
            new.append(part)
            try:
                hashes = write_part(fd, {name: arrays[name] for name in names})
            finally:
                os.close(fd)
            written |= {
                name: replace(table[name], chunks=(Chunk(part, table[name].shape, hashes[name]),)) for name in names
            }
        sync(folder)
        return written

    def _remove(self, folder: Path, parts: list[str]) -> None:
        for part in parts:
            with suppress(OSError):
                (folder / part).unlink()


def _unused(target: Path) -> Path:
    """The first name beside `target` at which nothing is. A long name is cut, so that it stays valid."""
    name = target.name
    if len(os.fsencode(name)) > 2 * SCRATCH_BYTES:
        name = os.fsencode(name)[: 2 * SCRATCH_BYTES].decode("utf-8", "ignore")
    for number in count(1):
        path = target.parent / f"{name}.partial{'' if number == 1 else f'-{number}'}"
        if not os.path.lexists(path):
            return path
    raise AssertionError("unreachable")
