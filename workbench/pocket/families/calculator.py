"""Multiplication with a calculator: a tool call, and its result as the answer."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.addition import number
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording

OPENINGS = ("What is {}?", "Compute {}.", "{}=?", "Find {}.")
ENDINGS = ("", " Think.")


@dataclass(frozen=True)
class Calculator(Facts):
    """The product of a number with `length` digits and one with two; the digits of a number differ."""

    a: str
    b: str

    family: ClassVar[str] = "calculator"
    wordings: ClassVar = (len(OPENINGS), 1, len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 6
    lengths: ClassVar = (1, 2, 2, 3, 3, 4, 4, 5, 5, 6)
    has_calculator: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        return cls(number(rng, length), number(rng, 2))

    @property
    def length(self) -> int:
        return len(self.a)

    @property
    def product(self) -> str:
        return f"{self.a}*{self.b}"

    def call(self, steps: tuple[Step, ...]) -> str:
        return self.product

    def question(self, wording: Wording) -> Question:
        before, after = OPENINGS[wording.opening].split("{}")
        return Question(before).add(self.product, "product").add(after + ENDINGS[wording.ending])

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        return (Step("Use calc", self.product, (), (question.span("product"),), "plan", "."),)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        return read[0]

    def answer(self, steps: tuple[Step, ...]) -> str:
        return str(int(self.a) * int(self.b))

    def brief(self) -> str:
        return "Use calc."
