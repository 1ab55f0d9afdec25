"""The same code on CUDA: on a GPU where there is one (`pytest -m gpu`), and on tensors that only say so.

What is pretended shows that nothing mixes devices, and computes what the CPU computes through the very functions that
run on a GPU. How a GPU rounds, and what memory it takes, only a GPU shows.
"""

import gc

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.levels import computing_with
from tests.model.models import ctrl_c_in_pass, some_tokens
from tests.model.pretend import OnCuda, pretended_cuda
from workbench import hooks
from workbench.model.checkpoints.residency import RESIDENT
from workbench.model.kernels import experts
from workbench.model.kernels.packed import Packed
from workbench.model.kernels.reference import dequantise_mxfp4
from workbench.model.model import Model
from workbench.recording.generation import Interrupted

gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
)
TOKENS = some_tokens(70)
RECORD = "everything lens steps"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Random(seed=3, n_layers=2).write_hf_mxfp4(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(params=[pytest.param("cuda", marks=gpu), "pretended"])
def tolerance(request):
    """By how much numbers may differ from the CPU's plain torch: a pretended GPU is the CPU."""
    with computing_with("torch"):
        if request.param == "cuda":
            yield 1e-4
        else:
            with pretended_cuda():
                yield 0.0


@pytest.fixture(params=["small", "fast"])
def on_gpu(request, folder, tolerance):
    """Packed, and dequantised: a model below 256 MB is, unless its memory is to be small."""
    return Model(folder, device="cuda", memory=request.param)


def gap(a, b) -> float:
    a, b = np.nan_to_num(a, posinf=0, neginf=0), np.nan_to_num(b, posinf=0, neginf=0)
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6))


def test_every_hook_point_has_the_number_of_the_cpu_in_fp32(folder, on_gpu, tolerance):
    cpu, ours = Model(folder).trace(TOKENS, record=RECORD), on_gpu.trace(TOKENS, record=RECORD)
    assert ours.verified and ours.names() == cpu.names()
    assert ours.manifest.numerics["device"].startswith("cuda") and ours.manifest.numerics["kernels"] == "torch"
    for name in cpu.names():
        if cpu.raw(name).dtype.kind == "f":
            assert gap(ours[name], cpu[name]) <= tolerance, name


def test_weights_lie_on_the_gpu_and_no_page_of_the_file_is_in_use(folder, tolerance):
    model = Model(folder, device="cuda", memory="small")
    held = model.weights.blocks[0].experts
    assert isinstance(held.up, Packed) and isinstance(held.down, Packed)
    placed = [held.up.blocks, held.up.scales, held.up_bias, model.weights.embed, model.weights.blocks[1].sinks]
    assert {x.device.type for x in placed} == {"cuda"}
    assert model.weights.pages is RESIDENT


EDITS = {
    "an ablated head": ("blocks.1.attn.hook_z", wb.ablate(head=3)),
    "an ablated expert": ("blocks.1.mlp.hook_expert_weights", wb.ablate(expert=3)),
    "a banned expert": ("blocks.*.mlp.router.hook_out", wb.ban(expert=2)),
    "a forced expert": ("blocks.1.mlp.router.hook_out", wb.force(expert=6)),
    "a steered residual": ("blocks.0.hook_resid_post", wb.steer(np.linspace(-1, 1, 96))),
    "a halved pattern": ("blocks.0.attn.hook_pattern", lambda p: p / 2),
    "an open sink": ("blocks.1.attn.hook_sink", lambda s: 0 * s),
    "what an expert says": ("blocks.1.mlp.hook_expert_out", lambda x: x * 1.5),
    "other head results": ("blocks.0.attn.hook_result", lambda x: x * 0.5),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_do_the_same(folder, tolerance, edit):
    where, fn = EDITS[edit]
    found = []
    for model in (Model(folder), Model(folder, device="cuda", memory="small")):
        with model.edit(where, fn, positions=range(20, 60)):
            found.append(model.trace(TOKENS, record="logits"))
    assert gap(found[1]["logits"], found[0]["logits"]) <= tolerance
    assert found[1].edits[0]["n_calls"] == found[0].edits[0]["n_calls"]
    assert found[1].edits[0]["n_positions"] == found[0].edits[0]["n_positions"]


def test_a_patch_from_a_trace_goes_to_the_gpu(folder, tolerance):
    found = []
    source = Model(folder).trace(some_tokens(70, seed=4), record="residuals values")
    for model in (Model(folder), Model(folder, device="cuda", memory="small")):
        with model.patch("blocks.1.attn.hook_z", source, positions=[3, 50]):
            found.append(model.trace(TOKENS, record="logits"))
    assert gap(found[1]["logits"], found[0]["logits"]) <= tolerance


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 2}], ids=["greedy", "drawn"])
def test_generation_writes_the_tokens_of_the_cpu_in_fp32(folder, on_gpu, tolerance, how):
    cpu = Model(folder).generate(TOKENS, max_tokens=5, **how)
    ours = on_gpu.generate(TOKENS, max_tokens=5, **how)
    assert ours.tokens == cpu.tokens and ours.verified and ours.source("entropy") == "live"
    for name in ("logprob", "entropy", "margin", "resid_post"):
        assert gap(ours[name], cpu[name]) <= tolerance, name


