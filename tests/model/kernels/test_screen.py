"""The screened token is the one from all logits, for all kinds of weights, at every level; its bounds are certain."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.levels import AT_START
from tests.model.kernels.conftest import LEVELS
from workbench.errors import ArgumentError
from workbench.model.kernels import native
from workbench.model.kernels.screen import MAX_ROW, Screen
from workbench.model.sampling import choose

pytestmark = pytest.mark.skipif(not LEVELS, reason=native.status())
D_VOCAB, D_MODEL, SEED = 400, 72, 7
TEMPERATURES = [0.0, 0.3, 1.0, 2.0]
STEPS = 200  # for each kind and temperature: 12,800 at each level
SMALLEST = 2.0**-133  # the smallest bf16 above 0


@pytest.fixture(autouse=True)
def restored():
    n_threads = torch.get_num_threads()
    yield
    native.use(AT_START)
    torch.set_num_threads(n_threads)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, high: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def weights_and_inputs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Kinds of unembeddings [d_vocab, d_model] with last residuals [step, d_model]."""
    w, x, n = rand(D_VOCAB, D_MODEL) / 3, rand(STEPS, D_MODEL, seed=1), D_VOCAB // 2
    peaked = x + 2 * w[torch.arange(STEPS) % D_VOCAB]
    signs = torch.where(whole(D_VOCAB, D_MODEL, high=1, seed=2) < 0, -0.0, 0.0)
    kinds = {
        "random": (w, x),
        "peaked": (w, peaked),
        "each row twice": (torch.cat([w[:n], w[:n].flip(0)]), x),
        "ties after rounding": (whole(D_VOCAB, D_MODEL, high=1) / 8, whole(STEPS, D_MODEL, high=2, seed=1)),
        "all rows equal": (w[:1].expand(D_VOCAB, D_MODEL), x),
        "all weights 0, of both signs": (signs, x),
        "x is 0": (w, 0 * x),
        "rows of 0": (w * (torch.arange(D_VOCAB) % 2)[:, None], x),
        "only negative logits": (-w.abs(), x.abs()),
        "huge weights": (w * 2.0**120, x / 4),
        "huge weights and x": (w * 2.0**64, x * 2.0**63),  # some sums overflow
        "tiny weights and x": (w * 2.0**-70, x * 2.0**-70),
        "subnormal weights": (whole(D_VOCAB, D_MODEL, high=100) * SMALLEST, x * 2.0**100),
        "subnormal x": (w * 2.0**100, whole(STEPS, D_MODEL, high=100, seed=1) * SMALLEST),
        "rows of all sizes": (w * 2.0 ** torch.linspace(-90, 2, D_VOCAB)[:, None], x),
        "one large element": (w, torch.where(torch.arange(D_MODEL) == 5, 300.0, 1.0) * x),
    }
    return {name: (w.bfloat16(), x.bfloat16()) for name, (w, x) in kinds.items()}


KINDS = weights_and_inputs()
FEW_CANDIDATES = {"random", "peaked", "each row twice", "rows of all sizes", "one large element", "huge weights"}


def full_token(unembed: torch.Tensor, x: torch.Tensor, temperature: float, position: int) -> int:
    return choose(native.linear(x[None], unembed)[0], temperature, 1.0, SEED, position)


