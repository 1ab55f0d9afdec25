"""Where weights lie that are read straight from a file, and when a pass needs them.

A mapped weight costs no memory of its own: its pages are the operating system's copy of the file. In memory="fast"
they stay mapped once they were used. In memory="small" a layer's pages are given back as soon as the pass has left it
(they stay in the page cache as long as there is room), and only the experts that were chosen are read, all at once and
ahead of time, so that a model that is larger than the memory runs at the speed of the disk and not of page faults.

A mapped weight that is written into in place is lost with its page: change values by edits, or copy the weight first.
"""

import ctypes
import mmap
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from workbench.kernels.packed import Packed

if TYPE_CHECKING:
    from workbench.runner.weights.form import Weights

READERS = 4  # requests under way at once: a disk answers several together faster than one after the other
GIVE_BACK, POPULATE, WILL_NEED = 4, 22, 3  # madvise(2): DONTNEED, POPULATE_READ (Linux 5.14), WILLNEED

Range = tuple[int, int]  # address, bytes


class Resident:
    """Weights that lie in memory: nothing to prepare, nothing to give back."""

    gives_back = False

    def ahead(self, layer: int, experts: Collection[int]) -> None:
        """These experts of a layer will probably run soon."""

    def need(self, layer: int, experts: Collection[int]) -> None:
        """These experts of a layer run now."""

    def left(self, layer: int) -> None:
        """The pass has left a layer."""

    def embedded(self) -> None:
        """The embedding has been looked up."""

    def unembedded(self) -> None:
        """The logits have been computed."""


RESIDENT = Resident()


class Mapped(Resident):
    """Weights in a mapped file, all of them kept once they were read; but for the embedding, of which a pass needs
    few rows, and the operating system maps many around each."""

    def __init__(self, weights: "Weights", mapped: Iterable[Tensor]):
        files = {t.untyped_storage().data_ptr() for t in mapped}  # what was converted has another storage
        self._files = files
        self._embed = self._ranges([weights.embed])

    def embedded(self) -> None:
        advise(self._embed, GIVE_BACK)

    def _ranges(self, tensors: Iterable[Tensor]) -> list[Range]:
        """Those that are the file's own bytes. Anything else must never be given back: it would be lost."""
        return [(t.data_ptr(), t.nbytes) for t in tensors if t.untyped_storage().data_ptr() in self._files]


class Borrowed(Mapped):
    """Weights in a mapped file, each layer given back after its use."""

    gives_back = True

    def __init__(self, weights: "Weights", mapped: Iterable[Tensor]):
        super().__init__(weights, mapped)
        self._unembed = self._ranges([weights.unembed])
        self._layers: list[list[Range]] = []
        self._experts: list[list[Range]] = []  # by layer: where expert 0 lies and how many bytes each takes
        for block in weights.blocks:
            both = (block.experts.up, block.experts.down)
            parts = [t for m in both for t in ((m.blocks, m.scales) if isinstance(m, Packed) else (m,))]
            fields = [getattr(block, name) for name in block.__slots__ if name != "experts"]
            self._layers.append(self._ranges([*fields, *parts]))
            self._experts.append([(start, n // len(parts[0])) for start, n in self._ranges(parts)])
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="workbench-read")
        self._coming: dict[tuple[int, int], list[Future]] = {}

    def ahead(self, layer: int, experts: Collection[int]) -> None:
        for e in experts:
            if (layer, e) not in self._coming:
                pieces = [(start + e * n, n) for start, n in self._experts[layer]]
                self._coming[layer, e] = [self._readers.submit(advise, [piece], POPULATE) for piece in pieces]

    def need(self, layer: int, experts: Collection[int]) -> None:
        self.ahead(layer, experts)
        for e in experts:
            for coming in self._coming[layer, e]:
                coming.result()

    def left(self, layer: int) -> None:
        for key in [key for key in self._coming if key[0] <= layer]:
            for coming in self._coming.pop(key):
                if not coming.cancel():
                    coming.result()  # never give back what is still being read
        advise(self._layers[layer], GIVE_BACK)

    def unembedded(self) -> None:
        advise(self._unembed, GIVE_BACK)


def borrowed(weights: "Weights", mapped: Iterable[Tensor], memory: str) -> "Weights":
    """The same weights, with what is to be done about the pages of `mapped`, which were read from a file."""
    if weights.embed.device.type != "cpu":  # copied to a GPU: no page of the file is in use
        return weights
    return replace(weights, pages=(Borrowed if memory == "small" else Mapped)(weights, mapped))


def can_give_back() -> bool:
    """Whether this system takes pages back: Linux and macOS do."""
    return hasattr(mmap, "MADV_DONTNEED")


def advise(ranges: Iterable[Range], what: int) -> None:
    """Tells the operating system about whole pages of mapped files: those inside when giving back, all when reading."""
    libc = _libc()
    if libc is None:
        return
    page = mmap.PAGESIZE
    for start, n in ranges:
        if what == GIVE_BACK:
            first, last = -(-start // page) * page, (start + n) // page * page
        else:
            first, last = start // page * page, -(-(start + n) // page) * page
        if (
            last > first
            and libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), what)
            and what == POPULATE
        ):
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), WILL_NEED)  # an older kernel


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if can_give_back() else None
