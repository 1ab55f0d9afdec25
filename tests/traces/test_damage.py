import json
import os
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.traces import made
from workbench.errors import TraceCorrupt, TraceError, TraceNotFound, TraceUnsafe, TraceVersion
from workbench.traces import load, reader, verify, write
from workbench.traces.format import MAX_HEADER, encode_header

PART = "part-00000.safetensors"
NEXT = "part-00001.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return made.streamed(tmp_path / "a")


def read_all(path: Path) -> None:
    trace = load(path)
    for name in trace.names():
        trace[name]


def signed(path: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest and give it the hash that fits, as an attacker would."""
    manifest = json.loads((path / "manifest.json").read_text())["manifest"]
    body = json.dumps(change(manifest) or manifest, sort_keys=True, separators=(",", ":")).encode()
    signed_text(path, body)


def signed_text(path: Path, body: bytes) -> None:
    digest = sha256(body).hexdigest().encode()
    (path / "manifest.json").write_bytes(b'{"manifest":' + body + b',"sha256":"' + digest + b'"}\n')


def edit(file: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)


def test_a_flipped_bit_is_never_a_wrong_number(path: Path) -> None:
    file, expected = path / PART, made.joined()
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(data) * 8, 60, replace=False).tolist():
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        trace, refused = load(path), 0
        for name in trace.names():
            try:
                assert made.same(trace.raw(name), expected[name])
            except TraceError:
                refused += 1
        assert refused == len(verify(path).problems) >= 1


def test_damage_in_one_array_leaves_the_others_readable(path: Path) -> None:
    edit(path / PART, lambda data: data.__setitem__(-1, data[-1] ^ 1))
    report = verify(path)
    assert not report.ok and report.tensors == len(load(path).names()) - 1
    assert "1 of 18 tensors are damaged" in str(report)
    (problem,) = report.problems
    assert isinstance(problem, TraceCorrupt) and str(path) in str(problem) and "do not match their hash" in str(problem)


WAYS: dict[str, tuple[Callable[[Path], object], type[TraceError]]] = {
    "a flipped bit": (lambda p: edit(p / PART, lambda d: d.__setitem__(-1, d[-1] ^ 1)), TraceCorrupt),
    "truncated": (lambda p: edit(p / PART, lambda d: d.__delitem__(-1)), TraceCorrupt),
    "cut to nothing": (lambda p: (p / PART).write_bytes(b""), TraceCorrupt),
    "cut in the header": (lambda p: os.truncate(p / PART, 20), TraceCorrupt),
    "an extra byte": (lambda p: edit(p / PART, lambda d: d.append(0)), TraceCorrupt),
    "far too large": (lambda p: os.truncate(p / PART, 1 << 40), TraceUnsafe),
    "a part missing": (lambda p: (p / NEXT).unlink(), TraceCorrupt),
    "a renamed tensor": (
        lambda p: edit(
            p / PART,
            lambda d: d.__setitem__(
                slice(None),
                d.replace(b"blocks.0.attn.hook_z", b"blocks.0.attn.hook_v").replace(b'"logprob"', b'"logprod"'),
            ),
        ),
        TraceCorrupt,
    ),
    "swapped tensors": (
        lambda p: edit(
            p / PART,
            lambda d: d.__setitem__(
                slice(None),
                d.replace(b"blocks.0.hook_resid", b"blocks.#.hook_resid")
                .replace(b"blocks.1.hook_resid", b"blocks.0.hook_resid")
                .replace(b"blocks.#", b"blocks.1"),
            ),
        ),
        TraceCorrupt,
    ),
    "another dtype": (
        lambda p: edit(p / PART, lambda d: d.__setitem__(slice(None), d.replace(b'"F32"', b'"I32"'))),
        TraceCorrupt,
    ),
    "another shape": (
        lambda p: edit(p / PART, lambda d: d.__setitem__(slice(None), d.replace(b"[5,10]", b"[10,5]"))),
        TraceCorrupt,
    ),
    "a header length bomb": (
        lambda p: edit(p / PART, lambda d: d.__setitem__(slice(0, 8), (2**63 - 1).to_bytes(8, "little"))),
        TraceCorrupt,
    ),
    "a manifest cut": (lambda p: edit(p / "manifest.json", lambda d: d.__delitem__(slice(-9, None))), TraceCorrupt),
    "a manifest with a space more": (lambda p: edit(p / "manifest.json", lambda d: d.insert(12, 32)), TraceCorrupt),
    "a manifest edited": (
        lambda p: edit(
            p / "manifest.json", lambda d: d.__setitem__(slice(None), d.replace(b'"complete"', b'"partial"'))
        ),
        TraceCorrupt,
    ),
    "an empty manifest": (lambda p: (p / "manifest.json").write_bytes(b""), TraceCorrupt),
    "a huge manifest": (lambda p: os.truncate(p / "manifest.json", 1 << 30), TraceUnsafe),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), TraceNotFound),
    "no trace": (shutil.rmtree, TraceNotFound),
    "schema 4": (lambda p: signed(p, lambda m: m.update(schema=4, future=True)), TraceVersion),
    "a key more": (lambda p: signed(p, lambda m: m.update(more=1)), TraceCorrupt),
    "a key less": (lambda p: signed(p, lambda m: m.pop("notes") and None), TraceCorrupt),
    "a list as manifest": (lambda p: signed(p, lambda m: [m]), TraceCorrupt),
    "a duplicate key": (
        lambda p: signed_text(
            p, (p / "manifest.json").read_bytes()[12:-78].replace(b'"status":', b'"status":"partial","status":')
        ),
        TraceCorrupt,
    ),
    "an infinity": (
        lambda p: signed_text(p, (p / "manifest.json").read_bytes()[12:-78].replace(b"1e-05", b"1e999")),
        TraceCorrupt,
    ),
    "a nest too deep": (lambda p: signed_text(p, b"[" * 100_000), TraceCorrupt),
    "a nest too deep to copy": (
        lambda p: signed(p, lambda m: m["numerics"].update(x=json.loads("[" * 800 + "]" * 800))),
        TraceCorrupt,
    ),
    "a part outside": (
        lambda p: signed_text(
            p, (p / "manifest.json").read_bytes()[12:-78].replace(PART.encode(), b"../a/" + PART.encode())
        ),
        TraceCorrupt,
    ),
    "no parts": (lambda p: signed(p, lambda m: m["tensors"]["logprob"].update(chunks=[])), TraceCorrupt),
    "more memory than there is": (
        lambda p: signed(
            p, lambda m: m["tensors"]["logprob"].update(shape=[2**40], chunks=[[PART, [2**40], "0" * 64]])
        ),
        TraceUnsafe,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_damage_is_a_typed_error(way: str, path: Path) -> None:
    damage, error = WAYS[way]
    read_all(path)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    damage(path)
    if way not in ("far too large", "a huge manifest"):
        assert before != ({p.name: p.read_bytes() for p in path.iterdir()} if path.exists() else None), (
            "nothing was damaged"
        )
    with pytest.raises(error) as caught:
        read_all(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_swapped_parts_are_corrupt(path: Path) -> None:
    (path / PART).rename(path / "x")
    (path / NEXT).rename(path / PART)
    (path / "x").rename(path / NEXT)
    with pytest.raises(TraceCorrupt):
        read_all(path)


def test_parts_of_another_run_are_corrupt(path: Path, tmp_path: Path) -> None:
    other = made.streamed(tmp_path / "b", seed=1)
    shutil.copy(other / PART, path / PART)
    with pytest.raises(TraceCorrupt, match="do not match their hash"):
        read_all(path)
    assert len(verify(path).problems) == len(load(path).names())


@pytest.mark.parametrize("file", ["manifest.json", PART])
@pytest.mark.parametrize("kind", ["link", "zero", "loop", "fifo", "folder", "outside"])
def test_a_file_that_is_not_regular_is_unsafe_and_never_blocks(
    file: str, kind: str, path: Path, tmp_path: Path
) -> None:
    (path / file).rename(tmp_path / "moved")
    match kind:
        case "link":
            (path / file).symlink_to(tmp_path / "moved")  # even to the right bytes
        case "zero":
            (path / file).symlink_to("/dev/zero")
        case "loop":
            (path / file).symlink_to(file)
        case "fifo":
            os.mkfifo(path / file)
        case "folder":
            (path / file).mkdir()
        case "outside":
            (path / file).symlink_to("/etc/passwd")
    with pytest.raises(TraceUnsafe):
        read_all(path)


def test_the_path_of_a_trace_is_a_folder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    for name, error in (("link", TraceUnsafe), ("fifo", TraceUnsafe), ("/dev/zero", TraceUnsafe)):
        with pytest.raises(error, match="a trace is a folder"):
            load(tmp_path / name)
    for name in ("nothing", "nothing/at/all", "a/manifest.json", "a/manifest.json/x", "empty", "x" * 300):
        with pytest.raises(TraceNotFound):
            load(tmp_path / name)


def test_a_header_bomb_is_unsafe_and_not_read(path: Path) -> None:
    with (path / PART).open("r+b") as file:
        file.write((MAX_HEADER + 8).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 1000)
    with pytest.raises(TraceUnsafe, match="over the limit"):
        load(path)["logprob"]


def test_a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, real = load(path), reader.read
    trace["logprob"]

    def shrinking(fd: int, start: int, stop: int) -> Any:
        os.truncate(path / PART, 100)
        return real(fd, start, stop)

    monkeypatch.setattr(reader, "read", shrinking)
    with pytest.raises(TraceCorrupt, match="shorter than it was"):
        trace["margin"]


def test_an_array_is_unchanged_when_its_file_changes(path: Path) -> None:
    trace = load(path)
    before = trace["resid_post", 0].copy()
    first_read = trace.raw(("resid_post", 0))
    for file in path.glob("part-*"):
        file.write_bytes(bytes(file.stat().st_size))
    assert np.array_equal(trace["resid_post", 0], before) and made.same(first_read.astype("f4"), before)
    with pytest.raises(TraceCorrupt):
        trace["resid_post", 1]
    assert len(verify(path).problems) == 18


def test_another_trace_at_the_same_path_is_detected(path: Path, tmp_path: Path) -> None:
    trace = load(path)
    shutil.rmtree(path)
    with pytest.raises(TraceNotFound):
        trace["logprob"]
    made.streamed(path, seed=1)
    with pytest.raises(TraceCorrupt):
        trace["margin"]


def test_a_tensor_larger_than_memory_is_refused_before_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = load(path)
    trace["margin"]  # the headers are known now
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if "SIZE" in name else 1000)
    assert trace["logprob"].nbytes == 36
    with pytest.raises(TraceUnsafe, match="1296 bytes are more than this machine's memory"):
        trace["pattern", 0]


def test_a_new_file_in_the_folder_changes_nothing(path: Path) -> None:
    (path / ".DS_Store").write_bytes(b"x")
    os.mkfifo(path / "fifo")
    assert verify(path).ok


def test_the_writer_refuses_manifests_that_the_reader_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reader, "MAX_MANIFEST", 100)
    with pytest.raises(TraceUnsafe):
        made.trace().save(tmp_path / "a")
    assert os.listdir(tmp_path) == []
    with pytest.raises(TraceUnsafe):
        encode_header({f"t{n}": ("F32", [1]) for n in range(20_001)})


# What a copy by git, git-lfs or the hub did to it, with the way out.

POINTERS = {
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git annex get": b"/annex/objects/SHA256E-s5--4d7a.safetensors\n",
}


@pytest.mark.parametrize("file", ["manifest.json", PART])
@pytest.mark.parametrize("command", POINTERS)
def test_a_pointer_file_error_has_the_command_to_fetch_the_file(file: str, command: str, path: Path) -> None:
    (path / file).write_bytes(POINTERS[command])
    with pytest.raises(TraceCorrupt, match=rf"{file} is a git-(lfs|annex) pointer, .* {command}"):
        read_all(path)


LINE_ENDS = {
    "autocrlf": lambda data: data.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "no last line end": lambda data: data.rstrip(b"\n"),
    "old Macs": lambda data: data.replace(b"\n", b"\r"),
    "one more line": lambda data: data + b"\n",
}


@pytest.mark.parametrize("change", LINE_ENDS)
def test_changed_line_ends_have_their_own_error(change: str, path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_bytes(LINE_ENDS[change](manifest.read_bytes()))
    with pytest.raises(TraceCorrupt, match=r"line endings .* were changed.*autocrlf.*\.gitattributes"):
        load(path)
    manifest.write_bytes(manifest.read_bytes().replace(b"made", b"mode"))
    with pytest.raises(TraceCorrupt, match="does not match its own hash"):
        load(path)


def test_symlinks_of_the_hub_cache_are_refused_with_advice(path: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in path.iterdir():
        (snapshot / file.name).symlink_to(file)
    with pytest.raises(TraceUnsafe, match=r"manifest.json is a symlink to .*cp -rL .*--local-dir"):
        load(snapshot)
    shutil.copytree(snapshot, tmp_path / "copy")  # follows links, as cp -rL does
    assert verify(tmp_path / "copy").ok
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(TraceUnsafe, match=f"of its target: {re.escape(str(path))}$"):
        load(tmp_path / "link")


@pytest.mark.parametrize(
    ("name", "place", "value"), [("blocks.1.mlp.hook_expert_indices", (0, 0), -1), ("resid_norm", (1, 2), -1.0)]
)
def test_numbers_that_no_run_has_are_refused_when_they_are_read(
    name: str, place: tuple[int, int], value: float, tmp_path: Path
) -> None:
    arrays = made.arrays() | {"resid_norm": np.ones((3, 9), "f4")}
    arrays[name][place] = value
    path = write(tmp_path / "a", made.manifest(), arrays)
    trace = load(path)
    assert trace["hook_logits"].shape == (9, 11)
    with pytest.raises(TraceCorrupt, match=str(value)):
        trace[name]
    assert [type(problem) for problem in verify(path).problems] == [TraceCorrupt]
