"""What is written and read back: exporters at hostile paths, full disks, sweeps, lenses, SAEs, figures, graphs.

Devices are made in the folder of the test with mknod, never used in /dev; a limit or a signal is for a child process.
"""

import copy
import errno
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from tests.traces.made import arrays, manifest
from workbench import cli, files, paths
from workbench.errors import CheckpointError, FigureError, ResumeError, TraceCorrupt
from workbench.experiments.checkpoint import SweepCheckpoint
from workbench.experiments.sae import SAE
from workbench.experiments.tuned_lens import FORMAT, TunedLens, load_tuned_lens
from workbench.figures.remaking import read_sums
from workbench.interop.circuit_tracer import read_graph
from workbench.interop.inif import save_inif
from workbench.interop.sae_formats import load_sae
from workbench.interop.xarray_tables import from_xarray, to_parquet, to_xarray
from workbench.traces import Trace

f = wb.figures
ROOT = Path(__file__).parents[2]
SITE = "blocks.2.hook_resid_post"
ZERO, NULL, FULL = (os.makedev(1, minor) for minor in (5, 3, 7))


@pytest.fixture(scope="module")
def trace() -> Trace:
    return wb.trace("What is 12+30?", max_tokens=3)


def figure(**texts: Any) -> Any:
    return f.Figure(panels=[f.Panel(marks=[f.Line(x=[0, 1, 2], y=[0.5, 1.0, 0.25])])], **texts)


@lru_cache(maxsize=1)
def pocket() -> Any:
    return wb.Model("pocket")


def a_lens() -> TunedLens:
    model = pocket()
    n, d = model.config.n_layers - 1, model.config.d_model
    rng = torch.Generator().manual_seed(0)
    training = {"model": model.name, "weights_digest": model.digest, "tokens": 9}
    return TunedLens(torch.randn(n, d, d, generator=rng), torch.randn(n, d, generator=rng), training)


def device(path: Path, number: int = NULL, kind: int = stat.S_IFCHR) -> None:
    try:
        os.mknod(path, kind | 0o666, number)
    except PermissionError:
        pytest.skip("mknod is not permitted here")


# Exporters: what may be at the target.

EXPORTERS: dict[str, tuple[str, Callable[[Trace, Path], Any]]] = {  # ending, call
    "page": (".html", lambda trace, path: wb.views.score_sheet(trace).to_html(path)),
    "parquet": (".parquet", lambda trace, path: to_parquet(trace, "tokens", path)),
    "inif": (".inif", save_inif),
    "figure": (".svg", lambda trace, path: f.save(figure(), path, source=trace)),
    "lens": (".safetensors", lambda trace, path: a_lens().save(path)),
    "sweep": (".cells", lambda trace, path: SweepCheckpoint(path, {"x": 1})),
}


def linked(path: Path, make: Callable[[Path], Any]) -> None:
    target = path.parent / "elsewhere"
    make(target)
    path.symlink_to(target)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is limited to 107 bytes
        try:
            opened.bind(path.name)
        finally:
            os.chdir(here)


IN_THE_WAY: dict[str, Callable[[Path], Any]] = {
    "null": device,
    "full": lambda path: device(path, FULL),
    "block": lambda path: device(path, os.makedev(7, 250), stat.S_IFBLK),
    "FIFO": os.mkfifo,
    "socket": listening,
    "folder": Path.mkdir,
    "link-to-device": lambda path: linked(path, device),
    "link-to-FIFO": lambda path: linked(path, os.mkfifo),
    "link-to-file": lambda path: linked(path, lambda target: target.write_bytes(b"victim")),
    "link-to-nothing": lambda path: linked(path, lambda target: None),
    "link-to-itself": lambda path: path.symlink_to(path),
}


