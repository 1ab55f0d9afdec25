"""The `workbench` command: its output, its files and its exit codes."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import workbench as wb
from tests.model.models import ctrl_c_in_pass
from tests.traces import made
from workbench import cli

ASK = "Mod 10: a=3, b=a+4, c=b+2. Find c."


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return made.trace(numerics={"dtype": "float32"}).save(tmp_path / "made.trace")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pocket") / "first.trace"
    assert cli.main(["trace", ASK, "-o", str(where)]) == 0
    return where


# With the embedded model.


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "workbench", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("workbench ")


def test_trace_prints_the_thought_the_answer_and_the_path(capsys: pytest.CaptureFixture):
    assert cli.main(["trace", ASK, "-o", "first.trace"]) == 0
    out = capsys.readouterr().out
    trace = wb.load("first.trace")
    assert f"analysis:\n{trace.text(channel='analysis')}" in out
    assert f"final:\n{trace.text(channel='final')}" in out
    assert repr(trace) in out
    assert f"written to {Path('first.trace').resolve()}" in out


def test_a_trace_from_the_command_line_verifies(pocket: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["verify", str(pocket), "--json"]) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert result["ok"]
    assert result["bytes"] > 0
    assert {line["status"] for line in result["identities"]} == {"holds", "held when recorded"}


def test_a_trace_that_failed_when_it_was_recorded_does_not_verify_later(pocket: Path, capsys: pytest.CaptureFixture):
    good = wb.load(pocket)
    lines = [
        line | {"status": "fails"} if line["identity"] == "pattern + sink = 1" else line for line in good.verification
    ]
    failed = wb.Trace(replace(good.manifest, verification=lines), {name: good.raw(name) for name in good.names()})
    assert cli.main(["verify", str(failed.save("failed.trace"))]) == 3
    assert "fails: pattern + sink = 1" in capsys.readouterr().out


def test_show_writes_the_page_of_a_run(pocket: Path):
    assert cli.main(["show", str(pocket), "-o", "page.html"]) == 0
    text = Path("page.html").read_text("utf-8")
    assert "Content-Security-Policy" in text
    assert "It is 9." in text
    assert 'id="view"' in text


def test_a_prompt_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "stdin", io.StringIO(ASK + "\n"))
    assert cli.main(["trace", "-", "-o", "piped.trace", "--max-tokens", "4", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["generated"] == 4
    assert output["id"] == wb.load("piped.trace").id


def test_system_and_developer_messages_reach_the_model(monkeypatch: pytest.MonkeyPatch):
    prompts = []
    monkeypatch.setattr(wb, "trace", lambda prompt, **_: prompts.append(prompt) or made.trace())
    assert cli.main(["trace", ASK, "--system", "You count.", "--developer", "Be brief.", "--reasoning", "low"]) == 0
    assert prompts == [wb.chat(ASK, system="You count.", developer="Be brief.", reasoning="low")]


def test_without_a_name_each_trace_gets_a_new_one():
    for _ in range(2):
        assert cli.main(["trace", "What is 12+30?", "--max-tokens", "2"]) == 0
    assert sorted(os.listdir()) == ["what-is-12-30-2.trace", "what-is-12-30.trace"]


def test_estimate_prints_the_bytes_before_the_run(capsys: pytest.CaptureFixture):
    assert cli.main(["estimate", ASK, "--max-tokens", "16", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["bytes"] >= sum(output["by_name"].values()) > 0
    assert cli.main(["estimate", ASK]) == 0
    assert "on disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--record", "atention"], "atention"),
        (["--max-tokens", "999999"], ""),
    ],
)
def test_a_wrong_argument_is_one_line_and_code_1(wrong: list[str], message: str, capsys: pytest.CaptureFixture):
    assert cli.main(["trace", ASK, "-o", "none.trace", *wrong]) == 1
    error = capsys.readouterr().err
    assert error.startswith("workbench: ")
    assert message in error
    assert not Path("none.trace").exists()


# With made traces: no model.


def test_a_path_that_is_taken_is_refused_before_the_run(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(wb, "trace", lambda *a, **k: pytest.fail("the model ran"))
    assert cli.main(["trace", ASK, "-o", str(saved)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_an_interrupt_saves_the_partial_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    class Interrupted(KeyboardInterrupt):
        trace = made.trace(status="partial")

    def interrupted(*_, **__):
        raise Interrupted

    monkeypatch.setattr(wb, "trace", interrupted)
    assert cli.main(["trace", ASK, "-o", "half.trace"]) == 130
    assert wb.load("half.trace").status == "partial"
    assert "half.trace is partial" in capsys.readouterr().err


def test_resume_continues_an_interrupted_run(pocket: Path, capsys: pytest.CaptureFixture):
    with ctrl_c_in_pass(20):
        assert cli.main(["trace", ASK, "-o", "my half.trace"]) == 130
    err = capsys.readouterr().err
    assert err.endswith("Continue with:\n  workbench resume 'my half.trace'\n")
    with ctrl_c_in_pass(5):
        assert cli.main(["resume", "my half.trace", "--json"]) == 130
    output = capsys.readouterr()
    assert json.loads(output.out)["generated"] == 22
    assert output.err.endswith("  workbench resume 'my half-resumed.trace'\n")
    assert cli.main(["resume", "my half-resumed.trace", "-o", "done.trace"]) == 0
    assert repr(wb.load("done.trace")) in capsys.readouterr().out
    done, whole = wb.load("done.trace"), wb.load(pocket)
    assert done.manifest.to_json() | {"created": ""} == whole.manifest.to_json() | {"created": ""}


def test_resume_needs_the_same_model_and_prints_the_option_to_name_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    other = Path(shutil.copytree(Path(wb.__file__).parents[1] / "data" / "pocket", tmp_path / "models" / "other"))
    with ctrl_c_in_pass(9):
        assert cli.main(["trace", ASK, "-o", "half.trace", "--model", str(other)]) == 130
    assert capsys.readouterr().err.endswith(f"  workbench resume half.trace --model {other}\n")
    assert cli.main(["resume", "half.trace", "-o", "done.trace"]) == 1
    assert "other" in capsys.readouterr().err
    assert cli.main(["resume", "half.trace", "--model", str(other), "-o", "done.trace"]) == 0


def test_an_interrupt_before_anything_was_written_leaves_no_trace(capsys: pytest.CaptureFixture):
    with ctrl_c_in_pass(1):
        assert cli.main(["trace", ASK]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not os.listdir()


def test_a_complete_trace_is_not_resumed(pocket: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["resume", str(pocket)]) == 1
    assert "it is complete" in capsys.readouterr().err


def test_an_interrupt_before_anything_was_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(wb, "trace", interrupted)
    assert cli.main(["trace", ASK, "-o", "none.trace"]) == 130
    assert not Path("none.trace").exists()


def test_a_run_whose_identity_fails_is_saved_with_code_3(monkeypatch: pytest.MonkeyPatch):
    failing = made.trace(verification=[made.HOLDS | {"status": "fails", "max_error": 1.0}])
    monkeypatch.setattr(wb, "trace", lambda *_, **__: failing)
    assert cli.main(["trace", ASK, "-o", "bad.trace"]) == 3
    assert wb.load("bad.trace").id == failing.id


def test_info_prints_the_contents(saved: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["info", str(saved)]) == 0
    assert "resid_post" in capsys.readouterr().out
    assert cli.main(["info", str(saved), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["manifest"]["model"]["name"] == "made"
    assert output["tokens"] == 9


def test_show_names_the_page_after_the_trace(saved: Path):
    for _ in range(2):
        assert cli.main(["show", str(saved)]) == 0
    assert {"made.html", "made-2.html"} <= set(os.listdir())


def test_one_flipped_bit_is_code_3(saved: Path, capsys: pytest.CaptureFixture):
    part = saved / "part-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert cli.main(["verify", str(saved)]) == 3
    assert "FAILS" in capsys.readouterr().out


def test_a_damaged_manifest_is_code_3(saved: Path):
    (saved / "manifest.json").write_text("{}")
    assert cli.main(["verify", str(saved)]) == 3


def test_one_bad_trace_among_good_ones_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture):
    plain = {"spans": [], "numerics": {"dtype": "float32"}}
    paths = [wb.Trace(made.manifest(seed=seed, **plain), {}).save(tmp_path / f"{seed}.trace") for seed in range(3)]
    assert cli.main(["verify", *map(str, paths)]) == 0
    capsys.readouterr()
    (paths[1] / "manifest.json").write_bytes((paths[1] / "manifest.json").read_bytes().replace(b"made", b"maid"))
    assert cli.main(["verify", *map(str, paths), "--json"]) == 3
    assert [one["ok"] for one in json.loads(capsys.readouterr().out)] == [True, False, True]


@pytest.mark.parametrize("command", ["info", "show", "verify"])
def test_a_path_without_a_trace_is_code_1(command: str, capsys: pytest.CaptureFixture):
    assert cli.main([command, "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_verify_reports_the_traces_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture):
    saved = wb.Trace(made.manifest(spans=[], numerics={"dtype": "float32"}), {}).save(tmp_path / "plain.trace")
    assert cli.main(["verify", "nowhere", str(saved)]) == 1
    out, err = capsys.readouterr()
    assert f"holds: {saved}" in out and "there is no trace" in err and "nowhere" in err
    (saved / "manifest.json").write_text("{}")
    assert cli.main(["verify", str(saved), "nowhere", "--json"]) == 3
    assert [one["ok"] for one in json.loads(capsys.readouterr().out)] == [False]


def test_a_trace_is_replaced_with_overwrite(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    other = made.trace(seed=4)
    monkeypatch.setattr(wb, "trace", lambda *_, **__: other)
    assert cli.main(["trace", ASK, "-o", str(saved)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["trace", ASK, "-o", str(saved), "--overwrite"]) == 0
    assert wb.load(saved).id == other.id


def test_overwrite_refuses_what_is_not_a_trace_before_the_run(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(wb, "trace", lambda *_, **__: pytest.fail("the model ran"))
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("mine")
    assert cli.main(["trace", ASK, "-o", "mine", "--overwrite"]) == 1
    assert "is not a trace" in capsys.readouterr().err and Path("mine/thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("wrong", [[], ["nothing"], ["trace"], ["trace", "x", "--seed", "one"], ["verify"]])
def test_wrong_usage_is_code_2(wrong: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(wrong)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert wb.__version__ in capsys.readouterr().out


def test_an_empty_prompt_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert cli.main(["trace", "-"]) == 1
    assert "empty" in capsys.readouterr().err


def test_info_show_and_verify_need_no_torch(saved: Path, tmp_path: Path):
    for command in (["info"], ["show", "-o", str(tmp_path / "page.html")], ["verify"]):
        code = (
            "import sys; sys.modules['torch'] = None; from workbench.cli import main; "
            f"sys.exit(main({[*command[:1], str(saved), *command[1:]]!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in ((0,) if command[0] != "verify" else (0, 3)), done.stderr


def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path):
    hostile = made.trace(model=made.manifest().model | {"name": "pock\u202eet →"}).save(tmp_path / "hostile.trace")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "info", str(hostile)], capture_output=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert b"U+202E" in done.stdout


# A place that cannot be written.


def test_a_path_that_cannot_be_written_is_refused_before_the_run(capsys, monkeypatch):
    monkeypatch.setattr(wb.Model, "generate", lambda *_, **__: pytest.fail("the model ran"))
    Path("file").write_text("mine")
    for where in ("/proc/a.trace", "file/a.trace", "n" * 256):
        assert cli.main(["trace", ASK, "-o", where]) == 1
        assert "could not be written" in capsys.readouterr().err
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_after_the_run_loses_neither_answer_nor_trace(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if str(tmp_path) in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere := Path(tempfile.mkdtemp())))
    try:
        assert cli.main(["trace", ASK, "--record", "", "-o", "a.trace", *(["--json"] if as_json else [])]) == 1
        out, err = capsys.readouterr()
        [saved] = elsewhere.glob("workbench-*/a.trace")
        trace = wb.load(saved)
        assert "the disk is full" in err and str(saved) in err
        if as_json:
            assert json.loads(out)["final"] == trace.text(channel="final") and json.loads(out)["path"] == str(saved)
        else:
            assert trace.text(channel="final") in out and f"written to {saved}" in out
        assert os.listdir(tmp_path) == []
        monkeypatch.setattr(tempfile, "tempdir", "/proc")
        assert cli.main(["trace", ASK, "--record", "", "-o", "a.trace", *(["--json"] if as_json else [])]) == 1
        out, err = capsys.readouterr()
        assert trace.text(channel="final") in out and "the disk is full" in err
        assert (json.loads(out)["path"] is None) if as_json else "not written" in out
    finally:
        shutil.rmtree(elsewhere)


# Hostile text, and folders of strangers.


def test_wrong_usage_is_told_without_control_characters(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        cli.main(["info", "a", "b\x1b[31m\nworkbench: fine"])
    assert "unrecognized arguments: b␛[31m␊workbench: fine" in capsys.readouterr().err


def test_jupyterlab_gets_all_arguments_and_imports_nothing_from_here(monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    Path("jupyterlab.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend("")
    for arguments in (["--no-browser", "--port", "8888"], ["--", "--no-browser"], ["--help"], []):
        cli.main(["lab", *arguments])
        passed_on = arguments[1:] if arguments[:1] == ["--"] else arguments
        assert started[-1][1:4] == ["-P", "-m", "jupyterlab"]
        assert started[-1][len(started[-1]) - len(passed_on) :] == passed_on
    assert not Path("executed").exists()


def test_the_command_as_a_module_imports_nothing_from_the_current_folder():
    for name in ("json", "html", "argparse", "numpy"):
        Path(f"{name}.py").write_text("open('executed', 'a').write(__name__)")
    command = [sys.executable, "-m", "workbench", "--version"]
    environment = os.environ | {"PYTHONPATH": str(Path(wb.__file__).parents[1])}
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    assert not Path("executed").exists()


def test_a_reader_that_closes_the_pipe_is_no_error(saved: Path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "workbench", "info", str(saved)]
    done = subprocess.run(command, check=False, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_prompt_in_a_locale_without_utf_8_is_read_as_utf_8():
    assert cli._text("été".encode().decode("ascii", "surrogateescape")) == "été"
    with pytest.raises(wb.errors.PromptError, match="not text in UTF-8"):
        cli._text("\udcff")
