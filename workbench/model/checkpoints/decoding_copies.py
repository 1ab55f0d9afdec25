"""Copies of weights that make decoding faster and change no number: 12-bit planes, and the screen of the unembedding.

A decoded token reads every attention matrix and the unembedding once, and takes as long as their bytes. In planes
(kernels/planes.py) the attention matrices have three quarters of them. The screen (kernels/screen.py) finds the next
token with half of the bytes of the unembedding. Both are made when a large model in bf16 is loaded with memory="fast"
and there is room; the pages of the bf16 matrices are then released, and the operating system may drop them.
"""

import os
from dataclasses import replace

import torch
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.checkpoints.pages import Mapped
from workbench.model.checkpoints.tensors import Weights
from workbench.model.checkpoints.validate import PACKED_BYTES
from workbench.model.config import Config
from workbench.model.kernels import native
from workbench.model.kernels.lora import unadapted
from workbench.model.kernels.planes import Planes, pack
from workbench.model.kernels.screen import Screen
from workbench.model.memory import free_memory
from workbench.progress import progress_bar
from workbench.text import brief

MATRICES = ("w_q", "w_k", "w_v", "w_o")
MIN_PARAMETERS = 1e9  # smaller models decode as fast without
ROOM = 0.9  # of the free memory, for all weights in use and their copies
VARIABLE = "WORKBENCH_DECODE"  # "full": without copies, to compare
PLANES_BYTES, SCREEN_BYTES = 1.5, 1.0  # per weight


def with_decoding_copies(config: Config, weights: Weights) -> Weights:
    """The weights with their copies, if this model and this machine have a use for them.

    Raises CheckpointError if the environment variable WORKBENCH_DECODE is neither "full" nor empty.
    """
    if not _wanted(config, weights):
        return weights
    blocks = []
    with progress_bar(desc="packing weights for decoding", total=config.n_layers + 1, unit=" layers") as bar:
        for block in weights.blocks:
            planes = {name: copy for name in MATRICES if (copy := pack(getattr(block, name))) is not None}
            blocks.append(replace(block, **planes))
            _release(weights, [copy.matrix for copy in planes.values()])
            bar.update()
        screen = Screen.of(weights.unembed)
        _release(weights, [weights.unembed])
        bar.update()
    return replace(weights, blocks=tuple(blocks), screen=screen if screen.finite else None)


def _wanted(config: Config, weights: Weights) -> bool:
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "full"):
        raise CheckpointError(
            f"the environment variable {VARIABLE} is {brief(setting)!r}; it may be 'full', to decode with the bf16 "
            f"matrices alone, or empty."
        )
    if setting == "full" or weights.residency.streams or weights.embed.device.type != "cpu":
        return False
    return copies_fit(config, weights.embed.dtype, free_memory())


def copies_fit(config: Config, dtype: torch.dtype, free: int) -> bool:
    """Whether copies are of use for a model of this shape, and fit with its weights into `free` bytes."""
    if config.n_params < MIN_PARAMETERS or dtype != torch.bfloat16 or native.isa() is None:
        return False
    return bytes_with_copies(config) <= ROOM * free


def bytes_with_copies(c: Config) -> int:
    """The bytes of weights in memory with copies: experts in MXFP4, the unembedding in bf16, planes and screen.

    Neither the embedding nor the bf16 attention matrices stay there.
    """
    return int(c.n_packed * PACKED_BYTES) + 2 * c.d_vocab * c.d_model + copy_bytes(c)


def copy_bytes(c: Config) -> int:
    """The bytes of planes and screen for a model of this shape, to within a percent.

    >>> from workbench.model.config import Config
    >>> copy_bytes(Config()) / 1e9
    1.53464832
    """
    attention = c.n_layers * c.d_model * c.d_head * (2 * c.n_heads + 2 * c.n_kv_heads)
    return int(PLANES_BYTES * attention + SCREEN_BYTES * c.d_vocab * c.d_model)


def _release(weights: Weights, matrices: list[Tensor]) -> None:
    """Releases the pages of matrices that were copied, those that are in a mapped file."""
    if isinstance(weights.residency, Mapped):
        weights.residency.release_tensors(matrices)


def copies_note(weights: Weights) -> str:
    """Which copies decoding uses, for a repr: ", 12-bit planes, screened", one of the two, or "".

    >>> import workbench as wb
    >>> copies_note(wb.Model("pocket").weights)
    ''
    """
    in_planes = isinstance(unadapted(weights.blocks[0].w_q), Planes)
    return ", 12-bit planes" * in_planes + ", screened" * (weights.screen is not None)
