"""A fault in the loader or in the runner is named by layer and tensor, also while our dequantization is broken too."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from workbench.model import gpt_oss
from workbench.model.checkpoints import hf
from workbench.model.kernels import experts, native
from workbench.model.model import Model
from workbench.model_check import run
from workbench.model_check.report import ModelReport

BROKEN = 2  # the layer with the fault, where the fault can be in one layer


def verified(folder) -> ModelReport:
    return wb.verify_model(folder, parts=["weights", "layers"], on_line=lambda line: None)


def with_block(change: Callable[[Any], dict[str, Any]]) -> Callable:
    """A loader whose layer `BROKEN` has the fields that `change` returns for it."""

    def load(where, **settings):
        model = Model(where, **settings)
        blocks = list(model.weights.blocks)
        blocks[BROKEN] = replace(blocks[BROKEN], **change(blocks[BROKEN]))
        model.weights = replace(model.weights, blocks=tuple(blocks))
        return model

    return load


def with_experts(change: Callable[[Any], dict[str, Any]]) -> Callable:
    return with_block(lambda block: {"experts": replace(block.experts, **change(block.experts))})


def with_config(**changes: Any) -> Callable:
    def load(where, **settings):
        model = Model(where, **settings)
        model.config = replace(model.config, **changes)
        return model

    return load


def swapped_rows(e) -> dict:
    return {"up": e.up.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)}


def permuted(e) -> dict:
    return {"up": e.up.roll(1, 0), "down": e.down.roll(1, 0)}


def one_scale_off(e) -> dict:
    up = e.up.clone()
    up[5, 7, :32] *= 2  # one block of 32 values
    return {"up": up}


LOADER = {
    "gate and up swapped": (with_experts(swapped_rows), "mlp.experts.gate_up_proj"),
    "down_proj transposed": (with_experts(lambda e: {"down": e.down.transpose(1, 2)}), "mlp.experts.down_proj"),
    "experts permuted": (with_experts(permuted), "mlp.experts.gate_up_proj"),
    "scale of one block": (with_experts(one_scale_off), "mlp.experts.gate_up_proj"),
    "sinks negated": (with_block(lambda b: {"sinks": -b.sinks}), "self_attn.sinks"),
    "router's bias dropped": (with_block(lambda b: {"b_router": 0 * b.b_router}), "mlp.router.bias"),
    "norm's scale dropped": (with_block(lambda b: {"ln2": torch.ones_like(b.ln2)}), "post_attention_layernorm.weight"),
    "q and k exchanged": (with_block(lambda b: {"b_k": b.b_v}), "self_attn.k_proj.bias"),
}


@pytest.mark.parametrize("also_broken", [False, True], ids=["", "dequantization broken too"])
@pytest.mark.parametrize("fault", LOADER)
def test_a_fault_of_the_loader_is_named(fault, also_broken, tmp_path, monkeypatch):
    load, tensor = LOADER[fault]
    model = Random(seed=3, d_mlp=96)  # square, as gpt-oss's: a transposed down_proj fits
    folder = model.write_hf_mxfp4(tmp_path / "model")
    if also_broken:
        monkeypatch.setattr(hf, "dequantize_mxfp4", nibbles_swapped)
    monkeypatch.setattr(run, "Model", load)
    failed = {(line.layer, line.tensor) for line in verified(folder).select("weights") if line.status == "fails"}
    assert (BROKEN, tensor) in failed
    if not also_broken:
        assert {layer for layer, _ in failed} == {BROKEN}
    else:
        assert all((layer, "mlp.experts.down_proj") in failed for layer in range(4))


def nibbles_swapped(blocks, scales, *, dtype=torch.float32):
    from workbench.model.kernels.reference import dequantize_mxfp4

    return dequantize_mxfp4((blocks >> 4) | (blocks << 4), scales, dtype=dtype)


def scales_off_by_one(blocks, scales, *, dtype=torch.float32):
    from workbench.model.kernels.reference import dequantize_mxfp4

    return dequantize_mxfp4(blocks, scales - 1, dtype=dtype)


@pytest.mark.parametrize("broken", [nibbles_swapped, scales_off_by_one])
def test_a_broken_dequantization_is_named_in_every_layer(broken, tmp_path, monkeypatch, model):
    folder = model.write_hf_mxfp4(tmp_path / "model")
    monkeypatch.setattr(hf, "dequantize_mxfp4", broken)
    failed = {(line.layer, line.tensor) for line in verified(folder).failed}
    for layer in range(4):
        assert {
            (layer, "mlp.experts.gate_up_proj"),
            (layer, "mlp.experts.down_proj"),
            (layer, "mlp.experts.0"),
        } <= failed


def dropped_router_bias(x, weight, bias=None):
    return native_linear(x, weight, None if bias is not None and len(bias) == 8 else bias)


native_linear, native_norm, native_frequencies = gpt_oss.linear, gpt_oss.rms_norm, gpt_oss.rope_frequencies


def runner_faults(monkeypatch) -> dict[str, tuple[Callable[[], None], str]]:
    def patch(place: Any, name: str, value: Any) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(place, name, value)

    def wrong_yarn(c, dtype=torch.float32):
        return native_frequencies(replace(c, rope_factor=c.rope_factor / 2), dtype)

    def swapped(x, alpha, limit):
        return experts.swiglu(x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), alpha, limit)

    def sinks_negated(*args, **settings):
        scores, sinks, *rest = args
        return normalize(scores, -sinks, *rest, **settings)

    normalize = gpt_oss.attend.normalize
    return {
        "gate and up swapped": (patch(native, "swiglu", swapped), "mlp.experts."),
        "wrong YaRN factor": (patch(gpt_oss, "rope_frequencies", wrong_yarn), "self_attn.rotary_emb"),
        "sinks negated": (patch(gpt_oss.attend, "normalize", sinks_negated), "self_attn.sinks"),
        "router's bias dropped": (patch(gpt_oss, "linear", dropped_router_bias), "mlp.router.bias"),
        "window off by one": (patch(run, "Model", with_config(window=13)), "self_attn.pattern (window 12)"),
        "norm's scale dropped": (
            patch(gpt_oss, "rms_norm", lambda x, w, eps: native_norm(x, torch.ones_like(w), eps)),
            "input_layernorm",
        ),
        "sliding and full exchanged": (
            patch(run, "Model", with_config(layer_types=("full_attention", "sliding_attention") * 2)),
            "reach of the attention (sliding)",
        ),
    }


@pytest.mark.parametrize("fault", list(runner_faults(None)))
def test_a_fault_of_the_runner_is_named_while_the_weights_hold(fault, tmp_path, monkeypatch, model):
    folder = model.write_hf_mxfp4(tmp_path / "model")
    break_it, tensor = runner_faults(monkeypatch)[fault]
    break_it()
    report = wb.verify_model(folder, parts=["weights", "layers", "identities"], on_line=lambda line: None)
    assert all(line.status == "holds" for line in report.select("weights") if line.layer is not None)
    failed = [line for line in report.failed if line.layer is not None]
    assert any(line.tensor.startswith(tensor) for line in failed)
    follows = ("whole layer", "self_attn (no pattern recorded)", "post_attention_layernorm")  # both norms are broken
    steps = [line.tensor for line in failed if line.part == "layers" and line.layer == 0 and line.tensor not in follows]
    assert all(step.startswith(tensor) or tensor.startswith("reach") for step in steps)


def test_a_right_model_holds_in_every_format(tmp_path, model):
    folders = [
        model.write_hf_mxfp4(tmp_path / "a"),
        model.write_hf_bf16(tmp_path / "b"),
        model.write_original(tmp_path / "c"),
    ]
    model.write_gguf(tmp_path / "d.gguf")
    for where in (*folders, tmp_path / "d.gguf"):
        report = wb.verify_model(where, on_line=lambda line: None)
        assert report.ok, report.failed
        assert len(report.select("weights")) == 4 * 17 + 3
        assert {line.status for line in report.select("layers")} == {"holds"}
        assert max(line.worst for line in report.select("layers") if line.worst is not None) < 1e-5


def test_rows_that_are_all_on_the_sink_are_said_and_hold(tmp_path):
    model = Random(seed=3)
    for layer in range(4):
        model.tensors[f"block.{layer}.attn.sinks"][:5] = 60.0
    report = verified(model.write_hf_mxfp4(tmp_path / "model"))
    assert report.ok, report.failed
    notes = [line.note for line in report.select("layers") if "self_attn.pattern" in line.tensor]
    assert all("of 400 rows are all on the sink" in note for note in notes)
