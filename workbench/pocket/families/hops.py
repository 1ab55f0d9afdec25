"""Multi-hop look-up: a ball is passed on until nobody passes it further. Other chains are interleaved."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import ClassVar, Self

from workbench.errors import ArgumentError
from workbench.pocket.families.people import NAMES
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed

OPENINGS = ("Passes: ", "Ball: ", "Chain: ")
SEPARATORS = (", ", "; ")
ENDINGS = (" Start with {}.", " Begin at {}.", " From {}, who is last?")


@dataclass(frozen=True)
class Hops(Facts):
    """`passes` are (giver, receiver) in the question's order; nobody gives or receives twice."""

    passes: tuple[tuple[str, str], ...]
    start: str
    note: str | None = None  # a giver of another chain that the question asks to mention

    family: ClassVar[str] = "hops"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 8
    lengths: ClassVar = (1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 8)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        names = rng.sample(NAMES, len(NAMES))
        max_hops = (len(NAMES) - length - 1) // 2 - 1  # of each of the two other chains
        sizes = [length, *(min(rng.choice((1, 1, 2, 2, 3)), max_hops) for _ in range(2))]
        chains, at = [], 0
        for size in sizes:
            chains.append(names[at : at + size + 1])
            at += size + 1
        passes = [pair for chain in chains for pair in pairwise(chain)]
        rng.shuffle(passes)
        note = rng.choice(chains[1][:-1]) if rng.random() < 0.3 else None
        return cls(tuple(passes), chains[0][0], note)

    @property
    def length(self) -> int:
        to, name, n = dict(self.passes), self.start, 0
        while name in to:
            name, n = to[name], n + 1
        return n

    def question(self, wording: Wording) -> Question:
        q = Question(OPENINGS[wording.opening])
        for i, (a, b) in enumerate(self.passes):
            q.add(SEPARATORS[wording.body] if i else "").add(f"{a} to {b}", a)
        before, after = ENDINGS[wording.ending].split("{}")
        q.add("." + before).add(self.start, "start").add(after)
        return q if self.note is None else q.add(f" Note {self.note}.", "note")

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        to = dict(self.passes)
        steps: list[Step] = []
        if self.note is not None:
            reads = (question.span("note"), question.span(self.note))
            steps.append(Step(f"Note {self.note} to {to[self.note]}", to[self.note], (), reads, "aside", "."))
        steps.append(Step(f"Start: {self.start}", self.start, (), (question.span("start"),), "setup", "."))
        holder, at, number = self.start, len(steps) - 1, len(steps)
        while holder in to:
            correct = Step(f"{holder} to {to[holder]}", to[holder], (at,), (question.span(holder),))
            at = append_step(steps, number, correct, slip, f"{holder} to {{}}".format)
            holder, number = steps[at].value, number + 1
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        if step.kind == "setup":
            return read[0]
        holder, _, receiver = read[-1].partition(" to ")
        if step.kind != "aside" and used[0] != holder:
            raise ArgumentError(f"the step copies a pass of {holder}, but {used[0]} holds the ball")
        return receiver

    def answer(self, steps: tuple[Step, ...]) -> str:
        return steps[-1].value

    def brief(self) -> str:
        return " ".join(step.value for step in self.think(self.question(Wording())) if step.kind == "compute") + "."

    def wrong(self, number: int, rng: Random) -> str | None:
        steps = self.think(self.question(Wording()))
        if steps[number].kind != "compute":
            return None
        # a wrong value that is already on the chain would close a cycle
        on_chain = {step.value for step in steps if step.kind != "aside"}
        return rng.choice([name for name in dict.fromkeys(n for p in self.passes for n in p) if name not in on_chain])
