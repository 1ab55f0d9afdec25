"""Layouts of gpt-oss by other programs: the error names the program and says what to do."""

import re

import pytest
import torch

from tests.checkpoints import Random, write_hf
from workbench.errors import CheckpointError
from workbench.model.checkpoints import load, validate

MODEL = Random(seed=1, n_layers=2)
PLAIN = {k: v for k, v in MODEL.hf_config().items() if k != "quantization_config"}
UP, DOWN = "model.layers.{}.mlp.experts.gate_up_proj", "model.layers.{}.mlp.experts.down_proj"


def stacked_apart(tensors):
    """MLX's layout: gate and up are separate tensors, as [expert, out, in]."""
    for n in range(2):
        up, bias = tensors.pop(UP.format(n)).transpose(1, 2), tensors.pop(UP.format(n) + "_bias")
        at = f"model.layers.{n}.mlp.experts."
        for part, rows in (("gate_proj", slice(0, None, 2)), ("up_proj", slice(1, None, 2))):
            tensors[f"{at}{part}.weight"], tensors[f"{at}{part}.bias"] = up[:, rows].contiguous(), bias[:, rows].clone()
        tensors[f"{at}down_proj.weight"] = tensors.pop(DOWN.format(n)).transpose(1, 2).contiguous()
        tensors[f"{at}down_proj.bias"] = tensors.pop(DOWN.format(n) + "_bias")


def in_four_bits_of_mlx(tensors):
    at = "model.layers.0.self_attn.q_proj."
    tensors[at + "weight"] = torch.zeros(160, 12, dtype=torch.uint8)
    tensors[at + "scales"], tensors[at + "biases"] = torch.ones(160, 2), torch.ones(160, 2)


def an_expert_each(names):
    def change(tensors):
        for n in range(2):
            for e in range(8):
                for key, name in ((UP, names[0]), (DOWN, names[1])):
                    tensors[f"model.layers.{n}.mlp.experts.{name.format(e)}.weight"] = tensors[key.format(n)][e].clone()
            del tensors[UP.format(n)], tensors[DOWN.format(n)]

    return change


def beside(*ends):
    def change(tensors):
        for end in ends:
            tensors["model.layers.1.self_attn.q_proj." + end] = torch.ones(1)

    return change


def renamed(change_name):
    def change(tensors):
        for name in list(tensors):
            tensors[change_name(name)] = tensors.pop(name)

    return change


def without_prefix(name):
    return name.removeprefix("model.")


OTHERS = {
    "MLX": (stacked_apart, ["the layout of MLX", "use the model that this one was made from"]),
    "MLX in 4 bits": (in_four_bits_of_mlx, ["the layout of MLX"]),
    "per expert": (an_expert_each(["{}.gate_up_proj", "{}.down_proj"]), ["one linear layer per expert", "stack the"]),
    "per expert by unsloth": (an_expert_each(["gate_up_projs.{}", "down_projs.{}"]), ["unsloth", "merged_16bit"]),
    "modelopt": (beside("weight_scale", "weight_scale_2", "input_scale"), ["NVIDIA's ModelOpt"]),
    "compressed-tensors": (beside("weight_packed", "weight_scale", "weight_shape"), ["compressed-tensors"]),
    "GPTQ": (beside("qweight", "qzeros", "g_idx"), ["GPTQ or AWQ"]),
    "bitsandbytes": (beside("weight.absmax", "weight.quant_state.bitsandbytes__nf4"), ["bitsandbytes"]),
    "8-bit floats": (beside("weight_scale_inv"), ["8-bit floats"]),
    "multimodal": (renamed(lambda n: "language_model." + n), ["begin with 'language_model.model.'", "multimodal"]),
    "multimodal, transformers 5": (
        renamed(lambda n: n.replace("model.", "model.language_model.", 1) if n[0] == "m" else n),
        ["begin with 'model.language_model.'"],
    ),
    "compiled": (renamed(lambda n: "_orig_mod." + n), ["torch.compile", "model._orig_mod"]),
    "compiled inside": (renamed(lambda n: n.replace("model.", "model._orig_mod.")), ["'model._orig_mod.'"]),
    "parallel": (renamed(lambda n: "module." + n), ["DistributedDataParallel", "model.module"]),
    "PEFT": (renamed(lambda n: "base_model.model." + n), ["the prefix of PEFT", "merge_and_unload"]),
    "of some wrapper": (renamed(lambda n: "policy." + n), ["begin with 'policy.model.'", "another program"]),
    "no prefix": (renamed(without_prefix), ["have no prefix", "GptOssForCausalLM"]),
    "no prefix and no head": (
        lambda t: (renamed(without_prefix)(t), t.pop("lm_head.weight")),
        ["GptOssModel, which has no lm_head"],
    ),
}


@pytest.mark.parametrize("whose", OTHERS)
def test_the_error_for_a_layout_of_another_program_names_it_and_says_what_to_do(whose, tmp_path, monkeypatch):
    change, words = OTHERS[whose]
    tensors = MODEL.hf_tensors(mxfp4=False)
    change(tensors)
    folder = write_hf(tmp_path, tensors, PLAIN)
    monkeypatch.setattr(
        validate, "free_memory", lambda device: 1000
    )  # the layout is refused before the memory is checked
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "missing" not in text and "Fetch" not in text and len(text) < 900, text


@pytest.mark.parametrize(
    "whose", ["multimodal", "multimodal, transformers 5", "compiled", "compiled inside", "parallel"]
)
def test_the_advice_on_a_prefix_gives_a_checkpoint_that_loads(whose, tmp_path):
    """Runs the line of Python in the message on the file."""
    tensors = MODEL.hf_tensors(mxfp4=False)
    OTHERS[whose][0](tensors)
    folder = write_hf(tmp_path, tensors, PLAIN)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    recipe = re.search(r"from safetensors.*", str(caught.value))
    assert recipe
    exec(recipe[0], {"f": folder / "model.safetensors"})
    assert load(folder).config == MODEL.config


def test_original_weights_beside_a_hugging_face_config_are_refused(tmp_path):
    folder = MODEL.write_original(tmp_path)
    write_hf(tmp_path / "other", {}, PLAIN)
    (folder / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"OpenAI's own layout.*config.json of their original/"):
        load(folder)


def test_the_error_for_a_compiled_model_says_which_object_to_give():
    class Compiled:  # wraps like torch.compile, whose import takes ten seconds
        def __init__(self, model):
            self._orig_mod, self.config = model, model.config

        def state_dict(self):
            return {f"_orig_mod.{name}": tensor for name, tensor in self._orig_mod.state_dict().items()}

    with pytest.raises(CheckpointError, match=r"torch\.compile.*give workbench\) the model inside, model\._orig_mod"):
        load(Compiled(Random(seed=1, n_layers=1).transformers()))
