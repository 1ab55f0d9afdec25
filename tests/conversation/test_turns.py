"""Turns: which messages lead to which answer, and the functions that use the turns of a trace."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.conversation.written import ids_of
from workbench.conversation.parse import parse
from workbench.conversation.render import render
from workbench.errors import ArgumentError, NotRecorded, PromptError, WorkbenchError
from workbench.experiments.resampling import final_text
from workbench.traces.spans import Span, last_turn, turns

QUESTION = "Mod 10: a=3, b=a+4, c=b+2. Find c."
START = "<|start|>assistant"
EARLIER = (
    "<|start|>system<|message|>Reasoning: high<|end|><|start|>user<|message|>What is 247+138?<|end|>"
    f"{START}<|channel|>analysis<|message|>7+8=15, 4+3+1=8, 2+1=3.<|end|>"
    f"{START}<|channel|>final<|message|>It is 385.<|end|>"
)


@pytest.fixture(scope="module")
def model():
    return wb.Model("pocket")


@pytest.fixture(scope="module")
def alone(model):
    return model.generate(wb.chat(QUESTION), record="")


def parsed_tokens(text: str, tokenizer) -> Any:
    ids = ids_of(text, tokenizer)
    return SimpleNamespace(tokens=ids, str_tokens=tokenizer.str_tokens(ids), spans=parse(ids, tokenizer))


def trace_of(model, *parts: str):
    return model.trace([i for part in parts for i in ids_of(part, model.tokenizer)], record="")


def turn_of(alone) -> str:
    """The question with the thought and answer of the trace `alone`, as text."""
    thought, answer = alone.text(channel="analysis"), alone.text(channel="final")
    return (
        f"<|start|>user<|message|>{QUESTION}<|end|>{START}<|channel|>analysis<|message|>{thought}<|end|>"
        f"{START}<|channel|>final<|message|>{answer}<|return|>"
    )


@pytest.mark.parametrize("which", ["pocket", "real"])
def test_a_turn_is_a_question_and_all_messages_up_to_its_answer(which, request):
    tokenizer = request.getfixturevalue(which)
    text = (
        "<|start|>system<|message|>s<|end|><|start|>developer<|message|>d<|end|>"
        f"<|start|>user<|message|>q<|end|><|start|>user<|message|>r<|end|>{START}<|channel|>final<|message|>a<|end|>"
        f"<|start|>user<|message|>t<|end|>{START}<|channel|>analysis<|message|>x<|end|>"
        f"{START} to=browser.search<|channel|>analysis code<|message|>c<|call|>"
        "<|start|>browser.search to=assistant<|channel|>analysis<|message|>page<|end|>"
        "<|channel|>analysis<|message|>y<|end|><|channel|>final<|message|>b<|end|>"
        f"<|start|>user<|message|>u<|end|>{START}"
    )
    ids = ids_of(text, tokenizer)
    spans = parse(ids, tokenizer)
    contents = lambda spans: [tokenizer.decode(ids[span.content]) for span in spans]  # noqa: E731
    first, second, third = turns(spans)
    assert [len(turn.messages) for turn in (first, second, third)] == [5, 6, 2]
    assert contents(first.messages) == ["s", "d", "q", "r", "a"] and first.thoughts == ()
    assert contents(second.thoughts) == ["x", "y"]
    assert contents(second.calls) == ["c"] and contents(second.results) == ["page"]
    assert contents([second.answer]) == ["b"]
    assert third.answer is None and third == last_turn(spans)


def test_messages_after_the_answer_are_not_its_thoughts():
    spans = [
        Span(n, n + 1, n, n + 1, "assistant", channel) for n, channel in enumerate(("analysis", "final", "analysis"))
    ]
    (turn,) = turns(spans)
    assert turn.thoughts == (spans[0],) and turn.answer == spans[1]
    assert turns([])[0].messages == () and turns([])[0].answer is None


def test_steps_are_those_of_the_analysis_in_the_last_turn(pocket):
    text = parsed_tokens(
        f"{EARLIER}<|start|>user<|message|>q<|end|>{START}<|channel|>analysis<|message|>We look it up.<|end|>"
        f"{START} to=browser.search<|channel|>analysis code<|message|>Oslo. Weather.<|call|>"
        "<|start|>browser.search to=assistant<|channel|>analysis<|message|>A page. It has text.<|end|>"
        f"{START}<|channel|>analysis<|message|>It is cold there.<|end|>{START}<|channel|>final<|message|>7.<|end|>",
        pocket,
    )
    assert [step.text for step in wb.steps(text)] == ["We look it up.", "It is cold there."]
    assert [step.text for step in wb.steps(text, turn=0)] == ["7+8=15,", " 4+3+1=8,", " 2+1=3."]
    assert wb.steps(text, turn="all") == wb.steps(text, turn=0) + wb.steps(text)
    assert [step.text for step in wb.steps(text, "final")] == ["7."]
    with pytest.raises(NotRecorded, match=r"between -2 and 1, got 2: this text has 2 turns"):
        wb.steps(text, turn=2)
    assert wb.steps(text, turn=np.int64(0)) == wb.steps(text, turn=0)  # pyright: ignore[reportArgumentType]
    for wrong in (True, 0.0, None, "last"):
        with pytest.raises(NotRecorded, match="turn must be"):
            wb.steps(text, turn=wrong)  # pyright: ignore[reportArgumentType]


def test_the_text_of_a_channel_is_that_of_the_last_turn(model):
    history = [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "It is 7."}]
    run = model.generate(wb.chat("And 2+2?", history=history), max_tokens=60, record="")
    final = [span for span in run.spans if span.channel == "final"]
    assert len(final) == 2
    assert run.text(channel="final") == "".join(run.str_tokens[final[1].content])
    assert run.text(channel="final", turn=0) == "It is 7."
    assert run.text(channel="final", turn="all") == "It is 7." + run.text(channel="final")
    assert run.text(role="user") == "And 2+2?" and run.text(role="user", turn=0) == "What is 1+1?"
    assert run.text() == run.text(turn="all") == run.text(turn=0) + run.text(turn=1) == "".join(run.str_tokens)
    with pytest.raises(NotRecorded, match="got 5"):
        run.text(turn=5)


def test_the_text_of_a_channel_excludes_calls_and_results(model):
    run = trace_of(
        model,
        f"{START}<|channel|>analysis<|message|>Use calc.<|end|>",
        f"{START} to=python<|channel|>analysis code<|message|>812*29<|call|>",
        "<|start|>python to=assistant<|channel|>analysis<|message|>23548<|end|>",
        f"{START}<|channel|>final<|message|>It is 23548.<|end|>",
    )
    assert run.text(channel="analysis") == "Use calc."
    assert run.text(channel="analysis", role="tool") == "23548"
    assert run.text(channel="analysis", role="assistant") == "Use calc.812*29"


def test_forced_answers_are_computed_for_the_steps_of_the_last_turn(model, alone):
    run = trace_of(model, EARLIER, turn_of(alone))
    curve = wb.reasoning.forced_answer(model, run)
    steps = wb.steps(run)
    assert curve["pos"].values.tolist() == [steps[0].start, *(step.stop for step in steps)]
    assert curve.sizes["step"] == 1 + len(wb.steps(alone)) and (np.diff(curve["pos"]) > 0).all()
    final = last_turn(run.spans).answer
    assert final is not None
    answer_logprob = float(np.asarray(run["logprob"], float)[final.content].sum())
    assert float(curve["logprob"][-1, 0]) == pytest.approx(answer_logprob, abs=1e-4)


def test_forced_answers_are_computed_before_and_after_a_tool_call(model):
    """A prompt that is cut before the call continues with the header of the answer, not with the tool's result."""
    run = trace_of(
        model,
        "<|start|>system<|message|>Reasoning: high<|end|><|start|>user<|message|>What is 247+138?<|end|>",
        f"{START}<|channel|>analysis<|message|>7+8=15, 4+3+1=8.<|end|>",
        f"{START}<|channel|>commentary to=functions.calc <|constrain|>json<|message|>2+1<|call|>",
        "<|start|>functions.calc to=assistant<|channel|>commentary<|message|>3<|end|>",
        f"{START}<|channel|>analysis<|message|>2+1=3.<|end|>{START}<|channel|>final<|message|>It is 385.<|return|>",
    )
    curve = wb.reasoning.forced_answer(model, run)
    first, second = last_turn(run.spans).thoughts
    assert curve["pos"].values.tolist() == [first.content_start, *(step.stop for step in wb.steps(run))]
    answer = last_turn(run.spans).answer
    assert answer is not None
    cut = [*run.tokens[: int(curve["pos"][1])], run.tokens[first.content_stop], *run.tokens[answer.start : answer.stop]]
    cut_trace = model.trace(cut, record="")
    answer_logprob = float(
        np.asarray(cut_trace["logprob"], float)[len(cut) - len(run.tokens[answer.content]) - 1 : -1].sum()
    )
    assert float(curve["logprob"][1, 0]) == pytest.approx(answer_logprob, abs=1e-4)
    full_logprob = float(np.asarray(run["logprob"], float)[answer.content].sum())
    assert float(curve["logprob"][-1, 0]) == pytest.approx(full_logprob, abs=1e-4)
    with pytest.raises(NotRecorded, match="a segment ends at 2, outside the analysis messages that led to the answer"):
        wb.reasoning.forced_answer(model, run, segments=[slice(0, 2)])


