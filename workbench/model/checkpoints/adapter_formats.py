"""How adapters of gpt-oss are stored: where their files lie, what their tensors are called, and which formats are not
read. Knows names and no numbers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints.validate import listed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# modules that wrap a model, or a layer of one, while it is trained: they add a word to a tensor's name
WRAPPERS = {"base_model", "model", "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
NAME = re.compile(r"layers\.(\d+)\.(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
MERGE = "Merge it with PEFT, model.merge_and_unload(), and load that."
TINKER = (
    "Build the merged model with tinker-cookbook, weights.build_hf_model(base_model=…, adapter_path=…, output_path=…), "
    "and load that."
)
# by a pattern that a tensor's name holds: whose format it is, and what to do. The first that is found is named.
FORMATS = {
    r"\.experts\.w[123]\.|\.attn\.|unembed_tokens": ("This is Tinker's own format.", TINKER),
    r"\.experts\.(gate_up|down)_projs\.": (
        "This is unsloth's format, with factors for each expert.",
        "Merge it with unsloth, model.save_pretrained_merged(folder, tokenizer, save_method='merged_16bit'), and load "
        "that.",
    ),
    r"\.experts\.\d+\.": (
        "These are factors for each expert, as PEFT writes them where experts are linear layers, or Tinker's exporter.",
        f"Merge it into the model that it was made for, with experts of that form. For Tinker's: {TINKER}",
    ),
    r"\.experts\.(gate_up_proj|gate_proj|up_proj|down_proj)\.": (
        "These are factors of stacked experts under the name of each parameter, as Tinker's exporter writes them.",
        TINKER,
    ),
    r"\blm_head\b|\bembed_tokens\b": ("It changes the unembedding (lm_head) or the embedding.", MERGE),
    r"magnitude_vector": ("This is DoRA.", MERGE),
}


@dataclass(frozen=True, slots=True)
class Place:
    """What the name of a factor says."""

    layer: int
    module: str  # "self_attn.q_proj", "mlp.experts", "mlp.experts.base_layer" …
    factor: str  # "A" | "B"
    adapter: str | None  # its name, where the tensors of a whole model were saved: "default"


def find_adapter(folder: Path) -> Path:
    """The folder that holds the adapter: `folder` itself, or the only one inside that does.

    PEFT saves an adapter that is not called "default" into a folder of its name, and trainers save their checkpoints
    into folders. ModelNotFound if there is none, CheckpointError if there are several.
    """
    if (folder / CONFIG).is_file():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(path.name for path in inside[:8])
        raise CheckpointError(f"{folder} holds {len(inside)} adapters: {names}. Give the folder of one of them.")
    raise ModelNotFound(f"there is no adapter in {folder}: PEFT saves {CONFIG} and {WEIGHTS} into a folder.")


def place_of(name: str) -> Place | None:
    """What a tensor's name says, without the words that wrappers add; None if it is no factor of a layer.

    >>> place_of("base_model.model.model.layers.3.mlp.experts.lora_A.default.weight")
    Place(layer=3, module='mlp.experts', factor='A', adapter='default')
    """
    found = NAME.fullmatch(".".join(word for word in name.split(".") if word not in WRAPPERS))
    return Place(int(found[1]), found[2], found[3], found[4]) if found else None


def refuse_tensors(names: Iterable[str], readable: Iterable[str], file: Path) -> None:
    """CheckpointError for tensors that cannot be read, if there are some; it names the format they are in."""
    if not (names := list(names)):
        return
    known = (FORMATS[p] for p in FORMATS if any(re.search(p, name) for name in names))
    whose, advice = next(known, ("Their format is not known.", MERGE))
    raise CheckpointError(
        f"{file} changes what cannot be adapted here: {listed(names, 'tensor', 'tensors')}. {whose} Readable are LoRA "
        f"factors as PEFT writes them, of {', '.join(readable)}. {advice}"
    )


def refuse_settings_of_others(settings: Mapping[str, Any], file: Path) -> None:
    """CheckpointError for an adapter_config.json that is not PEFT's."""
    if "peft_type" not in settings and {"lora_parameters", "fine_tune_type"} & settings.keys():
        raise CheckpointError(
            f"{file} is of MLX (mlx_lm), not of PEFT. Fuse the adapter, mlx_lm.fuse, and convert the model to the "
            f"layout of transformers."
        )


def reads_its_output(
    shapes: Mapping[str, tuple[tuple[int, int], int, int]], settings: Mapping[str, Any]
) -> bool | None:
    """Whether, of experts, the factor A lies at the matrix's output and B at its input; None if that cannot be known.

    PEFT takes the axes of a stacked parameter in the order (in, out) or (out, in). For gpt-oss, stored as (in, out),
    that was right until 0.18; since then it depends on an attribute that transformers 5 sets and 4 does not, and in
    0.19.0 the other way round. Shapes tell which, unless all matrices are square. Then it is known by the version of
    PEFT, which adapter_config.json has since 0.18, or by `transformers_version` there, which a user may have added.

    `shapes`: by place, the columns of A and the rows of B, and the matrix's outputs and inputs.
    """
    fitting = [shape for shape in shapes.values() if sorted(shape[0]) == sorted(shape[1:])]
    found = {(columns, rows) == (n_out, n_in) for (columns, rows), n_out, n_in in fitting if n_out != n_in}
    if found or not fitting:  # of two ways in one file, or none that fits, the shapes are refused afterwards
        return found == {True}
    peft = _version(settings.get("peft_version", "0.17.0"))
    if peft is None or peft < (0, 19, 0):
        return None if peft is None else False
    transformers = _version(settings.get("transformers_version"))
    if transformers is None:
        return None
    return (transformers >= (5, 0, 0)) == (peft == (0, 19, 0))


def _version(text: Any) -> tuple[int, ...] | None:
    """The three numbers of a release; None for what is none, such as a version of a day's development."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.?(?:post|rc)\d+)?", text) if isinstance(text, str) else None
    return tuple(int(number or 0) for number in found.groups()) if found else None
