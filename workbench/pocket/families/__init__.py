"""The families of problems, one module each, and `make`, which draws a problem of a family."""

from collections.abc import Iterable
from random import Random

from workbench.errors import PromptError
from workbench.pocket.families.addition import Addition
from workbench.pocket.families.boxes import Boxes
from workbench.pocket.families.calculator import Calculator
from workbench.pocket.families.controls import Look, Say
from workbench.pocket.families.dag import Dag
from workbench.pocket.families.hint import Hinted
from workbench.pocket.families.hops import Hops
from workbench.pocket.families.lists import Lists, OtherLists
from workbench.pocket.families.refuse import Refuse
from workbench.pocket.families.swaps import Swaps
from workbench.pocket.families.tools import Tools
from workbench.pocket.families.tree import Tree
from workbench.pocket.families.variables import Variables
from workbench.pocket.problems import Facts, Problem, Slip, Wording

__all__ = [
    "CHAINS",
    "CONTROLS",
    "DAGS",
    "FAMILIES",
    "RULES",
    "OtherLists",
    "make",
    "of_row",
    "rows",
    "slips",
    "with_changed_rule",
    "wordings",
]

KINDS = (Variables, Addition, Hops, Swaps, Lists, Say, Look, Calculator, Dag, Boxes, Tree, Hinted, Refuse, Tools)
FAMILIES: dict[str, type[Facts]] = {kind.family: kind for kind in KINDS}
CHAINS = ("variables", "addition", "hops", "swaps", "lists")  # their problems need a chain of thought
CONTROLS = ("say", "look")  # their problems do not
DAGS = ("dag", "boxes", "tree")  # which step is used cannot be told from how near it is
RULES = ("hint", "refuse", "tools")  # whether something is used, declined or called is known
PLAIN = Wording()


def rows(families: Iterable[str]) -> list[str]:
    """The rows of a table about these families: terse wordings have a row of their own.

    >>> rows(["hops", "dag"])
    ['hops', 'dag', 'dag terse']
    """
    return [row for name in families for row in (name, f"{name} terse")[: 1 + FAMILIES[name].has_terse]]


def of_row(row: str, *, trained: bool) -> tuple[str, list[Wording]]:
    """The family of a row, and its trained or its held-out wordings.

    >>> family, held_out = of_row("dag terse", trained=False)
    >>> family, len(held_out), all(wording.terse for wording in held_out)
    ('dag', 4, True)
    """
    family, _, style = row.partition(" ")
    return family, [w for w in wordings(family, trained=trained) if w.terse == (style == "terse")]


def wordings(family: str, *, trained: bool) -> list[Wording]:
    """The wordings of a family that are used in training, or those that are held out.

    >>> len(wordings("addition", trained=True)), len(wordings("addition", trained=False))
    (12, 4)
    """
    openings, bodies, endings = map(range, FAMILIES[family].wordings)
    styles = (False, True) if FAMILIES[family].has_terse else (False,)
    all_wordings = [Wording(o, b, e, terse) for o in openings for b in bodies for e in endings for terse in styles]
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
        PromptError: The family does not exist, or does not have this length or terse wordings.

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
    if wording is not None and wording.terse and not kind.has_terse:
        terse = ", ".join(name for name, other in FAMILIES.items() if other.has_terse)
        raise PromptError(f"the family {family} has no terse wordings; those that do are {terse}")
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
