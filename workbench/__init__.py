"""A workbench for seeing how gpt-oss thinks.

    import workbench as wb
    trace = wb.trace("Mod 10: a=3, b=a+4, c=b*2. Find c.")   # thinks, answers, records
    trace.text(channel="analysis")                           # the chain of thought
    wb.attention.pattern(trace, layer=1, head=2)             # any attention pattern, exactly

Importing this package is cheap: torch is loaded when a model is, and traces open without it.
"""

import sys

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
