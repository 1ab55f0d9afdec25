"""A model of transformers gives the same Trace as workbench's own runner, and recording leaves the model unchanged."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.interop.made import EVERYTHING, TOLERANCE, gaps, hf, statuses, tokens, workbench_trace
from tests.interop.others import DENSE, ROUTED, other
from workbench.errors import (
    BudgetError,
    HookNameError,
    InteropError,
    MissingDependency,
    NotRecorded,
    PromptError,
    VerificationWarning,
    WorkbenchError,
)
from workbench.interop import versions
from workbench.interop.transformers import record, source_of
from workbench.traces import load, verification
from workbench.views.notebook import snapshot
from workbench.views.page import page


def logits(model, n=70):
    with torch.no_grad():
        return model(torch.tensor([tokens(n)])).logits


def recording_state(model):
    """Everything that a recording could change: hooks, registrations, flags, the config."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    interfaces = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS, ALL_EXPERTS_FUNCTIONS)
    return (
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        [(dict(i._local_mapping), dict(i._global_mapping)) for i in interfaces],
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [sorted(vars(m)) for m in model.modules()],
        model.config.to_dict(),
        model.config._attn_implementation,
    )


@pytest.fixture(scope="module")
def model():
    return hf()


@pytest.fixture(scope="module")
def trace(model):
    return record(model, tokens(), record=EVERYTHING)


def test_every_array_equals_that_of_workbenchs_runner(trace, measured):
    reference = workbench_trace()
    assert trace.names() == reference.names()
    differences = gaps(trace, reference)
    measured(
        f"transformers against our runner, fp32: {len(differences)} arrays, largest gap {max(differences.values()):.1e}"
    )
    assert {name: gap for name, gap in differences.items() if gap > TOLERANCE} == {}
    model, reference_model = trace.manifest.model, reference.manifest.model
    differing = {key for key in reference_model if model[key] != reference_model[key]}
    assert differing == {"format"}  # weights and config are the same


def test_the_trace_is_verified_when_recorded_and_again_from_its_numbers_alone(trace, tmp_path):
    assert set(statuses(trace.verification).values()) == {"holds"}
    loaded = load(trace.save(tmp_path / "hf.trace"))
    verdicts = statuses(wb.verify(loaded))
    assert "fails" not in verdicts.values()
    assert verdicts["weighted expert outputs = mlp_out"] == verdicts["pattern + sink = 1"] == "holds"


def test_values_that_no_function_returns_are_marked_derived(trace):
    for name in ("sink", "attn_scores", "result", "expert_out"):
        assert trace.source(name) == "derived"
    for name in ("pattern", "router_logits", "expert_weights", "rot_q", "resid_mid", "logits"):
        assert trace.source(name) == "forward"


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_every_experts_implementation_exposes_each_expert(experts):
    model = hf()
    model.set_experts_implementation(experts)
    before = logits(model)
    differences = gaps(record(model, tokens(), record="experts writes"), workbench_trace())
    assert {name: gap for name, gap in differences.items() if gap > TOLERANCE} == {}
    assert "blocks.2.mlp.hook_expert_out" in differences
    assert torch.equal(logits(model), before)


def test_a_custom_attention_function_is_recorded_under_its_own_name():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    def silent(*args, **kwargs):
        """Returns no pattern, like fast kernels."""
        return eager_attention_forward(*args, **kwargs)[0], None

    AttentionInterface.register("silent", silent)
    AttentionMaskInterface.register("silent", eager_mask)
    try:
        model = hf()
        model.set_attn_implementation("silent")
        before = recording_state(model)
        trace = record(model, tokens(), record=EVERYTHING)
        assert recording_state(model) == before
        assert AttentionInterface._global_mapping["silent"] is silent
    finally:
        del AttentionInterface._global_mapping["silent"], AttentionMaskInterface._global_mapping["silent"]
    assert trace.source("pattern") == "derived" and trace.verified
    assert max(gaps(trace, workbench_trace()).values()) < TOLERANCE