def test_answers_must_be_texts_and_n_a_whole_number(model, alone):
    assert wb.reasoning.forced_answer(model, alone, "It is 42.").equals(
        wb.reasoning.forced_answer(model, alone, ["It is 42."])
    )
    for wrong in ([], [None], [42], ["It is 42.", b"x"]):
        with pytest.raises(WorkbenchError, match=r"answers(\[\d\])? must be text"):
            wb.reasoning.forced_answer(model, alone, wrong)  # pyright: ignore[reportArgumentType]
    for wrong in (0, -1, None, 1.5):
        with pytest.raises(ArgumentError, match=r"n_samples must be (a whole number|at least 1)"):
            wb.reasoning.resampling(model, alone, n_samples=wrong)  # pyright: ignore[reportArgumentType]


def test_a_turn_without_a_thought_raises_not_recorded(model):
    run = trace_of(
        model, EARLIER, f"<|start|>user<|message|>Sure?<|end|>{START}<|channel|>final<|message|>Yes.<|return|>"
    )
    with pytest.raises(NotRecorded, match="the last turn of this text has no final message after an analysis"):
        wb.reasoning.forced_answer(model, run)
    with pytest.raises(NotRecorded, match="this trace has no steps"):
        wb.reasoning.resampling(model, run, n_samples=1)
    assert wb.steps(run) == [] and wb.steps(run, turn=0)


