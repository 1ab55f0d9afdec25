"""Every path that a function takes may begin with `~`, and a legal name is never too long for a scratch name."""

import os
import re
from pathlib import Path

import pytest

import workbench as wb
from tests.checkpoints import Random
from tests.model.test_adapter import BASE, train
from tests.traces import made as made_trace
from workbench.conversation import o200k
from workbench.conversation.tokenizer import Tokenizer
from workbench.experiments.checkpoint import SweepCheckpoint
from workbench.interop import circuit_tracer, inif, xarray_tables
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.paths import absolute, expanded, scratch
from workbench.traces import TraceWriter, verify, write

ROOT = Path(wb.__file__).parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and a working folder that must stay empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert os.listdir(tmp_path / "work") == []


@pytest.fixture(scope="module")
def model():
    return wb.Model("pocket")


@pytest.fixture(scope="module")
def trace(model):
    return model.trace("What is 1+1?", record="")


def test_traces_are_written_and_read_under_the_home_folder(home, model, trace):
    assert trace.save("~/saved.trace") == home / "saved.trace"
    assert model.trace("What is 1+1?", record="", to="~/new/to.trace").id == wb.load(Path("~/new/to.trace")).id
    made = model.generate("What is 1+1?", record="", max_tokens=2, to="~/generated.trace")
    assert wb.load("~/generated.trace").id == made.id and verify("~/saved.trace").path == home / "saved.trace"
    write("~/written.trace", made_trace.manifest(), {})
    with TraceWriter("~/streamed.trace", made_trace.manifest()) as writer:
        writer.append({})
    assert {"saved.trace", "new", "generated.trace", "written.trace", "streamed.trace"} == set(os.listdir(home))


def test_pages_figures_and_exports_are_written_under_the_home_folder(home, trace):
    figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])])
    assert wb.views.score_sheet(trace).to_html("~/page/sheet.html") == home / "page/sheet.html"
    pictures = wb.figures.save(figure, "~/figures/one.svg", code=__file__)
    assert pictures[0] == home / "figures/one.svg" and wb.figures.provenance("~/figures/one.svg")
    inif.save_inif(trace, "~/trace.inif.json")
    assert (home / "trace.inif.json").is_file() and xarray_tables.to_parquet(
        trace, "tokens", "~/tokens.parquet"
    ) == home / "tokens.parquet"
    with SweepCheckpoint("~/cells.json", {"a": 1}) as cells:
        cells.put(0, 1.0)
    assert (home / "cells.json").is_file()
    with pytest.raises(wb.errors.TraceNotFound, match=re.escape(str(home))):
        circuit_tracer.read_graph("~/graph.json")


def test_models_tokenizers_adapters_and_lenses_are_found_under_the_home_folder(home, model, trace, monkeypatch):
    (home / "pocket").symlink_to(embedded_folder())
    assert wb.Model("~/pocket", tokenizer="~/pocket").to_tokens("What is 1+1?") == trace.tokens
    assert Tokenizer.from_folder("~/pocket").special
    train(home / "adapter", target_modules=["q_proj"])
    base = wb.Model(BASE.write_hf_mxfp4(home / "base"))
    adapter = base.with_adapter("~/adapter").adapter
    assert adapter is not None and adapter["name"] == "adapter"
    lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    assert lens.save("~/lens.safetensors") == home / "lens.safetensors"
    assert wb.lens.load_tuned_lens("~/lens.safetensors", model)
    with pytest.raises(wb.errors.ModelNotFound, match="has no tokenizer"):
        wb.synth("20b", "~/synth", tokenizer="~/nothing")
    tiny = Random(n_layers=1).config
    assert wb.synth(tiny, "~/synth", tokenizer="~/pocket") == home / "synth"
    monkeypatch.setenv("WORKBENCH_CACHE", "~/cache")
    assert o200k.cache_folder() == home / "cache"


def test_the_command_line_expands_paths_that_the_shell_did_not(home, trace, capsys):
    from workbench import cli

    assert cli.main(["trace", "What is 1+1?", "--record", "", "-o", "~/a.trace"]) == 0
    assert cli.main(["show", "~/a.trace", "-o", "~/a.html"]) == 0
    assert cli.main(["verify", "~/a.trace"]) == 0 and cli.main(["info", "~/a.trace"]) == 0
    assert set(os.listdir(home)) == {"a.trace", "a.html"}


def test_only_one_function_expands_the_home_folder(tmp_path):
    """All paths are expanded by it: no other module handles `~`."""
    modules = [p.relative_to(ROOT) for p in ROOT.rglob("*.py") if "expanduser" in p.read_text("utf-8")]
    assert modules == [Path("paths.py")]


def test_expanded_and_absolute_paths_match_their_definitions(home):
    assert expanded("~") == home and expanded("~/a") == home / "a" and expanded(b"~/a") == home / "a"
    assert expanded("a/~") == Path("a/~") and expanded("~nobody-has-this-name/a") == Path("~nobody-has-this-name/a")
    assert absolute("a/../b") == Path.cwd() / "b"
    for wrong in (None, 3, ["a"]):
        with pytest.raises(TypeError):
            expanded(wrong)  # pyright: ignore[reportArgumentType]


LONG = ["n" * 240, "n" * 255, "ö" * 127, "文" * 85, "e\u0301" * 85]


@pytest.mark.parametrize("name", LONG, ids=lambda name: f"{name[0]}{len(name.encode())}")
def test_every_legal_name_is_written(home, model, trace, name):
    figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])])
    (home / "a").mkdir()
    assert trace.save(home / name) == home / name
    assert wb.load(home / name).id == trace.id
    assert model.trace("What is 1+1?", record="", to=home / "a" / name).id == trace.id
    assert wb.views.score_sheet(trace).to_html(home / "a" / f"{name[:-5]}.html").is_file()
    stem = name.encode()[:240].decode("utf-8", "ignore")
    assert wb.figures.save(figure, home / f"{stem}.svg")[0].is_file()
    with SweepCheckpoint(home / f"{stem}.json2", {}) as cells:
        cells.put(0, 1.0)
    assert not [name for name in os.listdir(home) if ".writing-" in name]


def test_a_name_that_is_too_long_is_refused_before_the_run(home, model, monkeypatch):
    monkeypatch.setattr("workbench.recording.record.record", lambda *_, **__: pytest.fail("the model ran"))
    for name in ("n" * 256, "文" * 86):
        with pytest.raises(wb.errors.TraceError, match="too long"):
            model.trace("What is 1+1?", record="", to=home / name)
    assert os.listdir(home) == []


def test_scratch_names_are_new_hidden_and_short():
    names = {scratch(Path("/a") / ("文" * 85)) for _ in range(3)}
    assert len(names) == 3
    for path in names:
        assert path.parent == Path("/a") and path.name.startswith(".文") and len(os.fsencode(path.name)) <= 143
