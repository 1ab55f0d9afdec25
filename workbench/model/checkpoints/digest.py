"""A digest of the weights that is independent of file names and sharding."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

FULL = 64 << 20  # bytes: up to this size of a model, all of it is read
SAMPLE = 4096  # bytes read at the start, middle and end of each tensor of a larger model


def weights_digest(tensors: Mapping[str, Tensor], *, full: int = FULL) -> str:
    """The sha256 over name, dtype, shape and bytes of every tensor, in the order of names.

    "sha256:…" if all bytes were read. "sampled-sha256:…" if the tensors exceed `full` bytes and only three samples of
    each were read: that distinguishes models and fine-tunes, but would miss a single changed weight.

    >>> weights_digest({"a": torch.zeros(2)})[:15]
    'sha256:d97e83d8'
    """
    sampled = sum(t.nbytes for t in tensors.values()) > full
    sha = hashlib.sha256(b"workbench weights 1\n")
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        size = flat.nbytes
        if sampled and size > 3 * SAMPLE:
            item = flat.element_size()
            n = SAMPLE // item
            middle = (flat.numel() - n) // 2
            parts = (flat[:n], flat[middle : middle + n], flat[-n:])
        else:
            parts = (flat,)
        for part in parts:
            sha.update(part.cpu().view(torch.uint8).numpy().data)
    return f"{'sampled-' if sampled else ''}sha256:{sha.hexdigest()}"
