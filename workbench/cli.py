"""The `workbench` command: each subcommand calls one public function with plain arguments and prints what it gives.

Looking at a trace (info, show, verify) loads no torch. Exit codes: 0 all is well; 1 an error that workbench can name;
2 wrong usage; 3 the numbers cannot be trusted; 130 interrupted.
"""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workbench as wb
from workbench.checks import require
from workbench.errors import PromptError, TraceCorrupt, TraceError, TraceExists, TraceUnsafe, WorkbenchError
from workbench.paths import expanded
from workbench.text import visible

if TYPE_CHECKING:
    from workbench.traces import Trace

ERROR, USAGE, UNVERIFIED, INTERRUPTED = 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; `arguments` are those of the shell unless given."""
    _any_character(sys.stdout, sys.stderr)
    given = parser().parse_args(arguments)
    try:
        return given.run(given)
    except WorkbenchError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  the interpreter flushes it on its way out
        return 0
    except OSError as error:
        return _fail(f"{visible(str(error.filename or ''))}: {error.strerror}" if error.strerror else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """All commands, their options and their help."""
    top = argparse.ArgumentParser(
        prog="workbench",
        description="See how gpt-oss thinks: record a run, look at it, check it.",
        epilog="Exit codes: 0 all is well, 1 an error, 2 wrong usage, 3 numbers not to be trusted, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"workbench {wb.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    c = _command(commands, "trace", trace, "ask a model, let it think and answer, and record what goes on inside")
    _asking(c)
    c.add_argument(
        "-o", "--output", metavar="PATH", help="where the trace goes; must not exist (default: a new name here)"
    )
    c.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    c.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this mass (default: 1)")
    c.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    _as_json(c, "where the trace is and what was said")

    c = _command(commands, "resume", resume, "go on with a trace that an interrupt left, as if there had been none")
    c.add_argument("path", metavar="PATH", help="the folder of a partial trace")
    c.add_argument("--model", help="where the model that wrote it is (default: by the name in the trace)")
    c.add_argument(
        "-o", "--output", metavar="PATH", help="where the whole trace goes; must not exist (default: a new name here)"
    )
    _as_json(c, "where the trace is and what was said")

    c = _command(commands, "info", info, "say what a trace is, what it holds, and whether it can be trusted")
    c.add_argument("path", metavar="PATH", help="the folder of a trace")
    _as_json(c, "the manifest")

    c = _command(commands, "show", show, "write a trace as one HTML page that needs no network and no server")
    c.add_argument("path", metavar="PATH", help="the folder of a trace")
    c.add_argument("-o", "--output", metavar="PAGE", help="the page (default: a new name here, after the trace)")

    c = _command(commands, "verify", verify, "read traces whole: every byte against its hash, every number's identity")
    c.add_argument("paths", metavar="PATH", nargs="+", help="the folders of traces")
    _as_json(c, "what was found")

    c = _command(commands, "estimate", estimate, "say how large a trace would be, before it is made")
    _asking(c)
    _as_json(c, "the sizes in bytes")

    c = _command(commands, "figures", figures, "make the figures of the docs again, or say whether they would change")
    c.add_argument("names", metavar="NAME", nargs="*", help="the figures (default: all of the folder)")
    c.add_argument("--check", action="store_true", help="write nothing; code 3 if other numbers or bytes come out")
    c.add_argument("--folder", metavar="FOLDER", default="docs/figures", help="the scripts (default: docs/figures)")
    c.add_argument("-o", "--output", metavar="FOLDER", help="where pictures go (default: out, beside the scripts)")
    _as_json(c, "what became of each")

    c = _command(commands, "doctor", doctor, "say what this machine has, and which gpt-oss fits it")
    _as_json(c, "the same, sizes in bytes,")

    c = _command(commands, "synth", synth, "write random weights in the published layout: to try a machine without any")
    c.add_argument("folder", metavar="FOLDER", help="where they go; must not exist, or be empty")
    c.add_argument("--like", required=True, choices=("20b", "120b"), help="13.8 GB or 65.2 GB")
    c.add_argument("--layers", type=int, metavar="N", help="only the first N (default: all)")
    c.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    c.add_argument("--tokenizer", metavar="FOLDER", help="copies tokenizer.json from there (default: none)")

    c = _command(commands, "lab", lab, "start JupyterLab, without its calls home")
    c.add_argument("rest", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="goes to JupyterLab as it is")
    return top


def _command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    made.set_defaults(run=run)
    return made


def _asking(c: argparse.ArgumentParser) -> None:
    c.add_argument("prompt", metavar="PROMPT", help='the question; "-" reads it from standard input')
    c.add_argument(
        "--model", default="pocket", help='"pocket", a folder, or a name in the hub\'s cache (default: pocket)'
    )
    c.add_argument("--record", default="auto", help="presets and hook points, with commas between (default: auto)")
    c.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="at most so many are written (default: 1024)"
    )
    c.add_argument("--reasoning", choices=("low", "medium", "high"), help="the effort (default: the model's own)")
    c.add_argument("--system", metavar="TEXT", help="who the model is told to be")
    c.add_argument("--developer", metavar="TEXT", help="instructions that come before the question")


def _as_json(c: argparse.ArgumentParser, what: str) -> None:
    c.add_argument("--json", action="store_true", help=f"print {what} as JSON")


# The commands.


def trace(given: argparse.Namespace) -> int:
    """The command `workbench trace`; gives its exit code."""
    asked = _question(given)
    return _recorded(
        given,
        _stem(given.prompt),
        lambda: wb.trace(
            asked,
            model=given.model,
            record=given.record.replace(",", " "),
            max_tokens=given.max_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            seed=given.seed,
            reasoning=given.reasoning,
        ),
    )


def resume(given: argparse.Namespace) -> int:
    """The command `workbench resume`; gives its exit code."""
    left = wb.load(given.path)
    stem = f"{expanded(given.path).resolve().name.removesuffix('.trace')}-resumed"
    return _recorded(given, stem, lambda: wb.resume(left, model=given.model))


def _recorded(given: argparse.Namespace, stem: str, run: Callable[[], "Trace"]) -> int:
    """Runs, and writes the trace that it gives, or that an interrupt leaves of it.

    A place that cannot be written is refused before the run. If writing fails all the same, say because the disk is
    full by then, the answer is printed and the trace goes where temporary files do, before the error is raised.
    """
    target = expanded(given.output) if given.output else _free(stem, ".trace")
    if os.path.lexists(target):
        raise TraceExists(f"{visible(str(target))} is there already. Give another path with -o.")
    from workbench.traces import check_writable

    check_writable(target)
    stopped = False
    try:
        made = run()
    except KeyboardInterrupt as interrupt:
        made = getattr(interrupt, "trace", None)
        if made is None:
            raise
        stopped = True
    where, failure = _saved(made, target)
    if given.json:
        said = {channel: made.text(channel=channel) for channel in ("analysis", "final")}
        _print_json(_about(made, where) | said)
    else:
        for channel in ("analysis", "final"):
            if text := made.text(channel=channel):
                print(f"{channel}:\n{visible(text, newline=chr(10))}\n")
        print(made)
        print(f"written to {visible(str(where))}" if where else "not written")
    if failure:
        raise failure
    if stopped:
        if made.status == "partial":
            print(
                f"interrupted: {visible(str(where))} is partial, it ends where you stopped it. Go on with:\n"
                f"  workbench resume {_quoted(target)}{_model_of(given, made)}",
                file=sys.stderr,
            )
        return INTERRUPTED
    return UNVERIFIED if any(line["status"] == "fails" for line in made.verification) else 0


def _saved(made: "Trace", target: Path) -> tuple[Path | None, TraceError | None]:
    """Where the trace was written, and what went wrong if that is not `target`."""
    try:
        return made.save(target), None
    except TraceError as error:
        try:
            elsewhere = made.save(Path(tempfile.mkdtemp(prefix="workbench-")) / target.name)
        except (TraceError, OSError):
            return None, error
        return elsewhere, type(error)(f"{error} The trace is at {elsewhere} instead; move it before it is cleaned up.")


def info(given: argparse.Namespace) -> int:
    """The command `workbench info`; gives its exit code."""
    opened = wb.load(given.path)
    if given.json:
        _print_json(_about(opened, given.path) | {"manifest": opened.manifest.to_json()})
    else:
        print(opened.summary())
    return 0


def show(given: argparse.Namespace) -> int:
    """The command `workbench show`; gives its exit code."""
    from workbench.views import score_sheet

    target = given.output or _free(expanded(given.path).resolve().name.removesuffix(".trace"), ".html")
    page = score_sheet(wb.load(given.path)).to_html(target)
    print(f"written to {visible(str(page))}")
    return 0


def verify(given: argparse.Namespace) -> int:
    """The command `workbench verify`; gives its exit code."""
    found = [_verified(path) for path in given.paths]
    if given.json:
        _print_json(found)
    else:
        for one in found:
            state = "holds" if one["ok"] else "FAILS"
            print(f"{state}: {visible(one['path'])}: {one['tensors']} tensors, {one['bytes']:,} bytes read")
            for problem in one["problems"]:
                print(f"  {visible(problem)}")
            for line in one["identities"]:
                worst = (
                    ""
                    if line["max_error"] is None
                    else f" (worst {line['max_error']:.2g}, tolerance {line['tolerance']:.2g})"
                )
                print(f"  {line['status']}: {visible(line['identity'])}{worst}")
    return 0 if all(one["ok"] for one in found) else UNVERIFIED


def _verified(path: str) -> dict[str, Any]:
    """Bytes first; numbers only if the bytes are those that were written."""
    from workbench.traces import verify as verify_bytes

    try:
        report = verify_bytes(path)
    except (TraceCorrupt, TraceUnsafe) as error:
        return {"path": path, "ok": False, "tensors": 0, "bytes": 0, "problems": [str(error)], "identities": []}
    problems, identities = [str(problem) for problem in report.problems], []
    try:
        identities = _identities(wb.load(path)) if report.ok else []
    except (LookupError, ValueError, TypeError) as error:  # the hashes say who wrote it, not that it makes sense
        problems.append(f"its numbers cannot be checked, they are not those of a gpt-oss run: {error!r}")
    return {
        "path": path,
        "ok": not problems and all(line["status"] != "fails" for line in identities),
        "tensors": report.tensors,
        "bytes": report.bytes,
        "problems": problems,
        "identities": identities,
    }


def _identities(trace: "Trace") -> list[dict[str, Any]]:
    """What the numbers say now; what only the model could tell, as it was found when the trace was recorded."""
    then = {line["identity"]: line for line in trace.verification}
    found = []
    for line in wb.verify(trace):
        before = then.get(line["identity"], line)
        if line["status"] == "not checked" and before["status"] != "not checked":
            line = before | ({"status": "held when recorded"} if before["status"] == "holds" else {})
        found.append(line)
    return found


def estimate(given: argparse.Namespace) -> int:
    """The command `workbench estimate`; gives its exit code."""
    told = wb.estimate(
        _question(given),
        model=given.model,
        record=given.record.replace(",", " "),
        max_tokens=given.max_tokens,
        reasoning=given.reasoning,
    )
    if given.json:
        _print_json({"bytes": told.bytes, "memory": told.memory, "fits": told.fits, "by_name": told.by_name})
    else:
        print(told)
    return 0


def figures(given: argparse.Namespace) -> int:
    """The command `workbench figures`; gives its exit code."""
    from workbench.figures.remaking import check, renew

    folder = expanded(given.folder)
    out = expanded(given.output) if given.output else folder / "out"
    found = []
    for verdict in check(folder, given.names) if given.check else renew(folder, out, given.names):
        found.append(verdict)
        if not given.json:
            print(visible(f"{verdict.state}: {verdict.name}{f': {verdict.why}' if verdict.why else ''}"), flush=True)
    if given.json:
        _print_json([{"name": one.name, "state": one.state, "why": one.why} for one in found])
    elif not given.check:
        print(f"written to {visible(str(out))}")
    return 0 if not given.check or all(one.ok for one in found) else UNVERIFIED


def doctor(given: argparse.Namespace) -> int:
    """The command `workbench doctor`; gives its exit code."""
    report = wb.doctor()
    if given.json:
        _print_json(report.to_json())
    else:
        print(visible(str(report), newline="\n"))
    return 0


def synth(given: argparse.Namespace) -> int:
    """The command `workbench synth`; gives its exit code."""
    where = wb.synth(given.like, given.folder, layers=given.layers, seed=given.seed, tokenizer=given.tokenizer)
    print(f"written to {visible(str(where))}")
    return 0


def lab(given: argparse.Namespace) -> int:
    """The command `workbench lab`; gives its exit code."""
    require("jupyterlab", extra="lab")
    quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container one is root, and JupyterLab would refuse
        quiet.append("--allow-root")
    rest = given.rest[1:] if given.rest[:1] == ["--"] else given.rest
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *quiet, *rest])


# What they share.


def _question(given: argparse.Namespace) -> Any:
    text = sys.stdin.read().strip() if given.prompt == "-" else given.prompt
    if not text:
        raise PromptError('the prompt is empty. Give a question, or "-" and the question on standard input')
    if given.system is None and given.developer is None:
        return text
    return wb.chat(text, reasoning=given.reasoning, system=given.system, developer=given.developer)


def _about(made: "Trace", where: os.PathLike | str | None) -> dict[str, Any]:
    return {
        "path": None if where is None else os.fspath(where),
        "id": made.id,
        "status": made.status,
        "verified": made.verified,
        "tokens": len(made),
        "generated": len(made) - made.prompt_length,
    }


def _model_of(given: argparse.Namespace, made: "Trace") -> str:
    """The option that finds the model again, where its name alone would not."""
    known = given.model in (None, made.manifest.model["name"])
    return "" if known else f" --model {_quoted(given.model)}"


def _quoted(word: os.PathLike | str) -> str:
    """A word for a shell, safe to show."""
    return visible(shlex.quote(os.fspath(word)))


def _stem(prompt: str) -> str:
    """A file name that reminds of a question: its first words."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower())[:5])[:40] or "first"


def _free(stem: str, suffix: str) -> Path:
    """A name in the current folder that nothing has yet."""
    names = (Path(f"{stem}{f'-{n}' if n > 1 else ''}{suffix}") for n in range(1, 1_000_000))
    return next(path for path in names if not os.path.lexists(path))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))  # ASCII only: nothing in it can act on a terminal


def _any_character(*streams: Any) -> None:
    """A terminal that cannot show a character gets its number, not a crash."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str) -> int:
    print(f"workbench: {visible(message, newline=chr(10))}", file=sys.stderr)
    return ERROR


if __name__ == "__main__":
    sys.exit(main())
