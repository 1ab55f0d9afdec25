"""One string that changes when a weight changes, and not when files are renamed or sharded another way."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

FULL = 64 << 20  # bytes of tensors up to which all are read
SAMPLE = 4096  # bytes read at the first, middle and last place of a tensor in a larger model


def weights_digest(tensors: Mapping[str, Tensor], *, full: int = FULL) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor in the order of names.

    "sha256:…" if all bytes were read; "sampled-sha256:…" where the tensors exceed `full` bytes and only three samples
    of each were: that tells models and fine-tunes apart, and would miss a single changed weight.

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
