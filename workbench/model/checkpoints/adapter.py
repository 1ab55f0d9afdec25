"""PEFT's LoRA folders, read without peft: which matrices they change, by which two factors, and how much.

Readable are linear layers of the attention (`target_modules`: q_proj, k_proj, v_proj, o_proj) and parameters of the MLP
(`target_parameters`: mlp.router.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj), with patterns of ranks and
alphas, and rsLoRA, as any version of PEFT writes them. Whatever else would change what the model computes is refused by
its name.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.checkpoints.adapter_formats import (
    CONFIG,
    WEIGHTS,
    find_adapter,
    place_of,
    reads_its_output,
    refuse_settings_of_others,
    refuse_tensors,
)
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.folder_files import Incomplete, mapped, read_json
from workbench.model.checkpoints.hf import BLOCK, EXPERTS
from workbench.model.checkpoints.tensors import Block, Experts, Weights
from workbench.model.checkpoints.validate import DENSE, block_shapes, listed
from workbench.model.config import Config
from workbench.model.kernels.lora import Adapted

IN_BLOCK, IN_EXPERTS = ("w_q", "w_k", "w_v", "w_o", "w_router"), ("up", "down")  # what may be changed
HF = {name: (BLOCK | EXPERTS)[name] for name in (*IN_BLOCK, *IN_EXPERTS)}  # as transformers names parameters of a layer
# What adapter_config.json may say without changing what an adapter computes: where it came from, how training began.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type", "megatron_core", "ensure_weight_tying", "eva_config", "loftq_config", "corda_config",
    "lora_ga_config",
}  # fmt: skip
KNOWN = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_parameters", "bias",
    "init_lora_weights", "transformers_version",
}  # fmt: skip
KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # ways to begin that leave the model as it is
Pairs = dict[tuple[int, str], dict[str, Tensor]]  # by layer and field, the factors "A" and "B" as they are stored


@dataclass(frozen=True, slots=True)
class Factors:
    """The change of one matrix: `scaling` · b a."""

    a: Tensor  # [rank, in], or [expert, rank, in]
    b: Tensor  # [out, rank], or [expert, out, rank]
    scaling: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a folder holds: for layers and the fields of Block and Experts, the factors of their changes."""

    name: str
    digest: str
    factors: Mapping[tuple[int, str], Factors]

    def on(self, weights: Weights, scale: float) -> Weights:
        """The same weights with `scale` times the changes beside them; at 0 they are the very same."""
        if scale == 0:
            return weights
        device = weights.embed.device

        def changed(layer: int, part: Block | Experts, names: tuple[str, ...]) -> dict[str, Adapted]:
            found = {name: self.factors[layer, name] for name in names if (layer, name) in self.factors}
            return {
                name: Adapted(getattr(part, name), f.a.to(device), f.b.to(device), scale * f.scaling)
                for name, f in found.items()
            }

        def adapted(layer: int, block: Block) -> Block:
            experts = replace(block.experts, **changed(layer, block.experts, IN_EXPERTS))
            return replace(block, experts=experts, **changed(layer, block, IN_BLOCK))

        return replace(weights, blocks=tuple(adapted(n, block) for n, block in enumerate(weights.blocks)))


