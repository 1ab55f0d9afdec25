"""Makes the figures of a folder again, and says whether they are what they were: the same bytes, or why not.

A script of that folder defines `draw()`, which gives a Figure and the traces behind it; a name that begins with `_`
is no figure. `CODE`, if it is there, is the file that measures and draws, where that is not the script. `sums.json`
keeps, for each, the sha256 of the figure as a value, of its table, of its script and of the three pictures, and with
which versions they were made. So a check tells apart: other bytes from the same versions,
which must not be; another picture of the same numbers, by other versions; and other numbers.
"""

import json
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
from workbench.figures.saving import contents
from workbench.figures.spec import Figure
from workbench.files import atomic_write
from workbench.text import visible

SUMS = "sums.json"


@dataclass(frozen=True)
class Verdict:
    """What became of one figure. `state` is "same", "new", "other versions", "other bytes" or "other numbers"."""

    name: str
    state: str
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether it shows what it showed: its numbers and words are the same, whoever drew them."""
        return self.state in ("same", "other versions")


def scripts(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The scripts of a folder, or those named; FigureError for a name that is none."""
    there = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if not there:
        raise FigureError(
            f"there are no figure scripts in {visible(str(folder))}: go to the folder of the repository, or name "
            "another with --folder"
        )
    for name in names:
        if name not in there:
            raise FigureError(
                f"there is no figure {visible(name)!r} in {visible(str(folder))}; there are {', '.join(there)}"
            )
    return [there[name] for name in names or there]


def remake(script: Path) -> dict[str, bytes]:
    """What a script's figure is now, by ending: the three pictures, csv and json.

    Raises FigureError if the script fails, saying where.
    """
    with _beside(script.parent):
        try:
            names = runpy.run_path(str(script), run_name=script.stem)
            if "draw" not in names:
                raise FigureError("it defines no draw()")
            figure, traces = names["draw"]()
        except WorkbenchError as error:
            raise FigureError(f"{visible(script.name)}: {error}") from error
        except Exception as error:
            at = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(script)]
            where = f", line {at[-1]}" if at else ""
            raise FigureError(f"{visible(script.name)}{where}: {type(error).__name__}: {error}") from error
    if not isinstance(figure, Figure):
        raise FigureError(f"{visible(script.name)}: draw() gives a Figure and its traces, not {type(figure).__name__}")
    return contents(figure, source=traces, code=names.get("CODE", script))


def entry(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What is kept of a figure."""
    told = json.loads(files["json"])
    sums = {ending: sha256(files[ending]).hexdigest() for ending in FORMATS}
    code = told["code"]["sha256"] if told["code"] else None
    return {
        "spec": told["spec"],
        "data": told["data"],
        "code": code,
        **sums,
        "versions": told["drawn_with"] | _numerics(told["numerics"]),
    }


def compare(name: str, kept: Mapping[str, Any] | None, made: Mapping[str, Any]) -> Verdict:
    """What two entries of one figure say.

    >>> sums = dict.fromkeys(("spec", "data", "code", "svg", "pdf", "png"), "1")
    >>> kept = sums | {"versions": {"torch": "2.13"}}
    >>> compare("a", kept, kept | {"png": "2"})
    Verdict(name='a', state='other bytes', why='png differs, with the same versions')
    >>> compare("a", kept, kept | {"png": "2", "versions": {"torch": "2.14"}})
    Verdict(name='a', state='other versions', why='the same numbers and words; torch 2.13 then, 2.14 now')
    """
    if kept is None:
        return Verdict(name, "new", f"{SUMS} did not have it")
    changes = []
    for key in sorted({*kept["versions"], *made["versions"]}):
        then, now = kept["versions"].get(key), made["versions"].get(key)
        changes += [f"{key} {then} then, {now} now"] if then != now else []
    differ = [ending for ending in FORMATS if kept[ending] != made[ending]]
    versions = "; ".join(changes) if changes else "with the same versions"
    if kept["spec"] != made["spec"]:
        what = "numbers" if kept["data"] != made["data"] else "words"
        script = ", and its script was changed" if kept["code"] != made["code"] else ""
        return Verdict(name, "other numbers", f"other {what} are drawn{script}; {versions}")
    if changes:
        return Verdict(name, "other versions", f"the same numbers and words; {versions}")
    if differ:
        script = " (its script was changed)" if kept["code"] != made["code"] else ""
        return Verdict(name, "other bytes", f"{', '.join(differ)} differs, {versions}{script}")
    return Verdict(name, "same")


def check(folder: Path, names: Sequence[str] = ()) -> Iterator[Verdict]:
    """Makes figures again, one by one, and compares each with what is kept; writes nothing."""
    kept = kept_sums(folder)
    for script in scripts(folder, names):
        yield compare(script.stem, kept.get(script.stem), entry(remake(script)))


def renew(folder: Path, out: Path, names: Sequence[str] = ()) -> Iterator[Verdict]:
    """Makes figures again, writes each to `out`, and keeps its sums; says what they were before."""
    for script in scripts(folder, names):
        files = remake(script)
        kept, made = kept_sums(folder), entry(files)
        verdict = compare(script.stem, kept.get(script.stem), made)
        out.mkdir(parents=True, exist_ok=True)
        for ending, data in files.items():
            atomic_write(out / f"{script.stem}.{ending}", data)
        kept[script.stem] = made
        text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
        atomic_write(folder / SUMS, text.encode())  # after each, so an interrupt loses one figure at most
        yield verdict


def kept_sums(folder: Path) -> dict[str, Any]:
    """What `sums.json` says; nothing if there is none. FigureError if it is damaged."""
    path = folder / SUMS
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        for name, sums in kept.items():
            if not {"spec", "data", "code", "versions", *FORMATS} <= set(sums):
                raise FigureError(f"{name} is not whole")
    except (ValueError, AttributeError, TypeError) as error:
        raise FigureError(f"{visible(str(path))} cannot be read: {error}. Take it from git again") from None
    return kept


def _numerics(several: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What computed the numbers; several values of one key, should there be, side by side."""
    keys = sorted({key for one in several for key in one} - {"workbench", "numpy", "python"})
    return {key: " and ".join(sorted({str(one.get(key)) for one in several})) for key in keys}


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """A script may import its neighbours, as when it is run by itself."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
