"""Reads LoRA adapters from PEFT's folders, without the package peft.

Supported are adapters of any PEFT version for the linear layers of attention (`target_modules`: q_proj, k_proj, v_proj,
o_proj) and for parameters of the MLP (`target_parameters`: mlp.router.weight, mlp.experts.gate_up_proj,
mlp.experts.down_proj), with patterns of ranks and alphas, and with rsLoRA. Any other setting that would change what the
model computes is refused, and the error names it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints.adapter_formats import (
    CONFIG,
    WEIGHTS,
    expert_factors_swapped,
    find_adapter,
    parse_factor_name,
    refuse_other_programs,
    refuse_tensors,
)
from workbench.model.checkpoints.adapter_patterns import Patterns, read_patterns
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.folder_files import Incomplete, mapped, read_json
from workbench.model.checkpoints.hf import BLOCK, EXPERTS
from workbench.model.checkpoints.tensors import Block, Experts, Weights
from workbench.model.checkpoints.validate import DENSE, block_shapes, listed
from workbench.model.config import Config
from workbench.model.kernels.lora import Adapted
from workbench.paths import expanded
from workbench.text import brief
from workbench.untrusted import exists, is_there

IN_BLOCK, IN_EXPERTS = ("w_q", "w_k", "w_v", "w_o", "w_router"), ("up", "down")  # fields that an adapter may change
HF = {
    name: (BLOCK | EXPERTS)[name] for name in (*IN_BLOCK, *IN_EXPERTS)
}  # transformers' names of the parameters of a layer
# settings in adapter_config.json that do not change what an adapter computes: its origin, how training started
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
INIT_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # `init_lora_weights` that keep the base model
MAX_RANK, MAX_ALPHA, MAX_TARGETS = 1 << 20, 1e9, 1000
Pairs = dict[tuple[int, str], dict[str, Tensor]]  # (layer, field) -> the factors "A" and "B" as stored


@dataclass(frozen=True, slots=True)
class Factors:
    """The change of one matrix: `scaling` · b a."""

    a: Tensor  # [rank, in], or [expert, rank, in]
    b: Tensor  # [out, rank], or [expert, out, rank]
    scaling: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: the factors of its changes, by layer and field of Block or Experts."""

    name: str
    digest: str
    factors: Mapping[tuple[int, str], Factors]

    def on(self, weights: Weights, scale: float) -> Weights:
        """The weights with `scale` times the adapter's changes attached; at scale 0, `weights` itself."""
        if scale == 0:
            return weights
        device = weights.embed.device

        def changed(layer: int, part: Block | Experts, names: tuple[str, ...]) -> dict[str, Adapted]:
            factors = {name: self.factors[layer, name] for name in names if (layer, name) in self.factors}
            return {
                name: Adapted(getattr(part, name), f.a.to(device), f.b.to(device), scale * f.scaling)
                for name, f in factors.items()
            }

        def adapted(layer: int, block: Block) -> Block:
            experts = replace(block.experts, **changed(layer, block.experts, IN_EXPERTS))
            return replace(block, experts=experts, **changed(layer, block, IN_BLOCK))

        return replace(weights, blocks=tuple(adapted(n, block) for n, block in enumerate(weights.blocks)))


