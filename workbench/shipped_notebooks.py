"""Copies the notebooks that come with workbench: inside the package in a wheel, in notebooks/ in a checkout."""

import os
from pathlib import Path

from workbench.errors import FileError
from workbench.files import atomic_write
from workbench.paths import absolute
from workbench.text import visible


def copy_notebooks(folder: os.PathLike[str] | str) -> list[Path]:
    """The new files in `folder`, which is made if it is missing: a copy of each notebook, to be run and changed.

    >>> [path.name for path in copy_notebooks("notebooks")][:1]  # doctest: +SKIP
    ['00_first_trace.ipynb']

    Raises FileError, before anything is written, if one of them is there already or the folder cannot be made.
    """
    target, sources = absolute(folder), _notebooks()
    if there := [source.name for source in sources if os.path.lexists(target / source.name)]:
        raise FileError(
            f"{visible(str(target))} has {', '.join(there[:3])}{', …' if len(there) > 3 else ''} already. Nothing was "
            f"written; give another folder, or move them first."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{visible(str(target))} cannot be made: {error.strerror}. Give another folder.") from None
    return [atomic_write(target / source.name, source.read_bytes()) for source in sources]


def _notebooks() -> list[Path]:
    package = Path(__file__).resolve().parent
    places = (package / "_notebooks", package.parent / "notebooks")
    for place in places:
        if found := sorted(place.glob("[0-9][0-9]_*.ipynb")):
            return found
    raise FileError(
        f"the notebooks are not in this copy of workbench. Looked in {places[0]} and {places[1]}. Install again from a "
        f"clone or a wheel."
    )