def test_recording_changes_nothing_in_the_model():
    model = hf()
    model.model.layers[1].train()  # a mixture of modes must be restored
    model.lm_head.weight.requires_grad_(True)
    before, state = logits(model), recording_state(model)
    record(model, tokens(), record=EVERYTHING)
    assert recording_state(model) == state
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_of_the_recording_stays_after_an_exception(error):
    model = hf()
    before = logits(model)

    def break_down(module, args):
        raise error("in the middle")

    handle = model.model.layers[2].mlp.register_forward_pre_hook(break_down)
    state = recording_state(model)
    with pytest.raises(error, match="in the middle"):
        record(model, tokens(), record=EVERYTHING)
    assert recording_state(model) == state
    handle.remove()
    assert torch.equal(logits(model), before)


def test_effects_of_the_users_own_hooks_are_recorded_and_fail_verification():
    model = hf()
    handle = model.model.layers[1].mlp.register_forward_hook(lambda m, a, out: (0 * out[0], out[1]))
    with pytest.warns(VerificationWarning, match="weighted expert outputs = mlp_out"):
        trace = record(model, tokens(), record="residuals writes")
    handle.remove()
    assert not trace["mlp_out", 1].any() and trace["mlp_out", 2].any()
    assert "the model had 1 hooks of its own" in trace.manifest.notes[0]


def test_bf16_is_recorded_in_bf16():
    trace = record(hf(torch.bfloat16), tokens(), record="residuals attention experts")
    assert trace.verified and trace.manifest.tensors["blocks.0.hook_resid_post"].dtype == "BF16"
    assert abs(trace["sink"].astype(float) - workbench_trace()["sink"])[0].max() < 0.05


def test_weights_in_another_dtype_are_noted():
    model = hf(torch.bfloat16)
    model.lm_head.float()
    with pytest.raises(RuntimeError, match="dtype"):  # torch refuses this product; the note is for those it accepts
        record(model, tokens())
    assert source_of(model).notes == ["the model is in bfloat16, but some of its weights are in float32"]


class Mxfp4GptOssMLP(torch.nn.Module):
    """The control flow of transformers' block for fused kernels: neither router nor experts are called as modules."""

    def __init__(self, mlp):
        super().__init__()
        self.router, self.experts = mlp.router, mlp.experts

    def forward(self, hidden_states):
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        router_logits = torch.nn.functional.linear(x, self.router.weight, self.router.bias)
        top = router_logits.topk(self.router.top_k, -1)
        out = self.experts.forward(x, top.indices, top.values.softmax(-1))
        return out.reshape(hidden_states.shape), router_logits


def test_on_fused_kernels_routes_are_derived_and_experts_refused_with_the_reason():
    model = hf()
    for layer in model.model.layers:
        layer.mlp = Mxfp4GptOssMLP(layer.mlp)
    trace = record(model, tokens(), record="everything")
    assert trace.verified
    assert trace.source("router_logits") == "forward"
    assert trace.source("expert_indices") == trace.source("expert_weights") == "derived"
    assert max(gaps(trace, workbench_trace()).values()) < TOLERANCE
    assert ("expert_out", 0) not in trace
    assert any("expert_out (this model's experts run in fused MXFP4" in note for note in trace.manifest.notes)
    with pytest.raises(NotRecorded, match=r"fused MXFP4 kernels.*dequantize=True"):
        record(model, tokens(), record="experts")


def test_a_question_is_tokenized_as_in_workbenchs_runner():
    from transformers import AutoModelForCausalLM

    from workbench.model.checkpoints.bundled import embedded_folder

    model = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32)
    trace = record(model.float(), "What is 12+30?")  # transformers 5.9 leaves its experts in bfloat16
    reference = wb.Model("pocket").trace("What is 12+30?")
    assert (
        trace.tokens == reference.tokens and trace.spans == reference.spans and trace.vocab_text == reference.vocab_text
    )
    assert trace.names() == reference.names() and trace.manifest.record == reference.manifest.record
    assert max(gaps(trace, reference).values()) < 1e-4  # 3 layers with more than one softmax: still rounding
    assert record(hf(), workbench_trace()).tokens == workbench_trace().tokens


# -- models of other families


@pytest.fixture(scope="module")
def family_traces():
    return {family: record(other(family), tokens(), record="everything") for family in (*DENSE, *ROUTED)}


