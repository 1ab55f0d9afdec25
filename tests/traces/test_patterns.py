"""Rows, tiles, bands and views are pieces of one pattern, and that is the pattern that the model had."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

import workbench as wb
from tests.checkpoints import CONFIG, Random
from tests.model.models import some_tokens, tiny
from workbench.errors import NotRecorded, SelectionError
from workbench.model.model import Model
from workbench.traces import Manifest, Stretch, Trace, patterns

N = 150  # past the window of 12, and more than two blocks
SLIDING, FULL = 0, 1
FP32 = 2e-6  # scores reach 22, where neighboring fp32 numbers are 1.9e-6 apart


def made(n: int, dtype: DTypeLike = np.float32, seed: int = 0, **dims) -> Trace:
    """A trace with random queries, keys and sinks of two layers, sliding and full, without a model."""
    config: dict[str, Any] = asdict(CONFIG) | {"n_layers": 2} | dims
    rng = np.random.default_rng((seed, n))
    d = config["d_head"]
    arrays = {"sinks": rng.normal(size=(2, config["n_heads"])).astype(np.float32)}
    for layer in range(2):
        for name, heads in (("rot_q", config["n_heads"]), ("rot_k", config["n_kv_heads"])):
            values = rng.normal(0, 2, (n, heads, d)).astype(dtype)
            arrays[f"blocks.{layer}.attn.hook_{name}"] = values
    config["layer_types"] = list(config["layer_types"][:2])
    model = {"name": "made", "format": "hf-bf16", "weights_digest": "w", "tokenizer_digest": None, "config": config}
    return Trace(Manifest(model=model, tokens=[0] * n, str_tokens=["a"] * n, written=[Stretch(0, n, "prompt")]), arrays)


def by_definition(trace: Trace, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole pattern and sink in fp64, every score at once."""
    q, k = (np.asarray(trace[name, layer], np.float64) for name in ("rot_q", "rot_k"))
    n, n_heads, d = q.shape
    k = np.repeat(k, n_heads // k.shape[1], axis=1)
    s = np.einsum("qhd,khd->hqk", q, k)
    if trace.raw(("rot_q", layer)).dtype == ml_dtypes.bfloat16:
        s = s.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    s = np.where(patterns.masked(trace.config, layer, np.arange(n), n), -np.inf, s / np.sqrt(d))
    sink = np.asarray(trace["sinks"][layer], np.float64)[:, None, None]
    top = np.maximum(s.max(-1, keepdims=True), sink)
    e, e_sink = np.exp(s - top), np.exp(sink - top)
    total = e.sum(-1, keepdims=True) + e_sink
    return e / total, (e_sink / total)[..., 0]


def pooled(whole: np.ndarray, size: int) -> np.ndarray:
    factor = max(1, -(-whole.shape[-1] // size))
    edges = np.arange(0, whole.shape[-1], factor)
    return np.maximum.reduceat(np.maximum.reduceat(whole, edges, axis=-2), edges, axis=-1)


def unbanded(band: patterns.Band, n: int) -> np.ndarray:
    whole = np.zeros((*band.pattern.shape[:2], n), band.pattern.dtype)
    for i, first in enumerate(band.first):
        skip = max(0, -first)
        assert not band.pattern[:, i, :skip].any()
        whole[:, i, first + skip : first + band.pattern.shape[-1]] = band.pattern[:, i, skip:]
    return whole


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 210), st.sampled_from([SLIDING, FULL]), st.data())
def test_tiles_bands_and_views_are_pieces_of_the_whole(n, size, layer, data):
    trace = made(n)
    whole, sink = by_definition(trace, layer)

    def piece():
        a = data.draw(st.integers(0, n - 1))
        return slice(a, data.draw(st.integers(a + 1, n)), data.draw(st.integers(1, 3)))

    queries, keys = piece(), piece()
    heads = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    tile, its_sink = patterns.tile(trace, layer, heads, queries, keys)
    assert np.abs(tile - whole[heads][:, queries, keys]).max() < FP32
    assert np.abs(its_sink - sink[heads][:, queries]).max() < FP32

    cells, factor, mean = patterns.view(trace, layer, heads, size)
    assert cells.shape[1] <= size and factor == -(-n // size)
    assert np.abs(cells - pooled(whole[heads], size)).max() < FP32
    assert np.abs(mean - sink[heads].mean(-1)).max() < FP32
    preview = patterns.view(trace, layer, heads, size, sampled=True).cells
    assert preview.shape == cells.shape and (preview <= cells + FP32).all()

    if layer == SLIDING:
        band = patterns.band(trace, layer, heads, queries)
        assert np.abs(unbanded(band, n) - whole[heads][:, queries]).max() < FP32


@pytest.mark.parametrize("n", range(1, 41))
@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_a_view_of_any_size_is_the_max_pool_of_the_whole(n, layer):
    trace = made(n)
    whole, _ = by_definition(trace, layer)
    for size in range(1, n + 2):
        assert np.abs(patterns.view(trace, layer, size=size).cells - pooled(whole, size)).max() < FP32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layer", [SLIDING, FULL])
@pytest.mark.parametrize("d_head", [16, 24])  # 1/sqrt(24) is no power of 2: scaling and rounding do not commute
def test_rows_follow_the_definition_in_every_dtype_and_sum_to_one_minus_the_sink(dtype, layer, d_head):
    trace = made(N, dtype, d_head=d_head)
    whole, sink = by_definition(trace, layer)
    rows, its_sink = patterns.rows(trace, layer, slice(None))
    assert rows.dtype == (np.float64 if dtype is np.float64 else np.float32)
    # where a sum in fp32 lies at the middle of two bf16 numbers, one score in thousands goes the other way
    close = np.abs(rows - whole) < FP32
    assert (
        close.all() if dtype is not ml_dtypes.bfloat16 else close.mean() > 0.99 and np.abs(rows - whole).max() < 2**-7
    )
    assert np.abs(rows.sum(-1) + its_sink - 1).max() < 1e-6
    assert not rows[:, patterns.masked(trace.config, layer, np.arange(N), N)].any()


def test_rounding_to_bf16_is_that_of_ml_dtypes():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    x = np.concatenate([x, ties, np.array([0, -0.0, np.inf, -np.inf], np.float32)])
    x = x[~np.isnan(x)]
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    patterns._round_to_bf16(x)
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("far", [-90.0, 90.0])
def test_scores_far_from_zero_are_shifted_and_lose_nothing(far):
    trace = made(30)
    arrays = {name: trace[name] for name in trace.names()} | {"sinks": np.full((2, 10), far, np.float32)}
    for layer in range(2):
        arrays[f"blocks.{layer}.attn.hook_rot_q"] = 5 * arrays[f"blocks.{layer}.attn.hook_rot_q"]
    loud = Trace(trace.manifest, arrays)
    for layer in range(2):
        whole, sink = by_definition(loud, layer)
        rows, its_sink = patterns.rows(loud, layer, slice(None))
        # fp32 scores of some 100 have an absolute error of some 1e-5, which their exponentials keep
        assert np.abs(rows - whole).max() < 1e-4 and np.abs(its_sink - sink).max() < 1e-4
        assert np.abs(rows.sum(-1) + its_sink - 1).max() < 1e-6


@pytest.mark.parametrize("layer", range(4))
def test_every_function_gives_the_pattern_that_the_model_had(layer):
    model, tokens = tiny(), some_tokens(N)
    on_demand, recorded = model.trace(tokens, record="attention"), model.trace(tokens, record="patterns")
    _same(on_demand, recorded, layer, 1e-6)


@pytest.mark.parametrize("layer", range(4))
def test_every_function_gives_the_pattern_that_a_bf16_model_had(layer):
    model, tokens = Model(Random(seed=1).transformers(torch.bfloat16)), some_tokens(N)
    on_demand, recorded = model.trace(tokens, record="attention"), model.trace(tokens, record="patterns")
    _same(on_demand, recorded, layer, 2**-7)  # the recorded one is bf16 itself


def _same(on_demand: Trace, recorded: Trace, layer: int, tolerance: float) -> None:
    assert ("pattern", layer) not in on_demand and ("pattern", layer) in recorded
    whole = recorded["pattern", layer]
    for trace in (on_demand, recorded):
        assert np.abs(wb.attention.pattern(trace, layer).values - whole).max() < tolerance
        tile = wb.attention.pattern(trace, layer, [7, 2], slice(60, 140), slice(40, 130))
        assert np.abs(tile.values - whole[[7, 2], 60:140, 40:130]).max() < tolerance
        row = wb.attention.pattern(trace, layer, queries=-1)
        assert row.dims == ("head", "key") and np.abs(row.values - whole[:, -1]).max() < tolerance
        view = wb.attention.pattern_pooled(trace, layer, size=20)
        assert np.abs(view.values - pooled(whole, 20)).max() < tolerance
        if trace.config["layer_types"][layer] == "sliding_attention":
            band = patterns.band(trace, layer, slice(None))
            assert np.abs(unbanded(band, N) - whole).max() < tolerance


def test_pattern_coordinates_are_head_query_and_key():
    trace = made(100)
    whole = wb.attention.pattern(trace, FULL)
    tile = wb.attention.pattern(trace, FULL, 4, slice(20, 60, 3), slice(5, 50))
    assert np.abs(tile - whole.sel(head=4, query=tile["query"], key=tile["key"])).max() < 1e-6
    one = wb.attention.pattern(trace, FULL, 4, -1, 7)
    assert one.dims == () and (one["query"], one["key"]) == (99, 7)
    view = wb.attention.pattern_pooled(trace, FULL, 4, size=30)
    assert list(view["key"].values[:3]) == [0, 4, 8] and view.shape == (25, 25)
    assert (view.attrs["downsampled"], view.attrs["factor"]) == ("max", 4)
    assert wb.attention.pattern_pooled(trace, FULL, 4, size=30, sampled=True).attrs["downsampled"] == "sampled"
    assert wb.attention.pattern_pooled(trace, FULL, 4, size=100).attrs["downsampled"] == "none"
    band = wb.attention.pattern_band(trace, SLIDING, 4)
    assert np.abs(band.sel(offset=-5, query=50) - wb.attention.pattern(trace, SLIDING, 4)[50, 45]) < 1e-7


@pytest.mark.parametrize(
    ("ask", "there"),
    [
        (lambda t: wb.attention.pattern(t, 2), "layer must be between 0 and 1, got 2"),
        (lambda t: wb.attention.pattern_pooled(t, -1), "layer must be between 0 and 1, got -1"),
        (lambda t: wb.attention.pattern(t, 0, 10), "head must be between 0 and 9, got 10"),
        (lambda t: wb.attention.pattern(t, 0, [1, 12]), "head must be between 0 and 9, got 12"),
        (lambda t: wb.attention.pattern(t, 0, 0, 20), "query must be between 0 and 19, got 20"),
        (lambda t: wb.attention.pattern(t, 0, 0, slice(30, 40)), "query slice.* selects no position.* 0 and 19"),
        (lambda t: wb.attention.pattern(t, 0, 0, keys=-21), "key must be between 0 and 19, got -21"),
        (lambda t: patterns.rows(t, 5, [0]), "layer must be between 0 and 1, got 5"),
        (lambda t: patterns.rows(t, 0, [10]), "head must be between 0 and 9, got 10"),
    ],
)
def test_a_selection_error_has_the_allowed_range(ask, there):
    with pytest.raises(SelectionError, match=there):
        ask(made(20))


def test_a_layer_without_a_window_has_no_band_and_the_error_lists_the_sliding_layers():
    with pytest.raises(NotRecorded, match=r"\[0\]"):
        wb.attention.pattern_band(made(20), FULL)


def test_a_size_below_one_is_an_error():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        wb.attention.pattern_pooled(made(20), 0, size=0)


def test_cached_keys_are_freed_with_their_trace_and_stay_under_the_limit(monkeypatch):
    patterns._layers.clear()
    trace = made(50)
    patterns.rows(trace, FULL, [0])
    patterns.rows(trace, FULL, [1])
    patterns.rows(trace, SLIDING, [1])
    assert len(patterns._layers) == 2
    monkeypatch.setattr(patterns, "CACHE_BYTES", 1)
    patterns.rows(made(50, seed=1), FULL, [0])
    gc.collect()
    assert not patterns._layers
    other = made(50, seed=1)
    assert not np.allclose(patterns.rows(other, FULL, [0])[0], patterns.rows(trace, FULL, [0])[0])
    del trace, other
    gc.collect()
    assert not patterns._layers


def test_a_trace_on_disk_gives_the_same_bits(tmp_path):
    trace = made(N, ml_dtypes.bfloat16)
    stored = wb.load(trace.save(tmp_path / "t"))
    for layer in range(2):
        for _ in range(2):
            assert np.array_equal(patterns.rows(stored, layer, [3])[0], patterns.rows(trace, layer, [3])[0])


def test_many_threads_compute_the_same_pattern_as_one():
    traces = [made(120, seed=seed) for seed in range(3)]
    asks = [(trace, layer, [head]) for trace in traces for layer in range(2) for head in range(10)] * 3
    expected = [patterns.rows(*ask)[0] for ask in asks]
    patterns._layers.clear()
    with ThreadPoolExecutor(4) as pool:
        patterns_of_threads = list(pool.map(lambda ask: patterns.rows(*ask)[0], asks))
    assert all(np.array_equal(a, b) for a, b in zip(expected, patterns_of_threads, strict=True))


def test_a_view_never_holds_the_whole_pattern():
    import tracemalloc

    trace = made(3000)
    patterns.rows(trace, FULL, [0], slice(0, 1))
    tracemalloc.start()
    patterns.view(trace, FULL, [0], 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4 / 4  # four bytes a cell, and a quarter of it
