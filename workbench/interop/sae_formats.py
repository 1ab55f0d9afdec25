"""Sparse autoencoders trained by others, loaded from their published files without the libraries that wrote them.

`load_sae` reads the two layouts in which SAEs are published: SAELens (cfg.json and sae_weights.safetensors) and
dictionary_learning (config.json and ae.pt; those of gpt-oss-20b are published in this one). What an SAE computes, and
the edits and measurements made with it, are in `experiments/sae.py`.
"""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.checks import check_text
from workbench.errors import ArgumentError, CheckpointError, HookNameError, ModelNotFound
from workbench.experiments.sae import NORMS, SAE
from workbench.experiments.sae_tensors import check_plain_tensor
from workbench.paths import expanded
from workbench.text import shown, visible
from workbench.untrusted import read_json, regular_file

__all__ = ["load_sae"]

PUBLISHED = {"gpt-oss-20b-andyrdt": "andyrdt/saes-gpt-oss-20b"}  # SAELens's name of a release -> its repository
ARCHITECTURES = ("standard", "jumprelu", "topk", "batchtopk")  # of SAELens


def load_sae(where: str | Path, *, site: str | None = None, device: str = "cpu") -> SAE:
    """The SAE in a folder, or a published SAE of gpt-oss-20b by name from the local Hugging Face cache.

    `where` is one of:
        a folder with cfg.json and sae_weights.safetensors (SAELens: standard, jumprelu, topk, batchtopk)
        a folder with config.json and ae.pt (dictionary_learning: AutoEncoder, AutoEncoderTopK, BatchTopKSAE,
        MatryoshkaBatchTopKSAE, JumpReluAutoEncoder)
        "gpt-oss-20b-andyrdt/resid_post_layer_{l}_trainer_{t}" with l one of 3, 7, 11, 15, 19, 23 and t 0 (k 64) or
        1 (k 128)
    `site` replaces the hook point that the file names. Nothing is ever downloaded. From ae.pt, a pickle, only tensors
    are read: code in it does not run.

    >>> wb.sae.load_sae("gpt-oss-20b-andyrdt/resid_post_layer_11_trainer_0")  # doctest: +SKIP
    <SAE 131072 features of blocks.11.hook_resid_post, 2880 wide, jumprelu>

    Raises ModelNotFound (no such folder or name), CheckpointError (damaged files or an unsupported kind of SAE; the
    message says which), HookNameError (`site` is not a hook point of d_model numbers).
    """
    folder, target = expanded(where, "where"), _checked_device(device)
    site = None if site is None else check_text("site", site)
    release, _, number = str(where).partition("/")
    if not os.path.isdir(folder) and release in PUBLISHED:  # noqa: PTH112  Path.is_dir fails for a name that is too long
        folder = _published(release, number)
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ModelNotFound(
            f"there is no SAE at {visible(str(where))[:500]!r}. Give its folder, or a name such as "
            f"'{next(iter(PUBLISHED))}/resid_post_layer_11_trainer_0'."
        )
    try:
        files = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelNotFound(f"{visible(str(folder))} cannot be opened: {error.strerror}") from None
    for config, weights, read in (
        ("cfg.json", "sae_weights.safetensors", _saelens),
        ("config.json", "ae.pt", _dictionary_learning),
    ):
        if config in files and weights in files:
            arguments = read(folder / config, regular_file(folder / weights, CheckpointError))
            break
    else:
        raise CheckpointError(
            f"{folder} holds neither cfg.json with sae_weights.safetensors (SAELens) nor config.json with ae.pt "
            f"(dictionary_learning). It has: {', '.join(files[:8]) or 'nothing'}."
        )
    arguments["site"] = arguments["site"] if site is None else site
    if not isinstance(arguments["site"], str):
        raise CheckpointError(f"{folder} names no hook point. Give load_sae(…, site='blocks.3.hook_resid_post').")
    tensors = {k: v.to(target) if hasattr(v, "to") else v for k, v in arguments.items()}
    try:
        return SAE(**tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}. Fetch it again.") from None
    except HookNameError as error:
        raise HookNameError(f"{folder}: {error} If you know its hook point, give load_sae(…, site=…).") from None