def read_adapter(where: str | os.PathLike[str], config: Config) -> Adapter:
    """The LoRA adapter in a folder, or in its only subfolder with an adapter, for a model with this config.

    Raises ModelNotFound if there is no adapter; CheckpointError if it is damaged, for a model of another shape, or not
    a LoRA adapter that workbench reads.
    """
    if not os.fspath(where):
        raise ModelNotFound("the path of the adapter is empty. Give a folder; '.' is the current one.")
    folder = find_adapter(expanded(where))
    settings = read_json(folder / CONFIG)
    refuse_other_programs(settings, folder / CONFIG)
    _check_settings(settings, folder)
    ranks, alphas = (
        read_patterns(key, settings.get(key) or {}, str(folder / CONFIG)) for key in ("rank_pattern", "alpha_pattern")
    )
    file = folder / WEIGHTS
    if not exists(file):
        if is_there(folder / "adapter_model.bin"):
            raise CheckpointError(
                f"{folder} contains adapter_model.bin, and .bin files are never opened here. Save the adapter again "
                f"with model.save_pretrained(folder, safe_serialization=True)."
            )
        raise Incomplete(f"{folder} has no {WEIGHTS}. Copy it from where the adapter came from.")
    tensors = mapped([file])
    pairs = _pairs(tensors, settings, file)
    for (layer, name), pair in sorted(pairs.items()):
        if layer >= config.n_layers:
            raise CheckpointError(
                f"{file} changes layer {layer}, but the model has the layers 0..{config.n_layers - 1}. "
                f"It was made for {_base(settings)}."
            )
        if missing := {"A", "B"} - set(pair):
            raise CheckpointError(
                f"{file} has no lora_{missing.pop()} for {_parameter_name(layer, name)}. Save it again."
            )
    swapped = _swapped(pairs, settings, config, file)
    factors = {
        (layer, name): _factors(
            pair["A"], pair["B"], layer, name, settings, config, file, ranks, alphas, swapped=swapped
        )
        for (layer, name), pair in pairs.items()
    }
    if not factors:
        raise CheckpointError(f"{file} contains no tensors: it changes nothing. Save the adapter again.")
    # part of the digest: scalings, and "turned" if A and B are swapped (not renamed, so that digests stay valid)
    scalings = repr([(key, f.scaling) for key, f in sorted(factors.items())] + ["turned"] * swapped).encode()
    digest = weights_digest(tensors | {"scaling": torch.frombuffer(bytearray(scalings), dtype=torch.uint8)})
    return Adapter(folder.resolve().name, digest, factors)


