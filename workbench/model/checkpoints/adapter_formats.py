"""Formats of gpt-oss adapters: where the files are, how the tensors are named, and which formats cannot be read.

Works on names only, never on the values of tensors.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints.validate import listed
from workbench.text import brief
from workbench.untrusted import file_names, is_folder, is_there

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# modules that wrap a model or a layer during training; each adds a word to the tensor names
WRAPPERS = {"base_model", "model", "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
NAME = re.compile(r"layers\.([0-9]{1,6})\.(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
MERGE = "Merge it with PEFT, model.merge_and_unload(), and load the merged model."
TINKER = (
    "Build the merged model with tinker-cookbook, weights.build_hf_model(base_model=…, adapter_path=…, output_path=…), "
    "and load that model."
)
# pattern of a tensor's name -> its format, and what to do; the first pattern that matches is reported
FORMATS = {
    r"\.experts\.w[123]\.|\.attn\.|unembed_tokens": ("This is Tinker's own format.", TINKER),
    r"\.experts\.(gate_up|down)_projs\.": (
        "This is unsloth's format, with factors for each expert.",
        "Merge it with unsloth, model.save_pretrained_merged(folder, tokenizer, save_method='merged_16bit'), and load "
        "that model.",
    ),
    r"\.experts\.\d+\.": (
        "These are factors for each expert, as PEFT writes them if experts are linear layers, or Tinker's exporter.",
        f"Merge it into the model that it was made for, with experts of that form. For Tinker's exporter: {TINKER}",
    ),
    r"\.experts\.(gate_up_proj|gate_proj|up_proj|down_proj)\.": (
        "These are factors of stacked experts under the name of each parameter, as Tinker's exporter writes them.",
        TINKER,
    ),
    r"\blm_head\b|\bembed_tokens\b": ("It changes the unembedding (lm_head) or the embedding.", MERGE),
    r"magnitude_vector": ("This is DoRA.", MERGE),
}


@dataclass(frozen=True, slots=True)
class FactorName:
    """The parts of the name of a LoRA factor."""

    layer: int
    module: str  # "self_attn.q_proj", "mlp.experts", "mlp.experts.base_layer" …
    factor: str  # "A" | "B"
    adapter: str | None  # "default" and the like, if the tensors of a whole model were saved


def find_adapter(folder: Path) -> Path:
    """The folder of the adapter: `folder` itself, or the only subfolder with an adapter.

    PEFT saves an adapter that is not called "default" into a subfolder of that name, and trainers save checkpoints into
    subfolders. Raises ModelNotFound if there is none, CheckpointError if there are several.
    """
    if is_there(folder / CONFIG):
        return folder
    names = file_names(folder, ModelNotFound) if is_folder(folder) else []
    subfolders = [folder / name for name in names if is_there(folder / name / CONFIG)]
    if len(subfolders) == 1:
        return subfolders[0]
    if subfolders:
        names = ", ".join(brief(path.name) for path in subfolders[:8])
        raise CheckpointError(f"{folder} contains {len(subfolders)} adapters: {names}. Give the folder of one of them.")
    raise ModelNotFound(
        f"there is no adapter in {brief(str(folder), 300)}: PEFT saves {CONFIG} and {WEIGHTS} into a folder."
    )


def parse_factor_name(name: str) -> FactorName | None:
    """The parts of a tensor's name, without the words that wrappers add; None if it is not a LoRA factor of a layer.

    >>> parse_factor_name("base_model.model.model.layers.3.mlp.experts.lora_A.default.weight")
    FactorName(layer=3, module='mlp.experts', factor='A', adapter='default')
    """
    match = NAME.fullmatch(".".join(word for word in name.split(".") if word not in WRAPPERS))
    return FactorName(int(match[1]), match[2], match[3], match[4]) if match else None


def refuse_tensors(names: Iterable[str], readable: Iterable[str], file: Path) -> None:
    """Raises CheckpointError if `names` is not empty; the message names the format of these tensors."""
    if not (names := list(names)):
        return
    known = (FORMATS[p] for p in FORMATS if any(re.search(p, name) for name in names))
    description, advice = next(known, ("Their format is unknown.", MERGE))
    raise CheckpointError(
        f"{file} changes parameters that cannot be adapted here: {listed(names, 'tensor', 'tensors')}. {description} "
        f"workbench reads PEFT's LoRA factors of these parameters: {', '.join(readable)}. {advice}"
    )


def refuse_other_programs(settings: Mapping[str, Any], file: Path) -> None:
    """Raises CheckpointError for an adapter_config.json of MLX instead of PEFT."""
    if "peft_type" not in settings and {"lora_parameters", "fine_tune_type"} & settings.keys():
        raise CheckpointError(
            f"{file} was saved by MLX (mlx_lm), not by PEFT. Fuse the adapter with mlx_lm.fuse, then convert the model "
            f"to the layout of transformers."
        )


def expert_factors_swapped(
    shapes: Mapping[str, tuple[tuple[int, int], int, int]], settings: Mapping[str, Any]
) -> bool | None:
    """Whether factor A of experts is on the output side of the matrix and B on its input side; None if unknown.

    PEFT takes the axes of a stacked parameter in the order (in, out) or (out, in). gpt-oss stores (in, out), and PEFT
    assumed that order until 0.18. Since then the order depends on an attribute that transformers 5 sets and
    transformers 4 does not; PEFT 0.19.0 reads the attribute the other way round. The shapes of the factors show the
    order, unless all matrices are square. Then it follows from the version of PEFT, which adapter_config.json has since
    0.18, and from `transformers_version` there, which a user may have added.

    `shapes`: for each parameter, (columns of A, rows of B), the matrix's outputs, and its inputs.
    """
    consistent = [shape for shape in shapes.values() if sorted(shape[0]) == sorted(shape[1:])]
    swapped = {(columns, rows) == (n_out, n_in) for (columns, rows), n_out, n_in in consistent if n_out != n_in}
    if swapped or not consistent:  # with both orders in one file, or no fitting shape, the shapes are refused later
        return swapped == {True}
    peft = _version(settings.get("peft_version", "0.17.0"))
    if peft is None or peft < (0, 19, 0):
        return None if peft is None else False
    transformers = _version(settings.get("transformers_version"))
    if transformers is None:
        return None
    return (transformers >= (5, 0, 0)) == (peft == (0, 19, 0))


def _version(text: Any) -> tuple[int, ...] | None:
    """The three numbers of a release; None for other text, such as the version of a development build."""
    match = (
        re.fullmatch(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:\.?(?:post|rc)\d{1,6})?", text)
        if isinstance(text, str)
        else None
    )
    return tuple(int(number or 0) for number in match.groups()) if match else None