def _checked_device(device: Any) -> Any:
    """The torch device. Raises ArgumentError for one that torch does not know or that this machine does not have."""
    import torch

    try:
        target = torch.device(check_text("device", device))
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ArgumentError(
            f"device must be one of this machine, such as 'cpu' or 'cuda', got {shown(device)}: {shown(str(error))}."
        ) from None
    if target.type == "meta":
        raise ArgumentError("device must hold numbers; 'meta' holds shapes only. Give 'cpu' or 'cuda'.")
    return target


def _published(release: str, name: str) -> Path:
    from workbench.model.checkpoints.hub import snapshot_folder

    match = re.fullmatch(r"(resid_post_layer_\d+)[_/](trainer_\d+)", name)
    if not match:
        raise ModelNotFound(f"{name!r} is not in {release}; its SAEs are named like 'resid_post_layer_11_trainer_0'")
    repo, subfolder = PUBLISHED[release], f"{match[1]}/{match[2]}"
    command = f'hf download {repo} --include "{subfolder}/*"'
    try:
        folder = snapshot_folder(repo) / subfolder
    except ModelNotFound:
        raise ModelNotFound(f"{repo} is not in the Hugging Face cache. Fetch it with:  {command}") from None
    if not folder.is_dir():
        raise ModelNotFound(f"the Hugging Face cache has {repo}, but not {subfolder}. Fetch it with:  {command}")
    return folder