@pytest.mark.parametrize("kind", KINDS)
def test_the_screened_token_is_the_one_from_all_logits(level, kind):
    unembed, inputs = KINDS[kind]
    screen, screened = Screen.of(unembed), 0
    for position, x in enumerate(inputs):
        logits = native.linear(x[None], unembed)[0]
        for temperature in TEMPERATURES:
            token = screen.next_token(x, temperature, SEED, position)
            assert token is None or token == choose(logits, temperature, 1.0, SEED, position)
            screened += token is not None
    assert kind not in FEW_CANDIDATES or screened > 0.9 * STEPS * len(TEMPERATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_contain_the_exact_logits_and_those_of_the_kernel(level, kind):
    unembed, inputs = KINDS[kind]
    screen = Screen.of(unembed)
    for x in inputs[:20]:
        screened = screen.candidates(x, 0.0, 0, 0, D_VOCAB)
        exact = (unembed.double() @ x.double()).float().bfloat16()
        for logits in (exact, native.linear(x[None], unembed)[0]):
            if logits.isfinite().all():
                assert screened and (screened.lower <= logits).all() and (logits <= screened.upper).all()


def test_the_bounds_contain_the_logits_whose_errors_are_the_largest_possible(level):
    """x is the difference of a row and its copy, so that all of the row's errors add up; then also with noise in x."""
    w = rand(60, 2880, seed=3).bfloat16()
    screen = Screen.of(w)
    difference = w.double() - screen.scale.double()[:, None] * screen.q.double()
    for row in range(60):
        x = (difference[row] * 1e3).float().bfloat16()
        screened = screen.candidates(x, 0.0, 0, 0, 60)
        logit = native.linear(x[None], w)[0, row]
        assert screened and screened.lower[row] <= logit <= screened.upper[row]
        estimate = (screened.lower[row].double() + screened.upper[row].double()) / 2
        error, bound = abs(logit.double() - estimate), screened.upper[row].double() - estimate
        assert 0.8 * bound < error <= bound


def test_the_bounds_contain_sums_whose_large_terms_cancel(level):
    w = rand(100, 2880, seed=5)
    w[:, 1::2] = w[:, ::2] + w[:, 1::2] / 500
    x = rand(2880, seed=6)
    x[1::2] = -x[::2]
    w, x = w.bfloat16(), x.bfloat16()
    screened = Screen.of(w).candidates(x, 0.0, 0, 0, 100)
    logits = native.linear(x[None], w)[0]
    assert screened and (screened.lower <= logits).all() and (logits <= screened.upper).all()
    exact = (w.double() @ x.double()).float().bfloat16()
    assert (screened.lower <= exact).all() and (exact <= screened.upper).all()


def test_the_bounds_contain_the_error_of_rounding_x(level):
    """Pairs of x that are rounded to one number, with weights of opposite sign that the copy represents exactly."""
    n, step = 1000, 1 / 32767
    x = torch.tensor([1.0, 0.0] + [3.4 * step, 2.6 * step] * (n // 2 - 1)).bfloat16()
    w = torch.tensor([0.0, 0.0] + [127.0, -127.0] * (n // 2 - 1)).expand(16, n).bfloat16()
    screened = Screen.of(w).candidates(x, 0.0, 0, 0, 16)
    logits = native.linear(x[None], w)[0]
    assert screened and (logits > 0.9 * 127 * 499 * 0.8 * step).all()  # and q.X is 0
    assert (screened.lower <= logits).all() and (logits <= screened.upper).all()


def test_the_bounds_contain_the_rounding_errors_of_the_kernel(level):
    """The copy and x are exact here, and so is every sum except the kernel's, whose terms cancel."""
    n = 32768
    half = torch.randint(64, 128, (20, n // 2), generator=torch.Generator().manual_seed(0))
    half[:, 0] = 127
    order = torch.randperm(n // 2, generator=torch.Generator().manual_seed(1))
    w = torch.cat([half, -half[:, order]], 1).bfloat16()
    x = torch.full((n,), 255 / 128).bfloat16()
    screened = Screen.of(w).candidates(x, 0.0, 0, 0, 20)
    logits = native.linear(x[None], w)[0]
    assert (w.double() @ x.double() == 0).all() and (logits != 0).any()
    assert screened and (screened.lower <= logits).all() and (logits <= screened.upper).all()


def test_a_row_whose_sums_may_overflow_is_never_left_out(level):
    """Its logit is infinite, although the exact product is 0, and the other logits are large."""
    unembed = (torch.linspace(0.1, 1, 80)[:, None] * 2.0**109).expand(80, 64).bfloat16()
    unembed[5] = torch.cat([torch.full((32,), 2.0**123), torch.full((32,), -(2.0**123))]).bfloat16()
    x = torch.full((64,), 32.0).bfloat16()
    assert native.linear(x[None], unembed)[0].isfinite().tolist() == [row != 5 for row in range(80)]
    for temperature in TEMPERATURES:
        assert Screen.of(unembed).next_token(x, temperature, SEED, 0) is None
        others = torch.cat([unembed[:5], unembed[6:]])
        assert Screen.of(others).next_token(x, temperature, SEED, 0) == full_token(others, x, temperature, 0) == 78


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 2880, MAX_ROW])
def test_the_integer_sums_of_the_largest_numbers_do_not_overflow(level, n):
    w = torch.ones(16, n).bfloat16()
    for sign in (1, -1):
        x = torch.full((n,), 1.0 * sign).bfloat16()
        screened = Screen.of(w).candidates(x, 0.0, 0, 0, 16)
        assert screened and (screened.lower <= sign * n).all() and (screened.upper >= sign * n).all()
        assert (screened.upper - screened.lower <= 0.02 * n).all()


def arbitrary(shape: tuple[int, int], values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int16)).view(torch.bfloat16).view(shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_screened_token_is_right_for_arbitrary_bits(data):
    """Of weights and x: NaN, infinities, subnormal numbers, -0; finite ones only in half of the examples."""
    n = data.draw(st.sampled_from([1, 5, 16, 64, 70]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    low = data.draw(st.sampled_from([-(2**15), 0x3000, 0x0001, 0x3F00]))
    high = data.draw(st.sampled_from([2**15 - 1, 0x4200, 0x0100, 0x7F7F]))
    low, high = min(low, high), max(low, high)
    unembed = arbitrary((80, n), rng.integers(low, high, 80 * n, endpoint=True))
    inputs = arbitrary((10, n), rng.integers(low, high, 10 * n, endpoint=True))
    finite = bool(unembed.isfinite().all())
    for name in native.levels():
        native.use(name)
        screen = Screen.of(unembed)
        for position, x in enumerate(inputs):
            for temperature in (*TEMPERATURES, 1e-310):
                token = screen.next_token(x, temperature, SEED, position)
                if token is not None:
                    assert finite and x.isfinite().all()
                    assert token == full_token(unembed, x, temperature, position)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_gives_none(level, bad):
    unembed, inputs = KINDS["random"]
    x = inputs[0].clone()
    x[-1] = bad
    for temperature in TEMPERATURES:
        assert Screen.of(unembed).next_token(inputs[0], temperature, SEED, 0) is not None
        assert Screen.of(unembed).next_token(x, temperature, SEED, 0) is None
        changed = unembed.clone()
        changed[300, 70] = bad
        assert Screen.of(changed).next_token(inputs[0], temperature, SEED, 0) is None


def test_more_than_an_eighth_of_the_rows_as_candidates_give_none(level):
    """Also a temperature that the largest logit cannot be divided by."""
    unembed, inputs = KINDS["all rows equal"]
    assert Screen.of(unembed).next_token(inputs[0], 0.0, SEED, 0) is None
    one_eighth = torch.cat([KINDS["random"][0][: D_VOCAB * 7 // 8] * 0, unembed[: D_VOCAB // 8].sign()])
    x = unembed[0].sign() * 100
    assert Screen.of(one_eighth).next_token(x, 0.0, SEED, 0) == D_VOCAB * 7 // 8
    assert Screen.of(one_eighth[1:]).next_token(x, 0.0, SEED, 0) is None  # 50 of 399 rows
    assert Screen.of(one_eighth).next_token(x, 1e-310, SEED, 0) is None


def test_one_thread_and_two_give_the_same_screen(level):
    unembed, inputs = rand(6000, 200, seed=8).bfloat16(), rand(20, 200, seed=9).bfloat16()
    results = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        screen = Screen.of(unembed)
        results.append([screen.q, screen.scale, screen.residual, screen.norm])
        for position, x in enumerate(inputs):
            for temperature in (0.0, 1.0):
                screened = screen.candidates(x, temperature, SEED, position, 6000)
                assert screened
                results[-1] += screened
                expected = full_token(unembed, x, temperature, position)
                assert screen.next_token(x, temperature, SEED, position) == expected
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_view_of_a_larger_matrix_is_screened_in_place(level):
    unembed, inputs = rand(500, 90, seed=10).bfloat16()[::2, 5:77], KINDS["random"][1]
    screen = Screen.of(unembed)
    for position, x in enumerate(inputs[:50]):
        assert screen.next_token(x, 1.0, SEED, position) == full_token(unembed, x, 1.0, position)


@pytest.mark.long
def test_the_screened_token_is_right_at_the_size_of_the_20b():
    """With WORKBENCH_LONG=1; otherwise 2,000 of the 201,088 rows."""
    unembed = torch.empty(201_088 if os.environ.get("WORKBENCH_LONG") else 2_000, 2880, dtype=torch.bfloat16)
    for start in range(0, len(unembed), 1000):
        unembed[start : start + 1000] = rand(*unembed[start : start + 1000].shape, seed=start) / 30
    screen = Screen.of(unembed)
    for position, x in enumerate(rand(20, 2880, seed=11).bfloat16()):
        for temperature in TEMPERATURES:
            token = screen.next_token(x, temperature, SEED, position)
            assert token == full_token(unembed, x, temperature, position)


def test_any_whole_number_is_a_seed(level):
    unembed, inputs = KINDS["random"]
    for seed in (-1, 2**64, 2**70 + 3):
        expected = choose(native.linear(inputs[:1], unembed)[0], 1.0, 1.0, seed, 3)
        assert Screen.of(unembed).next_token(inputs[0], 1.0, seed, 3) == expected


def test_a_weight_that_is_changed_in_place_is_noticed():
    base, x = KINDS["random"][0].clone(), KINDS["random"][1][0]
    unembed = base[3:, :]
    screen = Screen.of(unembed)
    assert screen.is_current and screen.next_token(x, 0.0, SEED, 0) is not None
    for change in (lambda: unembed.mul_(2), lambda: base[9, 0].zero_(), lambda: base.copy_(base)):
        screen = Screen.of(unembed)
        change()
        assert not screen.is_current and screen.next_token(x, 0.0, SEED, 0) is None
    screen = Screen.of(unembed)
    with torch.inference_mode():
        unembed.add_(1)
    assert not screen.is_current


def test_without_native_kernels_all_logits_are_computed():
    unembed, inputs = KINDS["random"]
    screen = Screen.of(unembed)
    native.use("torch")
    assert screen.next_token(inputs[0], 0.0, SEED, 0) is None
    with pytest.raises(ArgumentError, match="no native kernels"):
        Screen.of(unembed)


def test_a_screen_has_its_size():
    screen = Screen.of(torch.zeros(1000, 2880, dtype=torch.bfloat16))
    assert screen.nbytes == 1000 * (2880 + 3 * 4)
    assert repr(screen) == "Screen(d_vocab=1000, d_model=2880, nbytes=2892000)"


def test_arguments_that_do_not_match_raise():
    w, x = KINDS["random"][0], KINDS["random"][1][0]
    screen = Screen.of(w)
    with torch.inference_mode():
        inference = w + 1
    for call in [
        lambda: Screen.of(w.float()),
        lambda: Screen.of(w[0]),
        lambda: Screen.of(w.T),
        lambda: Screen.of(w[:, :0]),
        lambda: Screen.of(w[:0]),
        lambda: Screen.of(w.to("meta")),
        lambda: Screen.of(torch.zeros(2, MAX_ROW + 1, dtype=torch.bfloat16)),
        lambda: Screen.of(inference),
        lambda: screen.next_token(x.float(), 0.0, 0, 0),
        lambda: screen.next_token(x[:-1], 0.0, 0, 0),
        lambda: screen.next_token(x[None], 0.0, 0, 0),
    ]:
        with pytest.raises(ArgumentError):
            call()
