"""The packages of workbench as data: purpose, allowed imports, where torch may be imported, and the long files.

`tests/test_architecture.py` compares the code with it. Run as a script, it writes the generated parts of
architecture.md, between `<!-- begin: name -->` and `<!-- end: name -->`; a test compares them.
"""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Package(NamedTuple):
    """A package, or a module beside them."""

    purpose: str  # for the table: one line
    imports: frozenset[str] = frozenset()  # the packages it may import, besides itself


def _of(*names: str | frozenset[str]) -> frozenset[str]:
    return frozenset().union(*({name} if isinstance(name, str) else name for name in names))


BASE = _of(
    "errors",
    "text",
    "paths",
    "hooks",
    "files",
    "untrusted",
    "signals",
    "checks",
    "lazy_imports",
    "topics",
    "taps",
    "units",
    "progress",
)
DATA = _of(BASE, "traces")
RUNS = _of(DATA, "conversation", "edits", "model", "recording")

# Each package may import from itself and from those listed. The order is that of the table: no package imports from a
# row below it, except through `workbench/lazy_imports.py`.
PACKAGES: dict[str, Package] = {
    "text": Package("text of a model, made safe to show"),
    "errors": Package("every error", _of("text")),
    "paths": Package("paths as a user writes them", _of("errors", "text")),
    "checks": Package("checks of arguments and of optional packages", _of("errors", "text")),
    "hooks": Package("hook points, summaries, presets", _of("checks", "errors", "text")),
    "files": Package("atomic writing of files", _of("errors", "paths", "text")),
    "untrusted": Package("bounded reading of files from strangers", _of("errors", "files", "paths", "text")),
    "signals": Package("Ctrl-C, SIGTERM and SIGHUP during a run"),
    "lazy_imports": Package("declared imports from a lower to a higher package"),
    "topics": Package("the table of public names; `attention.py`, `routing.py`, … are topics generated from it"),
    "taps": Package("the functions that the forward pass calls at hook points", _of("errors", "hooks")),
    "units": Package("the label and the units of each hook point and summary", _of("hooks")),
    "progress": Package("progress bars as text, gone when the work ends", _of("text")),
    "traces": Package("one run, as data: Trace, Manifest, files, patterns, steps, verification", BASE),
    "stores": Package("many traces in one folder: an index that finds them, scores, checks", DATA),
    "conversation": Package("a chat to token ids and back: harmony, chat templates, tokenizers", DATA),
    "analysis": Package("functions from a trace to labeled arrays; statistics over prompts", DATA),
    "views": Package(
        "interactive views in Jupyter and as a page: one .py and one .js per view", _of(DATA, "analysis", "stores")
    ),
    "figures": Package("figures of labeled arrays, for papers and for the screen", DATA),
    "edits": Package("changes to a value at a hook point: ablate, steer, force, ban, patch", DATA),
    "model": Package(
        "the model: `gpt_oss.py` is the forward pass; cache, kernels, checkpoints", _of(DATA, "conversation", "edits")
    ),
    "recording": Package(
        "from a request to a verified trace: plan, record, verify, assemble; generation, resume",
        _of(DATA, "conversation", "edits", "model"),
    ),
    "model_check": Package("checks a copy of gpt-oss against its files and transformers: `wb.verify_model`", _of(RUNS)),
    "circuits": Package("analyses of the weights alone: QK and OV, sinks, routers, experts", _of(BASE, "model")),
    "experiments": Package(
        "functions from model and trace to arrays, which run the model with edits", _of(RUNS, "analysis")
    ),
    "interop": Package("records models of other libraries; reads and writes their files", _of(RUNS, "experiments")),
    "api": Package("`wb.trace`, `wb.estimate`, `wb.resume`", RUNS),
    "pocket": Package(
        "the embedded model: problems with true reasoning graphs, training, evaluation",
        _of(RUNS, "analysis", "experiments"),
    ),
    "studies": Package(
        "the measurements behind the notebooks and the figures of the docs",
        _of(RUNS, "analysis", "circuits", "experiments", "figures", "pocket", "__init__"),
    ),
    "shipped_notebooks": Package(
        "copies the notebooks that come with workbench", _of("errors", "files", "paths", "text")
    ),
    "cli": Package(
        "the command `workbench`",
        _of(DATA, "api", "conversation", "figures", "shipped_notebooks", "stores", "views", "__init__"),
    ),
    "__main__": Package("`python -m workbench`: the command", _of("cli")),
}

# Only these import torch at import time; interop imports it inside functions.
WITH_TORCH = frozenset(
    {"circuits", "edits", "experiments", "model", "model_check", "pocket/eval", "pocket/train", "recording", "studies"}
)

