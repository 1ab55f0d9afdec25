"""Memory-mapped weights: which pages of the file a forward pass reads, and which it releases.

A mapped weight costs no memory of its own: its pages are the operating system's copy of the file.

* memory="fast": pages stay mapped after their first use.
* memory="small": the pages of a layer are released as soon as the pass has finished the layer. They stay in the page
  cache while there is room. Only the chosen experts are read, all at once and ahead of time, so a model that is larger
  than the memory runs at the speed of the disk and not of page faults. A pass over one or two tokens releases only the
  experts: the next token needs all other weights too, and mapping them again takes as long as computing with them.

With memory="small", an in-place change of a mapped weight is lost when its page is released. Change values by edits, or
copy the weight first.
"""

import ctypes
import mmap
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from torch import Tensor

from workbench.model.checkpoints.changes import version
from workbench.model.checkpoints.residency import Resident
from workbench.model.checkpoints.tensors import Weights
from workbench.model.kernels.lora import plain
from workbench.model.kernels.packed import Packed
from workbench.model.madvise import DONT_NEED, POPULATE, RANDOM, WILL_NEED, advise

DECODE_MAX_EXPERTS = 8  # a pass that runs at most this many experts of a layer is a pass over one or two tokens
DECODE_MAX_POSITIONS = 4  # logits of more positions are not those of a decoded token
READERS = 4  # concurrent read requests: a disk serves several at once faster than one after the other
ADVICE_BYTES = 1 << 19  # of a longer request, Linux may read only the first part
LARGE_MODEL_BYTES = 1 << 30  # of mapped weights; from here on `mmap_large_blocks` limits the memory of a pass itself
MMAP_THRESHOLD_BYTES, M_MMAP_THRESHOLD = 16 << 20, -3  # the second is the parameter's number in mallopt(3)

Range = tuple[int, int]  # address, bytes
Key = tuple[int, int | None]  # layer and expert; None: all other weights of the layer


class Mapped(Resident):
    """Weights in a mapped file that stay mapped once they were read, except the embedding and the unembedding.

    A pass needs few rows of the embedding, and the operating system would read and map many around each. The
    unembedding is released after a pass over many positions, so that it is not in memory together with the values of
    the layers.
    """

    def __init__(self, weights: Weights, mapped: Iterable[Tensor]):
        self._ends = [(t, version(t)) for t in (weights.embed, weights.unembed)]
        files = {t.untyped_storage().data_ptr() for t in mapped}  # a converted tensor has another storage
        self._files = files
        self._embed = self._ranges([weights.embed])
        self._unembed = self._ranges([weights.unembed])
        for start, n in self._embed:
            advise(*_whole_pages(start, n), RANDOM)

    def after_embedding(self) -> None:
        if not self._changed():
            release_pages(self._embed)

    def after_unembedding(self, n_positions: int) -> None:
        if n_positions > DECODE_MAX_POSITIONS and not self._changed():
            release_pages(self._unembed)

    def _changed(self) -> bool:
        """Whether the embedding or the unembedding was changed in place: the change is in its pages alone."""
        return any(version(t) != before for t, before in self._ends)

    def release_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Releases the pages of these tensors, those that are in the mapped file."""
        release_pages(self._ranges(tensors))

    def _ranges(self, tensors: Iterable[Tensor]) -> list[Range]:
        """The ranges of the tensors that are the file's own bytes. The data of any other would be lost on release."""
        return [(t.data_ptr(), t.nbytes) for t in tensors if t.untyped_storage().data_ptr() in self._files]


