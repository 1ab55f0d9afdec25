"""Continuous batching: several texts are generated in the same passes, and enter and leave between two passes.

prefixes.py  which beginnings several prompts share: each is read once, and its cache is copied for the texts after it
batching.py  the passes: the new tokens of all texts beside each other, then the next token of each
many.py      `Model.generate_many`: a Trace of each text when it is finished
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.batch import BatchRow
from workbench.model.interrupts import Interrupt
from workbench.model.prefill import CHUNK_POSITIONS
from workbench.recording.decoding import Decoding, choose_tokens
from workbench.recording.prefixes import Prefix, shared_prefixes
from workbench.taps import Tap

MAX_ROWS = 64  # texts that are generated together


@dataclass(frozen=True, eq=False)
class Job:
    """A text to generate: its prompt, and how its Decoding is made."""

    number: int  # of the prompt
    prompt: Sequence[int]
    start: Callable[[Sequence[int]], Decoding]  # for these tokens: the prompt, or a beginning of it
    nbytes: int  # of memory while it is generated
    sharing: Hashable  # prompts with the same value may share a beginning; None: with no other prompt


class GuardedTap(Tap):
    """The tap of one row. An exception in it is stored, and ends this row only: the pass goes on for the others."""

    def __init__(self, tap: Tap):
        self.tap = tap
        self.error: Exception | None = None
        self._reads: dict[str, bool] = {}

    def wants(self, name: str) -> bool:
        return self.tap.wants(name)

    def reads(self, name: str) -> bool:
        if name not in self._reads:
            self._reads[name] = self.tap.reads(name)
        return self._reads[name] and self.error is None

    def begin(self, start: int, n: int) -> None:
        self.tap.begin(start, n)

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if self.error is not None:
            return x
        try:
            return self.tap(name, x, offset)
        except Exception as error:
            self.error = error
            return x

    def pattern_rows(self, prefix: str):
        return self.tap.pattern_rows(prefix)


class Row:
    """A text of a batch; or a shared prefix, which is only read."""

    def __init__(self, job: Job, tokens: Sequence[int], after: Prefix | None):
        self.job, self.tokens, self.after = job, tokens, after
        self.decoding: Decoding | None = None  # None until the prefix before it has been read
        self.tap = GuardedTap(Tap())
        self.finish_reason: str | None = None
        self.error: Exception | None = None

    def start(self, before: Decoding | None) -> None:
        """Starts with the positions of `before`, or with none."""
        self.decoding = self.job.start(self.tokens)
        if before is not None:
            self.decoding.start_after(before)
        self.tap = GuardedTap(self.decoding.tap)

    @property
    def has_new_tokens(self) -> bool:
        return self.decoding is not None and self.decoding.has_new_tokens

    @property
    def is_read(self) -> bool:
        """Whether all tokens are processed."""
        return self.decoding is not None and not self.error and not self.decoding.has_new_tokens

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def started(self) -> Decoding:
        assert self.decoding is not None, "its prefix has not been read"
        return self.decoding


class Batch:
    """Generates the texts of several jobs, of which `max_rows` and `max_bytes` are in progress at a time.

    A text's tokens and recorded values are those of a generation alone, bit for bit, if the products of the model do
    not depend on the number of rows.
    """

    def __init__(self, jobs: Sequence[Job], max_rows: int = MAX_ROWS, max_bytes: float = float("inf")):
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.rows: list[Row] = []  # in progress
        self.ended: deque[Row] = deque()  # finished or failed, and not taken yet
        self.n_tokens = 0  # generated
        self._waiting, self._readers = deque[Row](), dict[Prefix, Row]()
        self._enqueue(jobs)

    @property
    def is_done(self) -> bool:
        return self.n_left == 0

    @property
    def n_left(self) -> int:
        """The number of texts that were not taken from `ended`."""
        return len(self._waiting) + len(self.rows) + len(self.ended)

    def begun(self) -> list[Row]:
        """The texts that were begun and not taken from `ended`."""
        return [row for row in (*self.ended, *self.rows) if row.decoding is not None]

    def advance(self, flag: Interrupt, between_passes: Callable[[], None] = lambda: None) -> None:
        """Runs passes until `ended` has a text. `flag` ends a pass at its next hook point."""
        with torch.no_grad():
            while not self.ended and not self.is_done:
                self._admit()
                self._start()
                self._run(self._in_pass(), flag)
                self._release_prefixes()
                self._choose(flag)
                self.ended.extend(row for row in self.rows if row.has_ended)
                self.rows = [row for row in self.rows if not row.has_ended]
                between_passes()

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        """Puts the jobs in the order in which they enter, with the prefixes that they share."""
        places: dict[int, tuple[int, int]] = {}
        prefix_of: dict[int, Prefix | None] = {}
        groups: dict[Hashable, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(("alone", i) if job.sharing is None else ("sharing", job.sharing), []).append(i)
        for members in groups.values():
            order, prefixes = shared_prefixes([jobs[i].prompt for i in members])
            for place, member in enumerate(order):
                places[members[member]] = members[0], place
                prefix_of[members[member]] = prefixes[member]
        for i in sorted(places, key=places.__getitem__):
            self._waiting.append(Row(jobs[i], jobs[i].prompt, prefix_of[i]))

    def _admit(self) -> None:
        """Lets texts enter while there is room, and begins to read the prefixes that they need."""
        while self._waiting and len(self.rows) < self.max_rows:
            row = self._waiting[0]
            in_use = sum(other.job.nbytes for other in self.rows)
            if self.rows and in_use + row.job.nbytes > self.max_bytes:
                return
            self.rows.append(row)
            self._waiting.popleft()
            for prefix in reversed(row.after.path if row.after else []):
                if prefix in self._readers:  # and the shorter ones were there for it
                    break
                self._readers[prefix] = Row(row.job, row.tokens[: prefix.length], prefix.parent)

    def _start(self) -> None:
        """Starts the rows whose prefix has been read."""
        for row in (*self._readers.values(), *self.rows):
            if row.decoding is not None or row.error:
                continue
            if row.after is None:
                row.start(None)
                continue
            reader = self._readers[row.after]
            row.error = reader.error
            if reader.is_read:
                row.start(reader.decoding)
            if reader.is_read or reader.error:
                row.after.n_users -= 1

    def _in_pass(self) -> list[Row]:
        """The rows of the next pass: all that decode, and of the others about CHUNK_POSITIONS positions."""
        chosen, n_positions = [], 0
        for row in (*self._readers.values(), *self.rows):
            if not row.has_new_tokens or row.has_ended:
                continue
            n = len(row.started.next_chunk())
            if n == 1 or n_positions == 0 or n_positions + n <= CHUNK_POSITIONS:
                chosen.append(row)
                n_positions += n if n > 1 else 0
        return chosen

    def _run(self, rows: Sequence[Row], flag: Interrupt) -> None:
        """One pass over the new tokens of the rows."""
        if not rows:
            return
        parts, tokens = [], []
        for row in rows:
            text, new = row.started, row.started.next_chunk()
            span = len(tokens), len(tokens) + len(new)
            parts.append(BatchRow(*span, row.tap, text.cache, text.next_token.logits_at))
            tokens += new
        results = rows[0].started.source.run_rows(torch.tensor(tokens), parts, flag)
        for row, part, logits in zip(rows, parts, results, strict=True):
            row.error = row.tap.error
            if row.error is None:
                row.started.processed(part.stop - part.start, logits)

    def _release_prefixes(self) -> None:
        self._readers = {prefix: row for prefix, row in self._readers.items() if prefix.n_users}

    def _choose(self, flag: Interrupt) -> None:
        """The next token of each text whose tokens are all processed, unless it is finished."""
        ready = []
        for row in self.rows:
            if row.is_read:
                row.finish_reason = row.started.finish_reason()
                if not row.finish_reason:
                    ready.append(row)
        for row, token in zip(ready, choose_tokens([row.started for row in ready], flag), strict=True):
            if isinstance(token, Exception):
                row.error = token
            else:
                row.started.append(token)
                self.n_tokens += 1
