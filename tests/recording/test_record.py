"""Recording a Trace: its contents, sources, size and verification, and the warnings of failures."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import workbench as wb
from tests.model.models import some_tokens, tiny
from workbench import hooks
from workbench.errors import BudgetError, HookNameError, PromptError, VerificationWarning
from workbench.model.model import Model
from workbench.traces import Trace, verification

TOKENS = some_tokens(70)
EVERYTHING = "everything lens steps"


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def whole(model):
    return model.trace(TOKENS, record=EVERYTHING)


def statuses(trace):
    return {f["identity"]: f["status"] for f in trace.verification}


def test_every_identity_holds_on_a_plain_run(model, whole):
    assert set(statuses(whole).values()) == {"holds"} and len(whole.verification) == 11
    assert whole.verified
    small = model.trace(TOKENS, record="")
    assert set(statuses(small).values()) == {"holds"}, "the probe checks what was not recorded"


def test_a_generated_trace_verifies_and_has_the_source_of_each_array(model):
    trace = model.generate(TOKENS, max_tokens=20)
    assert trace.verified and set(statuses(trace).values()) == {"holds"}
    assert trace.source("entropy") == trace.source("blocks.1.mlp.router.hook_out") == "live"
    assert trace.source("blocks.1.hook_resid_post") == trace.source("resid_norm") == "replay"
    assert trace.manifest.replayed_routing == {"compared": 4 * 90, "different": 0}
    assert trace.prompt_length == 70 and len(trace) == 90


def test_live_and_replayed_values_agree_in_fp32(model):
    generated = model.generate(TOKENS, max_tokens=20, record="logits")
    forward = model.trace(generated, record="logits")
    for name in ("logprob", "entropy", "top_logprobs", "margin"):
        assert np.nanmax(np.abs(generated[name] - forward[name])) < 1e-4, name
    assert np.array_equal(generated["top_ids"][:, 0], forward["top_ids"][:, 0])
    assert np.array_equal(generated["logits"], forward["logits"])


def test_summaries_match_their_definitions(model, whole):
    logits = torch.from_numpy(whole["logits"].copy()).double().log_softmax(-1)
    assert np.isnan(whole["logprob"][0])
    expected = logits[:-1].gather(-1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
    assert np.allclose(whole["logprob"][1:], expected, atol=1e-5)
    assert np.allclose(whole["entropy"], -(logits.exp() * logits).sum(-1), atol=1e-5)
    assert np.array_equal(whole["top_ids"][:, 0], logits.argmax(-1))
    assert np.allclose(whole["resid_norm"], np.linalg.norm(whole["resid_post"], axis=-1), rtol=1e-6)
    ordered = np.sort(whole["router_logits"], -1)[..., ::-1]
    k = model.config.n_active
    assert np.allclose(whole["margin"], ordered[..., k - 1] - ordered[..., k])
    assert np.array_equal(whole["sinks"], np.stack([w.sinks.numpy(force=True) for w in model.weights.blocks]))


def test_the_lens_of_the_last_layer_is_the_prediction_and_lower_ones_differ(model, whole):
    assert np.array_equal(whole["lens_ids"][-1], whole["top_ids"][:, :5])
    assert np.abs(whole["lens_kl"][-1]).max() < 1e-6 and (whole["lens_kl"] > -1e-6).all()
    assert whole["lens_kl"][0].mean() > 0.1
    resid = torch.from_numpy(whole["resid_post", 1].copy())
    from workbench.model.gpt_oss import unembed

    with torch.no_grad():
        lens = unembed(model.config, model.weights, resid).log_softmax(-1)
    assert np.array_equal(whole["lens_ids"][1][:, 0], lens.argmax(-1))


def test_step_attention_is_the_pattern_pooled_over_steps():
    model = Model("pocket")
    trace = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="patterns steps")
    steps = wb.steps(trace)
    assert len(steps) > 1
    pooled = trace["step_attention"]
    for i, a in enumerate(steps):
        for j, b in enumerate(steps):
            block = trace["pattern"][:, :, a.start : a.stop, b.start : b.stop].sum(-1).mean(-1)
            assert np.allclose(pooled[:, :, i, j], block, atol=1e-6)


def test_a_pattern_made_on_demand_equals_the_recorded_one(model, whole):
    on_demand = model.trace(TOKENS, record="attention")
    assert ("pattern", 0) not in on_demand
    for layer in range(4):
        for head in (0, 7):
            a, b = wb.attention.pattern(on_demand, layer, head), wb.attention.pattern(whole, layer, head)
            assert a.dims == ("query", "key") and np.abs(a.values - b.values).max() < 1e-6
            rows = b.values.sum(-1) + whole["sink", layer][head]
            assert np.abs(rows - 1).max() < 1e-6
    assert wb.attention.pattern(on_demand, 1).dims == ("head", "query", "key")


def test_a_pattern_made_on_demand_equals_the_recorded_one_in_bf16():
    from tests.checkpoints import Random

    model = Model(Random(seed=1).transformers(torch.bfloat16))
    trace = model.trace(TOKENS, record="attention patterns")
    from workbench.traces import patterns

    for layer in range(4):
        args = (trace.config, layer, trace["rot_q", layer], trace["rot_k", layer], trace["sinks"][layer])
        recomputed, sink = patterns.recompute(*args, verification.empty("bfloat16").dtype)
        assert np.abs(recomputed - trace["pattern", layer]).max() < 2**-7
        assert np.abs(sink - trace["sink", layer]).max() < 2**-7
    assert (
        trace.verified
        and trace.raw("blocks.0.hook_resid_pre" if "resid_pre" in trace else "blocks.0.attn.hook_rot_q").dtype
        == "bfloat16"
    )


@pytest.mark.parametrize(
    ("where", "identity"),
    [
        ("blocks.1.hook_attn_out", "residual + writes = next residual"),
        ("blocks.1.attn.hook_pattern", "pattern + sink = 1"),
        ("blocks.1.attn.hook_rot_q", "pattern = softmax(q·k, sink)"),
        ("blocks.2.attn.hook_pattern", "sliding rows are zero beyond the window"),
        ("blocks.1.mlp.hook_expert_weights", "router weights = softmax of the kept logits"),
        ("blocks.1.mlp.hook_expert_out", "weighted expert outputs = mlp_out"),
        ("blocks.3.hook_mlp_out", "embedding + all writes = last residual"),
    ],
)
def test_a_changed_number_makes_its_identity_fail(whole, where, identity):
    """The check that holds on the recording fails after one tensor is altered."""
    arrays = {name: whole.raw(name) for name in whole.names()}
    altered = arrays[where].copy()
    altered[..., 0] = altered[..., 0] + 0.1 * np.abs(altered).max()
    lines = verification.verify(wb.Trace(whole.manifest, arrays | {where: altered}))
    assert {f["identity"]: f["status"] for f in lines}[identity] == "fails"


def test_a_run_that_breaks_an_identity_warns(model, monkeypatch):
    """A lens that differs from the model's own logits, as with a broken kernel."""
    wrong = lambda c, w, resid: torch.zeros(*resid.shape[:2], c.d_vocab)  # noqa: E731
    monkeypatch.setattr("workbench.recording.source.unembed", wrong)
    monkeypatch.setattr(model, "probed", None)
    with pytest.warns(VerificationWarning, match="lens of the last layer"):
        trace = model.trace(TOKENS, record="")
    assert not trace.verified and "FAILED" in repr(trace)