class Streamed(Mapped):
    """Weights in a mapped file, read before and released after each use.

    The read threads serve requests in the order of submission. Experts that are only likely to run are therefore
    requested after all required ones, and are read while the required ones are computed.
    """

    streams = True

    def __init__(self, weights: Weights, mapped: Iterable[Tensor]):
        super().__init__(weights, mapped)
        self._dense: list[list[Range]] = []  # by layer: all weights but the experts'
        self._matrices: list[list[Range]] = []  # by layer: the matrices of all experts
        self._experts: list[list[Range]] = []  # by layer: address of expert 0, and bytes of each expert
        for block in weights.blocks:
            matrices = (plain(block.experts.up), plain(block.experts.down))
            parts = [t for m in matrices for t in ((m.blocks, m.scales) if isinstance(m, Packed) else (m,))]
            self._dense.append(self._ranges(getattr(block, name) for name in block.__slots__ if name != "experts"))
            self._matrices.append(self._ranges(parts))
            self._experts.append([(start, n // len(parts[0])) for start, n in self._matrices[-1]])
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="workbench-read")
        self._next = 0  # the layer after the one that was released last
        self._likely: dict[Key, list[Range]] = {}  # of a layer after `_next`: not requested yet
        self._pending: dict[Key, list[Future]] = {}
        self._decoding = False  # whether this is a pass over one or two tokens
        self._mapped_layers: set[int] = set()  # layers whose dense weights were not released

    def prefetch(self, layer: int, experts: Collection[int]) -> None:
        dense = {} if layer in self._mapped_layers else {(layer, None): self._dense[layer]}
        likely = dense | self._ranges_of(layer, experts)
        if layer == self._next:
            self._request(likely)
        else:
            self._likely = likely

    def require(self, layer: int, experts: Collection[int]) -> None:
        self._decoding = len(experts) <= DECODE_MAX_EXPERTS
        if self._mapped_layers and not self._decoding:
            release_pages(self._unembed)
            while self._mapped_layers:
                release_pages(self._dense[self._mapped_layers.pop()])
        required = self._ranges_of(layer, experts)
        for key in [key for key in self._pending if key[0] == layer and key not in required]:
            self._pending[key] = [request for request in self._pending[key] if not request.cancel()]  # wrong guess
        self._request(required)
        self._request(self._likely)
        self._likely = {}
        for key in required:
            for request in self._pending[key]:
                request.result()

    def release(self, layer: int) -> None:
        for key in [key for key in self._pending if key[0] <= layer]:
            for request in self._pending.pop(key):
                if not request.cancel():
                    request.result()  # never release pages that are still being read
        self._next = layer + 1
        release_pages(self._matrices[layer])
        if self._decoding:
            self._mapped_layers.add(layer)
        else:
            release_pages(self._dense[layer])

    def after_unembedding(self, n_positions: int) -> None:
        if not self._decoding:
            release_pages(self._unembed)

    def _ranges_of(self, layer: int, experts: Collection[int]) -> dict[Key, list[Range]]:
        return {(layer, e): [(start + e * n, n) for start, n in self._experts[layer]] for e in experts}

    def _request(self, ranges_by_key: dict[Key, list[Range]]) -> None:
        for key, ranges in ranges_by_key.items():
            if key not in self._pending:
                read = read_exactly if self._decoding else read_pages
                self._pending[key] = [self._readers.submit(read, *piece) for piece in ranges]


def with_residency(weights: Weights, mapped: Iterable[Tensor], memory: str) -> Weights:
    """The same weights with a `residency` for the tensors of `mapped`, which are memory-mapped from a file.

    `memory` is "small" (`Streamed`) or "fast" (`Mapped`).
    """
    if weights.embed.device.type != "cpu":  # copied to a GPU: no page of the file is in use
        return weights
    mapped = list(mapped)
    if sum(t.nbytes for t in mapped) >= LARGE_MODEL_BYTES:
        mmap_large_blocks()
    return replace(weights, residency=(Streamed if memory == "small" else Mapped)(weights, mapped))


def mmap_large_blocks() -> None:
    """Makes glibc allocate large blocks with mmap, so that freed ones go back to the system.

    glibc does so at first. After it has freed a few, it keeps blocks of up to 32 MB in its heap, where small
    allocations fragment them. That costs a quarter of a pass's own memory (six layers of the 20b, 1,024 positions
    recorded: 1.18 GB, and 0.91 GB with this setting).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def release_pages(ranges: Iterable[Range]) -> None:
    """Unmaps the whole pages inside these ranges from the process; the page cache keeps them while there is room."""
    for start, n in ranges:
        page = mmap.PAGESIZE
        advise(-(-start // page) * page, (start + n) // page * page, DONT_NEED)


def read_pages(start: int, n: int) -> None:
    """Reads and maps every page that overlaps this range.

    The kernel also reads the pages around each, up to the device's read-ahead setting. That is good where those pages
    are needed too. Linux before 5.14 ignores the request, and maps a page when it is touched.
    """
    advise(*_whole_pages(start, n), POPULATE)


def read_exactly(start: int, n: int) -> None:
    """Reads and maps every page that overlaps this range, without read-ahead: it first requests exactly these pages."""
    first, last = _whole_pages(start, n)
    for at in range(first, last, ADVICE_BYTES):
        advise(at, min(at + ADVICE_BYTES, last), WILL_NEED)
    read_pages(start, n)


def _whole_pages(start: int, n: int) -> Range:
    page = mmap.PAGESIZE
    return start // page * page, -(-(start + n) // page) * page
