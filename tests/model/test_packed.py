"""Experts that stay in MXFP4: the same values at every hook point, the same edits, and released memory."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.levels import computing_with
from workbench import hooks
from workbench.errors import BudgetError, CheckpointError, TraceExists, TraceNotFound
from workbench.model import prefill
from workbench.model.cache import KVCache
from workbench.model.checkpoints.pages import Mapped, Streamed
from workbench.model.kernels import native
from workbench.model.kernels.packed import Packed
from workbench.model.model import Model
from workbench.recording import plan
from workbench.recording.source import ModelSource
from workbench.recording.taps import Recorder

RANDOM = Random(seed=5)
N = 70  # longer than the window of 12 and than a block of 64
TOKENS = torch.randint(0, RANDOM.config.d_vocab, (1, N), generator=torch.Generator().manual_seed(1))
LEVELS = [*native.levels(), "numba", "torch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return RANDOM.write_hf_mxfp4(tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture(params=LEVELS)
def level(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with computing_with(request.param):
        yield request.param


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    both = a.isfinite() & b.isfinite()
    assert torch.equal(a.isfinite(), b.isfinite())
    return float((a - b)[both].abs().max() / b[both].abs().max().clamp(min=1e-30))


def everything(model: Model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    recorder = Recorder(hooks.all_points(model.config.n_layers))
    with torch.no_grad():
        model.forward(tokens, recorder)
    return {name: recorder[name] for name in recorder.seen}


def test_every_hook_point_has_the_same_value_packed_and_dequantized(folder, level):
    dense, packed = Model(folder), Model(folder, memory="small")
    assert isinstance(packed.weights.blocks[0].experts.up, Packed)
    assert isinstance(dense.weights.blocks[0].experts.up, torch.Tensor)
    a, b = everything(packed, TOKENS), everything(dense, TOKENS)
    assert list(a) == list(b) and len(a) == 4 * (len(hooks.POINTS) - 3) + 3
    worst = {name: gap(a[name], b[name]) for name in a}
    assert max(worst.values()) < 1e-5, max(worst, key=lambda name: worst[name])


@pytest.mark.parametrize("form", ["hf", "original", "gguf"])
def test_every_format_is_packed_in_the_same_way(form, tmp_path):
    path = {
        "hf": lambda: RANDOM.write_hf_mxfp4(tmp_path / "m"),
        "original": lambda: RANDOM.write_original(tmp_path / "m"),
        "gguf": lambda: RANDOM.write_gguf(tmp_path / "m.gguf"),
    }[form]()
    model = Model(path, memory="small")
    with torch.no_grad():
        logits = model.forward(TOKENS)
        assert torch.equal(logits, Model(RANDOM.write_hf_mxfp4(tmp_path / "hf"), memory="small").forward(TOKENS))
    packed = model.weights.blocks[2].experts
    for name in ("up", "down"):
        blocks = RANDOM.tensors[f"block.2.mlp.{'mlp1' if name == 'up' else 'mlp2'}_weight.blocks"]
        assert torch.equal(getattr(packed, name).blocks, blocks)


EDITS = {
    "an ablated expert": ("blocks.1.mlp.hook_expert_weights", wb.ablate(expert=3)),
    "a banned expert": ("blocks.*.mlp.router.hook_out", wb.ban(expert=2)),
    "a forced expert": ("blocks.2.mlp.router.hook_out", wb.force(expert=6)),
    "a patched head": ("blocks.1.attn.hook_z", lambda x: torch.cat((x[:, :, :3] * 0.5, x[:, :, 3:]), 2)),
    "an edited expert output": ("blocks.3.mlp.hook_expert_out", lambda x: x * 1.5),
    "an edited residual": ("blocks.2.hook_resid_mid", lambda x: x + 0.25),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_have_the_same_effect_packed_and_dequantized(folder, edit):
    where, fn = EDITS[edit]
    dense, packed = Model(folder), Model(folder, memory="small")
    plain = dense.forward(TOKENS)
    with dense.edit(where, fn):
        a = dense.forward(TOKENS)
    with packed.edit(where, fn):
        b = packed.forward(TOKENS)
    assert gap(a, plain) > 1e-3  # the edit has an effect
    assert gap(b, a) < 1e-5


def test_gradients_pass_through_packed_experts(folder):
    grads = []
    for memory in ("fast", "small"):
        model = Model(folder, memory=memory)
        recorder = Recorder(["blocks.0.hook_resid_mid"], keep_grad=True)
        with model.edit("hook_embed", lambda x: x.requires_grad_()):
            model.forward(TOKENS[:, :20], recorder)[0, -1, 7].backward()
        grads.append(recorder["blocks.0.hook_resid_mid"].grad)
    assert gap(grads[1], grads[0]) < 1e-5 and float(grads[0].abs().max()) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_token_by_token_equals_one_pass(folder, level, dtype):
    model = Model(folder, memory="small", dtype=dtype)
    with torch.no_grad():
        whole = model.forward(TOKENS)
        cache = KVCache(model.config, whole=False)
        rows = [model.forward(TOKENS[:, i : i + 1], cache=cache) for i in range(N)]
    if model.rows_independent:
        assert torch.equal(torch.cat(rows, 1), whole)
    assert gap(torch.cat(rows, 1), whole) < (1e-4 if dtype == "float32" else 0.2)


def test_released_pages_are_read_again(folder):
    fast, small = Model(folder, memory="fast", dtype="bfloat16"), Model(folder, memory="small", dtype="bfloat16")
    assert type(fast.weights.residency) is Mapped and type(small.weights.residency) is Streamed
    first = small.forward(TOKENS)
    assert torch.equal(small.forward(TOKENS), first)
    assert gap(fast.forward(TOKENS), first) < 0.05


def test_only_pages_of_the_file_are_released(folder):
    small = Model(folder, memory="small")  # fp32: the dense weights are converted copies in ordinary memory
    residency = small.weights.residency
    assert isinstance(residency, Streamed)
    w = small.weights.blocks[0]
    mapped_starts = {start for start, _ in residency._dense[0] + residency._matrices[0]}
    up, w_q = w.experts.up, w.w_q
    assert isinstance(up, Packed) and isinstance(w_q, torch.Tensor)
    assert up.blocks.data_ptr() in mapped_starts and w_q.data_ptr() not in mapped_starts
    before = w_q.clone()
    small.forward(TOKENS)
    assert w.w_q is w_q and torch.equal(w_q, before)


@pytest.mark.parametrize("scale", [0, 1, 46, 208, 230])
def test_torch_computes_scales_that_the_kernels_do_not_support(scale, tmp_path):
    model = Random(seed=6)
    model.tensors["block.1.mlp.mlp2_weight.scales"][2, 5, 0] = scale
    folder = model.write_hf_mxfp4(tmp_path / "m")
    dense, packed = Model(folder), Model(folder, memory="small")
    down = packed.weights.blocks[1].experts.down
    assert isinstance(down, Packed)
    assert native.isa() is None or not down.scales_are_safe
    assert gap(packed.forward(TOKENS), dense.forward(TOKENS)) < 1e-5


def test_memory_must_be_auto_fast_or_small():
    with pytest.raises(CheckpointError, match="'auto', 'fast' or 'small'"):
        Model("pocket", memory="tiny")


# Long texts in several passes.


@pytest.fixture
def short_passes(monkeypatch):
    monkeypatch.setattr(prefill, "CHUNK_POSITIONS", 64)


@pytest.mark.parametrize("memory", ["fast", "small"])
def test_a_text_computed_in_passes_has_the_same_bits(folder, monkeypatch, memory):
    tokens = torch.randint(0, 176, (200,), generator=torch.Generator().manual_seed(2)).tolist()
    model = Model(folder, memory=memory)
    record = "residuals writes attention values experts patterns lens logits"
    whole = model.trace(tokens, record=record)
    monkeypatch.setattr(prefill, "CHUNK_POSITIONS", 64)
    in_passes = model.trace(tokens, record=record)
    assert in_passes.names() == whole.names()
    for name in whole.names():
        assert np.array_equal(in_passes.raw(name), whole.raw(name), equal_nan=True), name
    assert all(f["status"] != "fails" for f in in_passes.verification)


def test_a_trace_written_during_recording_is_the_same(folder, short_passes, tmp_path):
    tokens = TOKENS[0].tolist() * 2
    model = Model(folder)
    in_memory = model.trace(tokens, record="residuals attention patterns lens")
    written = model.trace(tokens, record="residuals attention patterns lens", to=tmp_path / "a.trace")
    assert written.names() == in_memory.names() and written.id == in_memory.id
    for name in in_memory.names():
        assert np.array_equal(written.raw(name), in_memory.raw(name), equal_nan=True), name
    assert [f["status"] for f in written.verification] == [f["status"] for f in in_memory.verification]
    assert wb.load(tmp_path / "a.trace").manifest.status == "complete"
    with pytest.raises(TraceExists):
        model.trace(tokens[:-1], to=tmp_path / "a.trace")


def test_a_generation_written_during_its_replay_is_the_same(folder, short_passes, tmp_path):
    model = Model(folder)
    prompt = TOKENS[0].tolist()
    in_memory = model.generate(prompt, max_tokens=70, record="residuals attention")
    written = model.generate(prompt, max_tokens=70, record="residuals attention", to=tmp_path / "g.trace")
    assert (
        written.tokens == in_memory.tokens and written.manifest.replayed_routing == in_memory.manifest.replayed_routing
    )
    for name in in_memory.names():
        assert np.array_equal(written.raw(name), in_memory.raw(name), equal_nan=True), name
        assert written.source(name) == in_memory.source(name)


def test_an_interrupted_recording_leaves_nothing_behind(folder, short_passes, tmp_path):
    model = Model(folder)
    seen = []

    def stop(x, hook):
        seen.append(hook.positions)
        model.stop()
        return x

    with model.edit("blocks.3.hook_resid_post", stop), pytest.raises(KeyboardInterrupt):
        model.trace(TOKENS[0].tolist(), to=tmp_path / "a.trace")
    assert seen and not list(tmp_path.iterdir())
    with pytest.raises(TraceNotFound):
        wb.load(tmp_path / "a.trace")


def test_a_trace_that_does_not_fit_the_disk_is_a_budget_error_before_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(BudgetError, match="the disk of"):
        Model(folder).trace(TOKENS[0].tolist(), to=tmp_path / "a.trace")
    assert not list(tmp_path.iterdir())


def test_an_edited_run_is_one_pass(folder, short_passes):
    model, lengths = Model(folder), []
    with model.edit("hook_embed", lambda x: lengths.append(x.shape[1]) or x):
        model.trace(TOKENS[0].tolist())
    assert lengths == [N]


def test_passes_of_a_written_trace_are_shorter_if_more_is_recorded(folder, monkeypatch, tmp_path):
    tokens = torch.randint(0, 176, (500,), generator=torch.Generator().manual_seed(2)).tolist()
    model = Model(folder)
    record = "residuals attention"
    passes = lambda streamed: plan.plan(ModelSource(model), record, tokens, 500, None, streamed=streamed).chunk  # noqa: E731
    assert passes(streamed=True) == passes(streamed=False) == prefill.CHUNK_POSITIONS
    monkeypatch.setattr(plan, "MAX_PENDING_BYTES", 1)
    assert passes(streamed=True) == prefill.CHUNK_ALIGN and passes(streamed=False) == prefill.CHUNK_POSITIONS
    whole = model.trace(tokens, record=record)
    written = model.trace(tokens, record=record, to=tmp_path / "a.trace")
    assert written.id == whole.id
    for name in whole.names():
        assert np.array_equal(written.raw(name), whole.raw(name), equal_nan=True), name
