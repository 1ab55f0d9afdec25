"""A worker in its own process, which takes requests in JSON lines over stdin: see benchmarks.peers_full."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress


class WorkerEnded(Exception):
    """A worker ended or failed. The text has the reason and the request: "ended by signal 11 (SIGSEGV) while loading".

    `stderr` is the end of what the worker printed.
    """

    def __init__(self, reason: str, stderr: str):
        super().__init__(reason)
        self.stderr = stderr


class Child:
    """A worker; `child(request, …)` sends a request and returns the reply.

    Raises WorkerEnded if the process ends, also while it loads, and if the reply is an error. The process has then
    ended.
    """

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None):
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed with the child)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | (environment or {}),
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._reply("loading")

    def __call__(self, do: str, **more) -> dict:
        with suppress(BrokenPipeError):  # the process has ended, which _reply reports
            self.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self.stdin.flush()
        return self._reply(do)

    def _reply(self, request: str) -> dict:
        line = self.stdout.readline()
        reply = json.loads(line) if line else {}
        if line and "error" not in reply:
            return reply
        self._end()
        self.errors.seek(0)
        stderr = self.errors.read()[-2000:]
        self.errors.close()
        reason = f"failed with {reply['error']}" if line else ending(self.process.returncode)
        raise WorkerEnded(f"{reason} while {'loading' if request == 'loading' else f'running {request!r}'}", stderr)

    def close(self) -> None:
        self._end()
        self.errors.close()

    def _end(self) -> None:
        """Waits for the process, which ends when its stdin does."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.process.wait()
        self.stdout.close()


def ending(status: int) -> str:
    """How a process with this exit status ended.

    >>> ending(-11), ending(3)
    ('ended by signal 11 (SIGSEGV)', 'ended with code 3')
    """
    if status >= 0:
        return f"ended with code {status}"
    try:
        return f"ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:  # a signal without a name, as most real-time signals
        return f"ended by signal {-status}"
