"""Checks a store: every manifest, the bytes and identities of a sample of its traces, and the file of scores."""

import random
from dataclasses import dataclass

from workbench.errors import TraceError
from workbench.progress import progress_bar
from workbench.stores import scores
from workbench.stores.catch_up import add_scores, catch_up
from workbench.stores.index import Index
from workbench.text import size_text, visible
from workbench.traces import load, verification
from workbench.traces.reader import StoredArrays, verify

SHOWN = 20  # problems in the text of a report


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The result of `store.verify`: how much was read, and the problems in it.

    >>> report = StoreReport(traces=3, verified=2, bytes=1_500, problems=(("a.trace", "manifest.json is missing"),))
    >>> print(report)
    3 traces; 2 verified (1.5 kB): every byte matches its hash, and no identity fails
    1 problem:
      a.trace: manifest.json is missing
    """

    traces: int  # that can be read
    verified: int  # of them: every byte matches its hash, and no identity fails
    bytes: int  # of the arrays of these
    problems: tuple[tuple[str, str], ...]  # (path in the store, what is wrong)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        n = len(self.problems)
        lines = [
            f"{self.traces:,} traces; {self.verified:,} verified ({size_text(self.bytes)}): every byte matches its "
            f"hash, and no identity fails"
        ]
        if n:
            lines.append(f"{n:,} {'problem' if n == 1 else 'problems'}:")
        lines += [f"  {visible(path)}: {problem}" for path, problem in self.problems[:SHOWN]]
        return "\n".join(lines + ([f"  and {n - SHOWN:,} more"] if n > SHOWN else []))


def checked(index: Index, sample: int | None, seed: int) -> StoreReport:
    """The report on a store. `sample` is how many traces are read in full; None for all."""
    catch_up(index, every_manifest=True)
    add_scores(index, all_lines=True)
    problems: list[tuple[str, str]] = index.rows("SELECT path, problem FROM problems ORDER BY path")
    for (position,) in index.rows("SELECT position FROM damaged_scores ORDER BY position"):
        problems.append((scores.FILE, f"the line at byte {position} is damaged, so its score does not count"))
    problems += _with_other_content(index)
    paths = [path for (path,) in index.rows("SELECT path FROM traces ORDER BY path")]
    chosen = paths if sample is None else sorted(random.Random(seed).sample(paths, min(sample, len(paths))))
    n_verified = n_bytes = 0
    for path in progress_bar(chosen, "verifying traces", unit=" traces"):
        found, size = _problems_of(index, path)
        problems += [(path, problem) for problem in found]
        n_verified += not found
        n_bytes += 0 if found else size
    return StoreReport(len(paths), n_verified, n_bytes, tuple(problems))


def _problems_of(index: Index, path: str) -> tuple[list[str], int]:
    """What is wrong with a trace, and how many bytes were read."""
    try:
        report = verify(index.root / path)
        if not report.ok:
            return [str(problem) for problem in report.problems], report.bytes
        lines = verification.verify(load(index.root / path))
    except TraceError as error:
        return [str(error)], 0
    except (LookupError, ValueError, TypeError) as error:  # matching hashes do not imply that the numbers make sense
        return [f"the identities cannot be checked, because the arrays are not those of a run: {error!r}"], 0
    return [f"this identity fails: {line['identity']}" for line in lines if line["status"] == "fails"], report.bytes


def _with_other_content(index: Index) -> list[tuple[str, str]]:
    """A problem for each id that several traces have, unless their contents are the same."""
    problems = []
    query = "SELECT id FROM traces GROUP BY id HAVING count(*) > 1 ORDER BY id"
    for (trace_id,) in index.rows(query):
        paths = paths_of(index, trace_id)
        if not same_content(index, paths):
            problems.append((paths[0], f"{', '.join(paths[1:])} has the same id ({trace_id[:8]}) and other content"))
    return problems


def paths_of(index: Index, trace_id: str) -> list[str]:
    """The paths of the traces with an id; that of the store's own is first."""
    query = "SELECT path FROM traces WHERE id = ? ORDER BY path NOT GLOB 'objects/*', path"
    return [path for (path,) in index.rows(query, (trace_id,))]


def same_content(index: Index, paths: list[str]) -> bool:
    """Whether traces have the same content: a copy, or the same run again. One that cannot be read has other content.

    Parts of arrays count as content here: the hash of each part is in the manifest, so no array is read.
    """
    try:
        return len({StoredArrays(index.root / path).manifest.content_hash for path in paths}) == 1
    except TraceError:
        return False