def state(folder: Path) -> dict[str, Any]:
    """What is in a folder: kinds, inodes, links and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else path.readlink() if path.is_symlink() else None
        found[str(path)] = info.st_mode, info.st_rdev, info.st_ino, content
    return found


PAIRS = [(name, what) for name in ("page", "sweep") for what in IN_THE_WAY]
PAIRS += [(name, what) for name in ("parquet", "inif", "figure", "lens") for what in ("null", "FIFO", "link-to-device")]


@pytest.mark.parametrize(("name", "what"), PAIRS)
def test_an_exporter_replaces_only_files(attempt, trace, name, what, tmp_path):
    ending, export = EXPORTERS[name]
    path = tmp_path / f"out{ending}"
    IN_THE_WAY[what](path)
    before = state(tmp_path)
    attempt.refused(lambda: export(trace, path), "out")
    assert state(tmp_path) == before


@pytest.mark.parametrize("at", ["json", "csv", "pdf"])
def test_a_device_at_any_of_five_files_changes_none(attempt, at, tmp_path):
    f.save(figure(title="old"), tmp_path / "x")
    (tmp_path / f"x.{at}").unlink()
    device(tmp_path / f"x.{at}")
    before = state(tmp_path)
    attempt.refused(lambda: f.save(figure(title="new"), tmp_path / "x"), f"x.{at} is a device")
    assert state(tmp_path) == before


PATHS = {
    "missing-folder": "none/out",
    "below-a-file": "file/out",
    "NUL": "a\0b",
    "long": "n" * 300,
    "long-folder": "n" * 300 + "/out",
    "surrogate": "a\ud800",
    "dot": ".",
    "empty": "",
}


@pytest.mark.parametrize("which", PATHS)
def test_a_path_that_cannot_be_is_told(attempt, trace, which, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    before = state(tmp_path)
    for name in ("inif", "sweep"):
        attempt.refused(lambda name=name: EXPORTERS[name][1](trace, Path(PATHS[which])))
    assert state(tmp_path) == before


@pytest.mark.parametrize("which", ["below-a-file", "NUL", "long"])
def test_a_page_at_a_path_that_cannot_be_is_told(attempt, trace, which, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    attempt.refused(lambda: EXPORTERS["page"][1](trace, Path(PATHS[which])))
    attempt.refused(lambda: f.save(figure(), Path(PATHS[which])))


# A disk that is full or fails.


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failing_disk_is_told_and_changes_nothing(attempt, trace, code, call, tmp_path, monkeypatch):
    def failing(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    exporters = [name for name in EXPORTERS if name != "parquet" or call == "fsync"]  # pyarrow writes by itself
    calls = []
    for name in exporters:
        ending, export = EXPORTERS[name]
        path = tmp_path / f"out{ending}"
        if name not in ("lens", "sweep"):  # they refuse what they did not write
            path.write_bytes(b"mine")
        calls.append((lambda export=export, path=path: export(trace, path), path.name))
    a_lens(), state(tmp_path)
    before = state(tmp_path)
    monkeypatch.setattr(os, call, failing)
    for export, name in calls:
        error = attempt.refused(export, name)
        assert os.strerror(code) in str(error) and error.errno == code
        assert ("are free" in str(error)) == (code in (errno.ENOSPC, errno.EDQUOT))
    monkeypatch.undo()
    assert state(tmp_path) == before


LIMITED = """
import sys, resource, workbench as wb
from workbench.interop.xarray_tables import to_parquet
from workbench.interop.inif import save_inif
trace = wb.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for export, name in ((lambda p: wb.views.score_sheet(trace).to_html(p), "a.html"),
                     (lambda p: save_inif(trace, p), "a.inif"),
                     (lambda p: to_parquet(trace, "tokens", p), "a.parquet")):
    try: export(sys.argv[2] + "/" + name)
    except wb.errors.FileError as error: print(name in str(error), str(error))
