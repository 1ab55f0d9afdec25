"""LoRA adapters: equal to PEFT's merge, no change at scale 0, packed or not; an error if they are not LoRA."""

import json
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.checkpoints import Random
from tests.model.models import ctrl_c_in_pass, some_tokens, tiny
from workbench.errors import CheckpointError, EditError, ModelNotFound
from workbench.model.cache import KVCache
from workbench.model.checkpoints import adapter as adapters
from workbench.model.kernels.packed import Packed
from workbench.model.model import Model
from workbench.recording.taps import Recorder

BASE = Random(seed=3)
TARGETS = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.router.weight"]},
    "experts": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "down alone": {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    "some layers": {
        "target_modules": [],
        "target_parameters": ["1.mlp.experts.gate_up_proj", "3.mlp.experts.down_proj"],
    },
    "all, by patterns": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "target_parameters": ["mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "rank_pattern": {"q_proj": 2, "experts.down_proj": 4, r"layers\.1\.self_attn\.o_proj": 5},
        "alpha_pattern": {"k_proj": 11, "router.weight": 1, "experts.gate_up_proj": 7},
        "use_rslora": True,
    },
}
IDS = torch.tensor([some_tokens(60, seed=33)])  # longer than the window of 12, without near ties in a router
Made = namedtuple("Made", "folder merged base")


