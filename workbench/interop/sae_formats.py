"""Sparse autoencoders that others trained, read from their own files, without the libraries that wrote them.

`load_sae` reads the two layouts in which they are published: SAELens's (cfg.json and sae_weights.safetensors) and
dictionary_learning's (config.json and ae.pt, in which gpt-oss-20b's are published). What an SAE computes, and the edits
and measurements made with it, are in `experiments/sae.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, HookNameError, ModelNotFound
from workbench.experiments.sae import NORMS, SAE
from workbench.paths import expanded
from workbench.text import visible

__all__ = ["load_sae"]

PUBLISHED = {"gpt-oss-20b-andyrdt": "andyrdt/saes-gpt-oss-20b"}  # SAELens's name of a release -> where it lies
ARCHITECTURES = ("standard", "jumprelu", "topk", "batchtopk")  # of SAELens


def load_sae(where: str | Path, *, site: str | None = None, device: str = "cpu") -> SAE:
    """The SAE in a folder, or one of gpt-oss-20b's by its published name, from the local Hugging Face cache.

    `where`: a folder with cfg.json and sae_weights.safetensors (SAELens: standard, jumprelu, topk, batchtopk) or with
    config.json and ae.pt (dictionary_learning: AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE,
    JumpReluAutoEncoder); or "gpt-oss-20b-andyrdt/resid_post_layer_{l}_trainer_{t}" with l one of 3, 7, 11, 15, 19, 23
    and t 0 (k 64) or 1 (k 128). `site` replaces the one that the file names. Nothing is ever downloaded, and ae.pt, a
    pickle, is read for tensors alone: code in it does not run.

    >>> wb.sae.load_sae("gpt-oss-20b-andyrdt/resid_post_layer_11_trainer_0")  # doctest: +SKIP
    <SAE 131072 features of blocks.11.hook_resid_post, 2880 wide, jumprelu>

    Raises ModelNotFound (nothing there), CheckpointError (damaged, or of a kind that is not read here: the text says
    which), HookNameError (its site is none of d_model numbers).
    """
    folder = expanded(where)
    release, _, number = str(where).partition("/")
    if not folder.is_dir() and release in PUBLISHED:
        folder = _published(release, number)
    if not folder.is_dir():
        raise ModelNotFound(
            f"there is no SAE at {str(where)!r}. Give its folder, or a name such as "
            f"'{next(iter(PUBLISHED))}/resid_post_layer_11_trainer_0'."
        )
    holds = sorted(path.name for path in folder.iterdir())
    for config, weights, read in (
        ("cfg.json", "sae_weights.safetensors", _saelens),
        ("config.json", "ae.pt", _dictionary_learning),
    ):
        if config in holds and weights in holds:
            arguments = read(folder / config, folder / weights)
            break
    else:
        raise CheckpointError(
            f"{folder} holds neither cfg.json with sae_weights.safetensors (SAELens) nor config.json with ae.pt "
            f"(dictionary_learning). It has: {', '.join(holds[:8]) or 'nothing'}."
        )
    arguments["site"] = site or arguments["site"]
    if not isinstance(arguments["site"], str):
        raise CheckpointError(f"{folder} does not say where it reads. Give load(…, site='blocks.3.hook_resid_post').")
    tensors = {k: v.to(device) if hasattr(v, "to") else v for k, v in arguments.items()}
    try:
        return SAE(**tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}. Fetch it again.") from None
    except HookNameError as error:
        raise HookNameError(f"{folder}: {error} If you know where it reads, give load(…, site=…).") from None


def _published(release: str, name: str) -> Path:
    from workbench.model.checkpoints.hub import snapshot_folder

    found = re.fullmatch(r"(resid_post_layer_\d+)[_/](trainer_\d+)", name)
    if not found:
        raise ModelNotFound(f"{name!r} is none of {release}; they are named like 'resid_post_layer_11_trainer_0'")
    repo, inside = PUBLISHED[release], f"{found[1]}/{found[2]}"
    command = f'hf download {repo} --include "{inside}/*"'
    try:
        folder = snapshot_folder(repo) / inside
    except ModelNotFound:
        raise ModelNotFound(f"{repo} is not in the Hugging Face cache. Fetch it with:  {command}") from None
    if not folder.is_dir():
        raise ModelNotFound(f"the Hugging Face cache has {repo}, but not {inside}. Fetch it with:  {command}")
    return folder


def _saelens(config: Path, weights: Path) -> dict[str, Any]:
    from workbench.model.checkpoints.folder_files import mapped, read_json

    told = read_json(config)
    inner = _inside(told, "metadata")  # since 6.0
    chosen = told.get("activation_fn", told.get("activation_fn_str"))
    extra = _inside(told, "activation_fn_kwargs")
    kind = "topk" if chosen == "topk" else str(told.get("architecture", "standard"))
    norm = told.get("normalize_activations") or "none"
    _refuse(
        config,
        {
            f"its architecture is {kind!r}, and {', '.join(ARCHITECTURES)} are read": kind not in ARCHITECTURES,
            f"its activation is {chosen!r}, and relu and topk are read": chosen not in (None, "relu", "topk"),
            f"normalize_activations is {norm!r}, whose factor is not in its files; fold it in": norm not in NORMS,
            "it reads heads, not d_model numbers": told.get("reshape_activations") not in (None, "none"),
        },
    )
    t = mapped([weights])
    scaling = t.get("scaling_factor")
    _refuse(weights, {"its scaling_factor is not folded in": scaling is not None and bool((scaling != 1).any())})
    limit = {"jumprelu": "threshold", "batchtopk": "topk_threshold"}.get(kind)
    _need(weights, t, {"W_enc", "b_enc", "W_dec", "b_dec", *([limit] if limit else [])})
    return {
        "site": inner.get("hook_name") or told.get("hook_name") or told.get("hook_point"),
        **{name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
        "threshold": t[limit] if limit else None,
        "k": _whole(config, "k", told.get("k", extra.get("k"))) if kind == "topk" else None,
        "subtracts": bool(told.get("apply_b_dec_to_input", True)),
        "rescaled": bool(told.get("rescale_acts_by_decoder_norm", False)) and kind in ("topk", "batchtopk"),
        "norm": norm,
    }


_LEARNED = {  # dictionary_learning's classes -> (their names for our tensors, whether b_dec is taken from what is read)
    "AutoEncoder": (("encoder.weight", "encoder.bias", "decoder.weight", "bias"), True),
    "AutoEncoderTopK": (("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), True),
    "BatchTopKSAE": (("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), True),
    "MatryoshkaBatchTopKSAE": (("W_enc", "b_enc", "W_dec", "b_dec"), True),
    "JumpReluAutoEncoder": (("W_enc", "b_enc", "W_dec", "b_dec"), False),
}


def _dictionary_learning(config: Path, weights: Path) -> dict[str, Any]:
    from workbench.model.checkpoints.folder_files import read_json

    told = read_json(config)
    trainer = _inside(told, "trainer")
    kind, layer = str(trainer.get("dict_class")), trainer.get("layer")
    io = _inside(told, "buffer").get("io", "out")
    _refuse(
        config,
        {
            f"its class is {kind!r}, and {', '.join(_LEARNED)} are read": kind not in _LEARNED,
            f"it reads the {io!r} of a module, and outputs are read": io != "out",
        },
    )
    t = _unpickled(weights)
    tensors, subtracts = _LEARNED[kind]
    thresholded = kind not in ("AutoEncoder", "AutoEncoderTopK")
    _need(weights, t, {*tensors, *(["threshold"] if thresholded else [])})
    turned = tensors[0] == "encoder.weight"  # of a torch.nn.Linear: (out, in)
    arrays = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), (t[name] for name in tensors), strict=True))
    if turned:
        arrays |= {name: arrays[name].T for name in ("W_enc", "W_dec") if arrays[name].ndim == 2}
    if thresholded and kind != "JumpReluAutoEncoder":
        unset = bool((t["threshold"] < 0).any())
        _refuse(weights, {"its threshold was never set, training ended too early": unset})
    submodule = trainer.get("submodule_name")
    site = submodule if isinstance(submodule, str) else f"blocks.{layer}.hook_resid_post" if layer is not None else None
    return {
        "site": site,
        **arrays,
        "threshold": t["threshold"] if thresholded else None,
        "k": _whole(config, "k", t.get("k", trainer.get("k"))) if kind == "AutoEncoderTopK" else None,
        "subtracts": subtracts,
    }


def _unpickled(weights: Path) -> dict[str, Any]:
    """The tensors of a .pt file. Nothing else can come out of it: torch's own restricted unpickler reads it."""
    import torch

    try:
        found = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead an unpickler to whatever they happen to say
        why = visible(str(error).splitlines()[0][:160]) if str(error) else type(error).__name__
        raise CheckpointError(f"{weights} is damaged or holds more than tensors ({why}). Fetch it again.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{weights} holds a {type(found).__name__}, not tensors by name.")
    return found


def _refuse(file: Path, reasons: Mapping[str, bool]) -> None:
    holding = [visible(reason) for reason, holds in reasons.items() if holds]
    if holding:
        raise CheckpointError(f"{file} cannot be used: {'; '.join(holding)}.")


def _need(file: Path, tensors: Mapping[str, Any], wanted: set[str]) -> None:
    import torch

    lacking = sorted(name for name in wanted if not isinstance(tensors.get(name), torch.Tensor))
    if lacking:
        has = visible(", ".join(map(str, list(tensors)[:8])))
        raise CheckpointError(f"{file} lacks {', '.join(lacking)}. It has: {has or 'nothing'}.")


def _inside(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    inner = told.get(name)
    return inner if isinstance(inner, dict) else {}


def _whole(file: Path, name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise CheckpointError(f"{file}: {name} is {visible(repr(value)[:40])}, not a whole number") from None
