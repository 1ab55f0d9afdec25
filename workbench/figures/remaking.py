"""Re-makes the figures of a folder and compares them with recorded sums: the same bytes, or the reason why not.

Each script of the folder defines `draw()`, which returns a Figure and the traces behind it. Files whose name begins
with `_` are not figures. A script may define `CODE`, the file that measures and draws, if that is another file.
`sums.json` records for each figure the sha256 of the figure as a value, of its table, of its script and of the three
pictures, and the versions they were made with. A check therefore distinguishes three cases: other bytes from the same
versions, which must not happen; another picture of the same numbers, from other versions; and other numbers.
"""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from workbench.errors import FigureError, WorkbenchError
from workbench.figures.backends.matplotlib import FORMATS
from workbench.figures.provenance_record import check_saved
from workbench.figures.saving import contents, write
from workbench.figures.spec import Figure
from workbench.files import atomic_write
from workbench.text import visible
from workbench.untrusted import read_json, regular_file

SUMS = "sums.json"


@dataclass(frozen=True)
class Verdict:
    """The comparison of one figure.

    `state` is "same", "new", "other versions", "other bytes", "other numbers", or "damaged" if its saved files do not
    belong together.
    """

    name: str
    state: str
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether its numbers and words are the same as recorded, whichever versions drew it."""
        return self.state in ("same", "other versions")


def scripts(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The scripts of a folder, or those with the given names; FigureError for a name without a script."""
    paths = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if not paths:
        raise FigureError(
            f"there are no figure scripts in {visible(str(folder))}: change to the folder of the repository, or name "
            "another folder with --folder"
        )
    for name in names:
        if name not in paths:
            raise FigureError(
                f"there is no figure {visible(name)!r} in {visible(str(folder))}; there are {', '.join(paths)}"
            )
    return [paths[name] for name in names or paths]


def remake(script: Path) -> dict[str, bytes]:
    """The files of a script's figure as drawn now, by file ending: the three pictures, csv and json.

    Raises FigureError if the script fails, with the line where it failed.
    """
    regular_file(script, FigureError)
    with _import_from(script.parent):
        try:
            module_globals = runpy.run_path(str(script), run_name=script.stem)
            if "draw" not in module_globals:
                raise FigureError("it defines no draw()")
            figure, traces = module_globals["draw"]()
        except WorkbenchError as error:
            raise FigureError(f"{visible(script.name)}: {error}") from error
        except Exception as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(script)]
            where = f", line {lines[-1]}" if lines else ""
            raise FigureError(f"{visible(script.name)}{where}: {type(error).__name__}: {error}") from error
    if not isinstance(figure, Figure):
        raise FigureError(
            f"{visible(script.name)}: draw() must return a Figure and its traces, got {type(figure).__name__}"
        )
    return contents(figure, source=traces, code=module_globals.get("CODE", script))


def entry(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The entry of a figure in `sums.json`."""
    provenance = json.loads(files["json"])
    sums = {ending: sha256(files[ending]).hexdigest() for ending in FORMATS}
    code = provenance["code"]["sha256"] if provenance["code"] else None
    return {
        "spec": provenance["spec"],
        "data": provenance["data"],
        "code": code,
        **sums,
        "versions": provenance["drawn_with"] | _numerics(provenance["numerics"]),
    }


def compare(name: str, recorded: Mapping[str, Any] | None, made: Mapping[str, Any]) -> Verdict:
    """Compares the recorded and the new entry of one figure.

    >>> sums = dict.fromkeys(("spec", "data", "code", "svg", "pdf", "png"), "1")
    >>> recorded = sums | {"versions": {"torch": "2.13"}}
    >>> compare("a", recorded, recorded | {"png": "2"})
    Verdict(name='a', state='other bytes', why='png differs, with the same versions')
    >>> compare("a", recorded, recorded | {"png": "2", "versions": {"torch": "2.14"}})
    Verdict(name='a', state='other versions', why='the same numbers and words; torch 2.13 then, 2.14 now')
    """
    if recorded is None:
        return Verdict(name, "new", f"{SUMS} has no entry for it")
    changed_versions = []
    for key in sorted({*recorded["versions"], *made["versions"]}):
        then, now = recorded["versions"].get(key), made["versions"].get(key)
        changed_versions += [f"{key} {then} then, {now} now"] if then != now else []
    differing = [ending for ending in FORMATS if recorded[ending] != made[ending]]
    versions = "; ".join(changed_versions) if changed_versions else "with the same versions"
    if recorded["spec"] != made["spec"]:
        what = "numbers" if recorded["data"] != made["data"] else "words"
        script = ", and its script was changed" if recorded["code"] != made["code"] else ""
        return Verdict(name, "other numbers", f"other {what} are drawn{script}; {versions}")
    if changed_versions:
        return Verdict(name, "other versions", f"the same numbers and words; {versions}")
    if differing:
        script = " (its script was changed)" if recorded["code"] != made["code"] else ""
        return Verdict(name, "other bytes", f"{', '.join(differing)} differs, {versions}{script}")
    return Verdict(name, "same")


def check(folder: Path, out: Path, names: Sequence[str] = ()) -> Iterator[Verdict]:
    """Re-makes figures one by one and compares each with its recorded entry; writes nothing.

    The files of a figure in `out`, if it was saved there, are compared with the hashes in its .json.
    """
    recorded = read_sums(folder)
    for script in scripts(folder, names):
        verdict = compare(script.stem, recorded.get(script.stem), entry(remake(script)))
        saved = out / f"{script.stem}.json"
        try:
            if saved.is_file():
                check_saved(saved)
        except FigureError as error:
            verdict = Verdict(script.stem, "damaged", str(error)) if verdict.ok else verdict
        yield verdict


def renew(folder: Path, out: Path, names: Sequence[str] = ()) -> Iterator[Verdict]:
    """Re-makes figures, writes each to `out` and records its entry; yields the comparison with the previous entry."""
    for script in scripts(folder, names):
        files = remake(script)
        recorded, made = read_sums(folder), entry(files)
        verdict = compare(script.stem, recorded.get(script.stem), made)
        write(files, out / script.stem)
        recorded[script.stem] = made
        text = json.dumps(recorded, indent=1, sort_keys=True) + "\n"
        atomic_write(folder / SUMS, text.encode())  # after each, so that an interrupt loses at most one figure
        yield verdict


def read_sums(folder: Path) -> dict[str, Any]:
    """The entries of `sums.json`, empty if there is no such file. FigureError if it is damaged."""
    path = folder / SUMS
    if not os.path.lexists(path):
        return {}
    try:
        recorded = read_json(path, FigureError)
        for name, fields in recorded.items():
            if not {"spec", "data", "code", "versions", *FORMATS} <= set(fields):
                raise FigureError(f"the entry {name} is incomplete")
            if not isinstance(fields["versions"], dict):
                raise FigureError(f"the versions of {name} are not names with versions")
    except (ValueError, AttributeError, TypeError) as error:
        raise FigureError(f"{visible(str(path))} cannot be read: {error}. Restore it from git") from None
    return recorded


def _numerics(arithmetics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The arithmetic behind the numbers; if a key has several values, they are joined by "and"."""
    keys = sorted({key for arithmetic in arithmetics for key in arithmetic} - {"workbench", "numpy", "python"})
    return {key: " and ".join(sorted({str(arithmetic.get(key)) for arithmetic in arithmetics})) for key in keys}


@contextmanager
def _import_from(folder: Path) -> Iterator[None]:
    """Lets a script import its neighbors, as it can when it is run directly."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
