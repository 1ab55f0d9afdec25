"""A chain in which one step decides whether the calculator is called; the answer is its result, right or wrong."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.dag import OPENINGS, SEPARATORS, definitions, random_uses
from workbench.pocket.families.expressions import LABELS, ONLY_VALUES, Expressions, expressions, place_of, value_of
from workbench.pocket.problems import Question, Step, Wording

ENDINGS = (" If {0} is over {4} use calc: {1}*{2}, else take {3}.", " Take {3}. If {0} is over {4} use calc: {1}*{2}.")
LIMIT = 4  # half of the digits are over it, so the calculator is called in half of the problems


@dataclass(frozen=True)
class Tools(Expressions):
    """Definitions, and a rule: if `decides` is over 4, call the calculator with a product; else take `otherwise`.

    The step of `decides` stands at any position of the chain, all equally often, and says "over" or "under" after its
    value. The calculator's arguments are the values of two other steps, and its result is the answer.
    """

    expressions: tuple[str, ...]
    order: str
    decides: str
    factors: tuple[str, str]
    otherwise: str

    family: ClassVar[str] = "tools"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 4
    longest: ClassVar = 8
    lengths: ClassVar = (4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 8)
    has_terse: ClassVar = True
    has_calculator: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        order = "".join(rng.sample(LABELS[:length], length))
        decides, a, b, otherwise = rng.sample(LABELS[:length], 4)
        return cls(expressions(rng, random_uses(rng, length)), order, decides, (a, b), otherwise)

    def question(self, wording: Wording) -> Question:
        q = definitions(self.expressions, self.order, OPENINGS[wording.opening], SEPARATORS[wording.body])
        ending = ENDINGS[wording.ending].format(self.decides, *self.factors, self.otherwise, LIMIT)
        q.add(".").add(ending, "rule").add(ONLY_VALUES * wording.terse)
        q.terse = wording.terse
        return q

    def suffix(self, number: int, value: str) -> str:
        if LABELS[number] != self.decides:
            return ""
        return " over" if int(value) > LIMIT else " under"

    def deciding(self, steps: tuple[Step, ...]) -> int:
        return place_of(self.decides, steps)

    def call(self, steps: tuple[Step, ...]) -> str | None:
        if int(value_of(self.decides, steps)) <= LIMIT:
            return None
        return "*".join(value_of(label, steps) for label in self.factors)

    def answer(self, steps: tuple[Step, ...]) -> str:
        if self.call(steps) is None:
            return value_of(self.otherwise, steps)
        a, b = (int(value_of(label, steps)) for label in self.factors)
        return str(a * b)
