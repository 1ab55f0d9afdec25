"""Saves the partial trace of a streamed generation (`to=`) every minute, for the case that the process is killed."""

import logging
import time
from pathlib import Path

from workbench.errors import TraceError
from workbench.recording.decoding import Generation
from workbench.recording.resume import save_partial
from workbench.traces import RunCheckpoint, Trace

_log = logging.getLogger(__name__)
EVERY_SECONDS = 60.0
MAX_TIME_SHARE = 0.02  # a long text takes longer to save, and is then saved less often


class Checkpointing:
    """The partial trace of a generation beside `to`; without `to`, nothing is ever saved."""

    def __init__(self, generation: Generation, to: Path | None):
        self.generation = generation
        self._checkpoint = None if to is None else RunCheckpoint(to)
        self._due = float("inf") if to is None else time.monotonic() + EVERY_SECONDS

    def save_if_due(self) -> None:
        """Called between two tokens. A disk that fails is logged, and the run continues."""
        if time.monotonic() < self._due:
            return
        started = time.monotonic()
        try:
            self.save(save_partial(self.generation))
        except TraceError as error:
            _log.warning("%s. The run continues.", error)
        took = time.monotonic() - started
        self._due = time.monotonic() + max(EVERY_SECONDS, took / MAX_TIME_SHARE)

    def save_before_replay(self) -> None:
        """Called after the last token: a run of more than a minute is saved, for its replay may take minutes too."""
        if self._checkpoint is not None and self._checkpoint.path is not None:
            self._due = 0.0
        self.save_if_due()

    def save(self, trace: Trace) -> Path | None:
        """The path at which the partial trace is now; None without `to`. Raises TraceError if the disk fails."""
        if self._checkpoint is None:
            return None
        return self._checkpoint.save(trace.manifest, {name: trace.raw(name) for name in trace.names()})

    def remove(self) -> None:
        """Removes what was saved: the run is complete."""
        if self._checkpoint is not None:
            self._checkpoint.remove()