def test_an_interrupted_generation_is_resumed_on_the_gpu_and_on_the_cpu(folder, on_gpu, tolerance):
    whole = on_gpu.generate(TOKENS, max_tokens=4, record="")
    with ctrl_c_in_pass(3), pytest.raises(Interrupted) as caught:
        on_gpu.generate(TOKENS, max_tokens=4, record="")
    done = on_gpu.resume(caught.value.trace)
    assert done.id == whole.id and done.tokens == whole.tokens
    assert all(gap(done[name], whole[name]) <= tolerance for name in done.names())
    elsewhere = Model(folder).resume(caught.value.trace)
    assert elsewhere.tokens == whole.tokens
    assert elsewhere.manifest.notes == ["the first 71 positions were computed with device cuda:0"]


@pytest.mark.parametrize("memory", ["small", "fast"])
def test_bf16_is_recorded_generated_and_verified(folder, tolerance, memory):
    model = Model(folder, device="cuda", dtype="bfloat16", memory=memory)
    trace = model.generate(TOKENS, max_tokens=3, record="everything")
    assert trace.verified and trace.raw("blocks.0.hook_resid_post").dtype == "bfloat16"


# What only a GPU shows.

only_gpu = pytest.mark.parametrize("tolerance", [pytest.param("cuda", marks=gpu)], indirect=True)


@only_gpu
def test_gradients_pass_through_packed_experts(folder, tolerance):
    grads = []
    for model in (Model(folder), Model(folder, device="cuda", memory="small")):
        x = model.weights.embed[torch.tensor([TOKENS[:20]], device=model.device)].requires_grad_()
        model.forward_from(x, 0)[0, -1, 7].backward()
        assert x.grad is not None
        grads.append(x.grad.to("cpu").numpy())
    assert gap(grads[1], grads[0]) <= tolerance and np.abs(grads[0]).max() > 0


@only_gpu
def test_packed_experts_take_less_memory_and_all_of_it_is_given_back(tolerance, tmp_path):
    # below 256 MB: a larger model stays packed in both
    folder = Random(seed=3, d_model=768, d_mlp=768, n_layers=2, n_experts=12).write_hf_mxfp4(tmp_path / "m")
    peaks = []
    for memory in ("fast", "small"):
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model = Model(folder, device="cuda", memory=memory)
        trace = model.generate(TOKENS, max_tokens=4, record="residuals")
        assert trace.verified
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model
        gc.collect()
        assert torch.cuda.memory_allocated() <= before + (64 << 20)  # cuBLAS keeps a workspace
    assert peaks[1] < 0.5 * peaks[0]


# The same functions on the CPU, exactly.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_packed_experts_dequantised_one_by_one_are_the_reference_bit_for_bit(dtype, n):
    model = Random(seed=3)
    c, t = model.config, model.tensors
    packed = [
        Packed(t[f"block.1.mlp.{m}_weight.blocks"], t[f"block.1.mlp.{m}_weight.scales"], usual=False)
        for m in ("mlp1", "mlp2")
    ]
    dense = [dequantise_mxfp4(p.blocks, p.scales, dtype=dtype) for p in packed]
    bias = [t[f"block.1.mlp.{m}_bias"].to(dtype) for m in ("mlp1", "mlp2")]
    dice = torch.Generator().manual_seed(n)
    x = torch.randn(n, c.d_model, generator=dice).to(dtype)
    ran = torch.stack([torch.randperm(c.n_experts, generator=dice)[: c.n_active] for _ in range(n)])
    share = torch.rand(n, c.n_active, generator=dice).to(dtype)
    share[0, 0] = 0  # a choice that does not run
    said = [
        experts.run(x, ran, share, up, bias[0], down, bias[1], c.swiglu_alpha, c.swiglu_limit)
        for up, down in (packed, dense)
    ]
    assert torch.equal(*said) and said[0].dtype == dtype
    assert said[0].abs().max() > 0 and said[0][0, 0].abs().max() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_packed_model_is_the_dequantised_one_bit_for_bit_where_torch_computes(folder, dtype):
    with computing_with("torch"):
        a, b = (Model(folder, memory=memory, dtype=dtype).trace(TOKENS, record=RECORD) for memory in ("small", "fast"))
    assert a.names() == b.names() and len(a.names()) > 2 * (len(hooks.POINTS) - 3)
    for name in a.names():
        assert np.array_equal(a.raw(name), b.raw(name), equal_nan=a.raw(name).dtype.kind == "f"), name


# What is pretended refuses what CUDA would refuse.


def test_the_pretended_gpu_refuses_two_devices_in_one_operation():
    with pretended_cuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(there, OnCuda) and there.device.type == "cuda"
        for mixed in (
            lambda: there + here,
            lambda: torch.cat((there, here)),
            lambda: there @ here,
            lambda: here[there.long()],
            lambda: torch.where(there > 0, there, here),
            lambda: there.index_select(0, torch.tensor([0])),
            lambda: there.add_(here),
        ):
            with pytest.raises(RuntimeError):
                mixed()
        for read in (there.numpy, there.untyped_storage().data_ptr):
            with pytest.raises((RuntimeError, TypeError)):
                read()
        assert (there + torch.tensor(1.0)).to("cpu").tolist() == [2, 2, 2]
        assert there[torch.tensor([0, 1])].device.type == "cuda"