"""


def test_a_limit_on_the_size_of_files(attempt, trace, tmp_path):
    saved = trace.save(tmp_path / "t")
    (tmp_path / "out").mkdir()
    done = attempt.script(LIMITED, str(saved), str(tmp_path / "out"), cwd=ROOT)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["True"] * 3, done.stderr
    assert not state(tmp_path / "out")
    attempt.judged("refused")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", ["page", "parquet", "inif", "figure", "lens"])
def test_a_disk_that_is_really_full(attempt, trace, name, small_disk):
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(bytes(100 << 10))
    ending, export = EXPORTERS[name]
    error = attempt.refused(lambda: export(trace, small_disk / f"out{ending}"), "No space left on device")
    assert "are free" in str(error) and [path.name for path in small_disk.iterdir()] == ["ballast"]


def command(*arguments: str, **settings: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments], cwd=ROOT, text=True, timeout=60, **settings
    )


def test_show_on_a_full_disk_names_the_page(attempt, trace, tmp_path):
    saved = trace.save(tmp_path / "t")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = command("show", str(saved), "-o", str(tmp_path / "p.html"), preexec_fn=limit, capture_output=True)
    assert done.returncode == 1 and re.match(r"workbench: /.*/p\.html was not written.*File too large", done.stderr)
    assert not (tmp_path / "p.html").exists()
    attempt.judged("refused")


def test_a_full_disk_of_the_output_is_told(attempt, trace, tmp_path):
    saved = trace.save(tmp_path / "t")
    device(tmp_path / "full", FULL)
    try:
        out = (tmp_path / "full").open("w")
    except PermissionError:
        pytest.skip("devices cannot be opened here")
    with out:
        done = command("info", str(saved), stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr == "workbench: reading or writing failed: No space left on device\n"
    attempt.judged("refused")


@pytest.mark.parametrize("what", ["null", "link-to-device", "FIFO"])
def test_show_leaves_a_device(attempt, trace, what, tmp_path, capsys):
    saved = trace.save(tmp_path / "t")
    page = tmp_path / "page.html"
    IN_THE_WAY[what](page)
    before = state(tmp_path)
    assert cli.main(["show", str(saved), "-o", str(page)]) == 1
    assert state(tmp_path) == before and "page.html is a" in capsys.readouterr().err
    attempt.judged("refused")


# Names that somebody planted, and what dead processes left.


@pytest.mark.parametrize("name", ["inif", "page", "sweep"])
def test_links_at_the_hidden_names_are_not_followed(attempt, trace, name, tmp_path):
    ending, export = EXPORTERS[name]
    path, victim = tmp_path / f"out{ending}", tmp_path / "victim"
    victim.write_text("mine")
    first = next(copy.copy(paths._number))
    for n in range(first, first + 200):
        (tmp_path / f".{path.name}.writing-{os.getpid()}-{n}").symlink_to(victim)
    (tmp_path / f".{path.name}.{os.getpid()}").symlink_to(victim)
    attempt.right(lambda: export(trace, path), lambda _: path.is_file() and not path.is_symlink())
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("what", ["link-to-file", "FIFO", "null", "folder"])
def test_what_is_planted_at_the_name_of_the_lock(attempt, what, tmp_path):
    IN_THE_WAY[what](tmp_path / ".out.cells.workbench-lock")
    before = state(tmp_path)
    attempt.refused(lambda: SweepCheckpoint(tmp_path / "out.cells", {"x": 1}))
    assert state(tmp_path) == before


def a_dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_files_of_a_killed_process_are_swept(attempt, trace, tmp_path):
    (tmp_path / f".other.html.writing-{a_dead_pid()}-3").write_bytes(bytes(1000))
    attempt.right(lambda: save_inif(trace, tmp_path / "a"), lambda _: os.listdir(tmp_path) == ["a"])


@pytest.mark.parametrize(
    "name",
    [".a.writing-{alive}-0", ".a.writing-99999999999-0", "a.writing-{dead}-0", ".a.writing-{dead}", ".a.writing-0-0"],
)
def test_other_files_are_not_swept(attempt, trace, name, tmp_path):
    kept = tmp_path / name.format(alive=os.getpid(), dead=a_dead_pid())
    kept.write_text("mine")
    attempt.right(lambda: save_inif(trace, tmp_path / "b"), lambda _: kept.read_text() == "mine")


def test_a_link_with_the_name_of_a_leftover_is_not_followed(attempt, trace, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".a.writing-{a_dead_pid()}-0").symlink_to(tmp_path / "victim")
    attempt.right(lambda: save_inif(trace, tmp_path / "b"), lambda _: (tmp_path / "victim").read_text() == "mine")


def test_a_leftover_whose_writer_lives_in_another_container_is_kept(attempt, trace, tmp_path):
    """Its pid is dead here, its lock is held."""
    import fcntl

    kept = tmp_path / f".a.writing-{a_dead_pid()}-0"
    with kept.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        attempt.right(lambda: save_inif(trace, tmp_path / "b"), lambda _: kept.exists())


# Sweeps.


@pytest.fixture
def sweep(tmp_path) -> Path:
    with SweepCheckpoint(tmp_path / "a.cells", {"x": 1}) as cells:
        cells.put(1, 0.25)
        cells.put(2, 1.5)
    return tmp_path / "a.cells"


def hashed(cells: str) -> str:
    """The text of a file with these cells and a hash that matches."""
    inputs = json.dumps(SweepCheckpoint(None, {"x": 1}).inputs)
    text = f'{{"cells":{cells},"inputs":{inputs},"kind":"finished cells of a sweep"}}'
    return f'{text[:-1]},"sha256":"{sha256(text.encode()).hexdigest()}"}}'


TAMPERED: dict[str, Callable[[str], str]] = {
    "digit": lambda s: s.replace("0.25", "0.35"),
    "last-digit": lambda s: s.replace("0.25", "0.25000000000000001"),
    "text": lambda s: s.replace("0.25", '"5"'),
    "null": lambda s: s.replace("0.25", "null"),
    "true": lambda s: s.replace("0.25", "true"),
    "NaN": lambda s: s.replace("0.25", "NaN"),
    "int": lambda s: s.replace("0.25", "5"),
    "huge": lambda s: s.replace("0.25", "1" + "0" * 400),
    "1e400": lambda s: s.replace("0.25", "1e400"),
    "list": lambda s: s.replace("0.25", "[0.25]"),
    "other-cell": lambda s: s.replace('"1":', '"7":'),
    "cell-dropped": lambda s: s.replace('"1":0.25,', ""),
    "cell-twice": lambda s: s.replace('"1":0.25', '"1":0.5,"1":0.25'),
    "space": lambda s: s.replace("0.25", "0.25 "),
    "hash-digit": lambda s: s[:-3] + ("0" if s[-3] != "0" else "1") + s[-2:],
    "hash-null": lambda s: re.sub('"sha256":".*"', '"sha256":null', s),
    "no-hash": lambda s: re.sub(',"sha256":".*"', "", s),
    "cut": lambda s: s[: len(s) // 2],
    "empty": lambda s: "",
    "nested": lambda s: "[" * 100_000,
    "nested-cell": lambda s: s.replace("0.25", "[" * 60 + "]" * 60),
    "appended": lambda s: s + s,
    "BOM": lambda s: "\ufeff" + s,
    "hashed-true": lambda s: hashed('{"1":true}'),
    "hashed-null": lambda s: hashed('{"1":null}'),
    "hashed-text": lambda s: hashed('{"1":"5"}'),
    "hashed-int": lambda s: hashed('{"1":5}'),
    "hashed-shape": lambda s: hashed('{"1":[0.25,0.5]}'),
    "hashed-dict": lambda s: hashed('{"1":{"2":0.5}}'),
    "hashed-list-of-cells": lambda s: hashed("[0.25]"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_changed_sweep_is_refused_and_kept(attempt, how, sweep):
    text = TAMPERED[how](sweep.read_text())
    sweep.write_text(text)
    error = attempt.refused(lambda: SweepCheckpoint(sweep, {"x": 1}), "a.cells")
    assert isinstance(error, ResumeError) and sweep.read_text() == text and os.listdir(sweep.parent) == ["a.cells"]


def test_every_digit_of_a_sweep_is_covered(attempt, sweep):
    text = sweep.read_text()
    for at in (match.start() for match in re.finditer("[0-9]", text)):
        sweep.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        with pytest.raises(ResumeError):
            SweepCheckpoint(sweep, {"x": 1})
    attempt.judged("refused")


def test_a_hashed_number_of_another_shape_is_refused(attempt, sweep):
    attempt.refused(lambda: SweepCheckpoint(sweep, {"x": 1}, shape=(2,)), "must hold numbers of the shape [2]")


def test_a_sparse_file_of_a_terabyte_is_refused(attempt, tmp_path):
    with (tmp_path / "a.cells").open("wb") as opened:
        opened.truncate(1 << 40)
    attempt.refused(lambda: SweepCheckpoint(tmp_path / "a.cells", {"x": 1}), "the limit for such a file")


SHARED = """
import sys, time
from workbench.experiments import checkpoint
checkpoint.SAVE_INTERVAL = 0.0
start, path = int(sys.argv[1]), sys.argv[2]
with checkpoint.SweepCheckpoint(path, {"x": 1}) as cells:
    for cell in range(start, start + 50):
        cells.put(cell, cell / 7)