@pytest.mark.parametrize("family", [*DENSE, *ROUTED])
def test_another_family_gives_a_verified_trace_that_loads(family, family_traces, tmp_path):
    trace, model = family_traces[family], other(family)
    with torch.no_grad():
        out = model(torch.tensor([tokens()]), output_hidden_states=True, output_attentions=True, use_cache=False)
    loaded = load(trace.save(tmp_path / "other.trace"))
    assert loaded.verified and "fails" not in statuses(wb.verify(loaded)).values()
    assert verification.gap(loaded["logits"], out.logits[0].numpy()) < TOLERANCE
    for layer in range(3):
        assert verification.gap(loaded["resid_pre", layer], out.hidden_states[layer][0].numpy()) < TOLERANCE
        assert verification.gap(loaded["pattern", layer], out.attentions[layer][0].numpy()) < TOLERANCE


@pytest.mark.parametrize("family", [*DENSE, *ROUTED])
def test_what_a_family_does_not_have_is_absent_and_never_zero(family, family_traces):
    trace = family_traces[family]
    assert "sinks" not in trace and ("sink", 0) not in trace
    routed = [layer for layer in range(3) if ("router_logits", layer) in trace]
    assert routed == {"qwen2_moe": [0, 2], "deepseek_v3": [1, 2]}.get(family, [0, 1, 2] if family in ROUTED else [])
    assert ("margin" in trace) == (family in ("qwen2_moe", "olmoe", "mixtral"))
    if "margin" in trace:
        assert np.isnan(trace["margin"]).all(1).tolist() == [layer not in routed for layer in range(3)]
    assert any("this model has none" in note for note in trace.manifest.notes)
    for name in trace.names():
        assert trace[name].any() or trace[name].size == 0, name


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "mixtral", "olmoe"])
def test_patterns_of_a_model_without_sinks_are_recomputed_exactly(family, family_traces):
    trace = record(other(family), tokens(), record="attention")
    for layer in range(3):
        rows = wb.attention.pattern(trace, layer=layer)
        assert verification.gap(rows.values, family_traces[family]["pattern", layer]) < TOLERANCE
        assert abs(rows.values.sum(-1) - 1).max() < 1e-6


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_sdpa_gives_the_same_arrays_as_eager(family):
    ids = tokens(seed=363)
    with torch.no_grad():
        top_logits = other(family)(torch.tensor([ids])).logits.topk(21, -1).values
    assert -top_logits.diff().max() > 5e-5, "rounding must not decide a rank"
    differences = gaps(record(other(family, "sdpa"), ids, record="everything"), record(other(family), ids))
    assert max(differences.values()) < TOLERANCE


VIEWS = {
    "gpt2": ["score_sheet", "tokens", "heads", "lens", "compare"],
    "qwen2_moe": ["score_sheet", "tokens", "heads", "lens", "compare", "routing"],  # its layer 1 has no experts
}


@pytest.mark.parametrize(("family", "view"), [(family, view) for family, views in VIEWS.items() for view in views])
def test_every_view_draws_a_dense_model_and_one_with_experts(view, family):
    trace = record(other(family), tokens(), record=EVERYTHING)
    traces = [trace, trace] if view == "compare" else [trace]
    text = page(getattr(wb.views, view)(*traces))
    assert "</html>" in text and other(family).__class__.__name__ in text


def test_routes_are_counted_only_in_layers_with_experts(family_traces):
    trace = family_traces["qwen2_moe"]
    assert trace.layers("expert_indices") == (0, 2)
    load = wb.routing.expert_load(trace)
    assert load.layer.values.tolist() == [0, 2]
    assert np.allclose(load.sum("expert"), trace.config["n_active"])
    for layer in (0, 2):
        counts = np.bincount(trace["expert_indices", layer].ravel(), minlength=trace.config["n_experts"])
        assert np.allclose(load.sel(layer=layer), counts / len(trace))
    assert wb.routing.expert_transitions(trace).layer.values.tolist() == [0]
    assert wb.routing.router_entropy(trace).sizes == {"layer": 2, "pos": len(trace)}
    assert np.allclose(np.diag(wb.routing.fixed_token_routing(trace, int(trace.tokens[0]))), 1)


