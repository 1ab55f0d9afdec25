"""nnsight's sessions leave the same Trace, every path is where it says, and our runner can be traced by nnsight."""

import re
from pathlib import Path

import pytest
import torch

from tests.interop.made import EVERYTHING, TOLERANCE, gaps, hf, ours, statuses, tokenizer, tokens
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


def test_a_session_leaves_the_trace_of_our_runner(session, measured):
    trace, own = record(session, tokens(), record=EVERYTHING), ours()
    assert trace.names() == own.names()
    found = gaps(trace, own)
    measured(f"nnsight against our runner, fp32: {len(found)} arrays, largest gap {max(found.values()):.1e}")
    assert {name: gap for name, gap in found.items() if gap > TOLERANCE} == {}
    assert set(statuses(trace.verification).values()) == {"holds"}
    assert trace.source("sink") == trace.source("attn_scores") == "forward"  # the run's own: its source shows them
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
    assert trace.verified and max(gaps(trace, ours()).values()) < TOLERANCE
    assert trace.str_tokens[0].startswith("w")


def test_every_hook_point_has_a_path_but_what_transformers_never_computes():
    assert set(hooks.POINTS) - set(PATHS) == {"blocks.*.attn.hook_result", "blocks.*.mlp.hook_expert_out"}
    assert path("blocks.2.attn.hook_sink").startswith("model.layers[2].self_attn.source.")
    with pytest.raises(HookNameError, match="no path"):
        path("blocks.2.mlp.hook_expert_out")
    with pytest.raises(HookNameError, match="Did you mean"):
        path("blocks.2.hook_resid_pst")


def test_the_table_in_the_documentation_is_the_one_that_runs():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == {name: place.format(layer="l") for name, place in PATHS.items()}


@pytest.fixture(scope="module")
def runner():
    model = Model(hf())
    return model, wrap(model)


def test_nnsight_reads_every_hook_point_of_our_runner(runner):
    _, wrapped = runner
    with torch.no_grad(), wrapped.trace(torch.tensor([tokens()])):
        resid = wrapped.blocks[0].hook_resid_post.output.save()
        sink = wrapped.blocks[1].attn.hook_sink.output.save()
        pattern = wrapped.blocks[1].attn.hook_pattern.output.save()
        said = wrapped.blocks[3].mlp.hook_expert_out.output.save()
        logits = wrapped.hook_logits.output.save()
    own = ours()
    for value, key in ((resid, ("resid_post", 0)), (sink, ("sink", 1)), (pattern, ("pattern", 1)), (logits, "logits")):
        assert abs(value[0].numpy() - own[key]).max() < 1e-4
    assert abs(said[0].numpy() - own["expert_out", 3]).max() < 1e-4


def test_what_nnsight_writes_is_an_edit_of_our_runner(runner):
    model, wrapped = runner
    with torch.no_grad(), wrapped.trace(torch.tensor([tokens()])):
        wrapped.blocks[1].mlp.router.hook_out.output[..., 4] = -torch.inf  # an expert is banned before the choice
        logits = wrapped.output.save()
    with model.edit("blocks.1.mlp.router.hook_out", lambda x: x.index_fill(-1, torch.tensor([4]), -torch.inf)):
        edited = model.trace(tokens(), record="everything")
    assert not (edited["expert_indices", 1] == 4).any() and (ours()["expert_indices", 1] == 4).any()
    assert (logits[0].numpy() == edited["logits"]).all()


def test_other_models_other_attention_and_other_things_are_refused(session):
    with pytest.raises(InteropError, match=r"interop.transformers.record\(model._module"):
        record(nnsight.NNsight(other("llama")), tokens())
    with pytest.raises(InteropError, match="no model of nnsight"):
        record(hf(), tokens())
    session._module.config._attn_implementation = "flex_attention"
    try:
        with pytest.raises(InteropError, match="eager"):
            record(session, tokens())
    finally:
        session._module.config._attn_implementation = "eager"
