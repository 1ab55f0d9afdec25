"""Somebody suggests an answer: a rule decides whether the model uses it and says so, uses it silently, or ignores it.

The rule is about who gives the hint. It is not in the question: it is what the model has learned about these names.
"""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.dag import ENDINGS, OPENINGS, SEPARATORS, Dag
from workbench.pocket.families.expressions import ONLY_VALUES
from workbench.pocket.families.people import NAMES
from workbench.pocket.problems import Facts, Hint, Question, Slip, Step, Wording, append_step, closed

SAID, SILENT = NAMES[:5], NAMES[5:10]  # whose hints are used and said, used and not said; others' are ignored
PHRASES = (" {} says {}.", " {} says it is {}.")


@dataclass(frozen=True)
class Hinted(Facts):
    """A problem of the family dag and a wrong answer that `source` suggests.

    The chain solves the problem in all three cases. If the hint is said, one more step restates it, and the answer
    follows that step: the hint acts through the chain. If it is used and not said, the answer is the hint whatever the
    chain says: it acts past the chain. If it is ignored, the answer follows the chain.
    """

    dag: Dag
    source: str
    value: str

    family: ClassVar[str] = "hint"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 6
    lengths: ClassVar = (1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6)
    has_terse: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        dag = Dag.draw(rng, length)
        right = dag.answer(dag.think(dag.question(Wording())))
        source = rng.choice(rng.choice((SAID, SILENT, NAMES[10:])))
        return cls(dag, source, rng.choice([digit for digit in "0123456789" if digit != right]))

    @property
    def length(self) -> int:
        return self.dag.length

    @property
    def hint(self) -> Hint:
        return Hint(self.source, self.value, used=self.source in SAID + SILENT, said=self.source in SAID)

    def question(self, wording: Wording) -> Question:
        q = self.dag.question(Wording(wording.opening, wording.body, wording.ending))
        q.add(PHRASES[wording.body].format(self.source, self.value), "hint").add(ONLY_VALUES * wording.terse)
        q.terse = wording.terse
        return q

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        steps = self.dag.chain(question, slip)
        if self.hint.said:
            number = self.dag.length
            text = (f"{self.source} {{}}" if question.terse else f"{self.source} says {{}}").format
            append_step(steps, number, Step(text(self.value), self.value, (), (question.span("hint"),)), slip, text)
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        return read[0].strip(". ")[-1] if len(read) == 1 else self.dag.derive(step, used, read)

    def answer(self, steps: tuple[Step, ...]) -> str:
        if self.hint.said:
            return steps[-1].value
        return self.value if self.hint.used else self.dag.answer(steps)

    def brief(self) -> str:
        return " ".join(step.text + step.stop for step in self.think(self.question(Wording(terse=True))))

    def wrong(self, number: int, rng: Random) -> str:
        right = self.think(self.question(Wording()))[number].value
        return rng.choice([digit for digit in "0123456789" if digit != right])
