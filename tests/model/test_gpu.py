"""The same code on CUDA: on a real GPU (`pytest -m gpu`) and on a simulated one.

The simulated GPU shows that nothing mixes devices, and gives the CPU's numbers through the functions that run on a GPU.
Rounding and memory use of a GPU can only be tested on a real one.
"""

import gc

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.levels import computing_with
from tests.model.models import ctrl_c_in_pass, some_tokens
from tests.model.pretend import OnCuda, simulated_cuda
from workbench import hooks
from workbench.model.checkpoints.residency import RESIDENT
from workbench.model.kernels import experts
from workbench.model.kernels.packed import Packed
from workbench.model.kernels.reference import dequantize_mxfp4
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


@pytest.fixture(params=[pytest.param("cuda", marks=gpu), "simulated"])
def tolerance(request):
    """The allowed difference from torch on the CPU: 0 for the simulated GPU, which computes on the CPU."""
    with computing_with("torch"):
        if request.param == "cuda":
            yield 1e-4
        else:
            with simulated_cuda():
                yield 0.0


@pytest.fixture(params=["small", "fast"])
def on_gpu(request, folder, tolerance):
    """A packed model, and a dequantized one: models below 256 MB are dequantized unless memory is "small"."""
    return Model(folder, device="cuda", memory=request.param)


def gap(a, b) -> float:
    a, b = np.nan_to_num(a, posinf=0, neginf=0), np.nan_to_num(b, posinf=0, neginf=0)
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6))


def test_every_hook_point_has_the_same_value_as_on_the_cpu_in_fp32(folder, on_gpu, tolerance):
    cpu, cuda = Model(folder).trace(TOKENS, record=RECORD), on_gpu.trace(TOKENS, record=RECORD)
    assert cuda.verified and cuda.names() == cpu.names()
    assert cuda.manifest.numerics["device"].startswith("cuda") and cuda.manifest.numerics["kernels"] == "torch"
    for name in cpu.names():
        if cpu.raw(name).dtype.kind == "f":
            assert gap(cuda[name], cpu[name]) <= tolerance, name


def test_weights_are_on_the_gpu_and_no_page_of_the_file_is_in_use(folder, tolerance):
    model = Model(folder, device="cuda", memory="small")
    packed = model.weights.blocks[0].experts
    assert isinstance(packed.up, Packed) and isinstance(packed.down, Packed)
    placed = [packed.up.blocks, packed.up.scales, packed.up_bias, model.weights.embed, model.weights.blocks[1].sinks]
    assert {x.device.type for x in placed} == {"cuda"}
    assert model.weights.residency is RESIDENT


EDITS = {
    "an ablated head": ("blocks.1.attn.hook_z", wb.ablate(head=3)),
    "an ablated expert": ("blocks.1.mlp.hook_expert_weights", wb.ablate(expert=3)),
    "a banned expert": ("blocks.*.mlp.router.hook_out", wb.ban(expert=2)),
    "a forced expert": ("blocks.1.mlp.router.hook_out", wb.force(expert=6)),
    "a steered residual": ("blocks.0.hook_resid_post", wb.steer(np.linspace(-1, 1, 96))),
    "a halved pattern": ("blocks.0.attn.hook_pattern", lambda p: p / 2),
    "an open sink": ("blocks.1.attn.hook_sink", lambda s: 0 * s),
    "an edited expert output": ("blocks.1.mlp.hook_expert_out", lambda x: x * 1.5),
    "other head results": ("blocks.0.attn.hook_result", lambda x: x * 0.5),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_have_the_same_effect_as_on_the_cpu(folder, tolerance, edit):
    where, fn = EDITS[edit]
    traces = []
    for model in (Model(folder), Model(folder, device="cuda", memory="small")):
        with model.edit(where, fn, positions=range(20, 60)):
            traces.append(model.trace(TOKENS, record="logits"))
    assert gap(traces[1]["logits"], traces[0]["logits"]) <= tolerance
    assert traces[1].edits[0]["n_calls"] == traces[0].edits[0]["n_calls"]
    assert traces[1].edits[0]["n_positions"] == traces[0].edits[0]["n_positions"]


def test_a_patch_from_a_trace_is_moved_to_the_gpu(folder, tolerance):
    traces = []
    source = Model(folder).trace(some_tokens(70, seed=4), record="residuals values")
    for model in (Model(folder), Model(folder, device="cuda", memory="small")):
        with model.patch("blocks.1.attn.hook_z", source, positions=[3, 50]):
            traces.append(model.trace(TOKENS, record="logits"))
    assert gap(traces[1]["logits"], traces[0]["logits"]) <= tolerance


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 2}], ids=["greedy", "sampled"])
def test_generated_tokens_equal_those_of_the_cpu_in_fp32(folder, on_gpu, tolerance, settings):
    cpu = Model(folder).generate(TOKENS, max_tokens=5, **settings)
    cuda = on_gpu.generate(TOKENS, max_tokens=5, **settings)
    assert cuda.tokens == cpu.tokens and cuda.verified and cuda.source("entropy") == "live"
    for name in ("logprob", "entropy", "margin", "resid_post"):
        assert gap(cuda[name], cpu[name]) <= tolerance, name


