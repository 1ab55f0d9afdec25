"""Checks of arguments: one wording for every index, and one error for every optional package."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.traces import made
from workbench import checks
from workbench.errors import ArgumentError, ArgumentTypeError, MissingDependency, SelectionError
from workbench.model.model import Model

STRICT = {
    "layer": checks.check_layer,
    "head": checks.check_head,
    "expert": checks.check_expert,
    "position": checks.check_position,
    "step": partial(checks.check_index, "step"),
}
FROM_THE_END = {
    "layer": checks.resolve_layer,
    "head": checks.resolve_head,
    "position": checks.resolve_position,
}


@pytest.mark.parametrize(("what", "check"), [*STRICT.items(), *FROM_THE_END.items()])
@pytest.mark.parametrize("wrong", [31, 24, -25])
def test_an_index_out_of_range_is_one_error_with_one_wording(what, check, wrong):
    with pytest.raises(SelectionError, match=rf"^{what} must be between 0 and 23, got {wrong}\.$"):
        check(wrong, 24)


def test_a_wrong_first_argument_is_one_error_with_one_wording(tmp_path):
    trace, model = made.trace(), Model("pocket")
    for call, message in [
        (lambda: wb.attention.sink_mass(model), "sink_mass needs a Trace .*, got a Model"),  # pyright: ignore
        (lambda: wb.attention.receiver_heads(trace), "receiver_heads needs .*step_attention.*, got a Trace"),  # pyright: ignore
        (lambda: wb.patching.logit_diff("pocket", 1, 2), "logit_diff needs a wb.Model .*, got the text 'pocket'"),  # pyright: ignore
        (lambda: wb.circuits.ov_circuit("pocket", 1, 2), "ov_circuit needs a wb.Model .*, got the text 'pocket'"),  # pyright: ignore
        (lambda: wb.figures.save(np.zeros(3), tmp_path / "a"), "figures.save needs a Figure .*, got an ndarray"),  # pyright: ignore
    ]:
        with pytest.raises(ArgumentTypeError, match=message):
            call()


@given(st.integers(-40, 40), st.integers(1, 30))
def test_resolved_indices_are_those_of_python(index, n):
    try:
        expected = range(n)[index]
    except IndexError:
        with pytest.raises(SelectionError):
            checks.resolve_index("layer", index, n)
        return
    assert checks.resolve_index("layer", index, n) == expected
    if index < 0:
        with pytest.raises(SelectionError):
            checks.check_index("layer", index, n)
    else:
        assert checks.check_index("layer", index, n) == index


@pytest.mark.parametrize("three", [3, np.int64(3), np.array(3), torch.tensor(3), xr.DataArray(3)])
def test_one_whole_number_of_any_library_is_an_index(three):
    layer = checks.check_layer(three, 6)
    assert layer == 3 and type(layer) is int


@pytest.mark.parametrize("wrong", [1.5, 3.0, "3", None, [1], np.array([1, 2]), np.array(1.0), "a\x1b[2J" * 99])
def test_an_index_that_is_not_a_whole_number_is_a_type_error_with_its_value(wrong):
    for check in (checks.check_layer, checks.resolve_layer):
        with pytest.raises(ArgumentTypeError, match=r"^layer must be a whole number, got ") as raised:
            check(wrong, 6)
        assert isinstance(raised.value, TypeError) and isinstance(raised.value, ArgumentError)
        assert "\x1b" not in str(raised.value) and len(str(raised.value)) < 250


def test_an_empty_range_has_its_own_error():
    with pytest.raises(SelectionError, match="step 0 does not exist: there are none"):
        checks.check_index("step", 0, 0)


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.pipeline", raising=False)
    with pytest.raises(
        MissingDependency, match=r"^scikit-learn is not installed. Run: pip install 'gpt-oss-workbench\[lab\]'$"
    ) as raised:
        checks.require("sklearn.pipeline", extra="lab")
    assert isinstance(raised.value, ImportError)


def test_a_broken_package_error_has_the_reason(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "halfinstalled.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependency, match=r"halfinstalled is installed but cannot be imported.*nothing_of_that"):
        checks.require("halfinstalled", extra="lab")


def test_an_installed_package_is_returned():
    assert checks.require("json.decoder", extra="lab").JSONDecoder
