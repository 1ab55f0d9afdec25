"""Renders a chat template of a stranger in a process of its own, with bounded time, memory and output.

A template is a program: `{% for a in range(99999) %}{% for b in range(99999) %}` never ends, and `'a' * 10**10` takes
all memory. Both happen inside one call of jinja, where nothing can stop them but the end of a process. The process
imports jinja and nothing else, starts with the first template and serves all later ones, one after the other, in about
a millisecond each. It is started again after a template that exceeded a limit, and ends with this process.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from workbench.conversation import jinja_environment
from workbench.errors import PromptError
from workbench.text import size_text, visible

SECONDS = 5  # for one chat; long chats get more
SECONDS_PER_MEGABYTE = 1
MEMORY = 1 << 30
MEMORY_PER_BYTE = 40  # of the chat, as JSON
MAX_OUTPUT = 16 << 20  # and ten times the chat
LENGTH = 8  # bytes before each message between the processes that say its length
SHOWN = 500  # characters of an error of a template

# Without the current folder and without PYTHONPATH; jinja2 may be somewhere else than in site-packages.
_START = """
import runpy, sys
sys.path += sys.argv[2:]
runpy.run_path(sys.argv[1])["serve"]()
"""


class TemplateProcess:
    """The process that renders templates, and this process's end of its pipes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def rendered(self, template: str, inputs: list[dict[str, Any]], plain: str = "") -> list[str]:
        """As `jinja_environment.rendered`. Raises PromptError if the template fails, or exceeds a limit."""
        chat = json.dumps([template, inputs, plain]).encode()
        limits = {"memory": MEMORY + MEMORY_PER_BYTE * len(chat), "output": MAX_OUTPUT + 10 * len(chat)}
        limits["seconds"] = seconds = SECONDS + SECONDS_PER_MEGABYTE * len(chat) // 1_000_000
        with self._lock:
            reply = self._reply(json.dumps(limits).encode(), chat, seconds)
        if reply is None:
            raise PromptError(
                f"the model's chat template has not rendered this chat after {seconds} s, or needs more memory than "
                f"{size_text(limits['memory'])}. Set model.template to another template, or pass token ids."
            )
        outcome = json.loads(reply)
        if "error" in outcome:
            raise template_error(outcome["error"])
        return outcome["texts"]

    def _reply(self, limits: bytes, chat: bytes, seconds: int) -> bytes | None:
        """What the process answers; None if it did not end in time, or was killed."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            for message in (limits, chat):
                process.stdin.write(len(message).to_bytes(LENGTH, "big") + message)
            process.stdin.flush()
            length = process.stdout.read(LENGTH)
            reply = process.stdout.read(int.from_bytes(length, "big")) if len(length) == LENGTH else b""
            if reply and len(reply) == int.from_bytes(length, "big"):
                return reply
            self.close()
            return None
        except BrokenPipeError:
            self.close()
            return None
        except BaseException:  # Ctrl-C: the answer to this chat must not become that of the next one
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        folders = {str(Path(package.__file__ or "").parents[1]) for package in (jinja2, markupsafe)}
        command = [sys.executable, "-I", "-c", _START, jinja_environment.__file__, *sorted(folders)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process
            )
        except (OSError, ValueError) as error:
            raise PromptError(
                f"the process that renders chat templates cannot be started: {error}. Pass token ids instead."
            ) from None
        return self._process

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # a request that was not sent to its end
                pipe.close()  # type: ignore[union-attr]


def template_error(reason: str) -> PromptError:
    """The error for a template that failed."""
    shown = visible(reason[:SHOWN], "\n")
    return PromptError(f"the model's chat template cannot render this chat: {shown or 'it gives no reason'}")


def _after_fork() -> None:
    """A forked process has its parent's pipes, and must not use them: it starts a process of its own."""
    global strangers
    strangers = TemplateProcess()


strangers = TemplateProcess()
atexit.register(lambda: strangers.close())
os.register_at_fork(after_in_child=_after_fork)