# Files of the package with more than 500 lines, and why they are not split.
LONG = 500
LONG_FILES = {
    "cli.py": "the whole command: its parser, and one short function for each subcommand",
    "edits/fingerprint.py": "one walk over all that a function may depend on",
    "interop/transformers.py": "one adapter, which says where each hook point is in a transformers model",
    "model/kernels/native.py": "the only interface to native.c: checks arguments; tensors in, tensors out",
    "model/kernels/native.c": "all native kernels are one compilation unit: they share the order of additions",
}

# The files whose code runs in `wb.trace("…")`, without kernels and checkpoints: the main ones, in the order of the
# page, and the ones that they use.
TRACE_STORY = (
    "api.py",
    "model/model.py",
    "model/prompts.py",
    "conversation/render.py",
    "recording/generation.py",
    "recording/source.py",
    "recording/plan.py",
    "recording/decoding.py",
    "recording/next_token.py",
    "model/gpt_oss.py",
    "taps.py",
    "recording/taps.py",
    "recording/summaries.py",
    "recording/record.py",
    "recording/assemble.py",
    "recording/verify.py",
    "traces/verification.py",
)
TRACE_BELOW = (
    "__init__.py",
    "checks.py",
    "conversation/chat.py",
    "conversation/history.py",
    "conversation/jinja_environment.py",
    "conversation/o200k.py",
    "conversation/parse.py",
    "conversation/template.py",
    "conversation/text_markers.py",
    "conversation/tokenizer.py",
    "edits/stack.py",
    "hooks.py",
    "lazy_imports.py",
    "model/arguments.py",
    "model/arrays.py",
    "model/batch.py",
    "model/cache.py",
    "model/config.py",
    "model/interrupts.py",
    "model/memory.py",
    "model/partial_traces.py",
    "model/prefill.py",
    "model/sampling.py",
    "model/threads.py",
    "model/torch_defaults.py",
    "progress.py",
    "text.py",
    "recording/budget.py",
    "recording/checkpointing.py",
    "signals.py",
    "traces/authorship.py",
    "traces/calls.py",
    "traces/canonical_json.py",
    "traces/consistency.py",
    "traces/fields.py",
    "traces/format.py",
    "traces/manifest.py",
    "traces/model_parts.py",
    "traces/patterns.py",
    "traces/private_copies.py",
    "traces/reader.py",
    "traces/recorded_names.py",
    "traces/spans.py",
    "traces/steps.py",
    "topics.py",
    "traces/tensor_parts.py",
    "traces/summary.py",
    "traces/trace.py",
    "traces/writer.py",
)


def packages() -> list[str]:
    """The table of packages."""
    rows = ["| package | is | may import | torch |", "|---|---|---|---|"]
    for name, (purpose, imports) in PACKAGES.items():
        below = []
        if imports >= BASE:
            below.append("base layer")
            imports -= BASE
        below += [f"`{other}`" for other in PACKAGES if other in imports]
        parts = sorted(where for where in WITH_TORCH if where.split("/")[0] == name)
        torch = "yes" if name in WITH_TORCH else "in functions" if name == "interop" else ""
        torch = torch or ", ".join(f"`{part}`" for part in parts)
        base = "base layer: " if name in BASE else ""
        rows.append(f"| `{name}` | {base}{purpose} | {', '.join(below)} | {torch} |")
    return rows


def long_files() -> list[str]:
    """The list of long files, each with its reason."""
    return [f"* `{name}`: {reason}." for name, reason in LONG_FILES.items()]


def trace_files() -> list[str]:
    """The sentence that counts the files of a `wb.trace` run."""
    total = len(TRACE_STORY) + len(TRACE_BELOW)
    return textwrap.wrap(
        f"A `wb.trace(…)` runs code of {total} files, without kernels and checkpoints. "
        f"The {len(TRACE_STORY)} above are the main ones; they use the other {len(TRACE_BELOW)} "
        f"(names of hook points, the cache, the conversation, the parts of a trace), which can be read separately.",
        118,
        break_long_words=False,
        break_on_hyphens=False,
    )


PARTS = {"packages": packages, "long files": long_files, "files of wb.trace": trace_files}


def generated(page: str) -> str:
    """architecture.md with its generated parts as they should be."""
    for name, lines in PARTS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        text = "\n".join([begin, "", *lines(), "", end])
        page, n = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, text=text: text, page, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"architecture.md has {n} parts {name!r}, and needs one")
    return page


if __name__ == "__main__":
    path = HERE / "architecture.md"
    path.write_text(generated(path.read_text("utf-8")), "utf-8")
