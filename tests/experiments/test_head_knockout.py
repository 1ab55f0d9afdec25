"""Head knockout: equal to full runs with edits, largest for the heads that copy, with random changes as long."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.analysis.test_heads import INDUCTION, PREVIOUS, repeated
from tests.constructed import constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import ArgumentError, EditError, PromptError, SelectionError
from workbench.experiments.cached_run import CachedRun
from workbench.experiments.head_knockout import MODES, _Changes, head_knockout

WRITTEN = [30, 31, 34]


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(40), record="values")


def by_hand(model, trace, layer: int, head: int, mode: str, other: int | None) -> float:
    """The fall of the mean score of the written tokens, from two full runs."""

    def change(z, hook):
        z[:, :, head] = 0 if mode == "zero" else z[:, :, head].mean(1, keepdim=True)
        return z

    def score() -> float:
        logits = model.forward(torch.tensor([trace.tokens[: WRITTEN[-1]]]))[0].double()
        values = logits.log_softmax(-1) if other is None else logits - logits[:, other, None]
        return float(np.mean([values[pos - 1, trace.tokens[pos]] for pos in WRITTEN]))

    plain = score()
    with model.edit(f"blocks.{layer}.attn.hook_z", change):
        return plain - score()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", [None, 3])
def test_the_effect_of_each_head_is_that_of_a_full_run_without_it(trace, mode, other, monkeypatch):
    model = tiny()
    monkeypatch.setattr("workbench.experiments.head_knockout.MAX_ELEMENTS_PER_PASS", 3 * 40 * 96)  # several passes
    found = head_knockout(model, trace, WRITTEN, other, layers=[1, 3], mode=mode)
    assert found["layer"].values.tolist() == [1, 3]
    for layer in (1, 3):
        for head in (0, model.config.n_heads - 1):
            expected = by_hand(model, trace, layer, head, mode, other)
            assert float(found["effect"].sel(layer=layer, head=head)) == pytest.approx(expected, abs=2e-5)
    assert found["effect"].attrs["units"] == ("nats" if other is None else "logits")
    assert found["effect"].attrs["n"] == found["control"].attrs["n"] == 3


def test_a_control_adds_a_vector_as_long_as_the_change_at_every_position(trace):
    model = tiny()
    with torch.inference_mode():
        base = CachedRun(model, trace.tokens, ["blocks.2.attn.hook_z"])
        tap = _Changes(base, 2, [(0, 1), (1, 1), (2, 1)], "zero", seed=0)
        out = torch.zeros(3, len(base), model.config.d_model)
        added = tap("blocks.2.hook_attn_out", out)
        removed = base.seen["blocks.2.attn.hook_z"][0, :, 1].float() @ tap.w_o[:, 1].float().T
    assert float(added[0].abs().max()) == 0
    for row in (1, 2):
        assert torch.allclose(added[row].norm(dim=-1), removed.norm(dim=-1), rtol=1e-4)
    assert float(torch.cosine_similarity(added[1].flatten(), added[2].flatten(), dim=0)) < 0.2


def test_only_the_two_heads_of_the_copying_circuit_have_an_effect():
    model = constructed()
    prompt = repeated(50, 1) + repeated(50, 1)[1:2]
    trace = model.generate(prompt, max_tokens=4, record="")
    found = wb.patching.head_knockout(model, trace, slice(len(prompt), len(prompt) + 4), n_controls=3)
    effect = found["effect"]
    order = np.argsort(-effect.values, None)
    assert {divmod(int(at), effect.shape[1]) for at in order[:2]} == {INDUCTION, PREVIOUS}
    assert effect.attrs["plain"] <= 0 and found["control"].shape == (3, *effect.shape)
    assert np.sort(effect.values, None)[-2:].min() > 100 and np.sort(effect.values, None)[:-2].max() == 0
    assert effect.attrs["null"] == effect.attrs["null_sd"] == 0  # its predictions are certain


def test_a_sweep_continues_from_its_file_with_the_same_numbers(trace, tmp_path, monkeypatch):
    model, path = tiny(), tmp_path / "sweep"
    plain = head_knockout(model, trace, WRITTEN, layers=[0, 1], n_controls=2)
    first = head_knockout(model, trace, WRITTEN, layers=[0, 1], n_controls=2, resume=path)
    monkeypatch.setattr("workbench.model.model.Model.forward_from", None)  # nothing is left to run
    again = head_knockout(model, trace, WRITTEN, layers=[0, 1], n_controls=2, resume=path)
    assert first.identical(plain) and again.identical(plain)


def test_without_controls_there_is_no_null(trace):
    found = head_knockout(tiny(), trace, 5, layers=[0], n_controls=0)
    assert found["control"].shape == (0, 1, tiny().config.n_heads) and "null" not in found["effect"].attrs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"answer": 0}, EditError, "position 0"),
        ({"answer": slice(40, 50)}, SelectionError, "selects no position"),
        ({"answer": 40}, SelectionError, "between 0 and 39"),
        ({"answer": 5, "mode": "mask"}, ArgumentError, "mode must be"),
        ({"answer": 5, "other": 10**6}, PromptError, "out of range"),
        ({"answer": 5, "layers": "none"}, EditError, "layers must be"),
    ],
)
def test_bad_arguments_are_refused(trace, arguments, error, message):
    with pytest.raises(error, match=message):
        head_knockout(tiny(), trace, **arguments)