def test_a_hook_that_changes_the_last_bits_warns(model, monkeypatch):
    from workbench.recording.verify import Prober

    look = Prober.__call__

    def nudge(self, name, x, offset=0):
        x = look(self, name, x, offset)
        return x * (1 + 1e-6) if name == "hook_embed" else x

    monkeypatch.setattr(Prober, "__call__", nudge)
    monkeypatch.setattr(model, "probed", None)
    with pytest.warns(VerificationWarning, match="unhooked"):
        model.trace(TOKENS, record="")


def test_a_nan_never_holds(whole):
    arrays = {name: whole.raw(name) for name in whole.names()}
    for name in ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.2.attn.hook_pattern"):
        altered = arrays[name].copy()
        altered[..., 3, 0] = np.nan
        lines = verification.verify(wb.Trace(whole.manifest, arrays | {name: altered}))
        assert any(f["status"] == "fails" and f["max_error"] is None for f in lines), name


def test_an_identity_at_an_edited_point_is_not_checked_and_has_the_reason(model):
    with model.edit("blocks.1.attn.hook_pattern", lambda p: p / 2), warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = model.trace(TOKENS, record=EVERYTHING)
    by_identity = {f["identity"]: f for f in trace.verification}
    assert by_identity["pattern + sink = 1"]["status"] == "not checked"
    assert "an edit is at" in by_identity["pattern + sink = 1"]["reason"]
    assert by_identity["head results + bias = attn_out"]["status"] == "not checked"  # only a probe has the bias
    assert by_identity["weighted expert outputs = mlp_out"]["status"] == "holds"


