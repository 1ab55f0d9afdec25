"""Permutation tracking: pairs of people swap what they hold; who has the thing at the end?"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.people import NAMES, THINGS
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed

OPENINGS = ("Now {} has the {}.", "At first {} has the {}.")
BODIES = ((" swap: ", ", "), (" Swaps: ", ", "), (" swap: ", "; "))
ENDINGS = (" Who has the {}?", " Find the {}.", " Where is the {}?")


@dataclass(frozen=True)
class Swaps(Facts):
    """No two people swap twice, so a pair identifies its place in the list."""

    start: str
    thing: str
    pairs: tuple[tuple[str, str], ...]

    family: ClassVar[str] = "swaps"
    wordings: ClassVar = (len(OPENINGS), len(BODIES), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 8
    lengths: ClassVar = (1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 8)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        people = rng.sample(NAMES, rng.choice([n for n in (3, 4, 5, 6) if n * (n - 1) // 2 >= length]))
        all_pairs = list(combinations(people, 2))
        pairs = tuple((a, b) if rng.random() < 0.5 else (b, a) for a, b in rng.sample(all_pairs, length))
        return cls(rng.choice(people), rng.choice(THINGS), pairs)

    @property
    def length(self) -> int:
        return len(self.pairs)

    def question(self, wording: Wording) -> Question:
        before, between, after = OPENINGS[wording.opening].split("{}")
        q = Question(before).add(self.start, "start").add(between + self.thing + after)
        opening, separator = BODIES[wording.body]
        q.add(opening)
        for i, (a, b) in enumerate(self.pairs):
            q.add(separator if i else "").add(f"{a} and {b}", f"pair{i}")
        return q.add("." + ENDINGS[wording.ending].format(self.thing))

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        steps = [Step(f"Start: {self.start}", self.start, (), (question.span("start"),), "setup", ".")]
        at = 0
        for i, (a, b) in enumerate(self.pairs):
            holder = steps[at].value
            new = _after(a, b, holder)
            right = Step(_text(a, b, holder, new), new, (at,), (question.span(f"pair{i}"),))
            correction = f"{holder} to {new}" if new != holder else f"still {holder}"
            at = append_step(steps, i + 1, right, slip, partial(_text, a, b, holder), correction)
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        if step.kind == "setup":
            return read[0]
        a, _, b = read[0].partition(" and ")
        return _after(a, b, used[0])

    def answer(self, steps: tuple[Step, ...]) -> str:
        return steps[-1].value

    def brief(self) -> str:
        return " ".join(step.value for step in self.think(self.question(Wording()))) + "."

    def wrong(self, number: int, rng: Random) -> str | None:
        """Another person as the holder. The previous holder is not an option: that text could still be continued."""
        if number == 0:
            return None
        steps = self.think(self.question(Wording()))
        people = sorted({name for pair in self.pairs for name in pair} | {self.start})
        right = {steps[number].value, steps[number - 1].value}
        return rng.choice([name for name in people if name not in right] or [None])


def _after(a: str, b: str, holder: str) -> str:
    return b if holder == a else a if holder == b else holder


def _text(a: str, b: str, holder: str, new: str) -> str:
    """The step's text; it restates the previous holder, so that the step only needs to compare adjacent names."""
    return f"{a} and {b}: {holder}" + (f" to {new}" if new != holder else "")
