"""Where weights lie that are read straight from a file, and when a pass needs them.

A mapped weight costs no memory of its own: its pages are the operating system's copy of the file. In memory="fast"
they stay mapped once they were used. In memory="small" a layer's pages are given back as soon as the pass has left it
(they stay in the page cache as long as there is room), and only the experts that were chosen are read, all at once and
ahead of time, so that a model that is larger than the memory runs at the speed of the disk and not of page faults.
A pass over a token or two gives back the experts alone: the next token needs all the rest again, and mapping it anew
takes as long as computing with it.

A mapped weight that is written into in place is lost with its page: change values by edits, or copy the weight first.
"""

import ctypes
import mmap
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from torch import Tensor

from workbench.model.checkpoints.residency import Resident
from workbench.model.checkpoints.tensors import Weights
from workbench.model.kernels.lora import plain
from workbench.model.kernels.packed import Packed

FEW = 8  # experts of a layer, at most, in a pass over a token or two
READERS = 4  # requests under way at once: a disk answers several together faster than one after the other
PIECE = 1 << 19  # bytes: more at a time, and Linux may read only the first of them
DONT_NEED, POPULATE, WILL_NEED = 4, 22, 3  # madvise(2): POPULATE_READ came with Linux 5.14
LARGE = 1 << 30  # bytes of mapped weights, from which on a pass's own memory is looked after too
APART, MMAP_THRESHOLD = 16 << 20, -3  # bytes, and what mallopt(3) calls it

Range = tuple[int, int]  # address, bytes
Key = tuple[int, int | None]  # layer and expert; None is all but the experts


class Mapped(Resident):
    """Weights in a mapped file, all of them kept once they were read; but for the embedding, of which a pass needs
    few rows, and the operating system maps many around each.
    """

    def __init__(self, weights: Weights, mapped: Iterable[Tensor]):
        files = {t.untyped_storage().data_ptr() for t in mapped}  # what was converted has another storage
        self._files = files
        self._embed = self._ranges([weights.embed])

    def embedded(self) -> None:
        give_back(self._embed)

    def _ranges(self, tensors: Iterable[Tensor]) -> list[Range]:
        """Those that are the file's own bytes. Anything else must never be given back: it would be lost."""
        return [(t.data_ptr(), t.nbytes) for t in tensors if t.untyped_storage().data_ptr() in self._files]


