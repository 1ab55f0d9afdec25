"""Two controls that need no chain of thought: copying a text, and a single look-up."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.people import COLORS, NAMES
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, closed


@dataclass(frozen=True)
class Say(Facts):
    """Names or digits to copy, all different. The analysis has no effect on the answer."""

    words: str

    family: ClassVar[str] = "say"
    OPENINGS: ClassVar = ("Say {}.", "Repeat {}.", "Copy {}.")
    ENDINGS: ClassVar = ("", " Only that.")
    wordings: ClassVar = (3, 1, 2)
    shortest: ClassVar = 2
    longest: ClassVar = 8
    lengths: ClassVar = (2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        if rng.random() < 0.5:
            return cls(" ".join(rng.sample(NAMES, length)))
        return cls("".join(rng.sample("0123456789", length)))

    @property
    def length(self) -> int:
        return len(self.words.split()) if self.words[0].isalpha() else len(self.words)

    def question(self, wording: Wording) -> Question:
        before, after = self.OPENINGS[wording.opening].split("{}")
        return Question(before).add(self.words, "words").add(after + self.ENDINGS[wording.ending])

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        return (Step("Copy it", self.words, (), (question.span("words"),), "setup", "."),)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        return read[0]

    def answer(self, steps: tuple[Step, ...]) -> str:
        return self.words

    def brief(self) -> str:
        return "Copy it."


@dataclass(frozen=True)
class Look(Facts):
    """Colors of people; the question is about one of them: a single look-up."""

    colors: tuple[tuple[str, str], ...]
    asked: str  # a hash of the facts and of this name decides between training and test problems

    family: ClassVar[str] = "look"
    OPENINGS: ClassVar = ("Colors: ", "Table: ", "List: ")
    SEPARATORS: ClassVar = (", ", "; ")
    ENDINGS: ClassVar = (" What has {}?", " Look up {}.", " Which is with {}?")
    wordings: ClassVar = (3, 2, 3)
    shortest: ClassVar = 2
    longest: ClassVar = 8
    lengths: ClassVar = (2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        pairs = tuple((name, rng.choice(COLORS)) for name in rng.sample(NAMES, length))
        return cls(pairs, rng.choice(pairs)[0])

    @property
    def length(self) -> int:
        return len(self.colors)

    def question(self, wording: Wording) -> Question:
        q = Question(self.OPENINGS[wording.opening])
        for i, (name, color) in enumerate(self.colors):
            q.add(self.SEPARATORS[wording.body] if i else "").add(f"{name} {color}", name)
        before, after = self.ENDINGS[wording.ending].split("{}")
        return q.add("." + before).add(self.asked, "target").add(after)

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        color = dict(self.colors)[self.asked]
        reads = (question.span("target"), question.span(self.asked))
        return closed([Step(f"Look: {self.asked} {color}", color, (), reads)])

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        return read[1].removeprefix(f"{read[0]} ")

    def answer(self, steps: tuple[Step, ...]) -> str:
        return steps[-1].value

    def brief(self) -> str:
        return f"Look: {dict(self.colors)[self.asked]}."
