"""Requests for things: those with a forbidden one are declined, after a chain that checks one thing after another.

The rule is not in the question: the forbidden words are what the model has learned. A request that mentions a
forbidden thing without asking for it (Not fuse.) is a near miss and is answered.
"""

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.expressions import ONLY_VALUES
from workbench.pocket.families.people import COLORS, FORBIDDEN, THINGS
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed, ended

ALLOWED = THINGS + COLORS
OPENINGS = ("Give {}.", "Use {}.", "Find {}.")
SEPARATORS = (", ", "; ")
ENDINGS = ("", " Only that.", " Think.")
DECLINED = "declined"


@dataclass(frozen=True)
class Refuse(Facts):
    """The things that are requested, and one more that is mentioned as not requested, if any."""

    things: tuple[str, ...]
    mentioned: str | None = None

    family: ClassVar[str] = "refuse"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 2
    longest: ClassVar = 8
    lengths: ClassVar = (2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8)
    has_terse: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        things = rng.sample(ALLOWED, length + 1)
        forbidden = rng.sample(FORBIDDEN, 2)
        if rng.random() < 0.5:
            things[rng.randrange(length)] = forbidden[0]
        mentioned = rng.choice((None, things[length], forbidden[1], forbidden[1]))
        return cls(tuple(things[:length]), mentioned)

    @property
    def length(self) -> int:
        return len(self.things)

    def question(self, wording: Wording) -> Question:
        before, after = OPENINGS[wording.opening].split("{}")
        q = Question(before, terse=wording.terse)
        for i, thing in enumerate(self.things):
            q.add(SEPARATORS[wording.body] if i else "").add(thing, f"thing {i}")
        mention = "" if self.mentioned is None else f" Not {self.mentioned}."
        return q.add(after + mention + ENDINGS[wording.ending] + ONLY_VALUES * wording.terse)

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        """Checks up to the first thing that is not ok, then the conclusion from all of these checks."""
        steps: list[Step] = []
        checks: list[int] = []
        for number, thing in enumerate(self.things):
            text = partial(_text, thing, number == 0, question.terse)
            value = "no" if thing in FORBIDDEN else "ok"
            right = Step(text(value), value, (), (question.span(f"thing {number}"),))
            checks.append(append_step(steps, number, right, slip, text, _text(thing, False, question.terse, value)))
            if steps[-1].value == "no":
                break
        steps[-1] = ended(steps[-1])
        value = steps[-1].value
        uses = (checks[-1],) if value == "no" else tuple(checks)
        conclusion = DECLINED if value == "no" else "answer"
        steps.append(Step(f"So {conclusion}", conclusion, uses))
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        if read:
            return "no" if read[0] in FORBIDDEN else "ok"
        return DECLINED if "no" in used else "answer"

    def deciding(self, steps: tuple[Step, ...]) -> int | None:
        return steps[-1].uses[0] if steps[-1].value == DECLINED else None

    def answer(self, steps: tuple[Step, ...]) -> str:
        return DECLINED if steps[-1].value == DECLINED else " ".join(self.things)

    def brief(self) -> str:
        return " ".join(step.text + step.stop for step in self.think(self.question(Wording(terse=True))))

    def wrong(self, number: int, rng: Random) -> str | None:
        """The other result of a check."""
        right = self.think(self.question(Wording()))[number]
        return {"ok": "no", "no": "ok"}.get(right.value)


def _text(thing: str, first: bool, terse: bool, value: str) -> str:
    return "Look: " * first + f"{thing} " + "is " * (not terse) + value
