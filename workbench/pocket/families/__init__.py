"""The families of problems, a module each, and `make`, which draws one problem of a family."""

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

__all__ = ["CHAINS", "CONTROLS", "FAMILIES", "OtherLists", "make", "otherwise", "slips", "wordings"]

FAMILIES = {kind.family: kind for kind in (Variables, Addition, Hops, Swaps, Lists, Say, Look, Calculator)}
CHAINS = ("variables", "addition", "hops", "swaps", "lists")  # need a chain of thought
CONTROLS = ("say", "look")  # need none
PLAIN = Wording()


def wordings(family: str, *, trained: bool) -> list[Wording]:
    """The wordings of a family that are trained, or the ones that never are.

    >>> len(wordings("addition", trained=True)), len(wordings("addition", trained=False))
    (12, 4)
    """
    openings, bodies, endings = FAMILIES[family].wordings
    every = [Wording(o, b, e) for o in range(openings) for b in range(bodies) for e in range(endings)]
    return [wording for wording in every if wording.trained == trained]


def make(
    family: str,
    rng: Random,
    *,
    length: int | None = None,
    split: str | None = None,
    wording: Wording | None = PLAIN,
) -> Problem:
    """A problem of `family` of that length and split, drawn by `rng`; `wording=None` draws one of the split's.

    >>> make("hops", Random(1), length=2).analysis
    'Start: Eve. Eve to Jim, Jim to Ned.'

    Raises PromptError for a family that does not exist, or a length that it cannot have.
    """
    if family not in FAMILIES:
        raise PromptError(f"there is no family {family!r}: choose one of {', '.join(FAMILIES)}")
    kind = FAMILIES[family]
    if length is not None and length not in range(kind.shortest, kind.longest + 2):
        raise PromptError(
            f"{family} has lengths {kind.shortest} to {kind.longest}, and {kind.longest + 1} for tests; not {length}"
        )
    if wording is None:
        wording = rng.choice(wordings(family, trained=split != "test"))
    while True:
        problem = Problem(kind.draw(rng, length or rng.choice(kind.lengths)), wording)
        if split in (None, problem.split):
            return problem


def slips(problem: Problem, rng: Random, *, corrected: bool = True, foreign: bool = False) -> list[Slip]:
    """One slip for every step of a problem that can be wrong; with `foreign`, of the kind that is seen at a glance."""
    wrong = problem.facts.foreign if foreign else problem.facts.wrong
    drawn = ((number, wrong(number, rng)) for number in range(len(problem.steps)))
    return [Slip(number, value, corrected) for number, value in drawn if value is not None]


def otherwise(problem: Problem) -> Problem:
    """A problem of lists under the changed rule; the question stays, the analysis and the answer may not.

    >>> from workbench.pocket.families.lists import Lists
    >>> problem = Problem(Lists("4729", ("drop",)))
    >>> problem.answer, otherwise(problem).answer
    ('729', '472')
    """
    facts = problem.facts
    if not isinstance(facts, Lists):
        raise PromptError(f"the rule that can be changed is one of lists; this is a problem of {problem.family}")
    return Problem(OtherLists(facts.row, facts.operations), problem.wording, problem.slip)
