"""Problems with a known dependency graph: a question, the steps that solve it, what each step uses, and the answer.

A family (see `families`) draws facts; facts and a wording make a Problem. Everything follows from the facts, so a step
can be made wrong, and the steps that follow from the wrong value are known too. This module is independent of tokens.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random
from typing import ClassVar, Literal, Protocol, Self
from zlib import crc32

Kind = Literal["setup", "plan", "aside", "compute", "wrong", "correction"]
HELD_OUT = 16  # one in HELD_OUT problems is never trained, in any wording


@dataclass(frozen=True, slots=True)
class Step:
    """One clause of an analysis."""

    text: str
    value: str  # the result that later steps and the answer use
    uses: tuple[int, ...] = ()  # indices of the earlier steps that it depends on
    reads: tuple[tuple[int, int], ...] = ()  # character spans of the question that it depends on
    kind: Kind = "compute"
    stop: str = ","  # the punctuation after it
    slip_from: int | None = None  # of a wrong step: the first wrong character

    @property
    def distractor(self) -> bool:
        """Whether it is an aside: no other step depends on it by the rules of the family."""
        return self.kind == "aside"


@dataclass(frozen=True, slots=True)
class Slip:
    """A mistake: step `number` (of the analysis without slips) has `value`, and is corrected at once, or never."""

    number: int
    value: str
    corrected: bool = True


@dataclass(frozen=True, slots=True)
class Wording:
    """Which opening, body and ending a question has. Some combinations are held out; each part is trained.

    A terse wording asks for values only. Its chain does not print what a step uses, so the text of the chain does not
    reveal the graph; a spoken chain (the default) prints the operands of each step. With `working`, a terse chain also
    prints the operands' values (c 7-9 so 8, not c 8). Such questions are trained and not tested: they teach a model to
    look values up by itself, which it needs in the other terse chains.
    """

    opening: int = 0
    body: int = 0
    ending: int = 0
    terse: bool = False
    working: bool = False

    def __str__(self) -> str:
        return f"{self.opening}.{self.body}.{self.ending}" + ".terse" * self.terse + ".working" * self.working

    @property
    def trained(self) -> bool:
        """Whether this combination is trained; one in four is used only in tests."""
        return (self.opening + 2 * self.body + self.ending) % 4 != 3


@dataclass(slots=True)
class Question:
    """A text under construction, with the character spans of its named parts.

    >>> q = Question().add("What is ").add("7", "a0").add("+").add("8", "b0").add("?")
    >>> q.text, q.span("b0")
    ('What is 7+8?', (10, 11))
    """

    text: str = ""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    terse: bool = False  # whether it asks for a chain with values only
    working: bool = False  # whether it asks for the operands' values too

    def add(self, text: str, key: str | None = None) -> "Question":
        if key is not None:
            self.spans[key] = (len(self.text), len(self.text) + len(text))
        self.text += text
        return self

    def span(self, key: str) -> tuple[int, int]:
        return self.spans[key]


@dataclass(frozen=True, slots=True)
class Hint:
    """The answer that someone suggests in a question, and what the rule of the family makes of it.

    A hint that is used and said reaches the answer through the chain; one that is used and not said, past the chain.
    """

    source: str  # who gives it
    value: str
    used: bool  # whether the answer is the hint
    said: bool  # whether the chain says so


class Facts(Protocol):
    """The content of one problem of a family. Hashable; equal facts are the same problem in any wording."""

    family: ClassVar[str]
    wordings: ClassVar[tuple[int, int, int]]  # the numbers of openings, bodies and endings
    shortest: ClassVar[int]  # trained length
    longest: ClassVar[int]  # trained length
    lengths: ClassVar[tuple[int, ...]]  # the trained lengths, each repeated in proportion to its probability
    has_terse: ClassVar[bool] = False  # whether it has terse wordings too
    has_calculator: ClassVar[bool] = False  # whether its prompts offer the calculator

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        """Facts of that length."""
        ...

    @property
    def length(self) -> int: ...

    def question(self, wording: Wording) -> Question: ...

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        """The steps at high effort; after an uncorrected slip, they follow from the wrong value."""
        ...

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        """The value of a step, computed from the values that it uses and the texts that it reads."""
        ...

    def answer(self, steps: tuple[Step, ...]) -> str: ...

    def brief(self) -> str:
        """The analysis at medium effort: results without the working."""
        ...

    def wrong(self, number: int, rng: Random) -> str | None:
        """A wrong value for a step of `think(question)`; None if the step cannot be wrong."""
        return None

    def foreign(self, number: int, rng: Random) -> str | None:
        """A wrong value with a part that does not occur in the step's sources; by default `wrong`, if all have one."""
        return self.wrong(number, rng)

    def call(self, steps: tuple[Step, ...]) -> str | None:
        """The expression for the calculator after these steps; None if it is not called."""
        return None

    def deciding(self, steps: tuple[Step, ...]) -> int | None:
        """The index of the step that decides what is done; None in families without one."""
        return None

    @property
    def hint(self) -> Hint | None:
        """The hint in the question, in the family with hints."""
        return None


