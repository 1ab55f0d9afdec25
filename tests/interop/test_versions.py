"""The supported releases are the same in the code, in pyproject.toml and in the documentation."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.interop import matrix
from workbench.errors import MissingDependency
from workbench.interop import versions

HOME = Path(__file__).parent.parent.parent


def test_pyproject_requires_the_oldest_supported_release():
    extras = tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["interop"]
    for package, (oldest, _, end) in versions.SUPPORTED.items():
        requirement = next(e.removeprefix(package) for e in extras if re.fullmatch(re.escape(package) + r"[<>=].*", e))
        bounds = re.fullmatch(r">=([\d.]+),<([\d.]+)", requirement)
        assert bounds, requirement
        lower, upper = bounds.groups()
        assert (versions._numbers(lower) + (0,) * 3)[:3] == versions._numbers(oldest) and upper == end


def test_the_documentation_names_the_same_releases():
    text = (HOME / "docs" / "interop.md").read_text("utf-8")
    for package, releases in versions.SUPPORTED.items():
        assert f"| {package} | {' | '.join(releases)} |" in text


@pytest.mark.parametrize("package", list(versions.SUPPORTED))
def test_releases_outside_the_supported_range_are_refused(package, monkeypatch):
    oldest, newest, end = versions.SUPPORTED[package]
    for installed in (oldest, newest):
        monkeypatch.setattr(versions, "version", lambda _, installed=installed: installed)
        versions.check_release(package)
    for installed in ("0.0.1", end, "99.0"):
        monkeypatch.setattr(versions, "version", lambda _, installed=installed: installed)
        with pytest.raises(MissingDependency, match=re.escape(f"{package} {installed} is installed")) as raised:
            versions.check_release(package)
        assert f"pip install '{package}>={oldest},<{end}'" in str(raised.value)


def test_the_matrix_frees_only_the_libraries_under_test():
    constraints = matrix.constraints()
    assert "torch==" in constraints and "numpy==" in constraints
    assert not re.search(r"^(transformers|nnsight|transformer-lens|tokenizers)==", constraints, re.MULTILINE)
    assert "transformers-stream-generator==" in constraints
