"""Every number that an analysis gives has its units, on the variable itself."""

from collections.abc import Iterator

import pytest
import xarray as xr

import workbench as wb
from tests.test_arguments import CALLS, World
from workbench.topics import TOPICS

ANALYSES = [name for name in CALLS if name.partition(".")[0] in TOPICS and name.count(".") == 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("units"))


def results(world: World, name: str) -> Iterator[tuple[str, xr.DataArray]]:
    """The name and the array of each variable that an analysis gives."""
    function, given = CALLS[name](world)
    positional = given.get("*unnamed", [])
    result = function(*positional, **{key: value for key, value in given.items() if key != "*unnamed"})
    if isinstance(result, xr.Dataset):
        assert "units" not in result.attrs, "units belong to each variable"
        yield from ((str(variable), result[variable]) for variable in result.data_vars)
    elif isinstance(result, xr.DataArray):
        yield "the array", result


@pytest.mark.parametrize("name", ANALYSES)
def test_every_variable_of_an_analysis_has_units(world, name, monkeypatch):
    monkeypatch.chdir(world.folder)
    without = [variable for variable, array in results(world, name) if not is_text(array) and not units_of(array)]
    assert not without


def units_of(array: xr.DataArray) -> str:
    return str(array.attrs.get("units", ""))


def is_text(array: xr.DataArray) -> bool:
    return array.dtype.kind in "OUST"


def test_units_differ_where_the_variables_differ():
    trace = wb.trace("What is 12+30?")
    shares = wb.attention.breakdown(trace)
    assert {name: units_of(shares[name]) for name in ("sink", "beyond", "distance")} == {
        "sink": "probability",
        "beyond": "probability",
        "distance": "tokens",
    }
    assert {shares[name].attrs["n"] for name in shares} == {len(trace)}
    scores = wb.attention.head_scores(trace)
    assert {str(name): scores[name].attrs["n"] for name in scores} == scores.attrs["n"]
