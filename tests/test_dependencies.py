"""The lower bounds of dependencies are above every release with a known hole, and constraints.txt is within them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REQUIREMENTS = [
    Requirement(text)
    for text in [*PROJECT["dependencies"], *(t for extra in PROJECT["optional-dependencies"].values() for t in extra)]
    if not text.startswith("gpt-oss-workbench")
]
# Package -> the last release with a known hole (docs/decisions.md, "Lower bounds without known holes").
HOLES = {
    "torch": "2.9.1",
    "jinja2": "3.1.5",
    "tqdm": "4.66.2",
    "jupyterlab": "4.6.1",
    "pyarrow": "23.0.0",
    "h5py": "3.12.1",
    "scikit-learn": "1.4.2",
    "transformers": "5.4.0",
}


@pytest.mark.parametrize("name", HOLES)
def test_a_release_with_a_known_hole_is_not_accepted(name):
    (requirement,) = [r for r in REQUIREMENTS if canonicalize_name(r.name) == name]
    assert not requirement.specifier.contains(HOLES[name])


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_dependency_has_a_lower_bound_that_constraints_txt_satisfies(requirement):
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    matches = filter(None, (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines))
    pinned = {canonicalize_name(match[1]): Version(match[2]) for match in matches}
    assert any(bound.operator in (">=", "==") for bound in requirement.specifier)
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_decisions_md_names_the_reason_of_each_bound():
    section = (ROOT / "docs" / "decisions.md").read_text("utf-8").partition("## Lower bounds without known holes")[2]
    section = section.partition("\n## ")[0]
    for name in HOLES:
        assert name in section
