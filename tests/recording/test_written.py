"""A text with three writers: the prompt, the model and a tool. By hand, as an agent loop will do it."""

import json

import numpy as np
import pytest

import workbench as wb
from tests.traces import made
from workbench.analysis.heads import _only_in_needle
from workbench.errors import ArgumentError, ResumeError, TraceExists
from workbench.interop.inif import to_inif
from workbench.interop.xarray_tables import from_xarray, to_pandas, to_xarray
from workbench.pocket.families.calculator import Calculator
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import analysis, call, call_in, final, prompt, result, thought
from workbench.pocket.vocabulary import encode
from workbench.traces import Call, Stretch, Trace
from workbench.views.lane_scale import scale_range
from workbench.views.page import page

CALC = "functions.calc"
PROBLEM = Problem(Calculator("812", "29"))
EARLIER = [Problem(Calculator("47", "316")), Problem(Calculator("905", "81"))]


@pytest.fixture(scope="module")
def model():
    return wb.Model("pocket")


def answered(problem: Problem, end: str) -> str:
    """The end of a conversation about a problem: the model's thought and call, the tool's result, the answer."""
    return (
        thought(analysis(problem, "high")) + call(problem) + result(problem) + final(problem).replace("<|return|>", end)
    )


class Conversation:
    """A question after two others in one prompt; the model asks the calculator, which answers `problem.result`.

    The text is the reference solution, so it does not depend on what the embedded model has learned.
    """

    def __init__(self, model: wb.Model, problem: Problem):
        earlier = prompt(EARLIER[0], "high")
        for before, following in zip(EARLIER, [*EARLIER[1:], problem], strict=True):
            ask = f"<|start|>user<|message|>{following.question}<|end|><|start|>assistant"
            earlier += answered(before, "<|end|>") + ask
        parts = [
            ("prompt", earlier),
            ("model", thought(analysis(problem, "high")) + call(problem)),
            (CALC, result(problem)),
            ("model", final(problem)),
        ]
        self.tokens: list[int] = []
        self.written: list[Stretch] = []
        for who, text in parts:
            start = len(self.tokens)
            self.tokens += encode(text)
            self.written.append(Stretch(start, len(self.tokens), who))
        assert model.tokenizer
        assert call_in(model.tokenizer.decode(self.tokens[: self.written[1].stop])) == problem.call


@pytest.fixture(scope="module")
def talk(model):
    return Conversation(model, PROBLEM)


@pytest.fixture(scope="module")
def trace(model, talk):
    return model.trace(talk.tokens, record="steps lens attention", written=talk.written)


def writers_by_hand(talk) -> list[str]:
    return [who for start, stop, who in talk.written for _ in range(start, stop)]


def test_every_token_has_its_writer_and_the_trace_verifies(trace, talk):
    assert trace.verified and trace.written == talk.written
    assert trace.prompt_length > 128 and len(trace) > 180  # past the window of the sliding layers
    by_hand = writers_by_hand(talk)
    for who in ("prompt", "model", CALC):
        assert trace.written_by(who).tolist() == [i for i, each in enumerate(by_hand) if each == who]
    assert trace.prompt_length == talk.written[0].stop
    roles = {span.role for span in trace.spans if span.start in trace.written_by(CALC)}
    assert roles == {"tool", "assistant"}  # its message, and the header of the model's next one


def test_the_call_is_found_with_its_arguments_and_result(trace, talk):
    [found] = trace.calls
    assert (found.tool, json.loads(found.arguments), found.result) == (CALC, {"x": PROBLEM.call}, PROBLEM.result)
    assert trace.str_tokens[found.positions][-1] == "<|call|>" and found.positions.stop == talk.written[1].stop
    assert "".join(trace.str_tokens[found.result_positions]) == result(PROBLEM).removesuffix("<|start|>assistant")
    assert (found.started, found.seconds, found.error) == (None, None, None)


def test_sums_over_what_the_model_wrote_are_those_by_hand(trace, model, talk):
    """The log-probability of the model's own tokens, from the logits of a plain pass, token by token."""
    import torch

    logits = model.forward(torch.tensor([talk.tokens]))[0].double().log_softmax(-1)
    by_hand = writers_by_hand(talk)
    own = sum(float(logits[i - 1, t]) for i, t in enumerate(talk.tokens) if by_hand[i] == "model")
    others = sum(float(logits[i - 1, t]) for i, t in enumerate(talk.tokens) if by_hand[i] == CALC)
    assert abs(float(trace["logprob"][trace.written_by("model")].sum()) - own) < 1e-3
    assert abs(float(trace["logprob"][trace.written_by(CALC)].sum()) - others) < 1e-2
    assert own < 0 and others < 0
    after_prompt = float(trace["logprob"][trace.prompt_length :].sum())
    assert abs(after_prompt - own - others) < 1e-2  # all after the prompt is both, and not what the model wrote


