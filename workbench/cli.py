"""The `workbench` command: each subcommand calls one public function and prints its result.

The commands info, show and verify do not load torch. Exit codes: 0 success; 1 an error; 2 wrong usage; 3 a trace does
not verify; 130 interrupted, 143 and 129 ended by SIGTERM and SIGHUP.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import workbench as wb
from workbench.errors import (
    FileError,
    MissingDependency,
    PromptError,
    TraceCorrupt,
    TraceError,
    TraceExists,
    TraceUnsafe,
    WorkbenchError,
)
from workbench.files import kind_of, make_folder
from workbench.paths import absolute, expanded
from workbench.shipped_notebooks import copy_notebooks
from workbench.signals import shielded
from workbench.text import printable, visible

if TYPE_CHECKING:
    from workbench.traces import Trace

ERROR, USAGE, UNVERIFIED = 1, 2, 3
LOADING = ("device", "dtype", "memory")
OVERWRITE = "replace a trace that is at the path of --output, once the new one is complete"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command; `arguments` default to those of the shell."""
    _escape_unencodable(sys.stdout, sys.stderr)
    try:
        try:
            args = parser().parse_args(arguments)
            return args.run(args)
        finally:
            sys.stdout.flush()  # what is still buffered fails here, where the error is handled, and not at exit
    except WorkbenchError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader closed the pipe
        _discard_unwritable_output()
        return 0
    except OSError as error:
        _discard_unwritable_output()  # on a full disk
        named = isinstance(error.filename, str | bytes)
        place = visible(os.fsdecode(error.filename)) if named else "reading or writing failed"
        return _fail(f"{place}: {error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        return _interrupt_code(interrupt)


class Parser(argparse.ArgumentParser):
    """A parser whose errors have no control characters: they repeat arguments, such as names of files."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parser() -> argparse.ArgumentParser:
    """All commands, their options and their help."""
    top = Parser(
        prog="workbench",
        description="Interpretability of gpt-oss: record a run, inspect it, verify it.",
        epilog="Exit codes: 0 success, 1 an error, 2 wrong usage, 3 a trace does not verify, 130 interrupted (143 and "
        "129: by SIGTERM and SIGHUP).",
    )
    top.add_argument("--version", action="version", version=f"workbench {wb.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    c = _command(commands, "trace", trace, "ask a model a question and record how it answers")
    _add_prompt_arguments(c)
    c.add_argument("-o", "--output", metavar="PATH", help="path of the new trace (default: a new name here)")
    c.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    c.add_argument("--temperature", type=float, default=0.0, help="0 is greedy decoding (default: 0)")
    c.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the most likely tokens whose probabilities sum to this (default: 1)",
    )
    c.add_argument("--seed", type=int, default=0, help="random seed of the sampling (default: 0)")
    _add_json(c, "the path of the trace and the texts of the model")

    c = _command(
        commands, "resume", resume, "continue an interrupted run; the result is identical to an uninterrupted one"
    )
    c.add_argument("path", metavar="PATH", help="the folder of a partial trace")
    c.add_argument("--model", help="name or folder of the model that generated it (default: the name in the trace)")
    _add_loading_arguments(c)
    c.add_argument("-o", "--output", metavar="PATH", help="path of the complete trace (default: a new name here)")
    c.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    _add_json(c, "the path of the trace and the texts of the model")

    c = _command(commands, "info", info, "print what was recorded in a trace and whether it verifies")
    c.add_argument("path", metavar="PATH", help="the folder of a trace")
    _add_json(c, "the manifest")

    c = _command(commands, "ls", ls, "list the traces in a folder: id, model, tokens, question, answer")
    c.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="the folder (default: the current one)")
    _add_json(c, "the list")

    c = _command(commands, "show", show, "write a trace as one HTML page that works offline")
    c.add_argument("path", metavar="PATH", help="the folder of a trace")
    c.add_argument(
        "-o", "--output", metavar="PAGE", help="path of the page (default: a new name here, from the name of the trace)"
    )

    c = _command(commands, "verify", verify, "verify traces: compare every byte with its hash and check the identities")
    c.add_argument("paths", metavar="PATH", nargs="+", help="the folders of traces")
    _add_json(c, "the results")

    _add_store_commands(commands)

    c = _command(commands, "estimate", estimate, "estimate the size of a trace before the run")
    _add_prompt_arguments(c)
    _add_json(c, "the sizes in bytes")

    c = _command(
        commands,
        "figures",
        figures,
        "re-make the figures of the docs, or compare them byte for byte; this runs the Python scripts in docs/figures "
        "of the current folder, so use it in a folder that you trust",
    )
    c.add_argument("names", metavar="NAME", nargs="*", help="names of figures (default: all in the folder)")
    c.add_argument("--check", action="store_true", help="write nothing; exit code 3 if numbers or bytes differ")
    c.add_argument(
        "--folder", metavar="FOLDER", default="docs/figures", help="folder of the scripts (default: docs/figures)"
    )
    c.add_argument("-o", "--output", metavar="FOLDER", help="folder of the pictures (default: out, beside the scripts)")
    _add_json(c, "the state of each figure")

    c = _command(
        commands, "doctor", doctor, "print the hardware and versions of this machine, and which gpt-oss models fit"
    )
    _add_json(c, "the report, with sizes in bytes,")

    c = _command(
        commands,
        "verify-model",
        verify_model,
        "check that a copy of gpt-oss is read and run right, layer by layer against transformers; an interrupted check "
        "continues",
    )
    c.add_argument("model", metavar="MODEL", help='"pocket", a folder, a .gguf, or a name in the Hugging Face cache')
    c.add_argument("--parts", metavar="PARTS", help="files, weights, layers, identities, numerics (default: all)")
    c.add_argument("--restart", action="store_true", help="begin anew instead of continuing an interrupted check")
    c.add_argument("-o", "--output", metavar="PAGE", help="write the report as one HTML page, too")
    _add_json(c, "the whole report")

    c = _command(
        commands, "synth", synth, "write random weights in the published layout, to test a machine without a download"
    )
    c.add_argument("folder", metavar="FOLDER", help="folder to write; must be empty or not exist")
    c.add_argument("--like", required=True, choices=("20b", "120b"), help="the shape of the model: 13.8 GB or 65.2 GB")
    c.add_argument("--layers", type=int, metavar="N", help="only the first N layers (default: all)")
    c.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    c.add_argument("--tokenizer", metavar="FOLDER", help="copy tokenizer.json from this folder (default: no tokenizer)")

    c = _command(
        commands, "notebooks", notebooks, "copy the notebooks that come with workbench, to run and change them"
    )
    c.add_argument(
        "folder", metavar="FOLDER", nargs="?", default="notebooks", help="folder to copy to (default: notebooks)"
    )

    about = "start JupyterLab without its news and update requests; all arguments are passed to it, also --help"
    # No argument begins with the prefix of options, so each is passed on, even one that looks like an option.
    c = _command(commands, "lab", lab, about, prefix_chars="\0", add_help=False)
    c.add_argument("rest", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="passed to JupyterLab")
    return top


def _add_store_commands(commands: Any) -> None:
    store = commands.add_parser(
        "store",
        help="find, show and verify the traces of a folder",
        description="Find, show and verify the traces of a folder and its subfolders.",
    )
    actions = store.add_subparsers(title="commands", metavar="COMMAND", required=True, help="one of the commands below")

    def action(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        c = _command(actions, name, run, about)
        c.add_argument("folder", metavar="FOLDER", help="the folder of the store")
        return c

    c = action("list", store_list, "list all traces of a store, the oldest first")
    _add_json(c, "the list")
    c = action("find", store_find, "list the traces that match all conditions")
    c.add_argument(
        "where",
        metavar="COLUMN=VALUE",
        nargs="*",
        help="conditions such as effort=high, verified=true, n_tokens=100..500; a wrong column lists the columns",
    )
    c.add_argument(
        "--text", metavar="WORDS", help="words that occur one after the other in question, answer or thoughts"
    )
    c.add_argument("--prompt", metavar="QUESTION", help="the whole question")
    c.add_argument("--edit", metavar="PART", help="a part of an edit's hook point or function")
    c.add_argument(
        "--score",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="the mean of a score, such as correct=1 or correct=0..0.5",
    )
    _add_json(c, "the list")
    c = action("show", store_show, "write a trace of a store as one HTML page that works offline")
    c.add_argument("id", metavar="ID", help="the id of the trace, or its first digits")
    c.add_argument("-o", "--output", metavar="PAGE", help="path of the page (default: a new name here, from the id)")
    c = action("verify", store_verify, "verify a store: every manifest, and the bytes and identities of its traces")
    c.add_argument("--sample", type=int, metavar="N", help="read only N random traces in full (default: all)")
    c.add_argument("--seed", type=int, default=0, help="which random traces (default: 0)")
    _add_json(c, "the report")
    c = action("reindex", store_reindex, "make the index anew from the manifests and the scores")


def _command(commands: Any, name: str, run: Any, about: str, **options: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", **options)
    command.set_defaults(run=run)
    return command


def _add_prompt_arguments(c: argparse.ArgumentParser) -> None:
    c.add_argument("prompt", metavar="PROMPT", help='the question; "-" reads it from standard input')
    c.add_argument(
        "--model", default="pocket", help='"pocket", a folder, or a name in the Hugging Face cache (default: pocket)'
    )
    _add_loading_arguments(c)
    c.add_argument("--record", default="auto", help="presets and hook points, separated by commas (default: auto)")
    c.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="largest number of generated tokens (default: 1024)"
    )
    c.add_argument("--reasoning", choices=("low", "medium", "high"), help="reasoning effort (default: the model's own)")
    c.add_argument("--system", metavar="TEXT", help="the model's identity in the system message")
    c.add_argument("--developer", metavar="TEXT", help="instructions of the developer message")


def _add_loading_arguments(c: argparse.ArgumentParser) -> None:
    c.add_argument("--device", help='"cuda", "cuda:1", …, "cpu", or "auto": a GPU if there is one (default: cpu)')
    c.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float64"),
        help="dtype of the run (default: float32 below 1e9 parameters, bfloat16 above)",
    )
    c.add_argument(
        "--memory",
        choices=("auto", "fast", "small"),
        help='"small" releases each layer\'s weights after use, for a model larger than the memory (default: auto)',
    )


def _add_json(c: argparse.ArgumentParser, what: str) -> None:
    c.add_argument("--json", action="store_true", help=f"print {what} as JSON")


# The commands.


def trace(args: argparse.Namespace) -> int:
    """Runs `workbench trace`; returns its exit code."""
    prompt = _question(args)
    return _run_and_save(
        args,
        _stem(args.prompt),
        lambda: wb.trace(
            prompt,
            model=_model(args, args.model),
            record=args.record.replace(",", " "),
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            reasoning=args.reasoning,
        ),
    )


def resume(args: argparse.Namespace) -> int:
    """Runs `workbench resume`; returns its exit code."""
    partial = wb.load(args.path)
    stem = f"{expanded(args.path).resolve().name.removesuffix('.trace')}-resumed"
    return _run_and_save(args, stem, lambda: wb.resume(partial, model=_model_to_resume(args, partial)))


def _run_and_save(args: argparse.Namespace, stem: str, run: Callable[[], "Trace"]) -> int:
    """Runs, and saves the resulting trace, or the partial trace after an interrupt or an error.

    A path that cannot be written is refused before the run. If writing fails after the run, for example because the
    disk is full, the answer is printed and the trace is saved in the folder for temporary files before the error is
    raised. Ctrl-C, SIGTERM and SIGHUP act when it is saved.
    """
    target = expanded(args.output) if args.output else _unused_path(stem, ".trace")
    from workbench.traces import check_writable
    from workbench.traces.exchange import require_replaceable

    if args.overwrite:
        require_replaceable(target)
    elif os.path.lexists(target):
        raise TraceExists(
            f"{visible(str(target))} exists already. Give another path with -o, or replace a trace with --overwrite."
        )
    check_writable(target)
    trace, path, failure, ended_by = _saved_run(run, target, args.overwrite)
    if args.json:
        texts = {channel: trace.text(channel=channel) for channel in ("analysis", "final")}
        _print_json(_summary(trace, path) | texts)
    else:
        for channel in ("analysis", "final"):
            if text := trace.text(channel=channel):
                print(f"{channel}:\n{visible(text, newline=chr(10))}\n")
        print(trace)
        print(f"written to {visible(str(path))}" if path else "not written")
    if ended_by and trace.status == "partial" and path:
        print(
            f"interrupted: {visible(str(path))} is partial; it ends where the run was stopped. Continue with:\n"
            f"  workbench resume {_quoted(target if path == absolute(target) else path)}{_model_options(args, trace)}",
            file=sys.stderr,
        )
    if failure:
        raise failure
    if isinstance(ended_by, KeyboardInterrupt):
        return _interrupt_code(ended_by)
    if ended_by:
        raise ended_by
    return UNVERIFIED if any(line["status"] == "fails" for line in trace.verification) else 0


class _SavedRun(NamedTuple):
    """The trace of a run, where it was saved, why not at its target, and the interrupt or error that ended the run."""

    trace: "Trace"
    path: Path | None
    failure: TraceError | None
    ended_by: BaseException | None


def _saved_run(run: Callable[[], "Trace"], target: Path, overwrite: bool) -> _SavedRun:
    """Runs and saves. Raises what ended the run if nothing was generated before."""
    saved = None
    try:
        with ExitStack() as stack:
            ended_by: BaseException | None = None
            try:
                trace = run()
                stack.enter_context(shielded())
            except BaseException as error:
                stack.enter_context(shielded())
                ended_by, kept = error, _trace_of(error)
                if kept is None:
                    raise
                trace = kept
            saved = _SavedRun(trace, *_save(trace, target, overwrite), ended_by)
    except KeyboardInterrupt as interrupt:
        if saved is None:
            raise
        return saved._replace(ended_by=saved.ended_by or interrupt)  # it was saved before this was raised
    return saved


def _trace_of(error: BaseException | None) -> "Trace | None":
    """What was generated before an error or an interrupt, also if a second interrupt came while it was raised."""
    while error is not None:
        if trace := getattr(error, "trace", None):
            return trace
        error = error.__context__
    return None


def _interrupt_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code by which a shell knows the signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + getattr(interrupt, "signum", signal.SIGINT)


def _save(trace: "Trace", target: Path, overwrite: bool) -> tuple[Path | None, TraceError | None]:
    """Saves a trace; returns its path, and the error if it could not be saved at `target`."""
    try:
        return trace.save(target, overwrite=overwrite), None
    except Exception as error:  # whatever it is, the run took longer than another attempt
        failure = type(error) if isinstance(error, TraceError) else TraceError
        try:
            elsewhere = trace.save(Path(tempfile.mkdtemp(prefix="workbench-")) / target.name)
        except Exception:
            return None, failure(str(error) or type(error).__name__)
        return elsewhere, failure(
            f"{error} The trace is at {elsewhere} instead; move it before the system deletes temporary files."
        )


def info(args: argparse.Namespace) -> int:
    """Runs `workbench info`; returns its exit code."""
    trace = wb.load(args.path)
    if args.json:
        _print_json(_summary(trace, args.path) | {"manifest": trace.manifest.to_json()})
    else:
        print(trace.summary())
    return 0


def ls(args: argparse.Namespace) -> int:
    """Runs `workbench ls`; returns its exit code."""
    from workbench.traces.listing import listed, table

    rows = listed(args.folder)
    if args.json:
        _print_json([row._asdict() for row in rows])
    elif rows:
        print("\n".join(map(printable, table(rows, shutil.get_terminal_size((120, 24)).columns))))
    else:
        print(f"no traces in {visible(os.fspath(args.folder))}")
    return UNVERIFIED if any(row.problem for row in rows) else 0


def show(args: argparse.Namespace) -> int:
    """Runs `workbench show`; returns its exit code."""
    from workbench.views import score_sheet

    target = args.output or _unused_path(expanded(args.path).resolve().name.removesuffix(".trace"), ".html")
    page = score_sheet(wb.load(args.path)).to_html(target)
    print(f"written to {visible(str(page))}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Runs `workbench verify`; returns its exit code."""
    results, unreadable = [], []
    for path in args.paths:
        try:
            results.append(_verify_one(path))
        except TraceError as error:  # nothing is there, for instance: the others are reported all the same
            unreadable.append(error)
    if args.json:
        _print_json(results)
    else:
        for result in results:
            state = "holds" if result["ok"] else "FAILS"
            print(f"{state}: {visible(result['path'])}: {result['tensors']} tensors, {result['bytes']:,} bytes read")
            for problem in result["problems"]:
                print(f"  {printable(problem)}")
            for line in result["identities"]:
                worst = (
                    ""
                    if line["max_error"] is None
                    else f" (worst {line['max_error']:.2g}, tolerance {line['tolerance']:.2g})"
                )
                print(f"  {line['status']}: {visible(line['identity'])}{worst}")
    for error in unreadable:
        _fail(str(error))
    if not all(result["ok"] for result in results):
        return UNVERIFIED
    return ERROR if unreadable else 0


def _verify_one(path: str) -> dict[str, Any]:
    """Verifies one trace: first its bytes, then its identities, but those only if all bytes match their hashes."""
    from workbench.traces import verify as verify_bytes

    try:
        report = verify_bytes(path)
    except (TraceCorrupt, TraceUnsafe) as error:
        return {"path": path, "ok": False, "tensors": 0, "bytes": 0, "problems": [str(error)], "identities": []}
    problems, identities = [str(problem) for problem in report.problems], []
    try:
        identities = _identities(wb.load(path)) if report.ok else []
    except (LookupError, ValueError, TypeError) as error:  # matching hashes do not imply that the numbers make sense
        problems.append(
            f"the identities cannot be checked, because the arrays are not those of a gpt-oss run: {error!r}"
        )
    return {
        "path": path,
        "ok": not problems and all(line["status"] != "fails" for line in identities),
        "tensors": report.tensors,
        "bytes": report.bytes,
        "problems": problems,
        "identities": identities,
    }


def _identities(trace: "Trace") -> list[dict[str, Any]]:
    """The identities with their status: checked now, or as recorded for those that need the model."""
    from workbench.traces.model_parts import identity_text

    recorded = {line["identity"]: line for line in trace.verification}
    lines = []
    for line in wb.verify(trace):
        before = recorded.get(line["identity"], line)
        if line["status"] == "not checked" and before["status"] != "not checked":
            line = before | ({"status": "held when recorded"} if before["status"] == "holds" else {})
        lines.append(line | {"identity": identity_text(line["identity"], trace.config)})
    return lines


def _store(folder: str) -> "wb.Store":
    """The store in a folder, which must be there: a command that reads makes none."""
    if not expanded(folder).is_dir():
        raise FileError(f"there is no folder {visible(folder)}. Give the folder of a store")
    return wb.Store(folder)


def store_list(args: argparse.Namespace) -> int:
    """Runs `workbench store list`; returns its exit code."""
    return _print_rows(args, _store(args.folder).find())


def store_find(args: argparse.Namespace) -> int:
    """Runs `workbench store find`; returns its exit code."""
    from workbench.stores.words import conditions_of

    columns, score = conditions_of(args.where, of_columns=True), conditions_of(args.score, of_columns=False)
    frame = _store(args.folder).find(text=args.text, prompt=args.prompt, edit=args.edit, score=score or None, **columns)
    return _print_rows(args, frame)


def _print_rows(args: argparse.Namespace, frame: Any) -> int:
    """Prints a table of `store.find`: as the table of `workbench ls`, or as JSON with all columns."""
    from workbench.traces.listing import Listed, table

    if args.json:
        _print_json(json.loads(frame.to_json(orient="records")))
    elif len(frame):
        rows = [
            Listed(row.path, row.id, row.model, row.n_tokens, row.status, row.question, row.answer)
            for row in frame.itertuples()
        ]
        print("\n".join(map(printable, table(rows, shutil.get_terminal_size((120, 24)).columns))))
    else:
        print(f"no such traces in {visible(args.folder)}")
    return 0


def store_show(args: argparse.Namespace) -> int:
    """Runs `workbench store show`; returns its exit code."""
    from workbench.views import score_sheet

    trace = _store(args.folder)[args.id]
    page = score_sheet(trace).to_html(args.output or _unused_path(trace.id[:8], ".html"))
    print(f"written to {visible(str(page))}")
    return 0


def store_verify(args: argparse.Namespace) -> int:
    """Runs `workbench store verify`; returns its exit code."""
    report = _store(args.folder).verify(args.sample, seed=args.seed)
    if args.json:
        problems = [{"path": path, "problem": problem} for path, problem in report.problems]
        _print_json(
            {
                "ok": report.ok,
                "traces": report.traces,
                "verified": report.verified,
                "bytes": report.bytes,
                "problems": problems,
            }
        )
    else:
        print(report)
    return 0 if report.ok else UNVERIFIED


def store_reindex(args: argparse.Namespace) -> int:
    """Runs `workbench store reindex`; returns its exit code."""
    store = _store(args.folder)
    store.reindex()
    print(store)
    return 0


def verify_model(args: argparse.Namespace) -> int:
    """Runs `workbench verify-model`; returns its exit code."""

    def show_line(line: Any) -> None:
        if line.status != "holds" or line.tensor == "whole layer" or line.part in ("files", "identities"):
            print(line, flush=True)  # a layer that holds is one line

    if args.output:
        target = expanded(args.output)  # refused before minutes of work
        make_folder(target.parent)
        if os.path.lexists(target) and not (target.is_file() and not target.is_symlink()):
            what = kind_of(target.lstat().st_mode)
            raise FileError(f"{visible(str(target))} is {what}, not a file: give another path with -o")
    parts = {"parts": args.parts.replace(",", " ").split()} if args.parts else {}
    on_line = (lambda line: None) if args.json else show_line
    report = wb.verify_model(args.model, restart=args.restart, on_line=on_line, **parts)
    if args.json:
        _print_json(report.to_json())
    else:
        print(report)
    if args.output:
        page = report.save_page(args.output)
        print(f"written to {visible(str(page))}", file=sys.stderr)
    return 0 if report.ok else ERROR


def estimate(args: argparse.Namespace) -> int:
    """Runs `workbench estimate`; returns its exit code."""
    size = wb.estimate(
        _question(args),
        model=_model(args, args.model),
        record=args.record.replace(",", " "),
        max_tokens=args.max_tokens,
        reasoning=args.reasoning,
    )
    if args.json:
        _print_json({"bytes": size.bytes, "memory": size.memory, "fits": size.fits, "by_name": size.by_name})
    else:
        print(size)
    return 0


def figures(args: argparse.Namespace) -> int:
    """Runs `workbench figures`; returns its exit code."""
    from workbench.figures.remaking import check, renew

    folder = expanded(args.folder)
    out = expanded(args.output) if args.output else folder / "out"
    verdicts = []
    for verdict in check(folder, out, args.names) if args.check else renew(folder, out, args.names):
        verdicts.append(verdict)
        if not args.json:
            print(printable(f"{verdict.state}: {verdict.name}{f': {verdict.why}' if verdict.why else ''}"), flush=True)
    if args.json:
        _print_json([{"name": each.name, "state": each.state, "why": each.why} for each in verdicts])
    elif not args.check:
        print(f"written to {visible(str(out))}")
    return 0 if not args.check or all(verdict.ok for verdict in verdicts) else UNVERIFIED


def doctor(args: argparse.Namespace) -> int:
    """Runs `workbench doctor`; returns its exit code."""
    report = wb.doctor()
    if args.json:
        _print_json(report.to_json())
    else:
        print(report)
    return 0


def synth(args: argparse.Namespace) -> int:
    """Runs `workbench synth`; returns its exit code."""
    folder = wb.synth(args.like, args.folder, layers=args.layers, seed=args.seed, tokenizer=args.tokenizer)
    print(f"written to {visible(str(folder))}")
    return 0


def notebooks(args: argparse.Namespace) -> int:
    """Runs `workbench notebooks`; returns its exit code."""
    copied = copy_notebooks(args.folder)
    print(f"{len(copied)} notebooks written to {visible(str(copied[0].parent))}. Open them with:")
    print(f"  workbench lab {_quoted(Path(args.folder) / copied[0].name)}")
    return 0


def lab(args: argparse.Namespace) -> int:
    """Runs `workbench lab`; returns its exit code.

    The current folder may contain downloaded files, so nothing is imported from it: `-P` leaves it out of the path of
    the server, and this process looks for JupyterLab without importing it. Kernels have a path of their own.
    """
    try:
        version("jupyterlab")
    except PackageNotFoundError:
        raise MissingDependency("jupyterlab is not installed. Run: pip install 'gpt-oss-workbench[lab]'") from None
    quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # JupyterLab refuses to run as root, the usual user of a container
        quiet.append("--allow-root")
    _add_lab_defaults()
    rest = args.rest[1:] if args.rest[:1] == ["--"] else args.rest
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "jupyterlab", *quiet, *rest])


