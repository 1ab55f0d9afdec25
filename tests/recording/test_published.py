"""The size of a trace of a published model whose weights are not on this machine."""

from pathlib import Path

import pytest

import workbench as wb
from workbench import cli
from workbench.errors import HookNameError, ModelNotFound, PromptError
from workbench.recording import published
from workbench.recording.doctor import trace_bytes
from workbench.recording.published import PUBLISHED

SMALL, LARGE = PUBLISHED


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_shapes_are_the_published_ones():
    """The numbers of OpenAI's model card and of the config.json of both repositories."""
    small, large = PUBLISHED.values()
    assert (small.n_params, large.n_params) == (20_914_757_184, 116_829_156_672)
    assert (small.n_layers, small.n_experts, large.n_layers, large.n_experts) == (24, 32, 36, 128)
    assert large.layer_types == ("sliding_attention", "full_attention") * 18


def test_it_is_the_estimate_of_a_loaded_model_of_that_shape(monkeypatch: pytest.MonkeyPatch):
    model, tokens = wb.Model("pocket"), list(range(1, 80))
    monkeypatch.setitem(PUBLISHED, SMALL, model.config)
    for record in ("", "attention", "patterns residuals", "everything"):
        loaded = wb.estimate(tokens, model, record=record, max_tokens=20)
        unloaded = wb.estimate(tokens, SMALL, record=record, max_tokens=20)
        assert unloaded.by_name == loaded.by_name and unloaded.positions == loaded.positions
        assert abs(unloaded.memory - loaded.memory) <= 0.01 * loaded.memory
        assert abs(unloaded.bytes - loaded.bytes) < 20_000  # the texts of the tokens
        assert "published shape" in unloaded.note and loaded.note == ""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_arrays_are_those_that_doctor_reports(name: str):
    estimate = wb.estimate([1] * 1000, name, record="attention", max_tokens=0)
    assert sum(estimate.by_name.values()) == trace_bytes(PUBLISHED[name], "attention", "bfloat16")
    assert sum(estimate.by_name.values()) < estimate.bytes < 1.01 * sum(estimate.by_name.values())


def test_without_the_tokenizer_the_length_of_a_question_is_estimated():
    short, long = (wb.estimate("What is 12+30? " * n, SMALL, record="", max_tokens=8) for n in (1, 41))
    assert 60 < short.positions < 120 and 160 < long.positions - short.positions < 200
    assert f"counted as {short.positions - 8} tokens" in short.note
    chat = wb.chat("What is 12+30?", developer="Answer in one word. " * 10)
    assert wb.estimate(chat, SMALL, record="", max_tokens=8).positions > short.positions + 40


def test_the_command_prints_how_it_was_made(capsys: pytest.CaptureFixture):
    assert cli.main(["estimate", "What is 12+30?", "--model", SMALL, "--record", "attention"]) == 0
    assert "published shape of openai/gpt-oss-20b" in capsys.readouterr().out


def test_bad_prompts_and_names_are_refused_as_for_a_model():
    for prompt, most in (([], 1), ([201088], 1), ([-1], 1), ([1], 131072)):
        with pytest.raises(PromptError):
            wb.estimate(prompt, SMALL, max_tokens=most)
    with pytest.raises(HookNameError):
        wb.estimate([1], SMALL, record="nothing")
    with pytest.raises(ModelNotFound):
        wb.estimate([1], "openai/gpt-oss-7b")


def test_a_tokenizer_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from workbench.model.checkpoints.bundled import embedded_folder

    repo = tmp_path / "hub" / "models--openai--gpt-oss-20b"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "tokenizer.json").write_bytes((embedded_folder() / "tokenizer.json").read_bytes())
    tokenizer = published._tokenizer(SMALL)
    assert tokenizer is not None and "<|start|>" in tokenizer.special