def test_analyses_of_generated_tokens_leave_out_those_of_the_tool(trace, talk):
    by_hand = writers_by_hand(talk)
    own = [i for i, who in enumerate(by_hand) if who == "model"]
    forks = wb.reasoning.forking_tokens(trace, 1.0)
    assert sorted(forks["pos"].values.tolist()) == own and forks.attrs["n"] == len(own)
    highest = max(own, key=lambda i: float(trace["entropy"][i - 1]))
    assert int(forks["pos"][0]) == highest


def test_what_a_tool_copies_from_the_prompt_is_not_copied_by_the_model():
    written = [(0, 3, "prompt"), (3, 4, "model"), (4, 5, "python"), (5, 6, "model")]
    trace = made.trace(6, tokens=[1, 2, 3, 4, 2, 3], spans=[], written=written)
    assert _only_in_needle(trace, [0, 1, 2]) == [(4, [2])]  # the tool wrote the second 2, the model the second 3


def test_steps_are_those_of_the_model(trace):
    own = set(trace.written_by("model").tolist())
    assert trace.calls and wb.steps(trace)
    assert all(set(range(step.start, step.stop)) <= own for step in wb.steps(trace))


def test_the_scales_of_lanes_come_from_the_model_s_tokens(trace):
    over = scale_range("generated", trace, None)
    assert isinstance(over, np.ndarray) and np.array_equal(over, trace.written_by("model"))
    row = next(row for row in wb.views.score_sheet(trace, ["logprob"]).snapshot() if row.label == "log-probability")
    lowest = float(trace["logprob"][trace.written_by("model")].min())
    assert row.scale.startswith(f"{lowest:.3g}".replace("-", "−")) and "clipped" in row.scale


def test_tables_pages_and_other_formats_say_who_wrote_what(trace, talk, model):
    by_hand, n = writers_by_hand(talk), {who: len(trace.written_by(who)) for who in ("prompt", "model", CALC)}
    table = to_pandas(trace)
    assert table["writer"].tolist() == by_hand and table["generated"].tolist() == [w == "model" for w in by_hand]
    data = to_xarray(trace, "logprob")
    assert data["writer"].values.tolist() == by_hand
    assert from_xarray(data).written == talk.written and from_xarray(data).id == trace.id
    [sample] = to_inif(trace)["samples"]
    assert (sample["input_tokens"], sample["output_tokens"]) == (len(trace) - n["model"], n["model"])
    assert [i for i, token in enumerate(sample["tokens"]) if CALC in token["tags"]] == trace.written_by(CALC).tolist()
    assert sample["metadata"]["calls"][0]["result"] == PROBLEM.result
    text = f"{n['prompt']} prompt, {n['model']} generated, {n[CALC]} by {CALC}"
    html = page(wb.views.score_sheet(trace))
    assert text in html and "Calls to tools" in html
    summary = trace.summary()
    assert f"{n['model']} of them generated, {n[CALC]} by {CALC}" in summary and f"call      {CALC}: " in summary
    assert f"→ {PROBLEM.result}" in summary


def test_equal_tokens_of_which_other_tokens_were_put_in_have_other_ids(trace, model, talk):
    prompt_stretch, calling, replying, rest = talk.written
    again = model.trace(talk.tokens, record="steps lens attention", written=talk.written)
    assert again.id == trace.id and again.manifest.content_hash == trace.manifest.content_hash
    assert all(np.array_equal(again.raw(n), trace.raw(n), equal_nan=True) for n in trace.names() if n != "x")
    later = replying.stop - 2  # the header of the model's message is the model's own
    moved = [prompt_stretch, calling, replying._replace(stop=later), rest._replace(start=later)]
    other = model.trace(talk.tokens, record="steps lens attention", written=moved)
    none = model.trace(talk.tokens, record="steps lens attention")
    assert len({trace.id, other.id, none.id}) == 3 and other.tokens == trace.tokens == none.tokens
    assert np.array_equal(other["logprob"], trace["logprob"], equal_nan=True)
    assert none.calls == [] and none.manifest.spec()["put_in"] == []  # all of it is the prompt