def read_adapter(folder: Path, config: Config) -> Adapter:
    """The LoRA adapter in a folder, or in the only folder inside that holds one, for a model of this shape.

    Raises ModelNotFound if there is none; CheckpointError if it is damaged, of another shape, or of a kind that is not
    LoRA as it is read here: the text says which.
    """
    folder = find_adapter(folder)
    told = read_json(folder / CONFIG)
    refuse_settings_of_others(told, folder / CONFIG)
    _refuse(told, folder)
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{folder} holds adapter_model.bin, and .bin files are never opened here. Save the adapter again with "
                f"model.save_pretrained(folder, safe_serialization=True)."
            )
        raise Incomplete(f"{folder} has no {WEIGHTS}. Copy it there from where the adapter came from.")
    tensors = mapped([file])
    pairs = _pairs(tensors, told, file)
    for (layer, name), pair in sorted(pairs.items()):
        if layer >= config.n_layers:
            raise CheckpointError(
                f"{file} changes layer {layer}, and the model has the layers 0..{config.n_layers - 1}. "
                f"It was made for {told.get('base_model_name_or_path') or 'a model that it does not name'}."
            )
        if missing := {"A", "B"} - set(pair):
            raise CheckpointError(f"{file} has no lora_{missing.pop()} for {_place(layer, name)}. Save it again.")
    turned = _turned(pairs, told, config, file)
    factors = {
        (layer, name): _factors(pair["A"], pair["B"], layer, name, told, config, file, turned=turned)
        for (layer, name), pair in pairs.items()
    }
    if not factors:
        raise CheckpointError(f"{file} is empty: it changes nothing.")
    said = repr([(place, f.scaling) for place, f in sorted(factors.items())] + ["turned"] * turned).encode()
    digest = weights_digest(tensors | {"scaling": torch.frombuffer(bytearray(said), dtype=torch.uint8)})
    return Adapter(folder.resolve().name, digest, factors)


