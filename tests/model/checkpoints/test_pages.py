"""What is read when, and what is given back: of a model that is read straight from its file."""

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
    """Notes what is asked for; a request is done when it is waited for, and can be cancelled until then."""

    def __init__(self):
        self.asked: list[tuple[int, int]] = []
        self.coming: list[Future] = []

    def submit(self, do, start: int, n: int) -> Future:
        future = Future()
        future.result = lambda timeout=None: None  # type: ignore[method-assign]
        self.asked.append((start, n))
        self.coming.append(future)
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


def where(model: Model, layer: int, experts: list[int]) -> set[int]:
    return {t[e].data_ptr() for e in experts for m in packed(model, layer) for t in (m.blocks, m.scales)}


def test_what_is_needed_is_asked_for_before_what_is_likely(small, readers):
    residency = small.weights.residency
    residency.prefetch(1, [3])
    assert not readers.asked
    residency.require(0, [1, 2])
    starts = [start for start, _ in readers.asked]
    assert set(starts[:8]) == where(small, 0, [1, 2]) and where(small, 1, [3]) < set(starts[8:])
    assert small.weights.blocks[1].w_q.data_ptr() in starts[8:]


def test_once_a_layer_is_left_the_likely_is_asked_for_at_once_and_only_once(small, readers):
    residency = small.weights.residency
    residency.require(0, [1])
    residency.release(0)
    residency.prefetch(1, [3, 4])
    asked = len(readers.asked)
    assert where(small, 1, [3, 4]) < {start for start, _ in readers.asked[4:]}
    residency.require(1, [3, 4])
    assert len(readers.asked) == asked


def test_a_wrong_guess_that_has_not_begun_is_not_read(small, readers):
    residency = small.weights.residency
    residency.release(0)
    residency.prefetch(1, [3, 4])
    residency.require(1, [3, 5])
    of = dict(zip((start for start, _ in readers.asked), readers.coming, strict=True))
    assert all(of[start].cancelled() for start in where(small, 1, [4]))
    assert not any(of[start].cancelled() for start in where(small, 1, [3, 5]))
    residency.release(1)
    assert not residency._pending


@pytest.fixture
def given_back(monkeypatch):
    seen: set[int] = set()
    real = pages.release_pages

    def noting(ranges):
        ranges = list(ranges)
        seen.update(start for start, _ in ranges)
        real(ranges)

    monkeypatch.setattr(pages, "release_pages", noting)
    return seen


def test_a_token_gives_back_experts_alone_and_a_text_gives_back_everything(small, given_back, monkeypatch):
    monkeypatch.setattr(pages, "DECODE_MAX_EXPERTS", small.config.n_active)
    w = small.weights
    rest = {w.unembed.data_ptr(), *(block.w_q.data_ptr() for block in w.blocks)}
    experts = {packed(small, layer)[0].blocks.data_ptr() for layer in range(small.config.n_layers)}
    cache = KVCache(small.config)
    small.forward(TOKENS[:, :1], cache=cache)
    assert experts < given_back and not rest & given_back
    given_back.clear()
    small.forward(TOKENS[:, 1:], cache=cache)
    assert experts | rest < given_back


def test_reading_maps_what_the_file_holds(tmp_path):
    data = torch.arange(1 << 18, dtype=torch.int32)  # 1 MB: more than is asked for at a time
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

kept = []

def in_the_heap(n):
    kept.append(block := np.empty(n, "u1"))
    heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0]
    first, last = (int(part, 16) for part in heap.split("-"))
    return first <= block.ctypes.data < last

if platform.libc_ver()[0] != "glibc":
    sys.exit(9)
np.empty(30 << 20, "u1")  # freed at once: now glibc keeps what is not larger
before = in_the_heap(20 << 20)
pages.mmap_large_blocks()
print(before, in_the_heap(20 << 20), in_the_heap(1 << 10))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's malloc")
def test_large_blocks_go_back_to_the_system_once_a_large_model_is_mapped():
    done = subprocess.run([sys.executable, "-c", LARGE_BLOCKS], capture_output=True, text=True, check=False)
    if done.returncode == 9:
        pytest.skip("another libc than glibc")
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_a_small_model_leaves_the_process_as_it_is(folder, monkeypatch):
    monkeypatch.setattr(pages, "mmap_large_blocks", lambda: pytest.fail("this model is small"))
    Model(folder)
