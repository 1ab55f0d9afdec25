"""`generate_many`: the traces of `generate`, whatever is generated beside them, is interrupted or fails."""

import numpy as np
import pytest

import workbench as wb
from tests.checkpoints import Random
from tests.model.models import ctrl_c_in_pass, some_tokens, tiny
from tests.recording.test_next_token import load
from tests.recording.test_resume import same
from workbench.conversation.chat import Effort
from workbench.errors import ArgumentError, BatchError, BudgetError, HookNameError, PromptError
from workbench.model.kernels import native
from workbench.recording import many
from workbench.recording.many import BatchInterrupted
from workbench.recording.source import ModelSource

pytestmark = pytest.mark.skipif(native.isa() is None, reason="other products depend on the number of rows")
BASE = some_tokens(30)
PROMPTS = [[*BASE, 3], some_tokens(5, seed=4), [*BASE, 9, 8], BASE]  # past the window of 12
EACH = {
    "max_tokens": [9, 4, 6, 9],
    "temperature": [0.0, 0.9, 1.3, 0.9],
    "top_p": [1.0, 1.0, 0.8, 1.0],
    "seed": [0, 5, 2, 5],
}


@pytest.fixture(scope="module")
def model():
    return tiny()


def own(number: int) -> dict:
    """The settings of one prompt."""
    return {name: values[number] for name, values in EACH.items()}


def alone(model, record: str = "attention") -> list[wb.Trace]:
    return [model.generate(prompt, record=record, **own(i)) for i, prompt in enumerate(PROMPTS)]


def number_of(trace: wb.Trace) -> int:
    return PROMPTS.index(list(trace.tokens[: trace.prompt_length]))


@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_traces_are_those_of_generate(model, max_rows):
    expected = alone(model)
    traces = list(model.generate_many(PROMPTS, record="attention", max_rows=max_rows, **EACH))
    assert sorted(map(number_of, traces)) == [0, 1, 2, 3]
    for trace in traces:
        same(trace, expected[number_of(trace)])
    assert model.partial is None and model.partials == {}
    if max_rows == 64:
        assert number_of(traces[0]) == 1  # the one with the fewest tokens


def test_traces_come_in_the_order_of_the_prompts_on_request(model):
    traces = list(model.generate_many(PROMPTS, record="", ordered=True, **EACH))
    assert list(map(number_of, traces)) == [0, 1, 2, 3]


def test_edits_act_on_each_text_at_its_own_positions_and_are_counted_for_it(model):
    def edited():
        return model.edit("blocks.2.hook_resid_mid", lambda x: x + 0.25, positions=slice(4, 33))

    with edited():
        expected = alone(model)
    with edited():
        traces = list(model.generate_many(PROMPTS, record="attention", **EACH))
    for trace in traces:
        same(trace, expected[number_of(trace)])
    counts = {number_of(trace): trace.edits[0]["n_positions"] for trace in traces}
    assert counts[1] == 2 * 5 and counts[0] == 2 * 29  # while decoding, and in the replay


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 0.9, "seed": [3, 4, 5, 6]}], ids=str)
def test_a_model_that_screens_its_tokens_gives_the_same_traces(tmp_path, monkeypatch, how):
    folder = Random(seed=5, d_model=128, n_heads=12).write_hf_mxfp4(tmp_path / "model")
    model = load(folder, monkeypatch)
    assert model.weights.screen is not None
    traces = list(model.generate_many(PROMPTS, max_tokens=6, record="residuals", **how))
    for trace in traces:
        seed = how.get("seed", [0] * 4)[number_of(trace)]
        one = model.generate(
            PROMPTS[number_of(trace)], max_tokens=6, record="residuals", temperature=how["temperature"], seed=seed
        )
        same(trace, one)


def test_questions_get_their_effort_and_end_at_their_texts():
    model = wb.Model("pocket")
    questions, stop = ["What is 12+30?", "What is 7+8?"], [["="], []]
    efforts: list[Effort | None] = ["high", "low"]
    both = list(model.generate_many(questions, max_tokens=40, reasoning=efforts, stop=stop, record="", ordered=True))
    for trace, question, effort, end in zip(both, questions, efforts, stop):
        same(trace, model.generate(wb.chat(question, reasoning=effort), max_tokens=40, stop=end, record=""))
    generation = both[0].manifest.generation
    assert generation and generation["finish_reason"] == "stop" and both[0].str_tokens[-1].strip() == "="


def test_after_an_interrupt_at_any_pass_every_text_is_yielded_or_resumed(model):
    expected = alone(model, record="")
    n_resumed = 0
    for n in (2, 5, 9, 14, 21, 26, 31):
        taken = []
        with ctrl_c_in_pass(n), pytest.raises(BatchInterrupted) as caught:
            taken.extend(model.generate_many(PROMPTS, record="", **EACH))  # item by item
        partials = model.partials
        assert caught.value.n_unfinished == 4 - len(taken) >= len(partials)
        assert not set(map(number_of, taken)) & partials.keys()
        for trace in taken:
            same(trace, expected[number_of(trace)])
        for number, partial in partials.items():
            n_resumed += partial.status == "partial"
            same(model.resume(partial) if partial.status == "partial" else partial, expected[number])
    assert n_resumed > 8


