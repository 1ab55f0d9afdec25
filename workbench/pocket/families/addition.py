"""Addition with carries: digit by digit from the right."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed

OPENINGS = ("What is {}?", "Compute {}.", "{}=?", "Find {}.")
SIGNS = ("+", " + ")
ENDINGS = ("", " Think.")


@dataclass(frozen=True)
class Addition(Facts):
    """Two numbers with the same number of digits. The digits of a number differ, so each digit identifies its place."""

    a: str
    b: str

    family: ClassVar[str] = "addition"
    wordings: ClassVar = (len(OPENINGS), len(SIGNS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 7
    lengths: ClassVar = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        return cls(number(rng, length), number(rng, length))

    @property
    def length(self) -> int:
        return len(self.a)

    def question(self, wording: Wording) -> Question:
        before, after = OPENINGS[wording.opening].split("{}")
        q = Question(before)
        for i, digit in enumerate(self.a):
            q.add(digit, f"a{i}")
        q.add(SIGNS[wording.body])
        for i, digit in enumerate(self.b):
            q.add(digit, f"b{i}")
        return q.add(after + ENDINGS[wording.ending])

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        steps: list[Step] = []
        before = None  # the index of the step that the carry comes from
        for number, i in enumerate(reversed(range(self.length))):
            carry = before is not None and int(steps[before].value) > 9
            total = int(self.a[i]) + int(self.b[i]) + carry
            sum_ = f"{self.a[i]}+{self.b[i]}" + "+1" * carry
            uses = () if before is None else (before,)
            reads = (question.span(f"a{i}"), question.span(f"b{i}"))
            right = Step(f"{sum_}={total}", str(total), uses, reads)
            before = append_step(steps, number, right, slip, f"{sum_}={{}}".format)
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        return str(sum(map(int, read)) + (bool(used) and int(used[0]) > 9))

    def answer(self, steps: tuple[Step, ...]) -> str:
        totals = [value for value in values_of(steps) if value is not None]
        return totals[-1] + "".join(total[-1] for total in reversed(totals[:-1]))

    def brief(self) -> str:
        return ", ".join(step.value for step in self.think(self.question(Wording()))) + "."

    def wrong(self, number: int, rng: Random) -> str:
        right = self.think(self.question(Wording()))[number].value
        return rng.choice([str(n) for n in range(20) if len(str(n)) == len(right) and str(n) != right])


def number(rng: Random, length: int) -> str:
    """A random number with `length` different digits.

    >>> number(Random(0), 3)
    '760'
    """
    first = rng.choice("123456789")
    return first + "".join(rng.sample([digit for digit in "0123456789" if digit != first], length - 1))


def values_of(steps: tuple[Step, ...]) -> list[str | None]:
    """The value of each step; None for a wrong step that the next one corrects."""
    corrected = {i - 1 for i, step in enumerate(steps) if step.kind == "correction"}
    return [None if i in corrected else step.value for i, step in enumerate(steps)]
