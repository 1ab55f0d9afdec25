"""What is supported is said once: in the code, and the same in pyproject.toml and the documentation."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.interop import matrix
from workbench.errors import MissingDependency
from workbench.interop import versions

HOME = Path(__file__).parent.parent.parent


def test_pyproject_asks_for_the_oldest_supported_release():
    extras = tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["interop"]
    for package, (oldest, _, end) in versions.SUPPORTED.items():
        asked = next(e.removeprefix(package) for e in extras if re.fullmatch(re.escape(package) + r"[<>=].*", e))
        bounds = re.fullmatch(r">=([\d.]+),<([\d.]+)", asked)
        assert bounds, asked
        floor, ceiling = bounds.groups()
        assert (versions._numbers(floor) + (0,) * 3)[:3] == versions._numbers(oldest) and ceiling == end


def test_the_documentation_names_the_same_releases():
    text = (HOME / "docs" / "interop.md").read_text("utf-8")
    for package, known in versions.SUPPORTED.items():
        assert f"| {package} | {' | '.join(known)} |" in text


@pytest.mark.parametrize("package", list(versions.SUPPORTED))
def test_a_release_below_or_above_is_refused_and_those_between_are_not(package, monkeypatch):
    oldest, newest, end = versions.SUPPORTED[package]
    for found in (oldest, newest):
        monkeypatch.setattr(versions, "version", lambda _, found=found: found)
        versions.check_release(package)
    for found in ("0.0.1", end, "99.0"):
        monkeypatch.setattr(versions, "version", lambda _, found=found: found)
        with pytest.raises(MissingDependency, match=re.escape(f"{package} {found} is installed")) as raised:
            versions.check_release(package)
        assert f"pip install '{package}>={oldest},<{end}'" in str(raised.value)


def test_the_matrix_frees_only_what_is_under_test():
    kept = matrix.constraints()
    assert "torch==" in kept and "numpy==" in kept
    assert not re.search(r"^(transformers|nnsight|transformer-lens|tokenizers)==", kept, re.MULTILINE)
    assert "transformers-stream-generator==" in kept