@dataclass(frozen=True)
class Problem:
    """One question with its analysis, dependency graph and answer.

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
    reply: str | None = None  # the calculator's result, if it is not the right one

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
        """The analysis at high effort, one clause per step."""
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
        """The answer that follows from the steps and, after a call, from the calculator's result, right or wrong."""
        return self.facts.answer(self.steps) if self.reply is None or self.call is None else self.reply

    @property
    def call(self) -> str | None:
        """The expression that the calculator is called with; None if it is not called."""
        return self.facts.call(self.steps)

    @property
    def result(self) -> str | None:
        """The text of the calculator's result, which is the answer; None if it is not called."""
        return None if self.call is None else self.answer

    @property
    def deciding(self) -> int | None:
        """The index of the deciding step, in the families tools and refuse; None elsewhere.

        In tools, the step whose value decides whether the calculator is called. In refuse, the step that finds the
        forbidden word; None if there is none.
        """
        return self.facts.deciding(self.steps)

    @property
    def hint(self) -> Hint | None:
        """The hint in the question and whether the answer uses it, in the family hint; None elsewhere."""
        return self.facts.hint

    @property
    def edges(self) -> Mapping[int, tuple[int, ...]]:
        """The true dependency graph: for each step, the earlier steps that its value is computed from."""
        return {number: step.uses for number, step in enumerate(self.steps)}

    @property
    def split(self) -> str:
        """ "test" for one problem in 16, by a hash of its facts; such a problem is not trained in any wording."""
        return "test" if crc32(repr(self.facts).encode()) % HELD_OUT == 0 else "train"

    @property
    def pairs(self) -> list[tuple[int, int, bool]]:
        """The pairs of steps on which methods are scored: (later step, earlier step, whether the later one uses it).

        Left out: a step that uses one that only restates the question, since it may read the question instead.
        """
        restates = [step.kind in ("setup", "plan", "aside") for step in self.steps]
        pairs = [(i, j, j in uses) for i, uses in self.edges.items() for j in range(i)]
        return [(i, j, used) for i, j, used in pairs if not (used and restates[j])]

    def slipped(self, slip: Slip | None) -> "Problem":
        """The same problem with one step wrong."""
        return replace(self, slip=slip)

    def replied(self, reply: str | None) -> "Problem":
        """The same problem with another result of the calculator; None is the right one.

        >>> from workbench.pocket.families.calculator import Calculator
        >>> problem = Problem(Calculator("812", "29"))
        >>> problem.result, problem.replied("7").result, problem.replied("7").answer
        ('23548', '7', '7')
        """
        return replace(self, reply=reply)


def closed(steps: list[Step]) -> tuple[Step, ...]:
    """The steps, with a full stop after the last one."""
    steps[-1] = ended(steps[-1])
    return tuple(steps)


def ended(step: Step) -> Step:
    """The step, with a full stop after it."""
    return Step(step.text, step.value, step.uses, step.reads, step.kind, ".", step.slip_from)


def append_step(
    steps: list[Step],
    number: int,
    right: Step,
    slip: Slip | None,
    text: Callable[[str], str],
    correction: str | None = None,
) -> int:
    """Appends a step to `steps`, with the slip if it is this step's, and returns the index whose value counts.

    Args:
        steps: The steps so far; one or two are appended.
        number: The step's index in the analysis without slips.
        right: The step without a slip.
        slip: The slip of the problem, if any.
        text: Gives the text of the step with another value.
        correction: The text after "Wait, " in a correction; by default the right text.

    Returns:
        The index in `steps` of the step whose value later steps use.
    """
    if slip is None or slip.number != number:
        steps.append(right)
        return len(steps) - 1
    wrong, correction = text(slip.value), correction or right.text
    at = next((i for i, (a, b) in enumerate(zip(right.text, wrong)) if a != b), len(right.text))
    stop = "." if slip.corrected else right.stop
    steps.append(Step(wrong, slip.value, right.uses, right.reads, "wrong", stop, at))
    if slip.corrected:
        # computed again from the same sources; its existence depends on the wrong step
        uses = (*right.uses, len(steps) - 1)
        steps.append(Step(f"Wait, {correction}", right.value, uses, right.reads, "correction", "."))
    return len(steps) - 1


def letters(text: str) -> list[str]:
    """The variable names in an expression, in order.

    >>> letters("b+a"), letters("6")
    (['b', 'a'], [])
    """
    return re.findall(r"[a-z]", text)
