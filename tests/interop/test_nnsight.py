"""nnsight's sessions give the same Trace, every path holds what the docs say, and nnsight can trace our runner."""

import re
from pathlib import Path

import pytest
import torch

from tests.interop.made import EVERYTHING, TOLERANCE, gaps, hf, statuses, tokenizer, tokens, workbench_trace
from tests.interop.others import other
from workbench import hooks
from workbench.errors import HookNameError, InteropError
from workbench.interop.nnsight import PATHS, path, record, wrap
from workbench.model.model import Model

nnsight = pytest.importorskip("nnsight")
pytestmark = pytest.mark.filterwarnings("ignore:LanguageModel is deprecated")
DOCS = Path(__file__).parent.parent.parent / "docs" / "interop.md"


@pytest.fixture(scope="module")
def session():
    return nnsight.NNsight(hf())


def test_a_session_gives_the_trace_of_workbenchs_runner(session, measured):
    trace, reference = record(session, tokens(), record=EVERYTHING), workbench_trace()
    assert trace.names() == reference.names()
    differences = gaps(trace, reference)
    measured(
        f"nnsight against our runner, fp32: {len(differences)} arrays, largest gap {max(differences.values()):.1e}"
    )
    assert {name: gap for name, gap in differences.items() if gap > TOLERANCE} == {}
    assert set(statuses(trace.verification).values()) == {"holds"}
    assert trace.source("sink") == trace.source("attn_scores") == "forward"  # nnsight reads them in the run itself
    assert trace.source("expert_out") == "derived"


def test_the_model_gives_the_same_bits_after_a_session(session):
    ids = torch.tensor([tokens()])
    with torch.no_grad():
        before = session._module(ids).logits
        record(session, tokens(), record="residuals")
        assert torch.equal(session._module(ids).logits, before)


def test_a_language_model_is_recorded_too():
    model = nnsight.LanguageModel(hf(), tokenizer=tokenizer())
    trace = record(model, tokens(), record="attention writes")
    assert trace.verified and max(gaps(trace, workbench_trace()).values()) < TOLERANCE
    assert trace.str_tokens[0].startswith("w")


def test_every_hook_point_that_transformers_computes_has_a_path():
    assert set(hooks.POINTS) - set(PATHS) == {"blocks.*.attn.hook_result", "blocks.*.mlp.hook_expert_out"}
    assert path("blocks.2.attn.hook_sink").startswith("model.layers[2].self_attn.source.")
    with pytest.raises(HookNameError, match="has no path"):
        path("blocks.2.mlp.hook_expert_out")
    with pytest.raises(HookNameError, match="Did you mean"):
        path("blocks.2.hook_resid_pst")


def test_the_table_in_the_documentation_equals_paths():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == {name: place.format(layer="l") for name, place in PATHS.items()}


@pytest.fixture(scope="module")
def runner():
    model = Model(hf())
    return model, wrap(model)


def test_nnsight_can_save_every_hook_point_of_our_runner(runner):
    _, wrapped = runner
    with torch.no_grad(), wrapped.trace(torch.tensor([tokens()])):
        resid = wrapped.blocks[0].hook_resid_post.output.save()
        sink = wrapped.blocks[1].attn.hook_sink.output.save()
        pattern = wrapped.blocks[1].attn.hook_pattern.output.save()
        expert_out = wrapped.blocks[3].mlp.hook_expert_out.output.save()
        logits = wrapped.hook_logits.output.save()
    reference = workbench_trace()
    for value, key in ((resid, ("resid_post", 0)), (sink, ("sink", 1)), (pattern, ("pattern", 1)), (logits, "logits")):
        assert abs(value[0].numpy() - reference[key]).max() < 1e-4
    assert abs(expert_out[0].numpy() - reference["expert_out", 3]).max() < 1e-4


def test_setting_an_output_in_nnsight_is_an_edit_of_our_runner(runner):
    model, wrapped = runner
    with torch.no_grad(), wrapped.trace(torch.tensor([tokens()])):
        wrapped.blocks[1].mlp.router.hook_out.output[..., 4] = -torch.inf  # an expert is banned before the choice
        logits = wrapped.output.save()
    with model.edit("blocks.1.mlp.router.hook_out", lambda x: x.index_fill(-1, torch.tensor([4]), -torch.inf)):
        edited = model.trace(tokens(), record="everything")
    assert not (edited["expert_indices", 1] == 4).any() and (workbench_trace()["expert_indices", 1] == 4).any()
    assert (logits[0].numpy() == edited["logits"]).all()


def test_other_models_other_attention_and_non_nnsight_models_are_refused(session):
    with pytest.raises(InteropError, match=r"interop.transformers.record\(model._module"):
        record(nnsight.NNsight(other("llama")), tokens())
    with pytest.raises(InteropError, match="is not a model of nnsight"):
        record(hf(), tokens())
    session._module.config._attn_implementation = "flex_attention"
    try:
        with pytest.raises(InteropError, match="eager"):
            record(session, tokens())
    finally:
        session._module.config._attn_implementation = "eager"