def _refuse(told: Mapping[str, Any], folder: Path) -> None:
    """CheckpointError for what is no plain LoRA, by the name that PEFT gives it."""
    if (kind := told.get("peft_type")) != "LORA":
        raise CheckpointError(f"{folder / CONFIG} describes an adapter of type {kind!r}; readable is 'LORA'.")
    if (bias := told.get("bias", "none")) != "none":
        raise CheckpointError(f"{folder}: bias={bias!r} trains the model's own biases. Readable is bias='none'.")
    if (begin := told.get("init_lora_weights")) not in KEEP_THE_BASE:
        raise CheckpointError(
            f"{folder}: init_lora_weights={begin!r} changes the model that the adapter stands on. Save it as a plain "
            f"LoRA: model.save_pretrained(folder, path_initial_model_for_weight_conversion=…)."
        )
    if others := sorted(key for key, value in told.items() if value and key not in HARMLESS | KNOWN):
        raise CheckpointError(
            f"{folder / CONFIG} asks for what is no plain LoRA: {listed(others, 'setting', 'settings')}. Merge such an "
            f"adapter with PEFT, model.merge_and_unload(), and load the merged model."
        )
    ranks, alphas = (told.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        raise CheckpointError(f"{folder / CONFIG}: a pattern is no object from names to numbers. Save it again.")
    for key, n in (("r", told.get("r")), *ranks.items()):
        if type(n) is not int or n < 1:
            raise CheckpointError(f"{folder / CONFIG}: the rank {key!r} is {n!r}, no whole number above 0.")
    for key, n in (("lora_alpha", told.get("lora_alpha")), *alphas.items()):
        if not isinstance(n, int | float) or not math.isfinite(n):
            raise CheckpointError(f"{folder / CONFIG}: the alpha {key!r} is {n!r}, no number.")
    for key in (*ranks, *alphas):
        try:
            re.compile(key)
        except re.error as error:
            raise CheckpointError(f"{folder / CONFIG}: the pattern {key!r} is no regular expression: {error}") from None
    if not isinstance(told.get("target_parameters") or [], list):
        raise CheckpointError(f"{folder / CONFIG}: target_parameters is no list. Save the adapter again.")


def _pairs(tensors: Mapping[str, Tensor], told: Mapping[str, Any], file: Path) -> Pairs:
    """The factors, by what they change."""
    pairs: Pairs = {}
    unknown, adapters = [], set()
    for key, tensor in tensors.items():
        place = place_of(key)
        name = _field(place.layer, place.module, told) if place else None
        if place is None or name is None:
            unknown.append(key)
            continue
        if tensor.dtype not in DENSE or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{file}: {key} holds {tensor.dtype} numbers, or NaN or infinity. Save it again.")
        adapters.add(place.adapter)
        pair = pairs.setdefault((place.layer, name), {})
        if len(adapters) == 1 and place.factor in pair:
            raise CheckpointError(f"{file} holds lora_{place.factor} of {_place(place.layer, name)} twice.")
        pair[place.factor] = tensor
    refuse_tensors(unknown, HF.values(), file)
    if len(adapters) > 1:
        names = ", ".join(sorted(repr(name) for name in adapters))
        raise CheckpointError(f"{file} holds {len(adapters)} adapters: {names}. Save each into a file of its own.")
    return pairs


def _turned(pairs: Pairs, told: Mapping[str, Any], config: Config, file: Path) -> bool:
    """Whether the factors of experts lie the other way round; CheckpointError if that cannot be known."""
    shapes = {}
    for (layer, name), pair in pairs.items():
        if name in IN_EXPERTS and pair["A"].ndim == pair["B"].ndim == 2:  # of others the shapes are refused afterwards
            _, n_out, n_in = block_shapes(config)[name]
            shapes[_place(layer, name)] = (pair["A"].shape[-1], pair["B"].shape[0]), n_out, n_in
    turned = reads_its_output(shapes, told)
    if turned is None:
        raise CheckpointError(
            f"{file} changes {min(shapes)}, whose matrices are square, and was saved by PEFT "
            f"{told.get('peft_version')}: which of the two factors reads the input depends on the version of "
            f"transformers that it was trained with, and nothing here says which. Add "
            f'"transformers_version": "4.57.0", or whichever it was, to {CONFIG}; or merge it with the PEFT and '
            f"transformers that trained it, model.merge_and_unload(), and load that."
        )
    return turned


def _field(layer: int, module: str, told: Mapping[str, Any]) -> str | None:
    """The field that a module's factors change.

    Of two parameters of one module PEFT wraps the first inside the second, so its factors lie one `base_layer` deeper.
    """
    by_module = {HF[name].removesuffix(".weight"): name for name in IN_BLOCK}
    if module in by_module:
        return by_module[module]
    asked = [f".{target}" for target in told.get("target_parameters") or []]
    targets = [name for name in IN_EXPERTS if f".{_place(layer, name)}".endswith(tuple(asked))]
    places: dict[str, str] = dict(zip(("mlp.experts", "mlp.experts.base_layer"), reversed(targets)))
    return places.get(module)


def _factors(
    a: Tensor, b: Tensor, layer: int, name: str, told: Mapping[str, Any], config: Config, file: Path, *, turned: bool
) -> Factors:
    place = _place(layer, name)
    rank = _by_pattern(told.get("rank_pattern") or {}, place, told["r"])
    alpha = _by_pattern(told.get("alpha_pattern") or {}, place, told["lora_alpha"])
    *experts, n_out, n_in = block_shapes(config)[name]
    n = math.prod(experts)
    turned = turned and bool(experts)
    first, last = (n_out, n_in) if turned else (n_in, n_out)
    want = [n * rank, first], [last, n * rank]
    if [list(a.shape), list(b.shape)] != list(want):
        raise CheckpointError(
            f"{file}: the factors of {place} are {list(a.shape)} and {list(b.shape)}. Of rank {rank}, as "
            f"{CONFIG} says, they would be {want[0]} and {want[1]} for this model. "
            f"It was made for {told.get('base_model_name_or_path') or 'a model that it does not name'}."
        )
    if experts:  # rows of a: expert by expert; columns of b: rank by rank, the experts of one rank side by side
        a = a.view(n, rank, first)
        b = b.view(last, rank, n).permute(2, 0, 1).contiguous()
    if turned:  # the change of a matrix [out, in] is then the transpose of b a
        a, b = b.mT.contiguous(), a.mT.contiguous()
    return Factors(a, b, alpha / math.sqrt(rank) if told.get("use_rslora") else alpha / rank)


def _place(layer: int, name: str) -> str:
    """As PEFT names it when it looks for a pattern: modules by their name, parameters by theirs."""
    return f"model.layers.{layer}.{HF[name] if name == 'w_router' else HF[name].removesuffix('.weight')}"


def _by_pattern(pattern: Mapping[str, Any], place: str, otherwise: Any) -> Any:
    """The value of the first key that is the end of the name, as a regular expression."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", place):
            return value
    return otherwise