"""


def test_processes_with_one_file_lose_nothing_though_one_is_killed(attempt, tmp_path):
    path = tmp_path / "a.cells"
    processes = [subprocess.Popen([sys.executable, "-c", SHARED, str(i * 100), str(path)], cwd=ROOT) for i in range(3)]
    while not path.exists():
        time.sleep(0.01)
    processes[-1].kill()
    codes = [process.wait(timeout=60) for process in processes]
    assert codes[:2] == [0, 0]

    def all_there(cells: SweepCheckpoint) -> bool:
        return all(float(cells[cell]) == cell / 7 for start in (0, 100) for cell in range(start, start + 50))

    attempt.right(lambda: SweepCheckpoint(path, {"x": 1}), all_there)
    assert "a.cells" in os.listdir(tmp_path)


def test_a_sweep_does_not_overwrite_one_of_other_inputs(attempt, sweep):
    before = sweep.read_bytes()
    attempt.refused(lambda: SweepCheckpoint(sweep, {"x": 2}), "these inputs differ: x")
    assert sweep.read_bytes() == before


def test_a_lock_that_is_never_freed_ends_the_waiting(attempt, sweep, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    with files.locked(sweep):
        attempt.refused(lambda: SweepCheckpoint(sweep, {"x": 1}), "another process has locked")


def test_a_sweep_of_many_cells_is_read_in_seconds(attempt, tmp_path):
    path = tmp_path / "a.cells"
    cells = SweepCheckpoint(path, {"x": 1}, shape=(2,))
    for cell in range(50_000):
        cells._cells[str(cell)] = [0.1, 0.2]
    cells._write()
    attempt.right(lambda: SweepCheckpoint(path, {"x": 1}, shape=(2,)), lambda read: 49_999 in read, seconds=20)


# Tuned lenses.


def lens_file(path: Path, tensors: dict[str, Any] | None = None, **metadata: str) -> None:
    """A lens with a hash that matches, whatever its content is."""
    from workbench.experiments.tuned_lens import _digest

    lens = a_lens()
    tensors = {"weight": lens.weight, "bias": lens.bias} | (tensors or {})
    metadata = {"format": FORMAT, "training": json.dumps(lens.training)} | metadata
    save_file(tensors, path, {"sha256": _digest(tensors, metadata["training"])} | metadata)


LENSES: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda p: p.write_bytes(
        p.read_bytes()[:-100] + bytes([p.read_bytes()[-100] ^ 1]) + p.read_bytes()[-99:]
    ),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "appended": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "empty": lambda p: p.write_bytes(b""),
    "header-of-2**63": lambda p: p.write_bytes((2**63).to_bytes(8, "little") + b"{}"),
    "tokens": lambda p: p.write_bytes(p.read_bytes().replace(b'tokens\\": 9', b'tokens\\": 8')),
    "older": lambda p: lens_file(p, format="workbench tuned lens 2"),
    "no-hash": lambda p: lens_file(p, sha256=""),
    "nested": lambda p: lens_file(p, training="[" * 100_000),
    "training-list": lambda p: lens_file(p, training="[1]"),
    "no-digest": lambda p: lens_file(p, training="{}"),
    "digest-list": lambda p: lens_file(p, training='{"weights_digest": [1], "model": {"a": "\\u001b"}}'),
    "NaN": lambda p: lens_file(p, {"bias": a_lens().bias * torch.nan}),
    "infinite": lambda p: lens_file(p, {"bias": a_lens().bias / 0}),
    "shape": lambda p: lens_file(p, {"bias": a_lens().bias[:-1].clone()}),
    "complex": lambda p: lens_file(p, {"weight": a_lens().weight.to(torch.complex64)}),
    "int": lambda p: lens_file(p, {"weight": a_lens().weight.to(torch.int64)}),
    "half": lambda p: lens_file(p, {"weight": a_lens().weight.half(), "bias": a_lens().bias.half()}),
    "mixed": lambda p: lens_file(p, {"bias": a_lens().bias.double()}),
    "third-tensor": lambda p: lens_file(p, {"more": torch.zeros(3)}),
    "missing": Path.unlink,
    "FIFO": lambda p: (p.unlink(), os.mkfifo(p)),
    "folder": lambda p: (p.unlink(), p.mkdir()),
    "link-to-zero": lambda p: (p.unlink(), linked(p, lambda target: device(target, ZERO))),
}


@pytest.mark.parametrize("how", LENSES)
def test_a_damaged_lens_is_refused(attempt, how, tmp_path):
    path = a_lens().save(tmp_path / "lens.safetensors")
    LENSES[how](path)
    assert isinstance(attempt.refused(lambda: load_tuned_lens(path, pocket())), CheckpointError)


@pytest.mark.parametrize(
    "where", ["a\0b", "n" * 5000, "~nosuchuser/lens", ""], ids=["NUL", "long", "nosuchuser", "empty"]
)
def test_a_lens_at_a_path_that_cannot_be(attempt, where):
    attempt.refused(lambda: load_tuned_lens(where, pocket()))


# SAEs.


def saelens_folder(folder: Path, weights: dict | None = None, **cfg: Any) -> Path:
    tensors = {"W_enc": torch.ones(8, 16), "b_enc": torch.ones(16), "W_dec": torch.ones(16, 8), "b_dec": torch.ones(8)}
    save_file(tensors | (weights or {}), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "metadata": {"hook_name": SITE}} | cfg))
    return folder


def learned_folder(folder: Path, kind: str = "AutoEncoderTopK", tensors: dict | None = None, **trainer: Any) -> Path:
    state = {"encoder.weight": torch.ones(16, 8), "encoder.bias": torch.ones(16), "decoder.weight": torch.ones(8, 16)}
    torch.save(state | {"b_dec": torch.ones(8), "threshold": torch.tensor(1.5)} | (tensors or {}), folder / "ae.pt")
    settings = {"dict_class": kind, "layer": 2, "k": 7, "submodule_name": "resid_post_layer_2"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"io": "out"}}))
    return folder


def huge(*shape: int) -> torch.Tensor:
    return torch.ones(1).expand(*shape)


def deflated(folder: Path) -> Path:
    learned_folder(folder)
    with zipfile.ZipFile(folder / "ae.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data + bytes(50 << 20) * name.endswith("data/0"))
    return folder


class Runs:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def replaced(folder: Path, name: str, make: Callable[[Path], Any]) -> Path:
    (folder / name).unlink()
    make(folder / name)
    return folder


SAES: dict[str, Callable[[Path], Path]] = {
    "complex": lambda d: saelens_folder(d, {"W_enc": torch.ones(8, 16, dtype=torch.complex64)}),
    "complex-bias": lambda d: learned_folder(d, tensors={"b_dec": torch.ones(8, dtype=torch.complex128)}),
    "ints": lambda d: saelens_folder(d, {"W_dec": torch.ones(16, 8, dtype=torch.int32)}),
    "bools": lambda d: saelens_folder(d, {"b_enc": torch.ones(16, dtype=torch.bool)}),
    "k-2.7": lambda d: learned_folder(d, k=2.7),
    "k-tensor-2.7": lambda d: learned_folder(d, tensors={"k": torch.tensor(2.7)}),
    "k-two": lambda d: learned_folder(d, tensors={"k": torch.tensor([2, 3])}),
    "k-complex": lambda d: learned_folder(d, tensors={"k": torch.tensor(2j)}),
    "k-true": lambda d: learned_folder(d, k=True),
    "k-text": lambda d: learned_folder(d, k="7"),
    "k-infinite": lambda d: learned_folder(d, k=float("inf")),
    "k-huge": lambda d: learned_folder(d, k=10**400),
    "k-negative": lambda d: saelens_folder(d, architecture="topk", k=-1),
    "layer-10**30": lambda d: learned_folder(d, submodule_name=None, layer=10**30),
    "layer-negative": lambda d: learned_folder(d, submodule_name=None, layer=-1),
    "layer-list": lambda d: learned_folder(d, submodule_name=None, layer=[["\x1b"]] * 50),
    "layer-5000-digits": lambda d: learned_folder(d, submodule_name="resid_post_layer_" + "9" * 5000),
    "layer-arabic": lambda d: learned_folder(d, submodule_name="resid_post_layer_٣"),
    "stride-0": lambda d: learned_folder(
        d, tensors={"encoder.weight": huge(10**7, 10**6), "decoder.weight": huge(10**6, 10**7)}
    ),
    "stride-0-threshold": lambda d: learned_folder(d, "BatchTopKSAE", {"threshold": huge(10**13)}),
    "sparse": lambda d: learned_folder(d, tensors={"encoder.weight": torch.eye(16)[:, :8].to_sparse()}),
    "meta": lambda d: learned_folder(d, tensors={"encoder.weight": torch.empty(16, 8, device="meta")}),
    "not-a-tensor": lambda d: learned_folder(d, tensors={"encoder.weight": [1.0]}),
    "NaN": lambda d: saelens_folder(d, {"b_dec": torch.full((8,), torch.nan)}),
    "too-large-for-float32": lambda d: saelens_folder(d, {"b_dec": torch.full((8,), 1e300, dtype=torch.float64)}),
    "three-axes": lambda d: saelens_folder(d, {"W_enc": torch.ones(2, 4, 16)}),
    "code": lambda d: learned_folder(d, tensors={"encoder.weight": Runs()}),
    "deflated": deflated,
    "cut": lambda d: replaced(learned_folder(d), "ae.pt", lambda p: p.write_bytes(b"PK\3\4" + bytes(100))),
    "FIFO-ae.pt": lambda d: replaced(learned_folder(d), "ae.pt", os.mkfifo),
    "FIFO-config": lambda d: replaced(learned_folder(d), "config.json", os.mkfifo),
    "FIFO-cfg": lambda d: replaced(saelens_folder(d), "cfg.json", os.mkfifo),
    "FIFO-safetensors": lambda d: replaced(saelens_folder(d), "sae_weights.safetensors", os.mkfifo),
    "zero-ae.pt": lambda d: replaced(learned_folder(d), "ae.pt", lambda p: device(p, ZERO)),
    "zero-cfg": lambda d: replaced(saelens_folder(d), "cfg.json", lambda p: device(p, ZERO)),
    "folder-ae.pt": lambda d: replaced(learned_folder(d), "ae.pt", Path.mkdir),
    "nested": lambda d: replaced(saelens_folder(d), "cfg.json", lambda p: p.write_text('{"a":' * 100_000)),
    "list": lambda d: replaced(saelens_folder(d), "cfg.json", lambda p: p.write_text("[1]")),
    "not-UTF-8": lambda d: replaced(saelens_folder(d), "cfg.json", lambda p: p.write_bytes(b"\xff{}")),
    "300-MB": lambda d: replaced(
        saelens_folder(d), "cfg.json", lambda p: os.truncate(p, p.write_bytes(b"") + (300 << 20))
    ),
    "text-for-a-bool": lambda d: saelens_folder(d, apply_b_dec_to_input="false"),
    "long-architecture": lambda d: saelens_folder(d, architecture="\x1b" * 10**6),
}


@pytest.mark.parametrize("how", SAES)
def test_a_hostile_sae_is_refused(attempt, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = SAES[how](tmp_path)
    error = attempt.refused(lambda: load_sae(folder))
    assert len(str(error)) < 3000 and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("how", ["complex", "stride-0", "k"])
def test_an_sae_of_tensors_that_cannot_be(attempt, how):
    ones = {"complex": torch.ones(8, 16, dtype=torch.complex64), "stride-0": huge(10**6, 10**7), "k": torch.ones(8, 16)}
    w = ones[how]
    attempt.refused(lambda: SAE(SITE, w, W_dec=w.T, k=2.7 if how == "k" else None))  # pyright: ignore[reportArgumentType]


def test_a_whole_k_is_read(attempt, tmp_path):
    attempt.right(lambda: load_sae(learned_folder(tmp_path, k=7.0)), lambda sae: sae.k == 7)


@pytest.mark.parametrize("where", ["n" * 5000, "a\0b", "~nosuchuser", ""], ids=["long", "NUL", "nosuchuser", "empty"])
def test_an_sae_at_a_path_that_cannot_be(attempt, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt.refused(lambda: load_sae(where))


# Figures.

KILLED = """
import os, signal, sys
import workbench as wb
f, path, stop = wb.figures, sys.argv[1], int(sys.argv[2])
def figure(title): return f.Figure(panels=[f.Panel(marks=[f.Line(x=[0, 1], y=[0.5, 1.0])])], title=title)
f.save(figure("old"), path)
real, calls = os.replace, iter(range(99))
def replace(*names):
    if next(calls) == stop: os.kill(os.getpid(), signal.SIGKILL)
    return real(*names)
