"""Generation without logits gives the tokens, the numbers and the trace of one that computes all of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.model.models import ctrl_c_in_pass, some_tokens
from workbench.errors import CheckpointError, NotFinite, NotRecorded, ResumeError
from workbench.model.checkpoints import decoding_copies
from workbench.model.kernels import native
from workbench.model.kernels.lora import plain
from workbench.model.kernels.planes import Planes
from workbench.model.model import Model
from workbench.recording import checkpointing
from workbench.recording.generation import Interrupted
from workbench.recording.next_token import NEXT_LOGITS, NEXT_RESIDUAL
from workbench.traces import Trace

pytestmark = pytest.mark.skipif(native.isa() is None, reason="the copies need the native kernels")
PROMPT, N = some_tokens(40), 12  # past the window of 12
PREDICTIONS = ("logprob", "entropy", "top_ids", "top_logprobs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose attention matrices have rows of 64 weights, so that they can be packed."""
    return Random(seed=5, d_model=128, n_heads=12, n_kv_heads=2, d_head=16).write_hf_mxfp4(
        tmp_path_factory.mktemp("next") / "model"
    )


def load(folder, monkeypatch, setting: str = "") -> Model:
    """The model in bf16, with copies as for a large one; without them if `setting` is "full"."""
    monkeypatch.setattr(decoding_copies, "MIN_PARAMETERS", 0)
    monkeypatch.setenv(decoding_copies.VARIABLE, setting)
    model = Model(folder, dtype=torch.bfloat16, memory="fast")
    model.stop_ids = frozenset()
    return model


@pytest.fixture
def model(folder, monkeypatch):
    return load(folder, monkeypatch)


@pytest.fixture
def full(folder, monkeypatch):
    return load(folder, monkeypatch, "full")


def equal_arrays(a: Trace, b: Trace) -> None:
    assert a.tokens == b.tokens and sorted(a.names()) == sorted(b.names())
    for name in a.names():
        assert np.array_equal(a.raw(name), b.raw(name), equal_nan=a.raw(name).dtype.kind == "f"), name


def test_a_large_model_gets_its_copies_and_says_so(model, full):
    assert isinstance(model.weights.blocks[1].w_o, Planes) and model.weights.screen is not None
    assert "12-bit planes, screened" in repr(model) and "planes" not in repr(full)
    assert "decoding with 12-bit planes, screened" in str(model.estimate(PROMPT, max_tokens=N))
    assert full.weights.screen is None and isinstance(full.weights.blocks[1].w_o, torch.Tensor)
    assert model.digest == full.digest


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.3}, {"temperature": 1.0, "seed": 7}, {"temperature": 2.0, "seed": 2**63 - 1}], ids=str
)
def test_tokens_and_every_recorded_bit_are_those_of_all_logits(model, full, how):
    a, b = (m.generate(PROMPT, max_tokens=N, record="residuals lens", **how) for m in (model, full))
    equal_arrays(a, b)
    assert {a.source(name) for name in PREDICTIONS} == {"replay"} and {b.source(name) for name in PREDICTIONS} == {
        "live"
    }
    assert a.source("margin") == b.source("margin") == "live"
    assert not [check for check in a.verification if check["status"] == "fails"]


def test_a_streamed_trace_and_one_with_a_long_prompt_have_the_same_bits(model, full, tmp_path):
    prompt = some_tokens(300)
    a = model.generate(prompt, max_tokens=N, to=tmp_path / "a")
    equal_arrays(a, full.generate(prompt, max_tokens=N, to=tmp_path / "b"))
    equal_arrays(a, model.generate(prompt, max_tokens=N))


def test_what_needs_the_logits_computes_them(model, full):
    """Nucleus sampling, and an edit of the logits."""
    nucleus = [m.generate(PROMPT, max_tokens=N, temperature=1.0, top_p=0.8) for m in (model, full)]
    equal_arrays(*nucleus)
    assert nucleus[0].source("logprob") == "live"
    edited = []
    for m in (model, full):
        with m.edit("hook_logits", lambda x: x.index_fill(-1, torch.tensor([3]), 1e4)):
            edited.append(m.generate(PROMPT, max_tokens=3))
    equal_arrays(*edited)
    assert edited[0].source("logprob") == "live" and edited[0].tokens[len(PROMPT) :] == [3, 3, 3]


def test_other_edits_act_on_the_screened_token_too(model, full):
    traces = []
    for m in (model, full):
        with (
            m.edit("ln_final.hook_normalized", lambda x: x.roll(1, -1)),
            m.edit("blocks.1.hook_mlp_out", lambda x: 0 * x),
        ):
            traces.append(m.generate(PROMPT, max_tokens=N, temperature=0.7))
    equal_arrays(*traces)
    assert traces[0].source("logprob") == "replay" and [e["n_calls"] for e in traces[0].edits] == [
        e["n_calls"] for e in traces[1].edits
    ]


