"""Brings the index of a store up to date with its folder: reads what is new or changed, forgets what is gone.

Work that is interrupted continues with the next call, because rows are added in batches. Several processes may do it at
the same time.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import TraceError
from workbench.progress import progress_bar
from workbench.stores import scores
from workbench.stores.folder import OBJECTS, Listing, changed_at, id_in, listing, signature
from workbench.stores.index import Index
from workbench.stores.row import Row, row
from workbench.traces.listing import one_line
from workbench.traces.reader import StoredArrays

BATCH = 200  # traces that are added to the index at once
MAX_PROBLEM = 500  # characters


def catch_up(index: Index, *, every_manifest: bool) -> None:
    """Reads the traces and scores that the index lacks.

    With `every_manifest`, all folders are listed and the signature of every manifest is compared; otherwise only the
    folders whose names changed, which takes less than a millisecond if none did.
    """
    known = index.folders()
    if every_manifest or "" not in known:
        _apply(index, list(_all_listings(index.root)), known, index.all_signatures())
    else:
        changed = [path for path, before in known.items() if not before or before != changed_at(index.root, path)]
        if changed:
            found = list(_changed_listings(index.root, changed, known))
            _apply(index, found, {folder: known[folder] for folder in changed}, None)
    add_scores(index)


def add_scores(index: Index, *, all_lines: bool = False) -> None:
    """Reads the lines of the file of scores that the index lacks, or all of them."""
    there = scores.signature(index.root)
    if all_lines or index.score_file() != there:
        index.put_scores(lambda start, tail: scores.read(index.root, *((0, "") if all_lines else (start, tail))), there)


def read_again(index: Index, paths: list[str]) -> None:
    """Reads traces whose manifests were changed or removed."""
    by_folder: dict[str, dict[str, str]] = {}
    for path in paths:
        by_folder.setdefault(path.rpartition("/")[0], {})[path] = signature(index.root, path)
    for folder, signatures in by_folder.items():
        gone = [path for path, there in signatures.items() if not there and not os.path.lexists(index.root / path)]
        index.remove(gone)
        _read(index, [(folder, path, there) for path, there in signatures.items() if path not in gone])


def _all_listings(root: Path) -> Iterator[Listing]:
    waiting = [""]
    while waiting:
        found = listing(root, waiting.pop())
        waiting += found.folders
        yield found


def _changed_listings(root: Path, changed: list[str], known: dict[str, int]) -> Iterator[Listing]:
    """The folders of these names, and new ones inside them."""
    waiting, done = list(changed), set()
    while waiting:
        folder = waiting.pop()
        if folder not in done:
            done.add(folder)
            found = listing(root, folder)
            waiting += [inside for inside in found.folders if inside not in known]
            yield found


def _apply(
    index: Index, found: list[Listing], known: dict[str, int], signatures: dict[str, dict[str, str]] | None
) -> None:
    """Makes the rows of these folders what they should be. `known` are the folders that this may forget."""
    to_read: list[tuple[str, str, str]] = []
    gone: list[str] = []
    for each in found:
        before = index.signatures(each.folder) if signatures is None else signatures.get(each.folder, {})
        to_read += [(each.folder, path, now) for path, now in each.traces.items() if before.get(path) != now]
        gone += [path for path in before if path not in each.traces]
    listed = {each.folder for each in found}
    if signatures is not None:
        gone += [path for folder, paths in signatures.items() if folder not in listed for path in paths]
    # Another process may have added it since the folder was listed.
    index.remove([path for path in gone if not os.path.lexists(index.root / path)])
    _read(index, to_read)
    lost = [folder for folder in known if folder not in listed or changed_at(index.root, folder) == -1]
    there = {each.folder: each.changed for each in found if each.changed != -1}
    index.put_folders({path: changed for path, changed in there.items() if known.get(path) != changed}, lost)


def _read(index: Index, traces: list[tuple[str, str, str]]) -> None:
    """Adds the rows of these traces, given as (folder, path, signature)."""
    batch: list[tuple[str, str, Row]] = []
    for folder, path, now in progress_bar(traces, "indexing traces", unit=" traces"):
        try:
            batch.append((folder, now, read_row(index.root, path)))
        except TraceError as error:
            if os.path.lexists(index.root / path):
                index.put_problem(folder, now, path, one_line(str(error), MAX_PROBLEM))
        if len(batch) == BATCH:
            index.put(batch)
            batch = []
    if batch:
        index.put(batch)


def read_row(root: Path, path: str) -> Row:
    """The row of the trace at a path of the store.

    Raises TraceError if it cannot be read, or if the store wrote it for another id.
    """
    manifest = StoredArrays(root / path).manifest
    expected = id_in(path)
    if expected is not None and manifest.id != expected:
        raise TraceError(f"the folder {OBJECTS}/…/{expected} contains the trace {manifest.id}: it was moved or forged")
    return row(path, manifest)
