"""A model of transformers leaves the Trace that our own runner would, and is as it was before."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.interop.made import EVERYTHING, TOLERANCE, gaps, hf, ours, statuses, tokens
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


def logits(model, n=70):
    with torch.no_grad():
        return model(torch.tensor([tokens(n)])).logits


def traces_left(model):
    """Everything that a recording could leave: hooks, registrations, flags, the config."""
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


def test_every_array_is_that_of_our_runner(trace, measured):
    own = ours()
    assert trace.names() == own.names()
    found = gaps(trace, own)
    measured(f"transformers against our runner, fp32: {len(found)} arrays, largest gap {max(found.values()):.1e}")
    assert {name: gap for name, gap in found.items() if gap > TOLERANCE} == {}
    theirs, mine = trace.manifest.model, own.manifest.model
    assert {key for key in mine if theirs[key] != mine[key]} == {"format"}  # weights and config too are the same


def test_the_trace_is_verified_when_made_and_from_its_numbers_alone(trace, tmp_path):
    assert set(statuses(trace.verification).values()) == {"holds"}
    again = load(trace.save(tmp_path / "theirs.trace"))
    found = statuses(wb.verify(again))
    assert "fails" not in found.values()
    assert found["weighted expert outputs = mlp_out"] == found["pattern + sink = 1"] == "holds"


def test_what_no_function_returns_is_marked(trace):
    for name in ("sink", "attn_scores", "result", "expert_out"):
        assert trace.source(name) == "derived"
    for name in ("pattern", "router_logits", "expert_weights", "rot_q", "resid_mid", "logits"):
        assert trace.source(name) == "forward"


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_any_experts_function_shows_each_expert(experts):
    model = hf()
    model.set_experts_implementation(experts)
    before = logits(model)
    found = gaps(record(model, tokens(), record="experts writes"), ours())
    assert {name: gap for name, gap in found.items() if gap > TOLERANCE} == {}
    assert "blocks.2.mlp.hook_expert_out" in found
    assert torch.equal(logits(model), before)


def test_another_attention_function_is_heard_under_its_own_name():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    def silent(*args, **kwargs):
        """Shows no pattern, as fast kernels do."""
        return eager_attention_forward(*args, **kwargs)[0], None

    AttentionInterface.register("silent", silent)
    AttentionMaskInterface.register("silent", eager_mask)
    try:
        model = hf()
        model.set_attn_implementation("silent")
        before = traces_left(model)
        trace = record(model, tokens(), record=EVERYTHING)
        assert traces_left(model) == before
        assert AttentionInterface._global_mapping["silent"] is silent
    finally:
        del AttentionInterface._global_mapping["silent"], AttentionMaskInterface._global_mapping["silent"]
    assert trace.source("pattern") == "derived" and trace.verified
    assert max(gaps(trace, ours()).values()) < TOLERANCE


def test_recording_changes_nothing():
    model = hf()
    model.model.layers[1].train()  # a mixture is put back as it was
    model.lm_head.weight.requires_grad_(True)
    before, there = logits(model), traces_left(model)
    record(model, tokens(), record=EVERYTHING)
    assert traces_left(model) == there
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error):
    model = hf()
    before = logits(model)

    def break_down(module, args):
        raise error("in the middle")

    handle = model.model.layers[2].mlp.register_forward_pre_hook(break_down)
    there = traces_left(model)
    with pytest.raises(error, match="in the middle"):
        record(model, tokens(), record=EVERYTHING)
    assert traces_left(model) == there
    handle.remove()
    assert torch.equal(logits(model), before)


def test_what_the_users_own_hooks_do_is_in_the_numbers_and_in_the_verdict():
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
    assert abs(trace["sink"].astype(float) - ours()["sink"])[0].max() < 0.05


def test_weights_in_another_dtype_are_noted():
    model = hf(torch.bfloat16)
    model.lm_head.float()
    with pytest.raises(RuntimeError, match="dtype"):  # torch refuses the product; the note is for those it takes
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
    assert max(gaps(trace, ours()).values()) < TOLERANCE
    assert ("expert_out", 0) not in trace
    assert any("expert_out (this model's experts run in fused MXFP4" in note for note in trace.manifest.notes)
    with pytest.raises(NotRecorded, match=r"fused MXFP4 kernels.*dequantize=True"):
        record(model, tokens(), record="experts")


def test_a_question_is_read_as_our_runner_reads_it():
    from transformers import AutoModelForCausalLM

    from workbench.model.checkpoints.bundled import embedded_folder

    model = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32)
    theirs = record(model.float(), "What is 12+30?")  # transformers 5.9 leaves its experts in bfloat16
    mine = wb.Model("pocket").trace("What is 12+30?")
    assert theirs.tokens == mine.tokens and theirs.spans == mine.spans and theirs.vocab_text == mine.vocab_text
    assert theirs.names() == mine.names() and theirs.manifest.record == mine.manifest.record
    assert max(gaps(theirs, mine).values()) < 1e-4  # 3 layers of softmax more than once: still rounding
    assert record(hf(), ours()).tokens == ours().tokens


# -- models of other families


@pytest.fixture(scope="module")
def foreign():
    return {family: record(other(family), tokens(), record="everything") for family in (*DENSE, *ROUTED)}


@pytest.mark.parametrize("family", [*DENSE, *ROUTED])
def test_another_family_leaves_a_verified_trace_that_opens(family, foreign, tmp_path):
    trace, model = foreign[family], other(family)
    with torch.no_grad():
        out = model(torch.tensor([tokens()]), output_hidden_states=True, output_attentions=True, use_cache=False)
    again = load(trace.save(tmp_path / "other.trace"))
    assert again.verified and "fails" not in statuses(wb.verify(again)).values()
    assert verification.gap(again["logits"], out.logits[0].numpy()) < TOLERANCE
    for layer in range(3):
        assert verification.gap(again["resid_pre", layer], out.hidden_states[layer][0].numpy()) < TOLERANCE
        assert verification.gap(again["pattern", layer], out.attentions[layer][0].numpy()) < TOLERANCE


@pytest.mark.parametrize("family", [*DENSE, *ROUTED])
def test_what_a_family_does_not_have_is_absent_and_never_zero(family, foreign):
    trace = foreign[family]
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
def test_any_pattern_of_a_model_without_sinks_is_recomputed(family, foreign):
    kept = record(other(family), tokens(), record="attention")
    for layer in range(3):
        rows = wb.attention.pattern(kept, layer=layer)
        assert verification.gap(rows.values, foreign[family]["pattern", layer]) < TOLERANCE
        assert abs(rows.values.sum(-1) - 1).max() < 1e-6


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_sdpa_shows_what_eager_shows(family):
    ids = tokens(seed=363)
    with torch.no_grad():
        likeliest = other(family)(torch.tensor([ids])).logits.topk(21, -1).values
    assert -likeliest.diff().max() > 5e-5, "rounding decides no rank"
    found = gaps(record(other(family, "sdpa"), ids, record="everything"), record(other(family), ids))
    assert max(found.values()) < TOLERANCE


VIEWS = {
    "gpt2": ["score_sheet", "tokens", "heads", "lens", "compare"],
    "qwen2_moe": ["score_sheet", "tokens", "heads", "lens", "compare", "routing"],  # its layer 1 has no experts
}


@pytest.mark.parametrize(("family", "view"), [(family, view) for family, views in VIEWS.items() for view in views])
def test_every_view_draws_a_dense_model_and_one_with_experts(view, family):
    from workbench.views.page import page

    trace = record(other(family), tokens(), record=EVERYTHING)
    given = [trace, trace] if view == "compare" else [trace]
    text = page(getattr(wb.views, view)(*given))
    assert "</html>" in text and other(family).__class__.__name__ in text


def test_routes_are_counted_in_the_layers_that_have_experts(foreign):
    trace = foreign["qwen2_moe"]
    assert trace.layers("expert_indices") == (0, 2)
    load = wb.routing.expert_load(trace)
    assert load.layer.values.tolist() == [0, 2]
    assert np.allclose(load.sum("expert"), trace.config["n_active"])
    for layer in (0, 2):
        alone = np.bincount(trace["expert_indices", layer].ravel(), minlength=trace.config["n_experts"])
        assert np.allclose(load.sel(layer=layer), alone / len(trace))
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
def test_a_view_of_what_a_model_does_not_have_says_so(family, view, why, foreign):
    with pytest.raises((WorkbenchError, ValueError), match=why):
        getattr(wb.views, view)(foreign[family])


# -- what is refused


def test_a_word_of_which_there_is_nothing_is_refused_before_anything_runs():
    with pytest.raises(NotRecorded, match=r"'experts' cannot be recorded from LlamaForCausalLM: this model has none"):
        record(other("llama"), tokens(), record="experts")
    with pytest.raises(NotRecorded, match="rotation"):
        record(other("gpt2"), tokens(), record="attention")
    with pytest.raises(HookNameError, match="resid_post"):
        record(other("llama"), tokens(), record="resid_pos")


def test_a_recording_that_would_not_fit_is_refused_and_auto_takes_what_fits(model, monkeypatch):
    monkeypatch.setattr("workbench.recording.plan.free_memory", lambda device: 2_000_000)
    with pytest.raises(BudgetError, match="patterns 784 kB, experts 323 kB"):
        record(model, tokens(), record="patterns experts values residuals")
    trace = record(model, tokens(), record="auto", budget=400_000)
    assert any(line.startswith("experts") for line in trace.manifest.omitted)
    assert trace.verified and ("expert_out", 0) not in trace


def test_ids_that_the_model_does_not_have_are_refused(model):
    with pytest.raises(PromptError, match="out of range"):
        record(model, [5, 176])
    with pytest.raises(PromptError, match="empty"):
        record(model, [])
    with pytest.raises(PromptError, match="batch of 2"):
        record(model, torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(PromptError, match="without a tokenizer"):
        record(model, "a question")


def test_what_is_no_causal_model_is_refused(model):
    for wrong in (torch.nn.Linear(2, 2), model.model, "openai/gpt-oss-20b"):
        with pytest.raises(InteropError):
            record(wrong, tokens())


@pytest.mark.parametrize(("found", "says"), [("4.57.6", "5.9.0 to below 6"), ("6.0.1", "below 6"), (None, "not inst")])
def test_another_release_is_refused_with_the_one_to_install(found, says, monkeypatch, model):
    def version(package):
        if found is None:
            raise versions.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(versions, "version", version)
    with pytest.raises(MissingDependency, match=says) as raised:
        record(model, tokens())
    assert "pip install 'transformers>=5.9.0,<6'" in str(raised.value)
