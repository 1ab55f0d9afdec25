"""Finds what is embedded, pocket and reference counts: inside the package in a wheel, under data/ in a checkout."""

from pathlib import Path

from workbench.errors import ModelNotFound


def embedded_folder() -> Path:
    """The folder of "pocket". Raises ModelNotFound if this copy of workbench does not contain it.

    >>> (embedded_folder() / "config.json").is_file()
    True
    """
    return _embedded("pocket", "config.json", "the embedded model 'pocket' is")


def reference_counts() -> Path:
    """The file with the public routing counts of gpt-oss-20b, by layer. Raises ModelNotFound if it is missing.

    >>> reference_counts().name
    'gpt-oss-20b-routing.json'
    """
    name = "gpt-oss-20b-routing.json"
    return _embedded("reference", name, "the routing counts of gpt-oss-20b are") / name


def _embedded(folder: str, file: str, what: str) -> Path:
    """The place of `folder` that has `file`: in the package, or under data/."""
    package = Path(__file__).resolve().parents[2]
    places = (package / f"_{folder}", package.parent / "data" / folder)
    for place in places:
        if (place / file).is_file():
            return place
    raise ModelNotFound(
        f"{what} not in this copy of workbench. Looked in {places[0]} and {places[1]}. "
        f"Install again: pip install --force-reinstall gpt-oss-workbench"
    )
