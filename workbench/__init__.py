"""A workbench for seeing how gpt-oss thinks.

    import workbench as wb
    trace = wb.trace("Mod 10: a=3, b=a+4, c=b*2. Find c.")   # thinks, answers, records
    trace.text(channel="analysis")                           # the chain of thought
    wb.attention.pattern(trace, layer=1, head=2)             # any attention pattern, exactly

Importing this package is cheap: torch is loaded when a model is, and traces open without it.

For daily use: `trace Model Trace load chat history steps estimate resume verify doctor synth`, and the edits
`ablate ban force patch steer`. The other functions are in topics; `help(wb.routing)` lists those of one topic:

    wb.attention     patterns, what heads attend to, the attention sink
    wb.routing       which experts are chosen, how evenly, and for what
    wb.residual      geometry of the residual stream; what each component adds to a logit
    wb.lens          what each layer would predict: logit lens and tuned lens
    wb.probes        what a linear classifier reads from activations
    wb.steering      directions from contrasted activations, and the effect of adding them
    wb.patching      what an output depends on: activations, paths, attention edges, experts
    wb.reasoning     which steps of a chain of thought matter, and when the answer is settled
    wb.sae           SAEs of others: features, reconstruction, cost of splicing
    wb.circuits      what the weights say, without a run
    wb.statistics    intervals, tests, corrections, information measures
    wb.views         interactive views in Jupyter and as a page
    wb.figures       figures from labeled arrays
    wb.interop       transformers, TransformerLens, nnsight, tables, SAEs
    wb.hooks         hook points by name, and presets
    wb.errors        every error
"""

import sys

# `python -m workbench` puts the current folder first on the path, where a downloaded json.py would replace that of
# Python. The command `workbench` does not, and neither does this, unless the package itself is in this folder. While
# Python looks for the module to run, sys.argv[0] is "-m"; another module that imports workbench keeps its path.
if (
    sys.argv[:1] == ["-m"]
    and any(
        flag == "-m" and name.partition(".")[0] == "workbench" for flag, name in zip(sys.orig_argv, sys.orig_argv[1:])
    )
    and not sys.flags.safe_path
    and not __path__[0].startswith(f"{sys.path[0]}/")
):
    del sys.path[0]

from workbench.errors import UnsupportedPlatform
from workbench.topics import lazy_names

try:
    import fcntl as _locks
except ImportError:  # Windows, and Python in a browser
    _locks = None
if _locks is None or sys.platform == "win32":
    raise UnsupportedPlatform(
        f"workbench runs on Linux and macOS, not on {sys.platform}: reading and writing traces needs file locks "
        f"(fcntl), which this system does not have. On Windows, install it inside WSL 2: "
        f"https://learn.microsoft.com/windows/wsl/install"
    )

_get, __dir__, __all__ = lazy_names(__name__)


def __getattr__(name: str):
    if name == "__version__":  # defined only in pyproject.toml
        from importlib.metadata import version

        return version("gpt-oss-workbench")
    return _get(name)