def train(folder: Path, *, std: float = 0.05, **settings) -> Made:
    """An adapter saved by PEFT, with nonzero factors, and the logits of the model merged by PEFT."""
    import peft

    hf = BASE.transformers(torch.float32)
    base = hf(IDS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns about its own names, PEFT about parameter patterns
        model = peft.get_peft_model(hf, peft.LoraConfig(r=3, lora_alpha=6, **settings))
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in sorted(model.named_parameters()):
                if "lora_" in name:
                    p.copy_(std * torch.randn(p.shape, generator=rng))
        model.save_pretrained(str(folder))
        return Made(folder, model.merge_and_unload()(IDS).logits, base)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {name: train(tmp_path_factory.mktemp("adapter"), **settings) for name, settings in TARGETS.items()}


@pytest.fixture(scope="module", params=["dequantized", "packed"])
def base(request, tmp_path_factory):
    folder = BASE.write_hf_mxfp4(tmp_path_factory.mktemp("base"))
    model = wb.Model(folder, dtype="float32", memory="small" if request.param == "packed" else "fast")
    assert isinstance(model.weights.blocks[0].experts.up, Packed) == (request.param == "packed")
    return model


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", TARGETS)
def test_scale_1_equals_the_model_merged_by_peft(made, base, kind, measured):
    model = base.with_adapter(made[kind].folder)
    distance = apart(model.forward(IDS), made[kind].merged)
    assert distance < 1e-5
    assert model.trace(IDS[0].tolist(), record="")["margin"].min() > 1e-3, "a choice is too close to a tie"
    assert apart(made[kind].merged, made[kind].base) > 0.01  # the adapter has an effect
    measured(f"LoRA on {kind}: {distance:.1e} relative from PEFT's merged model")


@pytest.mark.parametrize("kind", TARGETS)
def test_scale_0_is_the_base_model_bit_for_bit(made, base, kind):
    assert torch.equal(base.with_adapter(made[kind].folder, scale=0).forward(IDS), base.forward(IDS))


def test_the_outputs_of_heads_are_recorded_in_bf16_too(made, tmp_path):
    """They sum to the attention output, up to the rounding of each head's."""
    folder = BASE.write_hf_mxfp4(tmp_path / "base")
    model = wb.Model(folder, dtype="bfloat16").with_adapter(made["attention"].folder)
    recorder = Recorder(["blocks.1.attn.hook_result", "blocks.1.hook_attn_out"])
    model.forward(IDS, recorder)
    result, out = (recorder[name].float() for name in ("blocks.1.attn.hook_result", "blocks.1.hook_attn_out"))
    assert apart(result.sum(2) + model.weights.blocks[1].b_o.float(), out) < 0.02


def test_the_change_is_proportional_to_the_scale(made, base):
    """At a hook point that depends on the change linearly: the router's logits of the first layer."""
    point = "blocks.0.mlp.router.hook_out"
    seen = {}
    for scale in (0, 1, -0.5, 3):
        recorder = seen[scale] = Recorder([point])
        base.with_adapter(made["router"].folder, scale=scale).forward(IDS, recorder)
    change = seen[1][point] - seen[0][point]
    for scale in (-0.5, 3):
        assert torch.allclose(seen[scale][point] - seen[0][point], scale * change, atol=1e-5)


def test_decoding_token_by_token_equals_one_pass(made, base):
    model = base.with_adapter(made["all, by patterns"].folder)
    cache = KVCache(model.config)
    rows = [model.forward(IDS[:, i : i + 1], None, cache) for i in range(IDS.shape[1])]
    assert apart(torch.cat(rows, 1), model.forward(IDS)) < 1e-5
    assert torch.equal(torch.cat(rows, 1), model.forward(IDS)) or not model.rows_independent


def test_changing_one_position_changes_no_bit_of_earlier_ones(made, base):
    model = base.with_adapter(made["all, by patterns"].folder)
    other = IDS.clone()
    other[0, 37] = (other[0, 37] + 1) % 170
    a, b = model.forward(IDS), model.forward(other)
    assert torch.equal(a[:, :37], b[:, :37]) and not torch.equal(a[:, 37:], b[:, 37:])


def test_independence_of_rows_is_tested_with_an_adapter(made, base):
    assert base.with_adapter(made["all, by patterns"].folder).rows_independent == base.rows_independent


def test_a_trace_with_an_adapter_verifies_and_records_the_adapter(made, base, tmp_path):
    folder = made["all, by patterns"].folder
    model = base.with_adapter(folder, scale=0.5)
    trace = model.trace(IDS[0].tolist(), record="attention residuals")
    assert {f["status"] for f in trace.verification} == {"holds"}
    entry = trace.manifest.model["adapter"]
    assert entry["name"] == folder.name and entry["scale"] == 0.5 and entry["base"] == base.digest
    assert entry["digest"] == adapters.read_adapter(folder, base.config).digest
    assert wb.load(trace.save(tmp_path / "t.trace")).manifest.model == trace.manifest.model
    plain = base.trace(IDS[0].tolist(), record="attention residuals")
    other = base.with_adapter(folder, scale=0.25).trace(IDS[0].tolist(), record="attention residuals")
    assert len({t.id for t in (trace, plain, other)}) == 3 and "adapter" not in plain.manifest.model
    assert f"0.5 {folder.name}" in model.name and model.name in trace.summary()


def test_the_digest_depends_on_the_factors_and_their_scaling(made, base, tmp_path):
    folder = made["attention"].folder
    digest = adapters.read_adapter(folder, base.config).digest
    copied = shutil.copytree(folder, tmp_path / "copied")
    assert adapters.read_adapter(copied, base.config).digest == digest
    configured(copied, lora_alpha=7)
    assert adapters.read_adapter(copied, base.config).digest != digest
    configured(copied, lora_alpha=6)
    changed(copied, lambda tensors: tensors[min(tensors)].mul_(2))
    assert adapters.read_adapter(copied, base.config).digest != digest


def test_the_base_model_is_unchanged_and_has_separate_edits(made, base):
    before = base.forward(IDS)
    model = base.with_adapter(made["experts"].folder)
    with base.edit("blocks.1.hook_mlp_out", lambda x: 0 * x):
        assert not model.active_edits()
        assert torch.equal(model.forward(IDS), base.with_adapter(made["experts"].folder).forward(IDS))
        base.forward(IDS)
    assert torch.equal(base.forward(IDS), before) and base.adapter is None


def test_an_interrupted_run_can_only_be_resumed_with_its_adapter(made, base):
    model = base.with_adapter(made["attention"].folder)
    with ctrl_c_in_pass(8), pytest.raises(KeyboardInterrupt):
        model.generate(some_tokens(20), max_tokens=20, record="", stop=())
    with pytest.raises(wb.errors.ResumeError, match="weights digest of this model"):
        base.resume(model.partial)
    assert len(base.with_adapter(made["attention"].folder).resume(model.partial)) == 40


def test_analyses_of_weights_use_the_adapted_weights(made, base):
    model = base.with_adapter(made["attention"].folder)
    trace = model.trace(IDS[0].tolist(), record="")
    attribution = wb.residual.logit_attribution(model, trace, 5, pos=40)
    assert attribution.attrs["missing"] < 1e-3
    change = model.weights.blocks[0].whole("w_o") - base.weights.blocks[0].whole("w_o")
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3


def test_bf16_rounds_once(made, tmp_path):
    folder = BASE.write_hf_bf16(tmp_path)
    single, half = (wb.Model(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    point = "blocks.0.attn.hook_q"
    seen = []
    for model in (single, half):
        seen.append(Recorder([point, "blocks.0.ln1.hook_normalized"]))
        model.with_adapter(made["attention"].folder).forward(IDS, seen[-1])
    assert half.with_adapter(made["attention"].folder).forward(IDS).dtype == torch.bfloat16
    assert apart(seen[1][point].float(), seen[0][point]) < 0.02


# -- errors


def configured(folder: Path, **settings) -> Path:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def changed(folder: Path, change) -> Path:
    tensors = load_file(folder / adapters.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapters.WEIGHTS)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made["all, by patterns"].folder, tmp_path / "adapter")


def assert_error(folder: Path, *words: str, model: Model | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        (model or tiny()).with_adapter(folder)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, ["does not describe a plain LoRA adapter", "use_dora"]),
        ({"use_qalora": True}, ["use_qalora"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out"]),
        ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
        ({"something_new": 1}, ["something_new"]),
        ({"bias": "all"}, ["bias='all'"]),
        ({"peft_type": "ADALORA"}, ["'ADALORA'", "peft_type must be 'LORA'"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa'", "path_initial_model_for_weight_conversion"]),
        ({"r": 0}, ["the rank 'r' must be a whole number above 0, got 0"]),
        ({"r": "8"}, ["the rank 'r' must be a whole number above 0, got '8'"]),
        ({"r": 4}, ["With rank 4", "they would be [32, 96] and [128, 32]"]),
        ({"rank_pattern": [1]}, ["rank_pattern and alpha_pattern must be objects"]),
        ({"rank_pattern": {"([a-z]+)+X": 2}}, ["the key '([a-z]+)+X' of rank_pattern is not a pattern"]),
        ({"r": True}, ["the rank 'r' must be a whole number above 0, got True"]),
        ({"lora_alpha": 10**400}, ["the alpha 'lora_alpha' must be a finite number"]),
        ({"use_rslora": "no"}, ["use_rslora must be true or false"]),
        ({"rank_pattern": {"(": 2}}, ["is not a pattern that workbench runs"]),
        ({"lora_alpha": None}, ["the alpha 'lora_alpha' must be a finite number, got None"]),
        ({"target_parameters": ["mlp.router.weight"]}, ["cannot be adapted", "mlp.experts.base_layer.lora_A.weight"]),
        ({"target_parameters": "all"}, ["target_parameters must be a list"]),
    ],
)
def test_a_variant_of_lora_is_an_error_that_names_it(folder, settings, words):
    assert_error(configured(folder, **settings), *words)


def test_a_damaged_folder_is_an_error(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="there is no adapter in"):
        tiny().with_adapter(tmp_path / "empty")
    file = folder / adapters.WEIGHTS
    contents = file.read_bytes()
    for size in (0, 7, 300, len(contents) - 10):
        file.write_bytes(contents[:size])
        assert_error(folder, "damaged or cut short")
    file.rename(folder / "adapter_model.bin")
    assert_error(folder, ".bin files are never opened here")
    (folder / "adapter_model.bin").unlink()
    assert_error(folder, f"has no {adapters.WEIGHTS}")
    (folder / adapters.CONFIG).write_text("{")
    assert_error(folder, "is not valid JSON")


HERE = "base_model.model.model.layers.0."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(HERE + "self_attn.q_proj.lora_B.weight"), ["no lora_B for model.layers.0.self_attn.q_proj"]),
        (lambda t: t.update({HERE + "mlp.experts.gate_up_projs.0.lora_A.weight": torch.ones(3, 96)}), ["cannot be"]),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 96)}), ["lm_head.lora_A.weight"]),
        (lambda t: t.update({HERE + "self_attn.q_proj.lora_magnitude_vector": torch.ones(3)}), ["magnitude_vector"]),
        (lambda t: t[min(t)].fill_(torch.nan), ["NaN or infinity"]),
        (lambda t: t.update({key: t.pop(key)[:-1] for key in [min(t)]}), ["the factors of model.layers.0"]),
        (
            lambda t: t.update({k.replace("layers.0", "layers.9"): t[k].clone() for k in list(t)}),
            ["changes layer 9", "0..3"],
        ),
        (lambda t: t.clear(), ["it changes nothing"]),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(folder, change, words):
    assert_error(changed(folder, change), *words)


def test_the_error_for_another_shape_names_the_adapters_base_model(folder):
    other = wb.Model(Random(seed=1, d_model=64).transformers(torch.float32))
    assert_error(configured(folder, base_model_name_or_path="acme/model"), "made for acme/model", model=other)


def test_the_scale_must_be_finite_and_adapters_cannot_be_stacked(folder):
    with pytest.raises(EditError, match="must be a finite number"):
        tiny().with_adapter(folder, scale=float("nan"))
    with pytest.raises(EditError, match="already has an adapter"):
        tiny().with_adapter(folder).with_adapter(folder)
