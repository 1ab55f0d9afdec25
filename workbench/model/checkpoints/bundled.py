"""Finds the embedded model "pocket": inside the package in a wheel, under data/ in a source checkout."""

from pathlib import Path

from workbench.errors import ModelNotFound


def embedded_folder() -> Path:
    """The folder of "pocket". Raises ModelNotFound if this copy of workbench does not contain it.

    >>> (embedded_folder() / "config.json").is_file()
    True
    """
    package = Path(__file__).resolve().parents[2]
    places = (package / "_pocket", package.parent / "data" / "pocket")
    for folder in places:
        if (folder / "config.json").is_file():
            return folder
    raise ModelNotFound(
        f"the embedded model 'pocket' is not in this copy of workbench. Looked in {places[0]} and {places[1]}. "
        f"Install again: pip install --force-reinstall gpt-oss-workbench"
    )
