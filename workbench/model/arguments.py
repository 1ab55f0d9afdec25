"""Checks of the arguments of a Model: how it is loaded, token ids, tensors and settings of a pass, budget, path."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.checks import check_real, check_slice, check_whole
from workbench.errors import ArgumentError, ArgumentTypeError, CheckpointError, PromptError
from workbench.model.cache import KVCache
from workbench.model.config import Config
from workbench.paths import absolute, expanded
from workbench.taps import Tap
from workbench.text import brief, shown
from workbench.traces import check_writable

LARGE = 1e9  # parameters: above this size, a GPU is much faster


def checked_budget(budget: float | None) -> float | None:
    """The bytes for record="auto". Infinity means no limit."""
    if budget is not None and not check_real("budget", budget) >= 0:
        raise ArgumentError(f"budget must be a number of bytes of at least 0, got {shown(budget)}.")
    return None if budget is None else check_real("budget", budget)


def id_array(tokens: Any) -> np.ndarray:
    """Token ids as an array. Raises PromptError for anything but whole numbers in a row."""
    try:
        ids = np.asarray(tokens if len(tokens) else [], None if len(tokens) else int)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        ids = np.asarray(None)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise PromptError(f"token ids must be whole numbers in a list, got {shown(tokens)}")
    return ids


def per_prompt(name: str, value: Any, n: int) -> list[Any]:
    """The values for n prompts: the entries of a list, or the value itself for all of them.

    >>> per_prompt("seed", 7, 2), per_prompt("seed", [7, 8], 2)
    ([7, 7], [7, 8])

    Raises ArgumentError for a list of another length.
    """
    if not isinstance(value, list | tuple | range) and getattr(value, "ndim", 0) != 1:
        return [value] * n
    if len(value) != n:
        raise ArgumentError(
            f"{name} has {len(value)} entries for {n} prompts: give one value for all, or one entry for each."
        )
    return list(value)


def check_ids(tokens: Any, max_tokens: int, name: str, config: Config) -> None:
    """Raises PromptError for an empty prompt, an id outside the vocabulary, or more positions than the model has."""
    max_tokens, ids = check_whole("max_tokens", max_tokens, 0), id_array(tokens)
    if not len(ids):
        raise PromptError("the prompt is empty; give at least one token")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.d_vocab:
        invalid = low if low < 0 else high
        raise PromptError(f"token id {invalid} is out of range: {name} has ids 0..{config.d_vocab - 1}")
    if len(tokens) + max_tokens > config.n_ctx:
        raise PromptError(
            f"{len(tokens)} prompt tokens and max_tokens={max_tokens} exceed the {config.n_ctx} positions of "
            f"{name}. Shorten the prompt or set max_tokens lower."
        )


def check_tensor(name: str, x: Any, ndim: int) -> None:
    """Raises ArgumentTypeError for anything but token ids (2 axes) or residual streams (3 axes)."""
    if not isinstance(x, Tensor) or x.ndim != ndim or x.is_complex() or x.is_floating_point() != (ndim == 3):
        got = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else shown(x)
        axes = "token ids (batch pos)" if ndim == 2 else "residual streams (batch pos d_model)"
        raise ArgumentTypeError(f"{name} must be a tensor of {axes}, got {got}.")


def check_pass(tap: Any, cache: Any, logits_at: Any) -> None:
    """Raises ArgumentTypeError for a tap, cache or slice of another type. It costs microseconds in each pass."""
    for name, value, kind in (
        ("tap", tap, Tap | None),
        ("cache", cache, KVCache | None),
        ("logits_at", logits_at, slice),
    ):
        if not isinstance(value, kind):
            raise ArgumentTypeError(f"{name} must be of type {kind}, got {shown(value)}.")
    if logits_at != slice(None):
        check_slice("logits_at", logits_at)


def check_loading(dtype: Any, device: Any, memory: Any) -> None:
    """Raises CheckpointError for a dtype, a device or a memory setting of another type."""
    for name, value, kinds in (("dtype", dtype, str | torch.dtype | None), ("memory", memory, str)):
        if not isinstance(value, kinds):
            raise CheckpointError(f"{name} must be a name, got {shown(value)}")
    if not isinstance(device, str | torch.device | None):
        raise CheckpointError(
            f"{shown(device)} is not a device: device must be 'cpu' (or None), 'auto', or a name such as 'cuda'"
        )


def warn_if_gpu_is_idle(name: str, requested: Any, device: str, n_params: int) -> None:
    """Warns if a large model was loaded on the CPU because no device was given, and torch finds a GPU."""
    if requested is None and device == "cpu" and n_params > LARGE and torch.cuda.is_available():
        warnings.warn(
            f"{brief(name)} runs on the CPU, and a GPU is idle. To use it: wb.Model(…, device='cuda'), or --device "
            f"cuda in the shell. With device='cpu', this warning does not appear.",
            stacklevel=4,
        )


def checked_path(to: str | os.PathLike[str] | None) -> Path | None:
    """The path to which a trace is written during recording; TraceError, before anything runs, if it is unusable."""
    if to is None:
        return None
    if not absolute(to, "to").name:
        raise ArgumentError(f"to must be the path of a new folder, got {shown(to)}.")
    check_writable(to)
    return expanded(to)


def checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype of that name. Raises CheckpointError if torch has none."""
    torch_dtype = getattr(torch, str(dtype), None) if isinstance(dtype, str) else dtype
    if isinstance(dtype, str) and not isinstance(torch_dtype, torch.dtype):
        raise CheckpointError(f"dtype must be 'float32', 'bfloat16' or 'float64', got {shown(dtype)}")
    return torch_dtype