def test_experiments_and_drift_use_the_steps_of_the_last_turn(model, alone):
    run = model.trace(trace_of(model, EARLIER, turn_of(alone)).tokens, record="experts")
    n = len(wb.steps(alone))
    assert wb.reasoning.suppression(model, run).sizes["step"] == n
    assert wb.routing.routing_drift(run).sizes["step"] == n
    samples = wb.reasoning.resampling(model, run, n_samples=1, temperature=0, max_tokens=80)
    assert samples.sizes["step"] == n and samples.attrs["correct_answer"] == alone.text(channel="final")
    assert samples["pos"].values.tolist() == [*(s.start for s in wb.steps(run)), wb.steps(run)[-1].stop]


def test_the_final_text_is_the_answer_of_the_last_turn(model):
    final_text_of = final_text(model)
    assert final_text_of(ids_of(EARLIER, model.tokenizer)) == "It is 385."
    assert final_text_of(ids_of(f"{EARLIER}<|start|>user<|message|>Sure?<|end|>{START}", model.tokenizer)) is None


# Reasoning effort.


def test_an_effort_has_an_effect_or_is_an_error(model):
    question = wb.chat("What is 12+30?")
    assert "Reasoning: low" in wb.trace(question, reasoning="low", record="", max_tokens=1).text()
    low = wb.chat("What is 12+30?", reasoning="low")
    assert "Reasoning: low" in wb.trace(low, reasoning="low", record="", max_tokens=1).text()
    with pytest.raises(PromptError, match="this chat already has reasoning='low', got reasoning='high'"):
        wb.trace(low, reasoning="high")
    with pytest.raises(PromptError, match=r"reasoning='high' is for a question .* this prompt is list"):
        wb.trace(model.to_tokens(low), reasoning="high")
    with pytest.raises(PromptError, match=r"reasoning must be .*, got 'max'"):
        wb.estimate(question, reasoning="max")  # pyright: ignore[reportArgumentType]


def test_all_ways_to_run_a_question_have_the_same_default_effort(model):
    question = "What is 12+30?"
    runs = [
        wb.trace(question, model, record="", max_tokens=1),
        model.generate(question, record="", max_tokens=1),
        model.generate(wb.chat(question), record="", max_tokens=1),
    ]
    assert len({run.text()[:40] for run in runs}) == 1 and "Reasoning: high" in runs[0].text()


def test_the_default_effort_comes_from_the_template_or_from_gpt_oss(real, harmony, pocket, template):
    assert "Reasoning: medium" in real.decode(render(wb.chat("hi"), real).ids)
    assert "Reasoning: high" in pocket.decode(render(wb.chat("hi"), pocket, template).ids)
    without_effort = template.replace("reasoning_effort", "effort")
    with pytest.raises(PromptError, match="no place for a reasoning effort"):
        render(wb.chat("hi", reasoning="low"), pocket, without_effort)
