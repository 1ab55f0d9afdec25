"""The problems of every family are those that pocket was trained and examined on, to the last character.

A problem's split is a hash of its facts, of which the names of classes and fields are part: renaming one would move
problems between training and test.
"""

import random
from hashlib import sha256

import pytest

from workbench.pocket.families import CHAINS, CONTROLS, DAGS, RULES, make

OLD, NEW = sorted({*CHAINS, *CONTROLS}), sorted({*DAGS, *RULES})


@pytest.mark.parametrize(("families", "expected"), [(OLD, "339f20db1181b8f3"), (NEW, "3363ff9be56b4c40")])
def test_problems_and_their_splits_are_unchanged(families, expected):
    digest = sha256()
    for family in families:
        rng = random.Random(f"digest {family}")
        for _ in range(40):
            problem = make(family, rng)
            digest.update(repr((family, problem.question, problem.analysis, problem.answer, problem.split)).encode())
    assert digest.hexdigest()[:16] == expected