def test_an_interrupted_generation_is_resumed_on_the_gpu_and_on_the_cpu(folder, on_gpu, tolerance):
    whole = on_gpu.generate(TOKENS, max_tokens=4, record="")
    with ctrl_c_in_pass(3), pytest.raises(Interrupted) as caught:
        on_gpu.generate(TOKENS, max_tokens=4, record="")
    resumed = on_gpu.resume(caught.value.trace)
    assert resumed.id == whole.id and resumed.tokens == whole.tokens
    assert all(gap(resumed[name], whole[name]) <= tolerance for name in resumed.names())
    on_cpu = Model(folder).resume(caught.value.trace)
    assert on_cpu.tokens == whole.tokens
    assert on_cpu.manifest.notes == ["the first 71 positions were computed with device cuda:0"]


@pytest.mark.parametrize("memory", ["small", "fast"])
def test_bf16_is_recorded_generated_and_verified(folder, tolerance, memory):
    model = Model(folder, device="cuda", dtype="bfloat16", memory=memory)
    trace = model.generate(TOKENS, max_tokens=3, record="everything")
    assert trace.verified and trace.raw("blocks.0.hook_resid_post").dtype == "bfloat16"


# On a real GPU only.

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
def test_packed_experts_take_less_memory_and_all_of_it_is_freed(tolerance, tmp_path):
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
def test_packed_experts_dequantized_one_by_one_equal_dense_ones_bit_for_bit(dtype, n):
    model = Random(seed=3)
    c, t = model.config, model.tensors
    packed = [
        Packed(t[f"block.1.mlp.{m}_weight.blocks"], t[f"block.1.mlp.{m}_weight.scales"], scales_are_safe=False)
        for m in ("mlp1", "mlp2")
    ]
    dense = [dequantize_mxfp4(p.blocks, p.scales, dtype=dtype) for p in packed]
    bias = [t[f"block.1.mlp.{m}_bias"].to(dtype) for m in ("mlp1", "mlp2")]
    rng = torch.Generator().manual_seed(n)
    x = torch.randn(n, c.d_model, generator=rng).to(dtype)
    indices = torch.stack([torch.randperm(c.n_experts, generator=rng)[: c.n_active] for _ in range(n)])
    weight = torch.rand(n, c.n_active, generator=rng).to(dtype)
    weight[0, 0] = 0  # a choice that does not run
    outputs = [
        experts.run_experts(x, indices, weight, up, bias[0], down, bias[1], c.swiglu_alpha, c.swiglu_limit)
        for up, down in (packed, dense)
    ]
    assert torch.equal(*outputs) and outputs[0].dtype == dtype
    assert outputs[0].abs().max() > 0 and outputs[0][0, 0].abs().max() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_with_torch_a_packed_model_equals_the_dequantized_one_bit_for_bit(folder, dtype):
    with computing_with("torch"):
        a, b = (Model(folder, memory=memory, dtype=dtype).trace(TOKENS, record=RECORD) for memory in ("small", "fast"))
    assert a.names() == b.names() and len(a.names()) > 2 * (len(hooks.POINTS) - 3)
    for name in a.names():
        assert np.array_equal(a.raw(name), b.raw(name), equal_nan=a.raw(name).dtype.kind == "f"), name


# The simulated GPU raises the errors of CUDA.


def test_the_simulated_gpu_raises_for_two_devices_in_one_operation():
    with simulated_cuda():
        on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(on_gpu, OnCuda) and on_gpu.device.type == "cuda"
        for mixed in (
            lambda: on_gpu + on_cpu,
            lambda: torch.cat((on_gpu, on_cpu)),
            lambda: on_gpu @ on_cpu,
            lambda: on_cpu[on_gpu.long()],
            lambda: torch.where(on_gpu > 0, on_gpu, on_cpu),
            lambda: on_gpu.index_select(0, torch.tensor([0])),
            lambda: on_gpu.add_(on_cpu),
        ):
            with pytest.raises(RuntimeError):
                mixed()
        for read in (on_gpu.numpy, on_gpu.untyped_storage().data_ptr):
            with pytest.raises((RuntimeError, TypeError)):
                read()
        assert (on_gpu + torch.tensor(1.0)).to("cpu").tolist() == [2, 2, 2]
        assert on_gpu[torch.tensor([0, 1])].device.type == "cuda"