def test_a_caller_that_takes_no_more_traces_can_resume_the_others(model):
    expected = alone(model, record="")
    traces = model.generate_many(PROMPTS, record="", **EACH)
    trace = next(traces)
    del traces
    assert number_of(trace) == 1 and sorted(model.partials) == [0, 2, 3]
    for number, partial in model.partials.items():
        same(model.resume(partial), expected[number])


@pytest.mark.parametrize("at", [32, 34])
def test_an_edit_that_raises_ends_its_text_only(model, at):
    """Position 34 is reached by the longest texts only; their prompts have 31 and 32 tokens."""

    def failing(x, hook):
        if at in hook.positions:
            raise RuntimeError(f"at {at}")
        return x + 0.5

    def edited(fn):
        return model.edit("blocks.1.hook_resid_mid", fn)

    with edited(lambda x, hook: x + 0.5):
        expected = alone(model, record="")
    taken = []
    with edited(failing), pytest.raises(BatchError, match=r"3 of 4 prompts failed.*RuntimeError: at") as caught:
        taken.extend(model.generate_many(PROMPTS, record="", **EACH))
    assert list(map(number_of, taken)) == [1] and taken[0].tokens == expected[1].tokens
    assert np.array_equal(taken[0].raw("logprob"), expected[1].raw("logprob"), equal_nan=True)
    assert sorted(caught.value.errors) == [0, 2, 3]
    assert {str(error) for error in caught.value.errors.values()} == {f"at {at}"}
    begun = {0: 31, 2: 32, 3: 30}  # the text of a prompt that fails is not begun
    assert sorted(model.partials) == [number for number, length in begun.items() if length <= at]
    for number, partial in model.partials.items():
        assert list(partial.tokens) == expected[number].tokens[:at]


def test_an_edit_that_raises_in_the_replay_ends_its_text_only(model):
    def failing(x, hook):
        if len(hook.positions) > 32:  # more than a prompt: the replay of a long text
            raise RuntimeError("long")
        return x

    taken = []
    with model.edit("blocks.1.hook_resid_mid", failing), pytest.raises(BatchError) as caught:
        taken.extend(model.generate_many(PROMPTS, record="", **EACH))
    assert sorted(caught.value.errors) == [0, 2, 3] and list(map(number_of, taken)) == [1]
    assert {number: len(partial) for number, partial in model.partials.items()} == {0: 40, 2: 38, 3: 39}


def test_a_batch_that_does_not_fit_runs_in_smaller_ones_and_says_so(model, monkeypatch):
    expected, n_rows = alone(model, record=""), []
    run = ModelSource.run_rows
    monkeypatch.setattr(
        ModelSource,
        "run_rows",
        lambda self, tokens, rows, tap: n_rows.append(len(rows)) or run(self, tokens, rows, tap),
    )
    monkeypatch.setattr(many, "free_memory", lambda device: 0)
    with pytest.warns(UserWarning, match="4 prompts together may need .* fewer are generated at a time"):
        traces = list(model.generate_many(PROMPTS, record="", **EACH))
    for trace in traces:
        same(trace, expected[number_of(trace)])
    assert max(n_rows) <= 2  # one text, and a shared beginning that is read for it


@pytest.mark.parametrize(
    ("prompts", "how", "error", "message"),
    [
        ("What?", {}, ArgumentError, "prompts must be a list"),
        ([], {}, ArgumentError, "at least 1"),
        (PROMPTS, {"seed": [1, 2]}, ArgumentError, "seed has 2 entries for 4 prompts"),
        (PROMPTS, {"stop": [[1], [2]]}, ArgumentError, "stop has 2 entries for 4 prompts"),
        (PROMPTS, {"max_tokens": [1, 2, 3, 0]}, PromptError, "max_tokens must be at least 1"),
        (PROMPTS, {"record": "no_such_point"}, HookNameError, "no_such_point"),
        (PROMPTS, {"max_rows": 0}, ArgumentError, "max_rows"),
        (PROMPTS, {"reasoning": "high"}, PromptError, "reasoning"),
        ([*PROMPTS, [10**6]], {}, PromptError, "out of range"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_runs(model, monkeypatch, prompts, how, error, message):
    monkeypatch.setattr(ModelSource, "run_rows", None)
    with pytest.raises(error, match=message) as caught:
        model.generate_many(prompts, **how)
    if error is not ArgumentError and "max_rows" not in how:
        last = len(prompts) - 1 if "max_tokens" in how or len(prompts) == 5 else 0
        assert caught.value.__notes__ == [f"This is about prompts[{last}]."]


def test_memory_that_runs_out_in_a_replay_is_a_budget_error_of_that_text(model, monkeypatch):
    replay, calls = many.replayed, []

    def once(g, finish_reason, flag):
        calls.append(g)
        if len(calls) == 2:
            raise MemoryError("a lot")
        return replay(g, finish_reason, flag)

    monkeypatch.setattr(many, "replayed", once)
    taken = []
    with pytest.raises(BatchError) as caught:
        taken.extend(model.generate_many(PROMPTS, record="", **EACH))
    assert len(taken) == 3
    [(number, error)] = caught.value.errors.items()
    assert isinstance(error, BudgetError)
    assert list(model.partials) == [number] and model.resume(model.partials[number]).status == "complete"
