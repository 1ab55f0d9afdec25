"""Loads a checkpoint of any format. The files decide which format it is, never the shape of a tensor.

How to add a format, here called "things" (`original.py` is the shortest one to copy):

1. Write `checkpoints/things.py` with two functions.
   `find_things(folder, names)` gets a folder and the sorted names of its files. It returns the path to read (the folder
   or a file), or None for another format.
   `read_things(path, *, name, dtype, device, memory)` returns a `Checkpoint` (tensors.py) in these steps:
   a. Convert the settings to a `Config`.
   b. Get the tensors by name with `mapped` (folder_files.py).
   c. Get dtype and memory from `plan_loading` (validate.py). It refuses a model that does not fit the memory before a
      tensor is read.
   d. Refuse damaged or incomplete tensors with `check_tensors` and `check_finite`.
   e. Convert all matrices to [out, in], and interleave the rows of `up`.
   f. Call `with_residency` (pages.py) if the bytes of the file are used directly.
   g. Compute `weights_digest` and `stop_ids`.
2. Add a line to `FORMATS` below. The first format that finds its files reads them, so put it before formats that would
   match the same files. A format of one file instead of a folder is also recognized by its suffix in `load`. Name the
   format in the docstrings of `load`, `Model` (model.py) and `Checkpoint.format`.
3. Write `tests/model/checkpoints/test_things.py`: a random model (`Random` in tests/checkpoints.py), saved in the
   format, loads with the same bits as `Random.checkpoint()`. `named` in the same file lists the tensors of both.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.checkpoints.decoding_copies import with_decoding_copies
from workbench.model.checkpoints.folder_files import Incomplete
from workbench.model.checkpoints.from_transformers import read_transformers
from workbench.model.checkpoints.gguf import find_gguf, read_gguf
from workbench.model.checkpoints.gguf_pieces import model_name
from workbench.model.checkpoints.hf import find_hf, read_hf
from workbench.model.checkpoints.hub import NAME, download_command, snapshot_folder
from workbench.model.checkpoints.original import find_original, find_original_inside, read_original
from workbench.model.checkpoints.tensors import Checkpoint
from workbench.model.memory import allocation_errors
from workbench.paths import expanded
from workbench.text import brief
from workbench.untrusted import exists, file_names, is_file, is_folder, regular_file

POCKET = "pocket"
Loadable = str | os.PathLike[str] | Any  # "pocket", a folder, a file or a name; or a GptOssForCausalLM of transformers


@allocation_errors()
def load(
    where: Loadable,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory: str = "auto",
) -> Checkpoint:
    """A gpt-oss checkpoint in the internal form; the weights have the same bits whatever the format.

    Nothing is ever downloaded. Experts in MXFP4 stay packed, and tensors that the file stores in `dtype` are
    memory-mapped and not copied. A model that takes less than 256 MB is dequantized.

    Args:
        where: "pocket" (the embedded model), a folder (Hugging Face's layout, original/, or one with a .gguf), a .gguf
            file (any piece of a split model), a name such as "openai/gpt-oss-20b" in the local Hugging Face cache, or a
            transformers GptOssForCausalLM, whose memory is shared.
        dtype: float32, bfloat16 or float64. None: the dtype of a model object, else float32 below 1e9 parameters and
            bfloat16 above.
        device: None: the device of a model object, else the CPU. "auto": a GPU if torch finds one, else the CPU.
        memory: "fast" keeps mapped pages once they were used. "small" releases the pages of each layer after its use,
            and never dequantizes. "auto" is "fast" if the file fits the memory.

    Raises:
        ModelNotFound: there is no model at `where`.
        CheckpointError: it cannot be read as gpt-oss; the message says why and what to do.
        BudgetError: it would not fit the memory.
        MissingDependency: a .gguf needs the package gguf.

    >>> checkpoint = load("pocket")
    >>> checkpoint.format, checkpoint.weights.embed.shape
    ('hf-mxfp4', torch.Size([544, 128]))
    """
    if dtype == torch.float16:
        raise CheckpointError(
            "float16 is not supported: gpt-oss's activations reach 45,344 at layer 34 and float16 ends at 65,504, so "
            "sums overflow. Use torch.bfloat16 or torch.float32."
        )
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float64):
        raise CheckpointError(f"dtype must be torch.float32, bfloat16 or float64, got {dtype!r}.")
    if memory not in ("auto", "fast", "small"):
        raise CheckpointError(f"memory must be 'auto', 'fast' or 'small', got {memory!r}.")
    target = _device(device)
    if not isinstance(where, str | os.PathLike):
        if not (hasattr(where, "state_dict") and hasattr(getattr(where, "config", None), "to_dict")):
            raise ModelNotFound(
                f"cannot load a model from a {type(where).__name__}. Give a folder, a .gguf file, a name such as "
                f"'openai/gpt-oss-20b', 'pocket', or a transformers GptOssForCausalLM."
            )
        return read_transformers(where, dtype=dtype, device=target)
    checkpoint = _read(where, dtype, target or torch.device("cpu"), memory)
    return replace(checkpoint, weights=with_decoding_copies(checkpoint.config, checkpoint.weights))


def _read(where: str | os.PathLike[str], dtype: torch.dtype | None, target: torch.device, memory: str) -> Checkpoint:
    """The checkpoint at a path or of a name."""
    text = os.fsdecode(where)
    if not text:
        raise ModelNotFound(
            "the name of the model is empty. Give a folder ('.' is the current one), a .gguf file, 'pocket' (the "
            "embedded model), or a name such as 'openai/gpt-oss-20b' in the local Hugging Face cache."
        )
    path = expanded(where)
    if where == POCKET:
        return _read_folder(embedded_folder(), name=POCKET, dtype=dtype, device=target, memory=memory)
    if is_folder(path):
        return _read_folder(path, name=_folder_name(path), dtype=dtype, device=target, memory=memory)
    if is_file(path):
        if path.suffix != ".gguf":
            _refuse_cut_gguf([path.name], path.parent)
            raise CheckpointError(
                f"{path} is a file, but not a .gguf. Give the folder that contains it and its config.json."
            )
        return read_gguf(path, name=model_name(path), dtype=dtype, device=target, memory=memory)
    if isinstance(where, str) and NAME.fullmatch(text):
        try:
            return _read_folder(snapshot_folder(text), name=text, dtype=dtype, device=target, memory=memory)
        except Incomplete as error:
            raise Incomplete(f"{error} The whole model comes with:  {download_command(text)}") from None
    if exists(path):
        regular_file(path, ModelNotFound)  # says what is there instead of a file
    raise ModelNotFound(
        f"there is no model at {brief(text, 200)!r}. Give a folder, a .gguf file, 'pocket' (the embedded model), or a "
        f"name such as 'openai/gpt-oss-20b' in the local Hugging Face cache."
    )


def _device(device: Any) -> torch.device | None:
    """The CPU, or a CUDA device that works. Raises CheckpointError for any other."""
    if device is None:
        return None
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = "device must be 'cpu' (or None), 'auto', or with an NVIDIA GPU 'cuda' or 'cuda:0'"
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise CheckpointError(f"{device!r} is not a device: {allowed}.") from None
    if target.type == "cpu":
        return torch.device("cpu")
    if target.type == "mps":
        raise CheckpointError(f"workbench does not support mps; use the CPU of the same machine: {allowed}.")
    if target.type != "cuda":
        raise CheckpointError(f"workbench does not support {target.type}: {allowed}.")
    try:
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"there is no device {device!r} on this machine ({reason}): {allowed}.") from None
    return target


def _read_folder(
    folder: Path, *, name: str, dtype: torch.dtype | None, device: torch.device, memory: str
) -> Checkpoint:
    """The checkpoint in a folder, read by the first of `FORMATS` that finds its files there."""
    names = file_names(folder, CheckpointError)
    if "adapter_config.json" in names and "config.json" not in names:
        raise CheckpointError(
            f"{folder} contains an adapter, not a model. Load the model that it was made for, then "
            f"model.with_adapter({str(folder)!r})"
        )
    for find, read in FORMATS:
        if path := find(folder, names):
            return read(path, name=name, dtype=dtype, device=device, memory=memory)
    _refuse_cut_gguf(names, folder)
    if any(n.endswith((".bin", ".pt", ".pth")) for n in names):
        raise CheckpointError(
            f"{folder} contains .bin or .pt files, which are never opened here. Save the model as safetensors."
        )
    if subfolders := [name for name in names if is_folder(folder / name) and _has_weights(folder / name)]:
        raise CheckpointError(
            f"{folder} contains no weights itself, but its subfolders do: {', '.join(map(brief, subfolders[:6]))}. "
            f"Give one of them, such as {str(folder / subfolders[0])!r}"
        )
    raise Incomplete(
        f"{brief(str(folder), 300)} contains no weights (*.safetensors, *.gguf), only: "
        f"{', '.join(map(brief, names[:8])) or 'nothing'}."
    )


# The functions that find and read each format of a folder; the docstring of this module says how to add one.
FORMATS: tuple[tuple[Callable[[Path, list[str]], Path | None], Callable[..., Checkpoint]], ...] = (
    (find_original, read_original),
    (find_hf, read_hf),  # any other format with safetensors must come before it
    (find_original_inside, read_original),
    (find_gguf, read_gguf),
)


def _has_weights(folder: Path) -> bool:
    return any(name.endswith((".gguf", ".safetensors")) for name in file_names(folder, CheckpointError))


def _refuse_cut_gguf(names: list[str], folder: Path) -> None:
    """Raises CheckpointError for parts of a .gguf that was not split by llama.cpp's own program."""
    cut = sorted(n for n in names if re.search(r"\.gguf[.-]", n))
    if cut:
        whole = cut[0][: cut[0].index(".gguf")] + ".gguf"
        raise CheckpointError(
            f"{folder / cut[0]} is a part of a .gguf that was cut into files byte by byte. Join the parts, in order:  "
            f"cat {whole}* > whole.gguf"
        )


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "original" else folder.name
