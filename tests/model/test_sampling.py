"""Sampled tokens follow the probabilities, and depend on logits, seed and position alone, on every machine."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.levels import AT_START
from workbench.model.kernels import native, noise
from workbench.model.sampling import choose

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0, -1.0, -torch.inf])
N_DRAWS = 100_000
GOLDEN = {  # seed, position -> the noise of the first tokens
    (0, 0): [-0.019633015869955188, 0.3743288699012903, 0.1446611933684021],
    (-1, 2**40): [-0.2291503521999973, 1.1413825641249378, 0.6310892210416247],
}


@pytest.fixture(autouse=True)
def restored():
    yield
    native.use(AT_START)


def tokens(temperature: float, seed: int, n: int) -> np.ndarray:
    """`choose` at positions 0 to n - 1, all at once."""
    at = np.array([noise.gumbel(seed, position, len(LOGITS)).numpy() for position in range(n)])
    return (LOGITS.double().numpy() / temperature + at).argmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_sampled_tokens_follow_softmax(temperature):
    drawn = tokens(temperature, 1, N_DRAWS)
    assert drawn[:300].tolist() == [choose(LOGITS, temperature, 1.0, 1, position) for position in range(300)]
    p = (LOGITS.double() / temperature).softmax(-1).numpy()
    counts = np.bincount(drawn, minlength=len(p))
    assert counts[-1] == 0
    assert stats.chisquare(counts[:-1], p[:-1] * N_DRAWS).pvalue > 0.01


def pair_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Of the chi-square test that two series of tokens are independent."""
    table = np.zeros((6, 6))
    np.add.at(table, (first, second), 1)
    return float(stats.chi2_contingency(table).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def test_tokens_at_consecutive_positions_are_independent():
    drawn = tokens(2.0, 5, N_DRAWS)
    for distance in (1, 2, 3, 4):
        assert pair_p_value(drawn[:-distance], drawn[distance:]) > 0.01


def test_tokens_of_neighboring_seeds_are_independent():
    a = tokens(2.0, 8, 20_000)
    for seed in (9, 10, -8, 2**63):
        assert pair_p_value(a, tokens(2.0, seed, 20_000)) > 0.01


def test_the_numbers_of_neighboring_tokens_are_independent_and_follow_gumbel():
    at = noise.gumbel(3, 17, 200_000).numpy()
    assert stats.kstest(at, stats.gumbel_r.cdf).pvalue > 0.01
    for distance in (1, 2, 3, 4, 5):
        assert abs(np.corrcoef(at[:-distance], at[distance:])[0, 1]) < 0.01  # 4.5 standard errors


def test_noise_is_the_same_forever():
    """A change of these numbers would silently give other tokens for a seed."""
    assert noise.gumbel(0, 0, 3).tolist() == GOLDEN[0, 0]
    assert noise.gumbel(-1, 2**40, 3).tolist() == GOLDEN[-1, 2**40]


def test_the_noise_of_a_token_does_not_depend_on_the_number_of_tokens():
    whole = noise.gumbel(5, 6, 20_000)
    for n in (0, 1, 2, 3, 4, 5, 511, 512, 513, 1026, 8191, 8192):
        assert torch.equal(noise.gumbel(5, 6, n), whole[:n])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(-(2**70), 2**70), position=st.integers(0, 2**63), n=st.integers(0, 3000))
def test_every_level_and_numpy_give_the_same_noise(seed, position, n):
    native.use("torch")
    expected = noise.gumbel(seed, position, n)
    assert expected.isfinite().all()
    for level in native.levels():
        native.use(level)
        assert torch.equal(noise.gumbel(seed, position, n), expected)


def test_one_thread_and_two_give_the_same_noise():
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = noise.gumbel(2, 3, 201_088)
        torch.set_num_threads(2)
        assert torch.equal(noise.gumbel(2, 3, 201_088), one)
    finally:
        torch.set_num_threads(n_threads)
    native.use("torch")
    assert torch.equal(noise.gumbel(2, 3, 201_088), one)


def test_logarithms_are_those_of_libm_within_two_units():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random(100_000), np.exp(rng.uniform(-37, 37, 100_000)), 1 - 2.0 ** -np.arange(1, 54)])
    x = np.concatenate([x, 1 + 2.0 ** -np.arange(1, 53), 2.0 ** np.arange(-60, 7)])
    x = x[x > 0]
    assert np.all(np.abs(noise.logarithm(x) - np.log(x)) <= 2 * np.spacing(np.abs(np.log(x))))


def test_the_extreme_random_numbers_are_inside_the_unit_interval():
    raw = np.array([0, 2**64 - 1, 2**12, 2**63], np.uint64)
    u = ((raw >> np.uint64(12)) + 0.5) * 2.0**-52
    assert u.tolist() == [2.0**-53, 1 - 2.0**-53, 1.5 * 2.0**-52, 0.5 + 2.0**-53]
    assert np.isfinite(-noise.logarithm(-noise.logarithm(u))).all()


def test_equal_sums_give_the_first_token():
    equal = torch.zeros(50)
    expected = {int(noise.gumbel(4, position, 50).argmax()) for position in range(30)}
    assert {choose(equal, 1.0, 1.0, 4, position) for position in range(30)} == expected
    assert choose(equal, 0.0, 1.0, 4, 0) == 0 and choose(equal + 1, 1e-320, 1.0, 4, 0) == 0
    far = torch.tensor([0.0, 1e300, 1e300], dtype=torch.float64)  # the noise is lost beside such logits
    assert {choose(far, 1.0, 1.0, 0, position) for position in range(30)} == {1}


def test_top_p_samples_from_the_smallest_set_of_tokens_with_that_mass():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    drawn = np.array([choose(p.log(), 1.0, 0.65, 2, position) for position in range(5000)])
    assert stats.chisquare(np.bincount(drawn, minlength=4)[2:], np.array([3, 4]) / 7 * 5000).pvalue > 0.01
    assert set(drawn.tolist()) == {2, 3}


def test_logits_in_bf16_and_fp32_give_the_tokens_of_fp64():
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0)).bfloat16()
    for position in range(50):
        drawn = {
            choose(logits.to(dtype), 0.8, 1.0, 3, position) for dtype in (torch.bfloat16, torch.float, torch.double)
        }
        assert len(drawn) == 1
