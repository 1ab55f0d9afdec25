"""Problems whose reasoning is known: a question, the steps that solve it, what each step uses, and the answer.

A family (see `families`) makes facts; facts and a wording make a Problem. From the facts everything follows, so a step
can be made wrong, and what follows from it is known too. Knows nothing of tokens.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import ClassVar, Literal, Protocol, Self
from zlib import crc32

Kind = Literal["setup", "plan", "aside", "compute", "wrong", "correction"]
HELD_OUT = 16  # one problem in so many is never trained, in any wording


@dataclass(frozen=True, slots=True)
class Step:
    """One clause of an analysis. `uses` are numbers of earlier steps, `reads` spans of characters of the question."""

    text: str
    value: str  # what later steps and the answer take from it
    uses: tuple[int, ...] = ()
    reads: tuple[tuple[int, int], ...] = ()
    kind: Kind = "compute"
    stop: str = ","
    slip_from: int | None = None  # the first character that a wrong step has wrong

    @property
    def distractor(self) -> bool:
        """Whether nothing depends on it by the rules of the family: an aside."""
        return self.kind == "aside"


@dataclass(frozen=True, slots=True)
class Slip:
    """The step `number` (of the analysis without slips) says `value` instead, and is corrected at once, or never."""

    number: int
    value: str
    corrected: bool = True


@dataclass(frozen=True, slots=True)
class Wording:
    """Which opening, body and ending a question has. Combinations are held out, parts never are."""

    opening: int = 0
    body: int = 0
    ending: int = 0

    def __str__(self) -> str:
        return f"{self.opening}.{self.body}.{self.ending}"

    @property
    def trained(self) -> bool:
        """One combination in four is only ever seen in tests."""
        return (self.opening + 2 * self.body + self.ending) % 4 != 3


@dataclass(slots=True)
class Question:
    """A text under construction, and where in it the named things stand.

    >>> q = Question().add("What is ").add("7", "a0").add("+").add("8", "b0").add("?")
    >>> q.text, q.span("b0")
    ('What is 7+8?', (10, 11))
    """

    text: str = ""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, text: str, key: str | None = None) -> "Question":
        if key is not None:
            self.spans[key] = (len(self.text), len(self.text) + len(text))
        self.text += text
        return self

    def span(self, key: str) -> tuple[int, int]:
        return self.spans[key]


class Facts(Protocol):
    """What a family knows of one problem. Hashable; equal facts are the same problem, however it is worded."""

    family: ClassVar[str]
    wordings: ClassVar[tuple[int, int, int]]  # how many openings, bodies, endings there are
    shortest: ClassVar[int]
    longest: ClassVar[int]  # of the trained lengths
    lengths: ClassVar[tuple[int, ...]]  # the trained ones, each as often as it is drawn

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        """Facts of that length."""
        ...

    @property
    def length(self) -> int: ...

    def question(self, wording: Wording) -> Question: ...

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        """The analysis at high effort; after an uncorrected slip, what follows from the wrong value."""
        ...

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        """The value of a step, from the values that it uses and the texts that it reads."""
        ...

    def answer(self, steps: tuple[Step, ...]) -> str: ...

    def brief(self) -> str:
        """The analysis at medium effort: results without their working."""
        ...

    def wrong(self, number: int, rng: Random) -> str | None:
        """A wrong value for a step of `think(question)`; None where the step cannot be wrong."""
        return None

    def foreign(self, number: int, rng: Random) -> str | None:
        """A wrong value with something in it that the step cannot have from anywhere; `wrong` where all are so."""
        return self.wrong(number, rng)

    @property
    def call(self) -> str | None:
        """What the calculator is asked, if it is."""
        return None


@dataclass(frozen=True)
class Problem:
    """One question with its analysis and its answer.

    >>> from workbench.pocket.families import make
    >>> problem = make("addition", Random(3), length=2)
    >>> problem.question, problem.analysis, problem.answer
    ('What is 49+36?', '9+6=15, 4+3+1=8.', '85')
    >>> [(step.value, step.uses, [problem.question[a:b] for a, b in step.reads]) for step in problem.steps]
    [('15', (), ['9', '6']), ('8', (0,), ['4', '3'])]
    """

    facts: Facts
    wording: Wording = Wording()
    slip: Slip | None = None

    @property
    def family(self) -> str:
        return self.facts.family

    @property
    def length(self) -> int:
        return self.facts.length

    @cached_property
    def _question(self) -> Question:
        return self.facts.question(self.wording)

    @property
    def question(self) -> str:
        return self._question.text

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The analysis at high effort, clause by clause."""
        return self.facts.think(self._question, self.slip)

    @property
    def analysis(self) -> str:
        return " ".join(step.text + step.stop for step in self.steps)

    @property
    def brief(self) -> str:
        """The analysis at medium effort."""
        return self.facts.brief()

    @property
    def answer(self) -> str:
        return self.facts.answer(self.steps)

    @property
    def call(self) -> str | None:
        return self.facts.call

    @property
    def edges(self) -> Mapping[int, tuple[int, ...]]:
        """The true reasoning graph: for each step, the earlier steps that its value is computed from."""
        return {number: step.uses for number, step in enumerate(self.steps)}

    @property
    def split(self) -> str:
        """ "test" for one problem in 16, by a hash of its facts; such a problem is trained in no wording."""
        return "test" if crc32(repr(self.facts).encode()) % HELD_OUT == 0 else "train"

    def slipped(self, slip: Slip | None) -> "Problem":
        """The same problem with one step wrong."""
        return Problem(self.facts, self.wording, slip)


def closed(steps: list[Step]) -> tuple[Step, ...]:
    """The steps with a full stop at the end of the last one."""
    steps[-1] = ended(steps[-1])
    return tuple(steps)


def ended(step: Step) -> Step:
    """The step with a full stop."""
    return Step(step.text, step.value, step.uses, step.reads, step.kind, ".", step.slip_from)


def said(
    steps: list[Step],
    number: int,
    right: Step,
    slip: Slip | None,
    text: Callable[[str], str],
    correction: str | None = None,
) -> int:
    """Appends step `number`, wrong first if it slips; gives the number of the step whose value counts from here on.

    `text` says the step with another value; `correction` is what follows "Wait, ", the right text unless given.
    """
    if slip is None or slip.number != number:
        steps.append(right)
        return len(steps) - 1
    wrong, correction = text(slip.value), correction or right.text
    at = next((i for i, (a, b) in enumerate(zip(right.text, wrong)) if a != b), len(right.text))
    stop = "." if slip.corrected else right.stop
    steps.append(Step(wrong, slip.value, right.uses, right.reads, "wrong", stop, at))
    if slip.corrected:
        # it is computed again from the same sources; that it comes at all depends on the wrong step
        uses = (*right.uses, len(steps) - 1)
        steps.append(Step(f"Wait, {correction}", right.value, uses, right.reads, "correction", "."))
    return len(steps) - 1


def letters(text: str) -> list[str]:
    """The variable names in an expression, in order.

    >>> letters("b+a"), letters("6")
    (['b', 'a'], [])
    """
    return re.findall(r"[a-z]", text)