@pytest.mark.parametrize(
    "record", ["", "residuals", "attention lens", "everything", "patterns steps logits", "auto", "blocks.2.* embed"]
)
@pytest.mark.parametrize("n", [20, 300])
def test_the_estimate_is_within_2_percent_of_the_written_bytes(model, record, n, tmp_path):
    tokens = some_tokens(n)
    estimate = model.estimate(tokens, record=record)
    path = model.trace(tokens, record=record).save(tmp_path / "t")
    written = sum(f.stat().st_size for f in path.iterdir())
    assert abs(estimate.bytes - written) <= 0.02 * written
    assert "on disk" in str(estimate)


def test_the_estimate_of_a_generation_is_within_2_percent_at_max_tokens(model, tmp_path):
    for record in ("", "residuals", "attention lens", "everything", "auto"):
        estimate = model.estimate(TOKENS, record=record, max_tokens=40)
        trace = model.generate(TOKENS, record=record, max_tokens=40)
        assert len(trace) == 110
        path = trace.save(tmp_path / f"t{len(list(tmp_path.iterdir()))}")
        written = sum(f.stat().st_size for f in path.iterdir())
        assert abs(estimate.bytes - written) <= 0.02 * written, record


def test_a_recording_that_would_not_fit_is_refused_before_it_runs(model, monkeypatch):
    from workbench.recording import plan

    monkeypatch.setattr(plan, "free_memory", lambda device: 12_000_000)
    with pytest.raises(BudgetError, match="Smaller: record='attention'"):
        model.trace(some_tokens(2000), record="everything")
    trace = model.trace(some_tokens(300), record="auto")
    assert trace.manifest.omitted and "experts" in trace.manifest.omitted[-1]


def test_auto_can_be_combined_with_other_presets(model):
    trace = model.trace(TOKENS, record="auto patterns")
    assert ("pattern", 1) in trace and ("resid_post", 1) in trace


def test_the_estimate_is_within_2_percent_for_a_model_with_a_tokenizer(tmp_path):
    model = Model("pocket")
    text = model.generate(wb.chat("What is 24713+18345?", reasoning="high"), record="")
    for record in ("", "residuals", "attention lens", "everything", "auto"):
        path = model.trace(text, record=record).save(tmp_path / f"t{record}")
        written = sum(f.stat().st_size for f in path.iterdir())
        assert abs(model.estimate(text, record=record).bytes - written) <= 0.02 * written, record


def test_another_budget_is_another_trace(model):
    large = model.trace(TOKENS, record="auto")
    small = model.trace(TOKENS, record="auto", budget=200_000)
    assert len(small.names()) < len(large.names()) and small.id != large.id
    assert small.manifest.omitted and small.manifest.record[0] == "auto"


def test_a_float64_model_whose_parameters_need_float64_verifies():
    from tests.checkpoints import Random

    hf = Random(seed=4).transformers(torch.float64)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.sinks += 1 / 3
            layer.self_attn.o_proj.bias += 1 / 3
    trace = Model(hf).trace(TOKENS, record="everything lens steps")
    assert {f["status"] for f in trace.verification} == {"holds"} and trace["sinks"].dtype == np.float64


