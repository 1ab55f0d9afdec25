"""Directed acyclic graphs: definitions in random order, computed in the order of their names; some are never used."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.expressions import (
    LABELS,
    LENGTHS,
    Expressions,
    Uses,
    depths,
    expressions,
    style,
    value_of,
)
from workbench.pocket.problems import Question, Step, Wording

OPENINGS = ("Mod 10 steps: ", "Compute steps: ", "Last digit steps: ")
SEPARATORS = (", ", "; ")
ENDINGS = (" Find {}.", " What is {}?", " Give {}.")


def random_uses(rng: Random, n: int) -> Uses:
    """For each of `n` steps, none to two earlier steps; every earlier step is used with the same probability.

    That probability also is the same for every later step, so a used pair has the distances of any pair of steps.
    """
    share = min(0.5, 2 / max(1, n - 1))
    uses = []
    for i in range(n):
        count = int(share * i) + (rng.random() < share * i % 1)  # on average share * i
        uses.append(sorted(rng.sample(range(i), min(2, count))))
    return uses


@dataclass(frozen=True)
class Dag(Expressions):
    """The expressions of a, b, c, … and the order in which the question defines them; the answer is one of them."""

    expressions: tuple[str, ...]
    order: str
    target: str

    family: ClassVar[str] = "dag"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 8
    lengths: ClassVar = LENGTHS
    has_terse: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        uses = random_uses(rng, length)
        deepest = [label for label, depth in zip(LABELS, depths(uses)) if depth == max(depths(uses))]
        order = "".join(rng.sample(LABELS[:length], length))
        return cls(expressions(rng, uses), order, rng.choice(deepest))

    def question(self, wording: Wording) -> Question:
        q = definitions(self.expressions, self.order, OPENINGS[wording.opening], SEPARATORS[wording.body])
        before, after = ENDINGS[wording.ending].split("{}")
        q.add("." + before).add(self.target, "target").add(after + style(wording))
        q.terse, q.working = wording.terse, wording.working
        return q

    def answer(self, steps: tuple[Step, ...]) -> str:
        return value_of(self.target, steps)


def definitions(expressions: tuple[str, ...], order: str, opening: str, separator: str) -> Question:
    """The start of a question: the opening and all definitions, in this order, with the spans of their parts."""
    q = Question(opening)
    for i, label in enumerate(order):
        q.add(separator if i else "").add(f"{label}=")
        for part, text in zip(("left", "sign", "right"), expressions[LABELS.index(label)]):
            q.add(text, f"{label}.{part}")
    return q
