"""A memory-mapped model: which pages are read when, and which are released."""

import subprocess
import sys
from concurrent.futures import Future

import pytest
import torch

from tests.checkpoints import Random
from workbench.model.cache import KVCache
from workbench.model.checkpoints import pages
from workbench.model.checkpoints.pages import Streamed
from workbench.model.kernels.packed import Packed
from workbench.model.model import Model

RANDOM = Random(seed=8)
TOKENS = torch.randint(0, RANDOM.config.d_vocab, (1, 40), generator=torch.Generator().manual_seed(1))


class Readers:
    """Records the read requests. A request finishes when its result is awaited, and can be canceled until then."""

    def __init__(self):
        self.requests: list[tuple[int, int]] = []
        self.futures: list[Future] = []

    def submit(self, do, start: int, n: int) -> Future:
        future = Future()
        future.result = lambda timeout=None: None  # type: ignore[method-assign]
        self.requests.append((start, n))
        self.futures.append(future)
        return future


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return RANDOM.write_hf_mxfp4(tmp_path_factory.mktemp("pages") / "model")


@pytest.fixture
def small(folder):
    model = Model(folder, memory="small", dtype="bfloat16")
    assert isinstance(model.weights.residency, Streamed)
    return model


@pytest.fixture
def readers(small, monkeypatch):
    readers = Readers()
    monkeypatch.setattr(small.weights.residency, "_readers", readers)
    return readers


def packed(model: Model, layer: int) -> tuple[Packed, Packed]:
    m = model.weights.blocks[layer].experts
    assert isinstance(m.up, Packed) and isinstance(m.down, Packed)
    return m.up, m.down


def addresses(model: Model, layer: int, experts: list[int]) -> set[int]:
    return {t[e].data_ptr() for e in experts for m in packed(model, layer) for t in (m.blocks, m.scales)}


def test_required_experts_are_requested_before_likely_ones(small, readers):
    residency = small.weights.residency
    residency.prefetch(1, [3])
    assert not readers.requests
    residency.require(0, [1, 2])
    starts = [start for start, _ in readers.requests]
    assert set(starts[:8]) == addresses(small, 0, [1, 2]) and addresses(small, 1, [3]) < set(starts[8:])
    assert small.weights.blocks[1].w_q.data_ptr() in starts[8:]


def test_after_release_the_likely_experts_of_the_next_layer_are_requested_at_once_and_only_once(small, readers):
    residency = small.weights.residency
    residency.require(0, [1])
    residency.release(0)
    residency.prefetch(1, [3, 4])
    n_requests = len(readers.requests)
    assert addresses(small, 1, [3, 4]) < {start for start, _ in readers.requests[4:]}
    residency.require(1, [3, 4])
    assert len(readers.requests) == n_requests


def test_a_wrongly_guessed_expert_is_canceled_if_its_read_has_not_started(small, readers):
    residency = small.weights.residency
    residency.release(0)
    residency.prefetch(1, [3, 4])
    residency.require(1, [3, 5])
    future_at = dict(zip((start for start, _ in readers.requests), readers.futures, strict=True))
    assert all(future_at[start].cancelled() for start in addresses(small, 1, [4]))
    assert not any(future_at[start].cancelled() for start in addresses(small, 1, [3, 5]))
    residency.release(1)
    assert not residency._pending


@pytest.fixture
def released(monkeypatch):
    """The addresses of the ranges whose pages were released."""
    starts: set[int] = set()
    release_pages = pages.release_pages

    def recording(ranges):
        ranges = list(ranges)
        starts.update(start for start, _ in ranges)
        release_pages(ranges)

    monkeypatch.setattr(pages, "release_pages", recording)
    return starts


def test_a_one_token_pass_releases_only_experts_and_a_long_pass_releases_all_weights(small, released, monkeypatch):
    monkeypatch.setattr(pages, "DECODE_MAX_EXPERTS", small.config.n_active)
    w = small.weights
    dense = {w.unembed.data_ptr(), *(block.w_q.data_ptr() for block in w.blocks)}
    experts = {packed(small, layer)[0].blocks.data_ptr() for layer in range(small.config.n_layers)}
    cache = KVCache(small.config)
    small.forward(TOKENS[:, :1], cache=cache)
    assert experts < released and not dense & released
    released.clear()
    small.forward(TOKENS[:, 1:], cache=cache)
    assert experts | dense < released


def test_with_memory_fast_a_pass_over_many_positions_releases_embedding_and_unembedding(folder, released):
    """A decoded token keeps the unembedding: the next one needs it too."""
    model = Model(folder, memory="fast", dtype="bfloat16")
    starts = {name: getattr(model.weights, name).data_ptr() for name in ("embed", "unembed")}
    cache = KVCache(model.config)
    model.forward(TOKENS, cache=cache)
    assert released == set(starts.values())
    released.clear()
    model.forward(TOKENS[:, :1], cache=cache)
    assert released == {starts["embed"]}


def test_read_pages_have_the_content_of_the_file(tmp_path):
    data = torch.arange(1 << 18, dtype=torch.int32)  # 1 MB: more than one request of read_exactly
    (tmp_path / "data").write_bytes(data.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "data"), size=len(data), dtype=torch.int32)
    for read in (pages.read_pages, pages.read_exactly):
        read(mapped.data_ptr() + 5, mapped.nbytes - 9)
        assert torch.equal(mapped, data)
        pages.release_pages([(mapped.data_ptr(), mapped.nbytes)])
    assert torch.equal(mapped, data)


LARGE_BLOCKS = """
import platform, sys
import numpy as np
from workbench.model.checkpoints import pages

blocks = []

def in_the_heap(n):
    blocks.append(block := np.empty(n, "u1"))
    heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0]
    first, last = (int(part, 16) for part in heap.split("-"))
    return first <= block.ctypes.data < last

if platform.libc_ver()[0] != "glibc":
    sys.exit(9)
np.empty(30 << 20, "u1")  # freed at once: from now on glibc keeps blocks up to this size in its heap
before = in_the_heap(20 << 20)
pages.mmap_large_blocks()
print(before, in_the_heap(20 << 20), in_the_heap(1 << 10))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's malloc")
def test_large_blocks_are_outside_the_heap_after_mmap_large_blocks():
    done = subprocess.run([sys.executable, "-c", LARGE_BLOCKS], capture_output=True, text=True, check=False)
    if done.returncode == 9:
        pytest.skip("another libc than glibc")
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_a_small_model_does_not_change_the_allocator(folder, monkeypatch):
    monkeypatch.setattr(pages, "mmap_large_blocks", lambda: pytest.fail("this model is small"))
    Model(folder)
