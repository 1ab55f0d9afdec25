"""The mix of training problems: families, efforts, lengths and slips, by the progress of a course (0 to 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from workbench.pocket.families import CHAINS, CONTROLS, FAMILIES, make, slips, wordings
from workbench.pocket.problems import Problem, Wording

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
ADDED = {"dag": 0.26, "boxes": 0.23, "tree": 0.20, "tools": 0.16, "hint": 0.11, "refuse": 0.04}  # their sum is 1
KEPT = 0.3  # the weight of the families that the start already solves, in the course that adds families
TERSE = {"dag": 0.30, "boxes": 0.22, "tree": 0.22, "tools": 0.14, "hint": 0.08, "refuse": 0.04}  # their sum is 1
KEPT_TERSE = 0.45  # the same for the course with more terse wordings
BOXES = {"dag": 0.18, "boxes": 0.46, "tree": 0.14, "tools": 0.14, "hint": 0.05, "refuse": 0.03}  # their sum is 1
EFFORT = {"low": 0.15, "medium": 0.12, "high": 0.73}
EFFORT_ELSE = {"low": 0.4, "medium": 0.2, "high": 0.4}  # in families that need no chain of thought


@dataclass(frozen=True)
class Course:
    """One part of training."""

    families: Mapping[str, float]  # family -> weight
    slipping: Mapping[str, float]  # family -> share of chains at high effort with a wrong step
    passed: float = 0.0  # share of wrong steps that are not corrected
    last: Mapping[str, float] = field(default_factory=dict)  # family -> share of wrong steps that are the last step
    foreign: float = 0.0  # share of wrong steps whose value is easily seen to be wrong: see `Facts.foreign`
    wrong_results: float = 0.0  # share of the calculator's results that are wrong
    copying: float = 0.0  # progress until which copying dominates
    short: Mapping[str, float] = field(default_factory=dict)  # family -> progress until which most problems are short
    slips_from: float = 0.0  # progress from which steps can be wrong
    terse: float | None = None  # share of terse wordings in families that have them; None: all wordings equally often
    working: float = 0.0  # share of terse wordings of dag and tree that print operands, at the start; it falls to 0


# A wrong list can be detected only by comparing all of it, so lists have the most slips.
SLIPS = {"variables": 0.25, "addition": 0.4, "hops": 0.5, "swaps": 0.4, "lists": 0.65}
_WITH_ALL_FAMILIES = Course(
    {family: KEPT * share for family, share in FAMILY.items()} | ADDED,
    SLIPS | dict.fromkeys(ADDED, 0.25) | {"hint": 0.5},
    passed=0.25,
    last={"hint": 0.5},  # the step that restates a hint, so that the answer follows it and not the question
    foreign=0.75,
    wrong_results=0.3,
    short=dict.fromkeys(ADDED, 0.25),
    slips_from=0.25,
)
_KEPT_FAMILIES = {family: KEPT_TERSE * share for family, share in FAMILY.items()}
COURSES = {
    "first": Course(
        FAMILY, dict.fromkeys(CHAINS, 0.15), copying=0.015, short=dict.fromkeys(FAMILY, 0.05), slips_from=0.15
    ),
    "slips": Course(FAMILY, SLIPS, passed=0.25, foreign=0.75),
    "families": _WITH_ALL_FAMILIES,
    "terse": replace(
        _WITH_ALL_FAMILIES,
        families=_KEPT_FAMILIES | TERSE,
        short=dict.fromkeys(("dag", "boxes", "tree"), 0.2),
        slips_from=0.0,
        terse=0.7,
        working=0.5,
    ),
    "boxes": replace(
        _WITH_ALL_FAMILIES, families=_KEPT_FAMILIES | BOXES, short={}, slips_from=0.0, terse=0.6, working=0.2
    ),
}


def draw(rng: Random, progress: float, course: str = "first") -> tuple[Problem, str]:
    """A random problem of the training split, and its effort.

    >>> problem, effort = draw(Random(0), progress=0.5)
    >>> problem.split, problem.wording.trained, effort in ("low", "medium", "high")
    ('train', True, True)
    """
    plan = COURSES[course]
    weights = WARM_UP if progress < plan.copying else plan.families
    family = rng.choices(list(weights), list(weights.values()))[0]
    efforts = EFFORT_ELSE if family in (*CONTROLS, "calculator") else EFFORT
    effort = rng.choices(list(efforts), list(efforts.values()))[0]
    length = None
    if progress < plan.short.get(family, 0.0) and rng.random() < 0.8:
        kind = FAMILIES[family]
        length = rng.choice([n for n in kind.lengths if n <= (kind.shortest + kind.longest) // 2])
    problem = make(family, rng, length=length, split="train", wording=_wording(family, rng, plan, progress))
    if effort == "high" and progress >= plan.slips_from and rng.random() < plan.slipping.get(family, 0.0):
        corrected = plan.passed == 0 or rng.random() >= plan.passed
        foreign = plan.foreign > 0 and rng.random() < plan.foreign
        if wrong := slips(problem, rng, corrected=corrected, foreign=foreign):
            is_last = family in plan.last and rng.random() < plan.last[family]
            problem = problem.slipped(wrong[-1] if is_last else rng.choice(wrong))
    if plan.wrong_results and (right := problem.result) and rng.random() < plan.wrong_results:
        problem = problem.replied(str(rng.randrange(10 ** (len(right) - 1), 10 ** len(right))))
    return problem, effort


def _wording(family: str, rng: Random, plan: Course, progress: float) -> Wording | None:
    """A trained wording of the family, with the course's share of terse ones; None lets `make` choose."""
    if plan.terse is None or not FAMILIES[family].has_terse:
        return None
    terse = rng.random() < plan.terse
    wording = rng.choice([wording for wording in wordings(family, trained=True) if wording.terse == terse])
    working = terse and family in ("dag", "tree") and rng.random() < plan.working * (1 - progress)
    return replace(wording, working=working)