def _add_lab_defaults() -> None:
    """Makes workbench's defaults of JupyterLab's settings known to it. The user's own settings override them."""
    folders = [str(Path(__file__).parent / "lab_defaults"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, folders))


# Shared helpers.


def _loading(args: argparse.Namespace) -> dict[str, str]:
    """The options that say how a model is loaded, as arguments of `wb.Model`."""
    return {name: value for name in LOADING if (value := getattr(args, name)) is not None}


def _model(args: argparse.Namespace, where: str) -> Any:
    """The model of `where`, loaded as the options say; without any, its name, for `wb.trace` to load."""
    options = _loading(args)
    return wb.Model(where, **options) if options else where


def _model_to_resume(args: argparse.Namespace, partial: "Trace") -> Any:
    if args.model is None and not _loading(args):
        return None
    from workbench.api import named_model

    return _model(args, args.model or named_model(partial.manifest.model["name"]))


def _question(args: argparse.Namespace) -> Any:
    if args.prompt == "-" and sys.stdin is None:
        raise PromptError('standard input is closed, so "-" has no question. Give the question as an argument')
    try:
        text = _text(sys.stdin.read().strip() if args.prompt == "-" else args.prompt)
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not text in {error.encoding}: byte {error.start} is not valid. Give it in this "
            f"encoding, or set PYTHONIOENCODING to its encoding, for instance utf-8"
        ) from None
    if not text:
        raise PromptError('the prompt is empty. Give a question, or "-" with the question on standard input')
    if args.system is None and args.developer is None:
        return text
    system, developer = (each and _text(each) for each in (args.system, args.developer))
    return wb.chat(text, reasoning=args.reasoning, system=system, developer=developer)


