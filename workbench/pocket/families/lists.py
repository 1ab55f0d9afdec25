"""List operations: a row of digits, and a sequence of operations on it."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed

OPERATIONS: dict[str, Callable[[str], str]] = {
    "drop": lambda row: row[1:],
    "cut": lambda row: row[:-1],
    "rotate": lambda row: row[1:] + row[:1],
    "flip": lambda row: row[1::-1] + row[2:],
    "reverse": lambda row: row[::-1],
    "turn": lambda row: row[-1:] + row[:-1],
    "switch": lambda row: row[:-2] + row[:-3:-1],
    "ends": lambda row: row[-1:] + row[1:-1] + row[:1],
    "lift": lambda row: row[2:3] + row[:2] + row[3:],
}
OPENINGS = ("List {}.", "Take {}.", "Digits {}.")
BODIES = ((" Do: ", ", "), (" Then: ", ", "), (" Do: ", "; "))
ENDINGS = ("", " What is left?")


@dataclass(frozen=True)
class Lists(Facts):
    """All digits of `row` differ, and so do the operations, so each one identifies its place."""

    row: str
    operations: tuple[str, ...]

    family: ClassVar[str] = "lists"
    means: ClassVar = OPERATIONS
    wordings: ClassVar = (len(OPENINGS), len(BODIES), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 7
    lengths: ClassVar = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        row = "".join(rng.sample("0123456789", rng.choice((4, 5, 5))))
        return cls(row, tuple(rng.sample(list(OPERATIONS), length)))

    @property
    def length(self) -> int:
        return len(self.operations)

    def question(self, wording: Wording) -> Question:
        before, after = OPENINGS[wording.opening].split("{}")
        opening, separator = BODIES[wording.body]
        q = Question(before).add(self.row, "row").add(after + opening)
        for i, operation in enumerate(self.operations):
            q.add(separator if i else "").add(operation, f"do{i}")
        return q.add("." + ENDINGS[wording.ending])

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        steps = [Step(f"Start: {self.row}", self.row, (), (question.span("row"),), "setup", ".")]
        at = 0
        for i, operation in enumerate(self.operations):
            row = self.means[operation](steps[at].value)
            right = Step(f"{operation} {row}", row, (at,), (question.span(f"do{i}"),))
            at = append_step(steps, i + 1, right, slip, f"{operation} {{}}".format)
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        return read[0] if step.kind == "setup" else self.means[read[0]](used[0])

    def answer(self, steps: tuple[Step, ...]) -> str:
        return steps[-1].value

    def brief(self) -> str:
        return ", ".join(step.value for step in self.think(self.question(Wording()))[1:]) + "."

    def wrong(self, number: int, rng: Random) -> str | None:
        """The row with two neighbors exchanged: the same length and digits as the right row."""
        if number == 0:
            return None
        row = self.think(self.question(Wording()))[number].value
        places = [i for i in range(len(row) - 1) if row[i] != row[i + 1]]
        if not places:
            return None
        i = rng.choice(places)
        return row[:i] + row[i + 1] + row[i] + row[i + 2 :]

    def foreign(self, number: int, rng: Random) -> str | None:
        """The row with one digit replaced by a digit that the list never had."""
        if number == 0:
            return None
        row = self.think(self.question(Wording()))[number].value
        i = rng.randrange(len(row)) if row else 0
        return row[:i] + rng.choice([d for d in "0123456789" if d not in self.row]) + row[i + 1 :] if row else None


@dataclass(frozen=True)
class OtherLists(Lists):
    """Lists with one rule changed, for a comparison model: "drop" removes the last digit, as "cut" does."""

    means: ClassVar = OPERATIONS | {"drop": OPERATIONS["cut"]}
