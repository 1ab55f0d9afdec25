"""A position has the same bits whatever is computed beside it; otherwise, everything that depends on it says so."""

import pytest
import torch

import workbench as wb
from tests.levels import computing_with
from workbench.model.cache import KVCache
from workbench.model.kernels import independence, native
from workbench.recording.plan import NEIGHBORS

N = 70  # longer than the window of pocket and than a block of queries
IDS = torch.randint(0, 150, (3, N), generator=torch.Generator().manual_seed(1))

needs_kernels = pytest.mark.skipif(native.isa() is None, reason=native.status())


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pocket(request):
    return wb.Model("pocket", dtype=request.param)


@needs_kernels
@pytest.mark.parametrize("level", native.levels())
def test_every_prefix_of_a_text_has_the_bits_of_the_whole_text(pocket, level):
    lengths = range(1, N) if level == native.levels()[0] else (1, 2, 5, 16, 33, 64, 65)
    with computing_with(level), torch.no_grad():
        whole = pocket.forward(IDS[:1])[0]
        assert [n for n in lengths if not torch.equal(pocket.forward(IDS[:1, :n])[0], whole[:n])] == []


@needs_kernels
@pytest.mark.parametrize("level", native.levels())
def test_a_text_has_the_same_bits_in_a_batch_and_token_by_token(pocket, level):
    with computing_with(level), torch.no_grad():
        batch = pocket.forward(IDS)
        for text, alone in zip(IDS, batch):
            assert torch.equal(pocket.forward(text[None])[0], alone)
        cache = KVCache(pocket.config, whole=False)
        steps = [pocket.forward(IDS[:1, i : i + 1], cache=cache)[0] for i in range(N)]
        assert torch.equal(torch.cat(steps), batch[0])


@needs_kernels
def test_a_generated_trace_and_its_replay_agree_in_every_bit(pocket):
    generated = pocket.generate("What is 12+30?", max_tokens=40, record="residuals")
    replayed = pocket.trace(generated, record="residuals")
    assert generated.manifest.replayed_routing is not None and generated.manifest.replayed_routing["different"] == 0
    assert all((generated.raw(name) == replayed.raw(name)).all() for name in ("top_logprobs", "margin", "entropy"))


def test_the_test_of_independence_detects_products_with_dependent_rows(monkeypatch):
    w = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def leaks(x):
        return x @ w + (1e-6 if len(x) == 15 else 0)

    assert independence.rows_independent([(lambda x: 2 * x, 8)], w)
    assert not independence.rows_independent([(lambda x: 2 * x, 8), (leaks, 8)], w)


@pytest.fixture
def dependent(monkeypatch):
    """Pocket, with a test of independence that reports dependent rows."""
    model = wb.Model("pocket")
    monkeypatch.setattr(independence, "rows_independent", lambda products, like: False)
    monkeypatch.setattr(model, "_independent", None)
    return model


def test_dependent_rows_are_reported_by_traces_and_path_patching(dependent, monkeypatch):
    assert dependent.rows_independent is False
    trace = dependent.trace("What is 12+30?")
    assert trace.manifest.numerics["rows_independent"] is False and NEIGHBORS not in trace.manifest.notes
    with dependent.edit("hook_embed", lambda x: 0 * x, positions=3):
        assert NEIGHBORS in dependent.trace("What is 12+30?").manifest.notes
    metric = wb.patching.logit_diff(dependent, "8", "7")
    clean, corrupted = (dependent.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    effects = wb.patching.path_patching(dependent, clean, corrupted, metric, ("mlp", 3), [("logits",)])
    assert effects.attrs["tolerance"] > 0
    monkeypatch.undo()
    model = wb.Model("pocket")
    exact = wb.patching.path_patching(model, clean, corrupted, metric, ("mlp", 3), [("logits",)])
    assert float(abs(effects - exact).max()) < 1e-4 and (exact.attrs["tolerance"] == 0) == model.rows_independent


def test_rows_are_dependent_with_numba_which_computes_few_rows_in_another_order():
    if "numba" not in native.available():
        pytest.skip("numba is not installed")
    with computing_with("numba"):
        assert wb.Model("pocket").rows_independent is False


def test_the_doctor_reports_whether_rows_are_independent():
    report = wb.doctor()
    if native.isa():
        assert report.rows_independent == {"float32": True, "bfloat16": True}
        assert "exact to the last bit" in str(report)
    with computing_with("torch"):
        assert set(wb.doctor().rows_independent) == {"float32", "bfloat16"}
