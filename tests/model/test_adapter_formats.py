"""LoRA adapters of several versions of PEFT and transformers, and errors for the formats of other programs.

PEFT and transformers write the factors of experts in two layouts, as found with the releases themselves:

    PEFT             transformers 4     transformers 5
    up to 0.18       A reads the input  A reads the input
    0.19.0           A reads the input  A reads the output
    from 0.19.1 on   A reads the output A reads the input
"""

import json
import re
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import workbench as wb
from tests.checkpoints import Random
from tests.model.models import some_tokens
from workbench.errors import CheckpointError
from workbench.model.checkpoints.adapter import CONFIG, WEIGHTS, read_adapter

SQUARE = Random(seed=3, n_layers=2, d_model=64, d_mlp=64)  # down_proj [64, 64], as in gpt-oss [2880, 2880]
OBLONG = Random(seed=3, n_layers=2)
IDS = torch.tensor([some_tokens(40)])
ALL = ["mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
DOWN = ["mlp.experts.down_proj"]


class Trained(NamedTuple):
    folder: Path
    merged: Tensor  # the logits of the model merged by PEFT


def train(base: Random, folder: Path, parameters: list[str], *, transformers: int) -> Trained:
    """An adapter written by the installed PEFT with transformers 5, or with 4, whose experts lack `is_transposed`."""
    import peft

    model = base.transformers(torch.float32)
    if transformers == 4:
        for module in model.modules():
            if hasattr(module, "is_transposed"):
                del module.is_transposed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns about its own names
        lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj"], target_parameters=parameters)
        adapted = peft.get_peft_model(model, lora)
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in sorted(adapted.named_parameters()):
                if "lora_" in name:
                    p.copy_(0.05 * torch.randn(p.shape, generator=rng))
        adapted.save_pretrained(str(folder))
        return Trained(folder, adapted.merge_and_unload()(IDS).logits)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    kinds = {"oblong": (OBLONG, ALL), "square": (SQUARE, ALL), "square, down alone": (SQUARE, DOWN)}
    return {
        (kind, version): train(base, tmp_path_factory.mktemp("adapter"), parameters, transformers=version)
        for kind, (base, parameters) in kinds.items()
        for version in (4, 5)
    }


@pytest.fixture(scope="module")
def models():
    return {"oblong": wb.Model(OBLONG.transformers()), "square": wb.Model(SQUARE.transformers())}


@contextmanager
def copy_of(folder: Path, into: Path, *, settings=None, rename=None):
    """The adapter with other settings (None removes one) and renamed tensors."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(folder, into)
    config = json.loads((into / CONFIG).read_text()) | (settings or {})
    (into / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if rename:
        save_file({rename(k): v for k, v in load_file(into / WEIGHTS).items()}, into / WEIGHTS)
    yield into


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# writer: the PEFT version in adapter_config.json, and the transformers with which the installed PEFT writes the same
WRITERS = {
    "peft 0.17, transformers 4": (None, 5),
    "peft 0.18, transformers 4": ("0.18.1", 5),
    "peft 0.18, transformers 5": ("0.18.1", 5),
    "peft 0.19.0, transformers 4": ("0.19.0", 5),
    "peft 0.19.0, transformers 5": ("0.19.0", 4),
    "peft 0.21, transformers 4": ("0.21.2", 4),
    "peft 0.21, transformers 5": ("0.21.2", 5),
}


@pytest.mark.parametrize("kind", ["oblong", "square"])
@pytest.mark.parametrize("writer", WRITERS)
def test_adapters_of_every_version_equal_the_model_merged_by_peft(trained, models, tmp_path, writer, kind, measured):
    version, like = WRITERS[writer]
    made = trained[kind, like]
    with copy_of(made.folder, tmp_path / "a", settings={"peft_version": version}) as folder:
        distance = apart(models[kind].with_adapter(folder).forward(IDS), made.merged)
    assert distance < 1e-5
    assert apart(made.merged, models[kind].forward(IDS)) > 0.01
    measured(f"{kind} LoRA of {writer}: {distance:.1e} relative from PEFT's merged model")


def test_the_two_layouts_have_factors_of_different_shapes(trained):
    """Otherwise the tests above would compare one layout with itself."""
    key = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
    shapes = [load_file(trained["square", version].folder / WEIGHTS)[key].shape for version in (4, 5)]
    assert shapes == [(24, 128), (24, 64)]


KNOWN = [
    # PEFT, transformers if a user has added it, and the transformers with which the installed PEFT writes the same
    (None, None, 5),
    ("0.17.1", None, 5),
    ("0.18.1", None, 5),
    ("0.19.0", "4.57.1", 5),
    ("0.19.0", "5.0.0", 4),
    ("0.19.1", "4.57.1", 4),
    ("0.21.2", "4.57.1", 4),
    ("0.21.2", "5.23.0", 5),
]


@pytest.mark.parametrize(("peft", "transformers", "like"), KNOWN)
def test_for_square_matrices_the_versions_determine_the_layout(trained, models, tmp_path, peft, transformers, like):
    made = trained["square, down alone", like]
    settings = {"peft_version": peft, "transformers_version": transformers}
    with copy_of(made.folder, tmp_path / "a", settings=settings) as folder:
        assert apart(models["square"].with_adapter(folder).forward(IDS), made.merged) < 1e-5
    other = trained["square, down alone", 9 - like]  # the other layout has the same shapes and other numbers
    with copy_of(other.folder, tmp_path / "a", settings=settings) as folder:
        assert apart(models["square"].with_adapter(folder).forward(IDS), other.merged) > 1e-3


@pytest.mark.parametrize(
    ("peft", "transformers"),
    [("0.19.0", None), ("0.19.1", None), ("0.21.2", None), ("0.18.2.dev0", None), ("main", None), ("0.21.2", "latest")],
)
def test_square_matrices_with_an_unknown_version_are_an_error(trained, tmp_path, peft, transformers):
    settings = {"peft_version": peft, "transformers_version": transformers}
    folder = trained["square, down alone", 5].folder
    with copy_of(folder, tmp_path / "a", settings=settings) as folder, pytest.raises(CheckpointError) as caught:
        read_adapter(folder, SQUARE.config)
    for words in ("whose matrices are square", f"saved by PEFT {peft}", '"transformers_version": "4.57.0"', "merge"):
        assert words in str(caught.value)


RENAMES = {
    "an adapter's name": lambda k: k.replace(".weight", ".default.weight"),
    "no prefix": lambda k: k.removeprefix("base_model.model."),
    "no prefix at all": lambda k: k.removeprefix("base_model.model.model."),
    "a name and no prefix": lambda k: k.removeprefix("base_model.model.").replace(".weight", ".mine.weight"),
    "a wrapper": lambda k: "module." + k,
    "compiled": lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
    "checkpointing": lambda k: re.sub(r"(layers\.\d+)", r"\1._checkpoint_wrapped_module", k),
}


@pytest.mark.parametrize("renaming", RENAMES)
def test_tensor_names_of_manual_saves_are_accepted(trained, models, tmp_path, renaming):
    made = trained["oblong", 5]
    with copy_of(made.folder, tmp_path / "a", rename=RENAMES[renaming]) as folder:
        assert apart(models["oblong"].with_adapter(folder).forward(IDS), made.merged) < 1e-5


def test_the_two_layouts_have_different_digests(trained, tmp_path):
    folder = trained["square, down alone", 5].folder
    digests = set()
    for version in ("4.57.0", "5.0.0"):
        with copy_of(folder, tmp_path / "a", settings={"transformers_version": version}) as changed:
            digests.add(read_adapter(changed, SQUARE.config).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("shape", [(), (24,), (3, 8, 64)])
def test_a_factor_with_another_number_of_axes_is_an_error(trained, tmp_path, shape):
    with copy_of(trained["oblong", 5].folder, tmp_path / "a") as folder:
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {LAYER + "mlp.experts.lora_A.weight": torch.ones(shape)}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=r"the factors of model\.layers\.0\.mlp\.experts\.down_proj are"):
            read_adapter(folder, OBLONG.config)


def test_several_adapters_in_one_file_are_an_error_that_names_them(trained, tmp_path):
    with copy_of(trained["oblong", 5].folder, tmp_path / "a") as folder:
        tensors = load_file(folder / WEIGHTS)
        both = {k.replace(".weight", f".{n}.weight"): v.clone() for k, v in tensors.items() for n in ("a", "b")}
        save_file(both, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match="contains 2 adapters: 'a', 'b'"):
            read_adapter(folder, OBLONG.config)
        twice = tensors | {"module." + k: v.clone() for k, v in tensors.items()}
        save_file(twice, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=r"contains lora_[AB] of model\.layers\.\d\..* twice"):
            read_adapter(folder, OBLONG.config)


def test_an_adapter_may_be_in_the_only_subfolder(trained, models, tmp_path):
    made = trained["oblong", 5]
    shutil.copytree(made.folder, tmp_path / "run" / "checkpoint-100")
    model = models["oblong"].with_adapter(tmp_path / "run")
    assert apart(model.forward(IDS), made.merged) < 1e-5 and "checkpoint-100" in model.name
    shutil.copytree(made.folder, tmp_path / "run" / "checkpoint-200")
    with pytest.raises(
        CheckpointError, match=r"contains 2 adapters: checkpoint-100, checkpoint-200\. Give the folder of one"
    ):
        models["oblong"].with_adapter(tmp_path / "run")


LAYER = "base_model.model.model.layers.0."
FOREIGN = {
    "unsloth, per expert": ([LAYER + "mlp.experts.gate_up_projs.3.lora_A.weight"], ["unsloth", "merged_16bit"]),
    "PEFT, per expert": (
        [LAYER + "mlp.experts.7.gate_proj.lora_A.weight", LAYER + "mlp.experts.7.down_proj.lora_B.weight"],
        ["factors for each expert, as PEFT writes them", "experts of that form"],
    ),
    "Tinker": (
        [LAYER + "mlp.experts.w1.lora_A.weight", LAYER + "attn.q_proj.lora_A.weight"],
        ["Tinker's own format", "weights.build_hf_model("],
    ),
    "Tinker, attention": ([LAYER + "attn.o_proj.lora_B.weight"], ["Tinker's own format"]),
    "Tinker, unembedding": (["base_model.model.model.unembed_tokens.lora_A.weight"], ["Tinker's own format"]),
    "Tinker, exported": (
        [LAYER + "mlp.experts.0.gate_proj.lora_A.weight", "base_model.model.lm_head.lora_A.weight"],
        ["factors for each expert", "Tinker's exporter", "weights.build_hf_model("],
    ),
    "Tinker, exported and stacked": (
        [LAYER + "mlp.experts.gate_up_proj.lora_A.weight"],
        ["stacked experts under the name of each parameter"],
    ),
    "lm_head": (["base_model.model.lm_head.lora_B.weight"], ["the unembedding (lm_head)", "merge_and_unload"]),
    "embedding": (["base_model.model.model.embed_tokens.lora_embedding_A"], ["or the embedding", "merge_and_unload"]),
    "DoRA": ([LAYER + "self_attn.q_proj.lora_magnitude_vector"], ["This is DoRA", "merge_and_unload"]),
    "something else": ([LAYER + "mlp.experts.bonus"], ["cannot be adapted here", "merge_and_unload"]),
}


@pytest.mark.parametrize("form", FOREIGN)
def test_the_error_for_another_published_format_names_it_and_the_remedy(trained, tmp_path, form):
    names, words = FOREIGN[form]
    with copy_of(trained["oblong", 5].folder, tmp_path / "a") as folder:
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {name: torch.ones(8, 3, 3) for name in names}, folder / WEIGHTS)
        with pytest.raises(CheckpointError) as caught:
            read_adapter(folder, OBLONG.config)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert names[0] in text and "another model" not in text and len(text) < 1200


def test_the_error_for_an_mlx_adapter_names_mlx(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}))
    with pytest.raises(CheckpointError, match="was saved by MLX"):
        read_adapter(tmp_path, OBLONG.config)
