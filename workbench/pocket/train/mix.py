"""The mix of training problems: families, efforts, lengths and slips, by the progress of a course (0 to 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from workbench.pocket.families import CHAINS, FAMILIES, make, slips
from workbench.pocket.problems import Problem

FAMILY = {
    "variables": 0.23,
    "addition": 0.14,
    "hops": 0.16,
    "swaps": 0.18,
    "lists": 0.17,
    "say": 0.04,
    "look": 0.05,
    "calculator": 0.03,
}
WARM_UP = FAMILY | {"say": 0.40, "look": 0.20}  # more copying at the start
EFFORT = {"low": 0.15, "medium": 0.12, "high": 0.73}
EFFORT_ELSE = {"low": 0.4, "medium": 0.2, "high": 0.4}  # in families that need no chain of thought
# progress until which copying dominates, until which problems are short, and from which steps can be wrong
COPYING, SHORT, SLIPS = 0.015, 0.05, 0.15


@dataclass(frozen=True)
class Course:
    """One of the two parts of training."""

    slipping: Mapping[str, float]  # family -> share of chains at high effort with a wrong step
    passed: float  # share of wrong steps that are not corrected
    foreign: float  # share of wrong steps whose value is easily seen to be wrong: see `Facts.foreign`
    from_nothing: bool  # starts with short problems and copying


COURSES = {
    "first": Course(dict.fromkeys(CHAINS, 0.15), passed=0.0, foreign=0.0, from_nothing=True),
    # A wrong list can be detected only by comparing all of it, so lists have the most slips.
    "slips": Course(
        {"variables": 0.25, "addition": 0.4, "hops": 0.5, "swaps": 0.4, "lists": 0.65},
        passed=0.25,
        foreign=0.75,
        from_nothing=False,
    ),
}


def draw(rng: Random, progress: float, course: str = "first") -> tuple[Problem, str]:
    """A random problem of the training split, and its effort.

    >>> problem, effort = draw(Random(0), progress=0.5)
    >>> problem.split, problem.wording.trained, effort in ("low", "medium", "high")
    ('train', True, True)
    """
    plan = COURSES[course]
    if not plan.from_nothing:
        progress = 1.0
    weights = WARM_UP if progress < COPYING else FAMILY
    family = rng.choices(list(weights), list(weights.values()))[0]
    efforts = EFFORT if family in CHAINS else EFFORT_ELSE
    effort = rng.choices(list(efforts), list(efforts.values()))[0]
    length = None
    if progress < SHORT and rng.random() < 0.8:
        kind = FAMILIES[family]
        length = rng.choice([n for n in kind.lengths if n <= (kind.shortest + kind.longest) // 2])
    problem = make(family, rng, length=length, split="train", wording=None)
    if effort == "high" and progress > SLIPS and rng.random() < plan.slipping.get(family, 0.0):
        corrected = plan.passed == 0 or rng.random() >= plan.passed
        foreign = plan.foreign > 0 and rng.random() < plan.foreign
        if wrong := slips(problem, rng, corrected=corrected, foreign=foreign):
            problem = problem.slipped(rng.choice(wrong))
    return problem, effort
