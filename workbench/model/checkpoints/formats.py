"""One door to every format: what lies at a place decides how it is read, never the shape of a tensor.

How to add a format, say things (`original.py` is the shortest one to copy):

1. `checkpoints/things.py`, with two functions. `find_things(folder, holds)` gets a folder and the sorted names in it,
   and gives what is to be read, the folder or a file, or None if this is another format. `read_things(found, *, name,
   dtype, device, memory)` gives a `Checkpoint` (tensors.py). Its steps: the settings become a `Config`; `mapped`
   (folder_files.py) gives the tensors by name; `plan_loading` (validate.py) decides dtype and memory, and refuses what would
   not fit before a tensor is read; `check_tensors` and `check_finite` refuse what is not whole; all matrices become
   [out, in], and rows of `up` interleaved; `with_residency` (pages.py) if the file's own bytes are used; `weights_digest`,
   `stop_ids`.
2. A line of `FORMATS` below. The first one that finds its files reads them, so put it before those that would find them
   too. A format that is one file instead of a folder is also told by its suffix in `load`. Name the format in the
   docstrings of `load`, `Model` (model.py) and `Checkpoint.format`.
3. `tests/model/checkpoints/test_things.py`: a random model (`Random` of tests/checkpoints.py), written in the format,
   gives the same bits as `Random.checkpoint()`; `named` of that file lists the tensors of both.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.checkpoints.folder_files import Incomplete
from workbench.model.checkpoints.from_transformers import read_transformers
from workbench.model.checkpoints.gguf import find_gguf, read_gguf
from workbench.model.checkpoints.gguf_pieces import model_name
from workbench.model.checkpoints.hf import find_hf, read_hf
from workbench.model.checkpoints.hub import NAME, download_command, snapshot_folder
from workbench.model.checkpoints.original import find_original, find_original_inside, read_original
from workbench.model.checkpoints.tensors import Checkpoint
from workbench.paths import expanded

POCKET = "pocket"
Loadable = str | os.PathLike[str] | Any  # "pocket", a folder, a file or a name; or a GptOssForCausalLM of transformers


def load(
    where: Loadable,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory: str = "auto",
) -> Checkpoint:
    """A gpt-oss checkpoint in the one internal form, equal bit for bit whatever the format it came in.

    `where` is "pocket" (the embedded model), a folder (Hugging Face, original/, or plan_loading a .gguf), a .gguf file (of a
    split model any piece), a name such as "openai/gpt-oss-20b" in the local Hugging Face cache, or a transformers
    GptOssForCausalLM, whose memory is shared. `dtype` is float32, bfloat16 or float64; None means float32 below 1e9
    parameters and bfloat16 above, or a model object's own. `device` None means the CPU, or a model object's own.
    Nothing is ever downloaded.

    Experts in MXFP4 stay packed, and what the file holds in `dtype` is used where it lies, mapped and not copied; a
    model that takes less than 256 MB is dequantised. `memory`: "fast" keeps mapped pages once they were used, "small"
    gives each layer's back after its use and never dequantises, "auto" is "fast" where the file fits.

    Raises ModelNotFound (nothing there), CheckpointError (it cannot be read as gpt-oss: the text says why and what to
    do), BudgetError (it would not fit the memory), MissingDependency (a .gguf without the package gguf).

    >>> checkpoint = load("pocket")
    >>> checkpoint.format, checkpoint.weights.embed.shape
    ('hf-mxfp4', torch.Size([544, 128]))
    """
    if dtype == torch.float16:
        raise CheckpointError(
            "float16 is refused: gpt-oss's activations reach 45,344 at layer 34 and float16 ends at 65,504, so sums "
            "overflow. Use torch.bfloat16 or torch.float32."
        )
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float64):
        raise CheckpointError(f"weights are held in torch.float32, bfloat16 or float64, not in {dtype!r}.")
    if memory not in ("auto", "fast", "small"):
        raise CheckpointError(f"memory is 'auto', 'fast' or 'small', not {memory!r}.")
    target = _device(device)
    if not isinstance(where, str | os.PathLike):
        if not (hasattr(where, "state_dict") and hasattr(getattr(where, "config", None), "to_dict")):
            raise ModelNotFound(
                f"a {type(where).__name__} is not a model. Give a folder, a .gguf file, a name such as "
                f"'openai/gpt-oss-20b', 'pocket', or a transformers GptOssForCausalLM."
            )
        return read_transformers(where, dtype=dtype, device=target)
    target = target or torch.device("cpu")
    text = os.fspath(where)
    path = expanded(where)
    if where == POCKET:
        return _read_folder(embedded_folder(), name=POCKET, dtype=dtype, device=target, memory=memory)
    if path.is_dir():
        return _read_folder(path, name=_folder_name(path), dtype=dtype, device=target, memory=memory)
    if path.is_file():
        if path.suffix != ".gguf":
            _refuse_cut_gguf([path.name], path.parent)
            raise CheckpointError(f"{path} is a file and no .gguf. Give the folder that holds it and its config.json.")
        return read_gguf(path, name=model_name(path), dtype=dtype, device=target, memory=memory)
    if isinstance(where, str) and NAME.fullmatch(text):
        try:
            return _read_folder(snapshot_folder(text), name=text, dtype=dtype, device=target, memory=memory)
        except Incomplete as error:
            raise Incomplete(f"{error} The whole model comes with:  {download_command(text)}") from None
    raise ModelNotFound(
        f"there is no model at {text!r}. Give a folder, a .gguf file, 'pocket' (the embedded model), or a name such as "
        f"'openai/gpt-oss-20b' that the local Hugging Face cache holds."
    )


def _device(device: Any) -> torch.device | None:
    """The CPU, or a CUDA device that answers; CheckpointError for any other."""
    if device is None:
        return None
    allowed = "device is 'cpu' (or None), or where there is a GPU of NVIDIA's, 'cuda' or 'cuda:0'"
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise CheckpointError(f"{device!r} is not a device: {allowed}.") from None
    if target.type == "cpu":
        return torch.device("cpu")
    if target.type == "mps":
        raise CheckpointError(f"workbench does not run on mps; it runs on the CPU of the same machine: {allowed}.")
    if target.type != "cuda":
        raise CheckpointError(f"workbench does not run on {target.type}: {allowed}.")
    try:
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"there is no device {device!r} on this machine ({why}): {allowed}.") from None
    return target


def _read_folder(
    folder: Path, *, name: str, dtype: torch.dtype | None, device: torch.device, memory: str
) -> Checkpoint:
    """By its files: the first of `FORMATS` that finds its own in the folder reads them."""
    holds = sorted(p.name for p in folder.iterdir())
    if "adapter_config.json" in holds and "config.json" not in holds:
        raise CheckpointError(
            f"{folder} holds an adapter, not a model. Load the model that it was made for, then "
            f"model.with_adapter({str(folder)!r})"
        )
    for find, read in FORMATS:
        if found := find(folder, holds):
            return read(found, name=name, dtype=dtype, device=device, memory=memory)
    _refuse_cut_gguf(holds, folder)
    if any(n.endswith((".bin", ".pt", ".pth")) for n in holds):
        raise CheckpointError(f"{folder} holds no safetensors but .bin or .pt files, which are never opened here.")
    if inside := sorted({p.parent.name for end in ("gguf", "safetensors") for p in folder.glob(f"*/*.{end}")}):
        raise CheckpointError(
            f"{folder} holds no weights itself, its folders do: {', '.join(inside[:6])}. Give one of them, such as "
            f"{str(folder / inside[0])!r}"
        )
    raise Incomplete(f"{folder} holds no weights (*.safetensors, *.gguf). It has: {', '.join(holds[:8]) or 'nothing'}.")


# What a folder may hold, by two functions of the format's own file; the recipe is at the top of this one.
FORMATS: tuple[tuple[Callable[[Path, list[str]], Path | None], Callable[..., Checkpoint]], ...] = (
    (find_original, read_original),
    (find_hf, read_hf),  # whatever else has safetensors must come before it
    (find_original_inside, read_original),
    (find_gguf, read_gguf),
)


def _refuse_cut_gguf(names: list[str], folder: Path) -> None:
    """CheckpointError for a .gguf that was cut into files by another program than llama.cpp's."""
    cut = sorted(n for n in names if re.search(r"\.gguf[.-]", n))
    if cut:
        whole = cut[0][: cut[0].index(".gguf")] + ".gguf"
        raise CheckpointError(
            f"{folder / cut[0]} is a part of a .gguf that was cut like any file. Join the parts, in order:  "
            f"cat {whole}* > whole.gguf"
        )


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "original" else folder.name