os.replace = replace
f.save(figure("new"), path)
"""


@pytest.mark.parametrize("stop", [1, 4])
def test_a_process_killed_between_the_files_of_a_figure_is_noticed(attempt, stop, tmp_path):
    done = attempt.script(KILLED, str(tmp_path / "x"), str(stop), cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    title = json.loads((tmp_path / "x.json").read_text())["title"]
    assert title == "old"
    for number, ending in enumerate(("svg", "pdf", "png")):
        if number < stop:
            attempt.refused(lambda ending=ending: f.provenance(tmp_path / f"x.{ending}"), "saving was interrupted")
        else:
            attempt.right(lambda ending=ending: f.provenance(tmp_path / f"x.{ending}"), lambda p: p["title"] == "old")
    attempt.right(lambda: f.save(figure(title="again"), tmp_path / "x"), lambda made: len(made) == 5)
    assert sorted(os.listdir(tmp_path)) == ["x.csv", "x.json", "x.pdf", "x.png", "x.svg"]


LONG: dict[str, Callable[[], Any]] = {
    "title": lambda: figure(title="a" * 100_000),
    "title-words": lambda: figure(title="word " * 399),
    "title-lines": lambda: figure(title="\n" * 100_000),
    "note": lambda: figure(note="a" * 100_000),
    "title-and-note": lambda: figure(title="a" * 1500, note="b " * 999),
    "title-number": lambda: figure(title=5),  # pyright: ignore[reportArgumentType]
    "panel": lambda: f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], title="a" * 100_000)]),
    "label": lambda: f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], x=f.Axis(label="a" * 100_000))]),
    "tick": lambda: f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], x=f.Axis(ticks=[(0.0, "a" * 100_000)]))]),
    "name": lambda: f.Figure(panels=[f.Panel(marks=[f.Line(x=[0, 1], y=[0, 1], name="a" * 100_000)])]),
    "rule": lambda: f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0, text="a" * 100_000)])]),
}


@pytest.mark.parametrize("where", LONG)
def test_texts_that_do_not_fit_a_figure(attempt, where, tmp_path):
    attempt.refused(lambda: f.save(LONG[where](), tmp_path / "x.svg"))
    assert not list(tmp_path.iterdir())


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(len(b).to_bytes(4, "big") + k + b + bytes(4) for k, b in chunks)


LAUGHS = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><a>&b;</a>'
DESCRIPTION = '<a xmlns:d="http://purl.org/dc/elements/1.1/"><d:description>{}</d:description></a>'
PICTURES: dict[str, Callable[[Path], Any]] = {
    "FIFO": os.mkfifo,
    "device": lambda p: device(p, ZERO),
    "link-to-device": lambda p: linked(p, lambda target: device(target, ZERO)),
    "folder": Path.mkdir,
    "missing": lambda p: None,
    "sparse-terabyte": lambda p: os.truncate(p, p.write_bytes(b"") + (1 << 40)),
    "deep-svg": lambda p: p.write_bytes(b"<a>" * 1_000_000),
    "entities-UTF-16": lambda p: p.write_bytes(LAUGHS.encode("utf-16")),
    "nested-json": lambda p: p.write_text(DESCRIPTION.format("[" * 100_000)),
    "huge-number": lambda p: p.write_text(DESCRIPTION.format("1" + "0" * 5000)),
    "list": lambda p: p.write_text(DESCRIPTION.format('["spec"]')),
    "a-million-chunks": lambda p: p.write_bytes(png(*[(b"junk", b"")] * 1_000_000)),
    "chunk-beyond-the-end": lambda p: p.write_bytes(png((b"tEXt", b"Description\0{}"))[:20]),
    "pdf-without-end": lambda p: p.write_bytes(b"%PDF-1.4 /Keywords (" + b"a" * (20 << 20)),
    "pdf-many-starts": lambda p: p.write_bytes(b"%PDF-1.4 " + b"/Keywords (" * 500_000),
    "pdf-backslashes": lambda p: p.write_bytes(b"%PDF-1.4 /Keywords (" + b"\\" * (10 << 20)),
    "pdf-latin": lambda p: p.write_bytes(b"%PDF-1.4 /Keywords (\xff)"),
}


@pytest.mark.parametrize("what", PICTURES)
def test_a_picture_that_is_none(attempt, what, tmp_path):
    PICTURES[what](tmp_path / "x.svg")
    assert isinstance(attempt.refused(lambda: f.provenance(tmp_path / "x.svg")), FigureError)


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_a_picture_with_one_other_bit(attempt, ending, tmp_path):
    f.save(figure(title="t"), tmp_path / "x")
    path = tmp_path / f"x.{ending}"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    attempt.refused(lambda: f.provenance(path))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"spec": 1, "sha256": {"svg": "0"}}', "", "\x00"])
def test_a_json_beside_the_picture(attempt, content, tmp_path):
    f.save(figure(), tmp_path / "x.svg")
    (tmp_path / "x.json").write_text(content)
    attempt.refused(lambda: f.provenance(tmp_path / "x.svg"), "x.json")


@pytest.mark.parametrize("what", ["FIFO", "null", "folder"])
def test_a_script_that_is_no_file(attempt, what, tmp_path):
    IN_THE_WAY[what](tmp_path / "script.py")
    attempt.refused(lambda: f.save(figure(), tmp_path / "x.svg", code=tmp_path / "script.py"), "script.py")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[1]",
        '{"a": 1}',
        '{"a": {"spec": 1, "data": 1, "code": 1, "versions": 1, "svg": 1, "pdf": 1, "png": 1}}',
    ],
)
def test_sums_that_are_none(attempt, content, tmp_path):
    (tmp_path / "sums.json").write_text(content)
    attempt.refused(lambda: read_sums(tmp_path))


def test_a_json_that_names_files_elsewhere(attempt, tmp_path):
    from workbench.figures.provenance_record import check_saved

    (tmp_path / "x.json").write_text('{"spec": 1, "sha256": {"/../../victim": "0"}}')
    attempt.refused(lambda: check_saved(tmp_path / "x.json"), "names the file ending")


# Datasets and graphs.


@pytest.mark.parametrize(
    "texts", [["\0"] * 9, ["a\0b"] * 9, ["␀", "\0"] + ["x"] * 7, [""] * 9, ["\ud800"] * 9, ["\U0010ffff\0"] * 9]
)
@pytest.mark.parametrize("engine", ["h5netcdf"])
def test_any_text_goes_to_netcdf(attempt, texts, engine, tmp_path):
    import xarray as xr

    pytest.importorskip("h5netcdf")
    one = Trace(manifest(9, str_tokens=texts), arrays(9))

    def restored() -> Trace:
        to_xarray(one).to_netcdf(tmp_path / "a.nc", engine=engine)
        with xr.open_dataset(tmp_path / "a.nc", engine=engine) as data:
            return from_xarray(data)

    attempt.right(restored, lambda trace: trace.str_tokens == one.str_tokens and trace.id == one.id)


def test_a_model_named_nul_goes_to_netcdf(attempt, tmp_path):
    pytest.importorskip("h5netcdf")
    one = Trace(manifest(9), arrays(9))
    one = Trace(replace(one.manifest, model=one.manifest.model | {"name": "a\0b"}), arrays(9))
    attempt.right(
        lambda: to_xarray(one).to_netcdf(tmp_path / "a.nc", engine="h5netcdf"), lambda _: (tmp_path / "a.nc").is_file()
    )


GRAPH = json.loads((ROOT / "tests/interop/circuit_graph.json").read_text("utf-8"))


def graph_with(n_nodes: int, **changes: Any) -> str:
    node = GRAPH["nodes"][2]
    nodes = [node | {"node_id": f"{node['node_id']}_{i}"} | changes for i in range(n_nodes)]
    return json.dumps(GRAPH | {"nodes": nodes, "links": []})


GRAPHS: dict[str, Callable[[Path], Any]] = {
    "FIFO": os.mkfifo,
    "device": lambda p: device(p, ZERO),
    "folder": Path.mkdir,
    "missing": lambda p: None,
    "nested": lambda p: p.write_text("[" * 100_000),
    "nested-object": lambda p: p.write_text('{"nodes":' * 10_000),
    "sparse-terabyte": lambda p: os.truncate(p, p.write_bytes(b"") + (1 << 40)),
    "not-UTF-8": lambda p: p.write_bytes(b"\xff"),
    "weight-10**400": lambda p: p.write_text(json.dumps(GRAPH).replace("0.5", "1" + "0" * 400)),
    "weight-NaN": lambda p: p.write_text(json.dumps(GRAPH).replace('"weight": 0.5', '"weight": NaN')),
    "weight-true": lambda p: p.write_text(json.dumps(GRAPH).replace('"weight": 0.5', '"weight": true')),
    "feature-2**70": lambda p: p.write_text(graph_with(1, feature=2**70)),
    "layer--1": lambda p: p.write_text(graph_with(1, layer=-1)),
    "ctx-2**70": lambda p: p.write_text(graph_with(1, ctx_idx=2**70)),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_a_graph_that_is_none(attempt, what, tmp_path):
    GRAPHS[what](tmp_path / "g.json")
    attempt.refused(lambda: read_graph(tmp_path / "g.json"))


@pytest.mark.parametrize("same", [False, True], ids=["different", "same-ids"])
def test_a_graph_of_many_nodes_takes_linear_time(attempt, same, tmp_path):
    n = 30_000
    changes = {"node_id": "0_1_2"} if same else {}
    (tmp_path / "g.json").write_text(graph_with(n, **changes))
    attempt.right(lambda: read_graph(tmp_path / "g.json"), lambda graph: graph.sizes["node"] == n, seconds=10)


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("WORKBENCH_LONG") != "1", reason="a minute; WORKBENCH_LONG=1 switches it on")
def test_a_graph_of_600_000_nodes(attempt, tmp_path):
    (tmp_path / "g.json").write_text(graph_with(600_000))
    attempt.safe(lambda: read_graph(tmp_path / "g.json"), lambda graph: graph.sizes["node"] == 600_000, seconds=120)


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("WORKBENCH_LONG") != "1", reason="10 s; WORKBENCH_LONG=1 switches it on")
def test_a_graph_of_too_many_values(attempt, tmp_path):
    (tmp_path / "g.json").write_text('{"nodes":[' + "[]," * 9_000_000 + "[]]}")
    error = attempt.refused(lambda: read_graph(tmp_path / "g.json"), "has more than 8000000 values", seconds=60)
    assert isinstance(error, TraceCorrupt)


def test_a_file_with_the_name_of_a_lock_stays(attempt, tmp_path):
    (tmp_path / ".c.json.workbench-lock").write_text("my data")
    with SweepCheckpoint(tmp_path / "c.json", {"a": 1}) as cells:
        cells.put(1, 2.0)
    attempt.right(lambda: (tmp_path / ".c.json.workbench-lock").read_text(), lambda text: text == "my data")