@pytest.mark.parametrize(
    ("family", "view", "why"),
    [
        ("gpt2", "routing", "'expert_indices' was not recorded"),
        ("gpt2", "steps", "step"),
        ("gpt2", "weights", "nothing to show"),
        ("qwen2_moe", "steps", "step"),
        ("qwen2_moe", "weights", "nothing to show"),
    ],
)
def test_a_view_of_something_the_model_lacks_is_refused_with_the_reason(family, view, why, family_traces):
    with pytest.raises((WorkbenchError, ValueError), match=why):
        getattr(wb.views, view)(family_traces[family])


def test_auto_keeps_the_patterns_of_a_model_without_rotated_queries_and_keys(family_traces):
    trace = record(other("gpt2"), tokens())
    assert "patterns" in trace.manifest.record and "attention" not in trace.manifest.record
    for layer in range(3):
        assert (trace["pattern", layer] == family_traces["gpt2"]["pattern", layer]).all()
    assert "attention" in (rotary := record(other("llama"), tokens())).manifest.record
    assert ("pattern", 0) not in rotary
    with pytest.raises(NotRecorded, match=r"Run again with record='patterns'\.$"):
        wb.views.heads(record(other("gpt2"), tokens(), record="residuals"))


def test_views_do_not_speak_of_parts_that_the_model_lacks(family_traces):
    trace = family_traces["gpt2"]
    sheet = wb.views.score_sheet(trace)
    assert not {"sink", "margin", "drift"} & {*sheet.shown, *sheet.lanes}
    routed = wb.views.score_sheet(family_traces["mixtral"])
    assert {"margin", "drift"} <= set(routed.shown) and "sink" not in routed.lanes
    with_absent = wb.views.score_sheet(trace, ["sink", "margin"])
    assert [with_absent.lanes[name].missing for name in ("sink", "margin")] == [
        "this model has no sinks",
        "this model has no router",
    ]
    assert wb.views.heads(trace).payload()[0]["has_sinks"] is False
    for view in (wb.views.heads(trace), sheet):
        assert "sink" not in snapshot(view)
    text = page(wb.views.heads(trace))
    assert "rows of the pattern sum to 1" in text and "every run of this model" in text


# -- refusals


def test_a_preset_that_the_model_lacks_is_refused_before_anything_runs():
    with pytest.raises(NotRecorded, match=r"'experts' cannot be recorded from LlamaForCausalLM: this model has none"):
        record(other("llama"), tokens(), record="experts")
    with pytest.raises(NotRecorded, match="record='patterns' records"):
        record(other("gpt2"), tokens(), record="attention")
    with pytest.raises(HookNameError, match="resid_post"):
        record(other("llama"), tokens(), record="resid_pos")


def test_a_recording_over_budget_is_refused_and_auto_records_what_fits(model, monkeypatch):
    monkeypatch.setattr("workbench.recording.plan.free_memory", lambda device: 2_000_000)
    with pytest.raises(BudgetError, match="patterns 784 kB, experts 323 kB"):
        record(model, tokens(), record="patterns experts values residuals")
    trace = record(model, tokens(), record="auto", budget=400_000)
    assert any(line.startswith("experts") for line in trace.manifest.omitted)
    assert trace.verified and ("expert_out", 0) not in trace


def test_invalid_token_ids_are_refused(model):
    with pytest.raises(PromptError, match="out of range"):
        record(model, [5, 176])
    with pytest.raises(PromptError, match="empty"):
        record(model, [])
    with pytest.raises(PromptError, match="one row, one prompt at a time"):
        record(model, torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(PromptError, match="has no tokenizer"):
        record(model, "a question")


def test_something_else_than_a_causal_model_is_refused(model):
    for invalid in (torch.nn.Linear(2, 2), model.model, "openai/gpt-oss-20b"):
        with pytest.raises(InteropError):
            record(invalid, tokens())


@pytest.mark.parametrize(
    ("installed", "message"), [("4.57.6", "5.9.0 to below 6"), ("6.0.1", "below 6"), (None, "not inst")]
)
def test_an_unsupported_release_is_refused_with_the_one_to_install(installed, message, monkeypatch, model):
    def version(package):
        if installed is None:
            raise versions.PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(versions, "version", version)
    with pytest.raises(MissingDependency, match=message) as raised:
        record(model, tokens())
    assert "pip install 'transformers>=5.9.0,<6'" in str(raised.value)