def _text(argument: str) -> str:
    """A text of the command line. If the locale is not UTF-8, Python has kept its bytes as surrogates."""
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode()
        except UnicodeError:
            raise PromptError(
                f"{argument[:80]!a} has bytes that are not text in UTF-8; give the text in UTF-8"
            ) from None


def _summary(trace: "Trace", path: os.PathLike[str] | str | None) -> dict[str, Any]:
    return {
        "path": None if path is None else os.fspath(path),
        "id": trace.id,
        "status": trace.status,
        "verified": trace.verified,
        "tokens": len(trace),
        "generated": len(trace.written_by("model")),
    }


def _model_options(args: argparse.Namespace, trace: "Trace") -> str:
    """The options of `workbench resume` with which it finds the model and loads it as this run did."""
    options = _loading(args)
    if args.model not in (None, trace.manifest.model["name"]):
        options = {"model": args.model} | options
    return "".join(f" --{name} {_quoted(value)}" for name, value in options.items())


def _quoted(word: os.PathLike[str] | str) -> str:
    """A word quoted for the shell, safe to show."""
    return visible(shlex.quote(os.fspath(word)))


def _stem(prompt: str) -> str:
    """A file name from the first words of a question."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower())[:5])[:40] or "first"


def _unused_path(stem: str, suffix: str) -> Path:
    """A new name in the current folder."""
    names = (Path(f"{stem}{f'-{n}' if n > 1 else ''}{suffix}") for n in range(1, 1_000_000))
    return next(path for path in names if not os.path.lexists(path))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))  # ASCII only: no control characters reach the terminal


def _escape_unencodable(*streams: Any) -> None:
    """Prints characters that the terminal cannot encode as escapes, instead of failing."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard_unwritable_output() -> None:
    """If the output cannot be written, discards it, so that the interpreter does not fail when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        broken, sys.stdout = sys.stdout, Path(os.devnull).open("w")  # noqa: SIM115  flushed by the interpreter
        with suppress(OSError):
            broken.close()


def _fail(message: str) -> int:
    print(f"workbench: {printable(message, newline=chr(10))}", file=sys.stderr)
    return ERROR


if __name__ == "__main__":
    sys.exit(main())