class Borrowed(Mapped):
    """Weights in a mapped file, given back after their use.

    The readers take requests in the order in which they come. What is only likely is therefore asked for after all
    that is needed, and is read while the needed is computed.
    """

    gives_back = True

    def __init__(self, weights: Weights, mapped: Iterable[Tensor]):
        super().__init__(weights, mapped)
        self._unembed = self._ranges([weights.unembed])
        self._rest: list[list[Range]] = []  # by layer: all but the experts' matrices
        self._matrices: list[list[Range]] = []
        self._experts: list[list[Range]] = []  # by layer: where expert 0 lies and how many bytes each takes
        for block in weights.blocks:
            both = (plain(block.experts.up), plain(block.experts.down))
            parts = [t for m in both for t in ((m.blocks, m.scales) if isinstance(m, Packed) else (m,))]
            self._rest.append(self._ranges(getattr(block, name) for name in block.__slots__ if name != "experts"))
            self._matrices.append(self._ranges(parts))
            self._experts.append([(start, n // len(parts[0])) for start, n in self._matrices[-1]])
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="workbench-read")
        self._next = 0  # the layer after that which was left
        self._likely: dict[Key, list[Range]] = {}  # of a layer after that: noted, not asked for yet
        self._coming: dict[Key, list[Future]] = {}
        self._few = False  # whether this is a pass over a token or two
        self._held: set[int] = set()  # layers of which all but the experts was not given back

    def ahead(self, layer: int, experts: Collection[int]) -> None:
        rest = {} if layer in self._held else {(layer, None): self._rest[layer]}
        likely = rest | self._places(layer, experts)
        if layer == self._next:
            self._ask(likely)
        else:
            self._likely = likely

    def need(self, layer: int, experts: Collection[int]) -> None:
        self._few = len(experts) <= FEW
        if self._held and not self._few:
            give_back(self._unembed)
            while self._held:
                give_back(self._rest[self._held.pop()])
        needed = self._places(layer, experts)
        for key in [key for key in self._coming if key[0] == layer and key not in needed]:
            self._coming[key] = [coming for coming in self._coming[key] if not coming.cancel()]  # guessed wrong
        self._ask(needed)
        self._ask(self._likely)
        self._likely = {}
        for key in needed:
            for coming in self._coming[key]:
                coming.result()

    def left(self, layer: int) -> None:
        for key in [key for key in self._coming if key[0] <= layer]:
            for coming in self._coming.pop(key):
                if not coming.cancel():
                    coming.result()  # never give back what is still being read
        self._next = layer + 1
        give_back(self._matrices[layer])
        if self._few:
            self._held.add(layer)
        else:
            give_back(self._rest[layer])

    def unembedded(self) -> None:
        if not self._few:
            give_back(self._unembed)

    def _places(self, layer: int, experts: Collection[int]) -> dict[Key, list[Range]]:
        return {(layer, e): [(start + e * n, n) for start, n in self._experts[layer]] for e in experts}

    def _ask(self, wanted: dict[Key, list[Range]]) -> None:
        for key, ranges in wanted.items():
            if key not in self._coming:
                how = read_alone if self._few else read
                self._coming[key] = [self._readers.submit(how, *piece) for piece in ranges]


def borrowed(weights: Weights, mapped: Iterable[Tensor], memory: str) -> Weights:
    """The same weights, with what is to be done about the pages of `mapped`, which were read from a file."""
    if weights.embed.device.type != "cpu":  # copied to a GPU: no page of the file is in use
        return weights
    mapped = list(mapped)
    if sum(t.nbytes for t in mapped) >= LARGE:
        keep_apart()
    return replace(weights, pages=(Borrowed if memory == "small" else Mapped)(weights, mapped))


def can_give_back() -> bool:
    """Whether this system takes pages back: Linux and macOS do."""
    return hasattr(mmap, "MADV_DONTNEED")


def keep_apart() -> None:
    """Large blocks of this process come from the system and go back to it, as glibc does until it has seen a few.

    Then it keeps blocks of up to 32 MB in its heap, where small ones that stay cut them up: that is a quarter of a
    pass's own memory (six layers of the 20b, 1,024 positions recorded: 1.18 GB, and 0.91 so).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, APART)


def give_back(ranges: Iterable[Range]) -> None:
    """Takes whole pages inside of these out of the process; the page cache keeps them while there is room."""
    for start, n in ranges:
        page = mmap.PAGESIZE
        _advise(-(-start // page) * page, (start + n) // page * page, DONT_NEED)


def read(start: int, n: int) -> None:
    """Reads and maps every page that holds a part of this range.

    The kernel also reads around each page what the device is set to read ahead: good, where the neighbours are wanted.
    An older one does not know what is meant, and maps when a page is touched.
    """
    _advise(*_whole_pages(start, n), POPULATE)


def read_alone(start: int, n: int) -> None:
    """The same, but nothing around: it is asked for exactly first, in pieces."""
    first, last = _whole_pages(start, n)
    for piece in range(first, last, PIECE):
        _advise(piece, min(piece + PIECE, last), WILL_NEED)
    read(start, n)


def _whole_pages(start: int, n: int) -> Range:
    page = mmap.PAGESIZE
    return start // page * page, -(-(start + n) // page) * page


def _advise(first: int, last: int, what: int) -> None:
    if (libc := _libc()) is not None and last > first:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), what)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if can_give_back() else None
