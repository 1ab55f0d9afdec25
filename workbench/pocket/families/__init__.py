"""The families of problems, one module each, and `make`, which draws a problem of a family."""

from random import Random

from workbench.errors import PromptError
from workbench.pocket.families.addition import Addition
from workbench.pocket.families.calculator import Calculator
from workbench.pocket.families.controls import Look, Say
from workbench.pocket.families.hops import Hops
from workbench.pocket.families.lists import Lists, OtherLists
from workbench.pocket.families.swaps import Swaps
from workbench.pocket.families.variables import Variables
from workbench.pocket.problems import Problem, Slip, Wording

__all__ = ["CHAINS", "CONTROLS", "FAMILIES", "OtherLists", "make", "slips", "with_changed_rule", "wordings"]

FAMILIES = {kind.family: kind for kind in (Variables, Addition, Hops, Swaps, Lists, Say, Look, Calculator)}
CHAINS = ("variables", "addition", "hops", "swaps", "lists")  # their problems need a chain of thought
CONTROLS = ("say", "look")  # their problems do not
PLAIN = Wording()


def wordings(family: str, *, trained: bool) -> list[Wording]:
    """The wordings of a family that are used in training, or those that are held out.

    >>> len(wordings("addition", trained=True)), len(wordings("addition", trained=False))
    (12, 4)
    """
    openings, bodies, endings = FAMILIES[family].wordings
    all_wordings = [Wording(o, b, e) for o in range(openings) for b in range(bodies) for e in range(endings)]
    return [wording for wording in all_wordings if wording.trained == trained]


def make(
    family: str,
    rng: Random,
    *,
    length: int | None = None,
    split: str | None = None,
    wording: Wording | None = PLAIN,
) -> Problem:
    """A random problem of a family.

    Args:
        family: A name in FAMILIES.
        rng: The random generator; the same state gives the same problem.
        length: The number of steps (or digits, or items); by default drawn from the trained lengths.
        split: "train" or "test"; by default any.
        wording: The wording of the question; None draws one of the split's wordings.

    Raises:
        PromptError: The family does not exist, or does not have this length.

    >>> make("hops", Random(1), length=2).analysis
    'Start: Eve. Eve to Jim, Jim to Ned.'
    """
    if family not in FAMILIES:
        raise PromptError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    kind = FAMILIES[family]
    if length is not None and length not in range(kind.shortest, kind.longest + 2):
        raise PromptError(
            f"length of {family} must be between {kind.shortest} and {kind.longest}, or {kind.longest + 1} for tests, "
            f"got {length}"
        )
    if wording is None:
        wording = rng.choice(wordings(family, trained=split != "test"))
    while True:
        problem = Problem(kind.draw(rng, length or rng.choice(kind.lengths)), wording)
        if split in (None, problem.split):
            return problem


def slips(problem: Problem, rng: Random, *, corrected: bool = True, foreign: bool = False) -> list[Slip]:
    """One random slip (a wrong value) for each step that can have one.

    With `foreign`, part of the wrong value does not occur in the step's sources, so the slip is easy to detect.
    """
    wrong = problem.facts.foreign if foreign else problem.facts.wrong
    values = ((number, wrong(number, rng)) for number in range(len(problem.steps)))
    return [Slip(number, value, corrected) for number, value in values if value is not None]


def with_changed_rule(problem: Problem) -> Problem:
    """The same question of the family lists under the changed rule; analysis and answer may differ.

    >>> from workbench.pocket.families.lists import Lists
    >>> problem = Problem(Lists("4729", ("drop",)))
    >>> problem.answer, with_changed_rule(problem).answer
    ('729', '472')
    """
    facts = problem.facts
    if not isinstance(facts, Lists):
        raise PromptError(f"only the family lists has a changed rule, got a problem of the family {problem.family}")
    return Problem(OtherLists(facts.row, facts.operations), problem.wording, problem.slip)