def test_the_same_run_twice_has_one_id_and_the_same_numbers(model, tmp_path):
    a = model.generate(TOKENS, max_tokens=20, temperature=0.8, seed=7)
    b = model.generate(TOKENS, max_tokens=20, temperature=0.8, seed=7)
    c = model.generate(TOKENS, max_tokens=20, temperature=0.8, seed=8)
    assert a.id == b.id != c.id and a.tokens == b.tokens != c.tokens
    path = a.save(tmp_path / "t")
    assert b.save(path) == path
    with pytest.raises(wb.errors.TraceExists):
        c.save(path)


def test_a_saved_trace_holds_the_same_bits(model, whole, tmp_path):
    loaded = wb.load(whole.save(tmp_path / "t"))
    assert loaded.names() == whole.names() and loaded.id == whole.id
    for name in whole.names():
        assert loaded.raw(name).tobytes() == whole.raw(name).tobytes()
    assert wb.verify(loaded) == wb.verify(whole)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([3, 176], "token id 176 is out of range.*0..175"),
        ([-1], "token id -1"),
        ([1] * 131_073, "131072 positions"),
        ("a question", "no tokenizer"),
    ],
)
def test_an_invalid_prompt_is_refused(model, prompt, message):
    with pytest.raises(PromptError, match=message):
        model.trace(prompt)
    with pytest.raises(PromptError):
        model.generate(prompt, max_tokens=5)


@pytest.mark.parametrize(
    "settings",
    [{"max_tokens": 0}, {"max_tokens": 3.5}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"stop": "foo"}],
)
def test_invalid_settings_are_refused(model, settings):
    with pytest.raises(PromptError):
        model.generate(TOKENS, **({"max_tokens": 5} | settings))


def test_an_unknown_name_in_record_has_an_error_with_the_nearest(model):
    with pytest.raises(HookNameError, match="'residuals'"):
        model.trace(TOKENS, record="resduals")


def finish(trace: Trace) -> str:
    assert trace.manifest.generation is not None
    return trace.manifest.generation["finish_reason"]


def test_generation_ends_at_a_stop_id_a_stop_text_or_the_limit():
    model = Model("pocket")
    trace = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="")
    assert finish(trace) == "stop" and trace.str_tokens[-1] == "<|return|>"
    text = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="", stop="+")
    assert finish(text) == "stop" and "+" in text.str_tokens[-1]
    short = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="", max_tokens=3)
    assert finish(short) == "length" and len(short) == short.prompt_length + 3


def test_the_edits_of_a_trace_are_part_of_its_id(model):
    plain = model.trace(TOKENS, record="")
    ids = {plain.id}
    for by in (2.0, 3.0):
        with model.edit("hook_embed", lambda x, by=by: by * x):
            ids.add(model.trace(TOKENS, record="").id)
    assert len(ids) == 3


def test_record_of_one_layer_holds_one_layer(model):
    trace = model.trace(TOKENS, record="blocks.2.hook_resid_post")
    assert ("resid_post", 2) in trace and ("resid_post", 1) not in trace
    residuals = [n for n in trace.names() if n in hooks.match("*", 4) and n.endswith("resid_post")]
    assert residuals == ["blocks.2.hook_resid_post"]


def test_a_model_object_made_by_transformers_keeps_its_memory_and_its_outputs():
    from tests.checkpoints import Random

    hf = Random(seed=2).transformers(torch.float32)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        before = hf(tokens).logits
    model = Model(hf)
    with model.edit("blocks.*.hook_mlp_out", lambda x: 0 * x):
        model.trace(TOKENS)
    with torch.no_grad():
        assert torch.equal(hf(tokens).logits, before)
    assert model.weights.embed.data_ptr() == hf.model.embed_tokens.weight.data_ptr()


def test_the_manifest_records_the_numerics(whole):
    numerics = whole.manifest.numerics
    assert numerics["dtype"] == "float32" and numerics["torch"] == torch.__version__
    assert {"device", "kernels", "threads", "cpu", "workbench"} <= set(numerics)
    assert dataclasses.is_dataclass(whole.manifest)