@pytest.mark.parametrize("how", [{}, {"temperature": 0.9, "seed": 4}], ids=str)
@pytest.mark.parametrize("n", [2, 7, N + 2])
def test_an_interrupted_run_resumes_to_the_same_trace(model, full, tmp_path, how, n):
    """Also by a model without copies, which computes the logits from the stored residual stream."""
    whole = model.generate(PROMPT, max_tokens=N, **how)
    with ctrl_c_in_pass(n), pytest.raises(Interrupted) as caught:
        model.generate(PROMPT, max_tokens=N, **how)
    partial = wb.load(caught.value.trace.save(tmp_path / "partial"))
    assert NEXT_RESIDUAL in partial.names() and NEXT_LOGITS not in partial.names()
    assert "contains routing only" in partial.manifest.notes[-1]
    for m in (model, full):
        resumed = m.resume(partial)
        assert resumed.id == whole.id
        equal_arrays(resumed, whole)


@pytest.mark.parametrize("how", ["interrupted", "saved while it runs"])
def test_an_interrupted_run_of_a_model_with_a_tokenizer_resumes_to_the_same_trace(monkeypatch, tmp_path, how):
    """Its partial trace has no predicted tokens, whose texts a trace otherwise has."""
    model, path = load("pocket", monkeypatch), tmp_path / "trace"
    if how == "saved while it runs":
        monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 0.0)
    question = "7 + 4 * 3 = ?"
    whole = model.generate(question, max_tokens=N)
    with ctrl_c_in_pass(7), pytest.raises(Interrupted) as caught:
        model.generate(question, max_tokens=N, to=path)
    assert caught.value.path is not None
    partial = wb.load(caught.value.path)
    assert partial.manifest.vocab_text == {} and "logprob" not in partial.names()
    equal_arrays(model.resume(partial), whole)


def test_a_run_with_live_predictions_is_resumed_with_live_predictions(model, full):
    whole = full.generate(PROMPT, max_tokens=N)
    with ctrl_c_in_pass(5), pytest.raises(Interrupted) as caught:
        full.generate(PROMPT, max_tokens=N)
    resumed = model.resume(caught.value.trace)
    assert resumed.id == whole.id and resumed.source("logprob") == "live"


def test_the_partial_trace_says_that_it_lacks_predictions(model):
    with ctrl_c_in_pass(5), pytest.raises(Interrupted) as caught:
        model.generate(PROMPT, max_tokens=N)
    partial = caught.value.trace
    assert str(len(partial)) in repr(partial)
    with pytest.raises(NotRecorded, match="logprob"):
        partial.raw("logprob")


def test_a_partial_trace_without_a_residual_stream_that_can_be_used_is_refused(model):
    with ctrl_c_in_pass(5), pytest.raises(Interrupted) as caught:
        model.generate(PROMPT, max_tokens=N)
    partial = caught.value.trace

    def altered(value: np.ndarray) -> Trace:
        arrays = {name: partial.raw(name) for name in partial.names()} | {NEXT_RESIDUAL: value}
        return Trace(partial.manifest, arrays)

    residual = partial.raw(NEXT_RESIDUAL)
    with pytest.raises(ResumeError, match="NaN or infinity"):
        model.resume(altered(np.full_like(residual, np.nan)))


@pytest.mark.filterwarnings("ignore::workbench.errors.VerificationWarning")
def test_a_residual_stream_with_nan_is_reported_with_its_place(model):
    model.weights.blocks[2].b_o[5] = torch.nan
    with pytest.raises(NotFinite, match=r"the first NaN is at blocks\.2\.hook_attn_out"):
        model.generate(PROMPT, max_tokens=N, temperature=1.0)


def test_a_matrix_changed_in_place_is_used_as_it_is_now(model, full):
    for m in (model, full):
        for name in ("w_q", "w_o"):
            matrix = plain(getattr(m.weights.blocks[1], name))
            assert isinstance(matrix, torch.Tensor)
            matrix.mul_(1.5)
        m.weights.unembed.mul_(-1)
    assert not model.weights.screen.is_current
    traces = [m.generate(PROMPT, max_tokens=N) for m in (model, full)]
    equal_arrays(*traces)
    assert traces[0].source("logprob") == "live"


def test_the_screen_of_a_replaced_unembedding_is_not_used(model, full):
    for m in (model, full):
        m.weights = replace(m.weights, unembed=m.weights.unembed.roll(3, 0))
    traces = [m.generate(PROMPT, max_tokens=N) for m in (model, full)]
    equal_arrays(*traces)
    assert traces[0].source("logprob") == "live"


def test_copies_are_made_only_where_they_fit_and_serve(folder, monkeypatch):
    monkeypatch.setattr(decoding_copies, "MIN_PARAMETERS", 0)
    assert Model(folder, dtype=torch.float32).weights.screen is None
    assert Model(folder, dtype=torch.bfloat16, memory="small").weights.screen is None
    monkeypatch.setattr(decoding_copies, "free_memory", lambda: 1000)
    assert Model(folder, dtype=torch.bfloat16, memory="fast").weights.screen is None
    monkeypatch.setenv(decoding_copies.VARIABLE, "half")
    with pytest.raises(CheckpointError, match="WORKBENCH_DECODE is 'half'"):
        Model(folder, dtype=torch.bfloat16)


def test_the_bytes_of_copies_are_estimated_within_a_percent(model):
    planes = [getattr(block, name) for block in model.weights.blocks for name in decoding_copies.MATRICES]
    screen = model.weights.screen
    assert screen is not None
    vectors = sum(p.nbytes - p.blocks.nbytes for p in planes) + 12 * len(model.weights.unembed)
    copies = sum(p.nbytes for p in planes) + screen.nbytes
    assert copies - vectors == decoding_copies.copy_bytes(model.config)