def test_another_result_of_the_tool_is_another_run(trace, model):
    other = Conversation(model, PROBLEM.replied("77"))
    changed = model.trace(other.tokens, record="steps lens attention", written=other.written)
    assert changed.id != trace.id and changed.calls[0].result == "77"


def test_it_is_saved_and_loaded_and_streams_to_the_same_content(trace, model, talk, tmp_path):
    loaded = wb.load(trace.save(tmp_path / "a"))
    assert loaded.written == trace.written and loaded.calls == trace.calls and loaded.id == trace.id
    streamed = model.trace(talk.tokens, record="steps lens attention", written=talk.written, to=tmp_path / "b")
    assert streamed.id == trace.id and streamed.calls == trace.calls


def test_times_and_errors_of_calls_are_kept_and_another_account_of_a_run_is_not_hidden(trace, model, talk, tmp_path):
    [found] = trace.calls
    timed = Call(
        found.tool, found.arguments, found.positions, found.result_positions, found.result, "2026-01-02", 0.5, "slow"
    )
    timed_trace = model.trace(talk.tokens, record="", written=talk.written, calls=[timed], follows=trace)
    assert timed_trace.calls == [timed] and timed_trace.follows == trace.id
    plain = model.trace(talk.tokens, record="", written=talk.written)
    assert plain.id == timed_trace.id and plain.follows is None
    plain.save(tmp_path / "a")
    with pytest.raises(TraceExists, match=r"other content: follows, calls\. The numbers are equal"):
        timed_trace.save(tmp_path / "a")


def test_a_text_that_ends_in_a_call_has_it_without_a_result(model, talk):
    text = model.trace(talk.tokens[: talk.written[1].stop], record="", written=talk.written[:2])
    [found] = text.calls
    assert (found.tool, found.result_positions, found.result) == (CALC, None, None)
    assert set(range(len(text))[found.positions]) <= set(text.written_by("model").tolist())


def test_a_tool_message_in_a_chat_is_prompt(model):
    history = [
        {"role": "user", "content": PROBLEM.question},
        {"role": "assistant", "content": f'{{"x": "{PROBLEM.call}"}}', "recipient": "calc"},
        {"role": "tool", "name": "calc", "content": PROBLEM.result},
    ]
    trace = model.generate(wb.chat(None, history=history, tools=[{"name": "calc"}]), record="", max_tokens=3)
    assert trace.written == [(0, len(trace) - 3, "prompt"), (len(trace) - 3, len(trace), "model")]
    assert trace.calls == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w[:-1], "must cover all"),
        (lambda w: [(a, b, "assistant" if who == "model" else who) for a, b, who in w], "got 'assistant'"),
        (lambda w: [(a, b, "functions.clac" if who == CALC else who) for a, b, who in w], "functions.calc"),
        (lambda w: "model", "must be a list"),
    ],
)
def test_wrong_writers_are_refused_before_the_run(change, match, model, talk, tmp_path):
    with pytest.raises(ArgumentError, match=match):
        model.trace(talk.tokens, record="", written=change(talk.written), to=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_partial_run_with_tokens_of_a_tool_is_not_continued_as_if_the_model_wrote_them(model, talk):
    def stop(x, hook):
        if hook.positions[-1] >= talk.written[1].start + 5:
            raise KeyboardInterrupt
        return x

    with model.edit("blocks.0.hook_mlp_out", stop), pytest.raises(KeyboardInterrupt):
        model.generate(talk.tokens[: talk.written[1].start], record="", max_tokens=99)
    import dataclasses

    partial = model.partial
    assert isinstance(partial, Trace)
    n, cut = len(partial), partial.prompt_length + 3
    spans = [dataclasses.replace(partial.spans[0], start=0, stop=n, content_stop=n, role="unparsed")]
    written = [(0, cut - 3, "prompt"), (cut - 3, cut, "python"), (cut, n, "model")]
    manifest = dataclasses.replace(partial.manifest, edits=[], spans=spans, written=written)
    changed = Trace(manifest, {name: partial.raw(name) for name in partial.names()})
    with pytest.raises(ResumeError, match="not all tokens after its prompt are the model's"):
        model.resume(changed)