def _check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError for settings that are not of a plain LoRA adapter."""
    if (kind := settings.get("peft_type")) != "LORA":
        raise CheckpointError(f"{folder / CONFIG}: peft_type must be 'LORA', got {brief(repr(kind))}.")
    if (bias := settings.get("bias", "none")) != "none":
        raise CheckpointError(
            f"{folder}: bias={brief(repr(bias))} trains the model's own biases; it must be bias='none'."
        )
    if (init := settings.get("init_lora_weights")) not in INIT_KEEPS_BASE:
        raise CheckpointError(
            f"{folder}: init_lora_weights={brief(repr(init))} changes the weights of the base model. Save the adapter "
            f"as a plain LoRA: model.save_pretrained(folder, path_initial_model_for_weight_conversion=…)."
        )
    if others := sorted(key for key, value in settings.items() if value and key not in HARMLESS | KNOWN):
        raise CheckpointError(
            f"{folder / CONFIG} does not describe a plain LoRA adapter: {listed(others, 'setting', 'settings')}. Merge "
            f"the adapter with PEFT, model.merge_and_unload(), and load the merged model."
        )
    if settings.get("use_rslora") not in (None, True, False):
        raise CheckpointError(f"{folder / CONFIG}: use_rslora must be true or false. Save it again.")
    ranks, alphas = (settings.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        raise CheckpointError(
            f"{folder / CONFIG}: rank_pattern and alpha_pattern must be objects from names to numbers. Save it again."
        )
    for key, n in (("r", settings.get("r")), *ranks.items()):
        if type(n) is not int or not 1 <= n <= MAX_RANK:
            raise CheckpointError(
                f"{folder / CONFIG}: the rank {brief(key)!r} must be a whole number above 0, got {brief(repr(n))}; "
                f"at most {MAX_RANK:,} is allowed."
            )
    for key, n in (("lora_alpha", settings.get("lora_alpha")), *alphas.items()):
        if not isinstance(n, int | float) or isinstance(n, bool) or not abs(n) <= MAX_ALPHA:  # also refuses NaN
            raise CheckpointError(
                f"{folder / CONFIG}: the alpha {brief(key)!r} must be a finite number, got {brief(repr(n))}; at "
                f"most {MAX_ALPHA:g} is allowed."
            )
    targets = settings.get("target_parameters") or []
    if not isinstance(targets, list) or len(targets) > MAX_TARGETS or not all(isinstance(t, str) for t in targets):
        raise CheckpointError(
            f"{folder / CONFIG}: target_parameters must be a list of names, at most {MAX_TARGETS:,}. Save the adapter "
            f"again."
        )


def _pairs(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], file: Path) -> Pairs:
    """The factors, by layer and field."""
    pairs: Pairs = {}
    unknown, adapters = [], set()
    for key, tensor in tensors.items():
        factor = parse_factor_name(key)
        name = _field(factor.layer, factor.module, settings) if factor else None
        if factor is None or name is None:
            unknown.append(key)
            continue
        if tensor.dtype not in DENSE or not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{file}: {brief(key)} contains {tensor.dtype} numbers, or NaN or infinity. Save it again."
            )
        adapters.add(factor.adapter)
        pair = pairs.setdefault((factor.layer, name), {})
        if len(adapters) == 1 and factor.factor in pair:
            raise CheckpointError(
                f"{file} contains lora_{factor.factor} of {_parameter_name(factor.layer, name)} twice."
            )
        pair[factor.factor] = tensor
    refuse_tensors(unknown, HF.values(), file)
    if len(adapters) > 1:
        names = ", ".join(sorted(repr(brief(str(name))) for name in adapters)[:8])
        raise CheckpointError(f"{file} contains {len(adapters)} adapters: {names}. Save each into its own file.")
    return pairs


def _swapped(pairs: Pairs, settings: Mapping[str, Any], config: Config, file: Path) -> bool:
    """Whether A and B of experts are on swapped sides of the matrix. Raises CheckpointError if that is unknown."""
    shapes = {}
    for (layer, name), pair in pairs.items():
        if name in IN_EXPERTS and pair["A"].ndim == pair["B"].ndim == 2:  # other shapes are refused later
            _, n_out, n_in = block_shapes(config)[name]
            shapes[_parameter_name(layer, name)] = (pair["A"].shape[-1], pair["B"].shape[0]), n_out, n_in
    swapped = expert_factors_swapped(shapes, settings)
    if swapped is None:
        raise CheckpointError(
            f"{file} changes {min(shapes)}, whose matrices are square, and was saved by PEFT "
            f"{brief(settings.get('peft_version'))}. Which factor is on the input side depends on the version of "
            f"transformers used for training, and that version is not recorded. Add it to {CONFIG}, such as "
            f'"transformers_version": "4.57.0"; or merge the adapter with the PEFT and transformers versions used '
            f"for training, model.merge_and_unload(), and load the merged model."
        )
    return swapped


def _field(layer: int, module: str, settings: Mapping[str, Any]) -> str | None:
    """The field of Block or Experts that the factors of a module change.

    If two parameters of one module are adapted, PEFT wraps the first inside the second. The factors of the first are
    then one `base_layer` deeper.
    """
    by_module = {HF[name].removesuffix(".weight"): name for name in IN_BLOCK}
    if module in by_module:
        return by_module[module]
    endings = tuple(f".{target}" for target in settings.get("target_parameters") or [])
    targets = [name for name in IN_EXPERTS if f".{_parameter_name(layer, name)}".endswith(endings)]
    fields: dict[str, str] = dict(zip(("mlp.experts", "mlp.experts.base_layer"), reversed(targets)))
    return fields.get(module)


def _factors(
    a: Tensor,
    b: Tensor,
    layer: int,
    name: str,
    settings: Mapping[str, Any],
    config: Config,
    file: Path,
    ranks: Patterns,
    alphas: Patterns,
    *,
    swapped: bool,
) -> Factors:
    parameter = _parameter_name(layer, name)
    rank = ranks.value(parameter, settings["r"])
    alpha = alphas.value(parameter, settings["lora_alpha"])
    *experts, n_out, n_in = block_shapes(config)[name]
    n = math.prod(experts)
    swapped = swapped and bool(experts)
    a_columns, b_rows = (n_out, n_in) if swapped else (n_in, n_out)
    expected = [n * rank, a_columns], [b_rows, n * rank]
    if [list(a.shape), list(b.shape)] != list(expected):
        raise CheckpointError(
            f"{file}: the factors of {parameter} are {list(a.shape)} and {list(b.shape)}. With rank {rank} of "
            f"{CONFIG}, they would be {expected[0]} and {expected[1]} for this model. "
            f"The adapter was made for {_base(settings)}."
        )
    if experts:  # rows of a: expert by expert; columns of b: rank by rank, the experts of one rank side by side
        a = a.view(n, rank, a_columns)
        b = b.view(b_rows, rank, n).permute(2, 0, 1).contiguous()
    if swapped:  # the change of a matrix [out, in] is then the transpose of b a
        a, b = b.mT.contiguous(), a.mT.contiguous()
    return Factors(a, b, alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank)


def _parameter_name(layer: int, name: str) -> str:
    """The name that PEFT matches patterns against: that of the module for linear layers, else of the parameter."""
    return f"model.layers.{layer}.{HF[name] if name == 'w_router' else HF[name].removesuffix('.weight')}"


def _base(settings: Mapping[str, Any]) -> str:
    return brief(settings.get("base_model_name_or_path") or "an unnamed model")