def _saelens(config: Path, weights: Path) -> dict[str, Any]:
    from workbench.model.checkpoints.folder_files import mapped

    settings = _settings(config)
    metadata = _section(settings, "metadata")  # since 6.0
    activation = settings.get("activation_fn", settings.get("activation_fn_str"))
    activation_kwargs = _section(settings, "activation_fn_kwargs")
    kind = "topk" if activation == "topk" else str(settings.get("architecture", "standard"))
    norm = settings.get("normalize_activations") or "none"
    _check_supported(
        config,
        {
            f"its architecture is {kind!r}; supported are {', '.join(ARCHITECTURES)}": kind not in ARCHITECTURES,
            f"its activation is {activation!r}; supported are relu and topk": activation not in (None, "relu", "topk"),
            f"normalize_activations is {norm!r}, whose factor is not in its files; fold it in": norm not in NORMS,
            "its input is heads, not d_model numbers": settings.get("reshape_activations") not in (None, "none"),
        },
    )
    tensors = mapped([weights])
    threshold = {"jumprelu": "threshold", "batchtopk": "topk_threshold"}.get(kind)
    _check_tensors(weights, tensors, {"W_enc", "b_enc", "W_dec", "b_dec", *([threshold] if threshold else [])})
    scaling = tensors.get("scaling_factor")
    scaled = scaling is not None and bool((scaling != 1).any())
    _check_supported(weights, {"its scaling_factor is not folded in": scaled})
    return {
        "site": metadata.get("hook_name") or settings.get("hook_name") or settings.get("hook_point"),
        **{name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
        "threshold": tensors[threshold] if threshold else None,
        "k": _whole_number(config, "k", settings.get("k", activation_kwargs.get("k"))) if kind == "topk" else None,
        "subtracts": _yes_or_no(config, settings, "apply_b_dec_to_input", True),
        "rescaled": _yes_or_no(config, settings, "rescale_acts_by_decoder_norm", False)
        and kind in ("topk", "batchtopk"),
        "norm": norm,
    }


_CLASSES = {  # class of dictionary_learning -> (its names of our tensors, whether b_dec is subtracted from the input)
    "AutoEncoder": (("encoder.weight", "encoder.bias", "decoder.weight", "bias"), True),
    "AutoEncoderTopK": (("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), True),
    "BatchTopKSAE": (("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), True),
    "MatryoshkaBatchTopKSAE": (("W_enc", "b_enc", "W_dec", "b_dec"), True),
    "JumpReluAutoEncoder": (("W_enc", "b_enc", "W_dec", "b_dec"), False),
}


def _dictionary_learning(config: Path, weights: Path) -> dict[str, Any]:
    settings = _settings(config)
    trainer = _section(settings, "trainer")
    kind, layer = str(trainer.get("dict_class")), trainer.get("layer")
    io = _section(settings, "buffer").get("io", "out")
    _check_supported(
        config,
        {
            f"its class is {kind!r}; supported are {', '.join(_CLASSES)}": kind not in _CLASSES,
            f"its input is the {io!r} of a module; supported is the output": io != "out",
        },
    )
    tensors = _unpickled(weights)
    names, subtracts = _CLASSES[kind]
    thresholded = kind not in ("AutoEncoder", "AutoEncoderTopK")
    _check_tensors(weights, tensors, {*names, *(["threshold"] if thresholded else [])})
    transposed = names[0] == "encoder.weight"  # of a torch.nn.Linear: (out, in)
    arrays = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), (tensors[name] for name in names), strict=True))
    if transposed:
        arrays |= {name: arrays[name].T for name in ("W_enc", "W_dec") if arrays[name].ndim == 2}
    if thresholded and kind != "JumpReluAutoEncoder":
        unset = bool((tensors["threshold"] < 0).any())
        _check_supported(weights, {"its threshold was never set, training ended too early": unset})
    submodule = trainer.get("submodule_name")
    site = submodule if isinstance(submodule, str) else f"blocks.{layer}.hook_resid_post" if layer is not None else None
    return {
        "site": site,
        **arrays,
        "threshold": tensors["threshold"] if thresholded else None,
        "k": _whole_number(config, "k", tensors.get("k", trainer.get("k"))) if kind == "AutoEncoderTopK" else None,
        "subtracts": subtracts,
    }


def _unpickled(weights: Path) -> dict[str, Any]:
    """The tensors of a .pt file, read by torch's restricted unpickler: no other objects, and no code runs."""
    import torch

    _refuse_compressed(weights)
    try:
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make an unpickler raise anything
        why = visible(str(error).splitlines()[0][:160]) if str(error) else type(error).__name__
        raise CheckpointError(f"{weights} is damaged or holds more than tensors ({why}). Fetch it again.") from None
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{weights} holds a {type(tensors).__name__}, not a dict of tensors.")
    return tensors


def _refuse_compressed(weights: Path) -> None:
    """Raises CheckpointError if a .pt file, a zip, unpacks to more than its own size; torch.save does not compress."""
    try:
        with zipfile.ZipFile(weights) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # an older .pt, or damaged: torch tells
        return
    if size > weights.stat().st_size:
        raise CheckpointError(f"{weights} is compressed, which no file of torch.save is. Fetch it again.")


def _check_supported(file: Path, problems: Mapping[str, bool]) -> None:
    present = [visible(problem)[:300] for problem, is_present in problems.items() if is_present]
    if present:
        raise CheckpointError(f"{file} cannot be used: {'; '.join(present)}.")


def _check_tensors(file: Path, tensors: Mapping[str, Any], required: set[str]) -> None:
    import torch

    missing = sorted(name for name in required if not isinstance(tensors.get(name), torch.Tensor))
    if missing:
        names = visible(", ".join(map(str, list(tensors)[:8])))
        raise CheckpointError(f"{file} lacks {', '.join(missing)}. It has: {names[:500] or 'nothing'}.")
    for name in sorted(required):
        check_plain_tensor(f"{name} in {file}", tensors[name])


def _settings(config: Path) -> dict[str, Any]:
    settings = read_json(config, CheckpointError)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{config} must contain a JSON object, got {type(settings).__name__}. Fetch it again.")
    return settings


def _yes_or_no(file: Path, settings: Mapping[str, Any], name: str, default: bool) -> bool:
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"{file}: {name} must be true or false, got {visible(repr(value))[:40]}")
    return value


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _whole_number(file: Path, name: str, value: Any) -> int:
    number = value.item() if hasattr(value, "item") and value.numel() == 1 else value  # a tensor of one number
    if type(number) not in (int, float) or number != number // 1:
        raise CheckpointError(f"{file}: {name} must be a whole number, got {visible(repr(value)[:40])}")
    return int(number)
