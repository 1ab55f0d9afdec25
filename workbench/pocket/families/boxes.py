"""Several people swap what they have: a step uses the latest step that touched each of its two people."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.expressions import LABELS, LENGTHS, ONLY_VALUES, Uses, value_of
from workbench.pocket.families.people import COLORS, NAMES
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed

OPENINGS = ("Colors: ", "Table: ", "Now: ")
SEPARATORS = (", ", "; ")
ENDINGS = (" What has {}?", " Look up {}.", " Which is with {}?")
KINDS = 3  # colors in a problem; so few that most pairs of steps have a color in common, not only the used ones
SHARE = 1.8  # the largest number of steps that a step uses, on average
TILT = 0.08  # pairs further apart are drawn more often by this share per step: see `last_writes`


def last_writes(rng: Random, n: int) -> Uses:
    """For each of `n` swaps, the earlier swaps that its people come from: at most two, and each is used at most twice.

    All pairs of swaps are used about equally often. These limits exclude more of the distant pairs, and the tilt makes
    up for it.
    """
    share = min(0.5, SHARE / max(1, n - 1))
    while True:
        uses = [[j for j in range(i) if rng.random() < share * (1 + TILT * (i - j - 1))] for i in range(n)]
        used = [sum(j in row for row in uses) for j in range(n)]
        people = 2 * n - sum(used)
        if max(map(len, uses)) <= 2 and max(used) <= 2 and people <= len(NAMES):
            return uses


@dataclass(frozen=True)
class Boxes(Facts):
    """What each person has at the start, in the question's order, and who swaps with whom."""

    colors: tuple[tuple[str, str], ...]
    swaps: tuple[tuple[str, str], ...]
    person: str  # the one that the question is about

    family: ClassVar[str] = "boxes"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 8
    lengths: ClassVar = LENGTHS
    has_terse: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        uses = last_writes(rng, length)
        names = rng.sample(NAMES, len(NAMES))
        swaps: list[tuple[str, str]] = []
        last: list[list[str]] = []  # of each swap, the people whose last swap it is so far
        for used in uses:
            pair = [last[j].pop(rng.randrange(len(last[j]))) for j in used]
            pair += [names.pop() for _ in range(2 - len(used))]
            rng.shuffle(pair)
            swaps.append((pair[0], pair[1]))
            last.append(pair)
        people = sorted({name for pair in swaps for name in pair})
        kinds = rng.sample(COLORS, KINDS) * len(people)  # each about equally often: the commonest is no good guess
        dealt = kinds[: len(people)]
        rng.shuffle(dealt)
        colors = list(zip(rng.sample(people, len(people)), dealt))
        moves = dict.fromkeys(people, 0)  # how many swaps a person's color has been through
        for a, b in swaps:
            moves |= {a: moves[b] + 1, b: moves[a] + 1}
        furthest = [name for name in people if moves[name] == max(moves.values())]
        return cls(tuple(colors), tuple(swaps), rng.choice(furthest))

    @property
    def length(self) -> int:
        return len(self.swaps)

    def question(self, wording: Wording) -> Question:
        q, separator = Question(OPENINGS[wording.opening], terse=wording.terse), SEPARATORS[wording.body]
        for i, (name, color) in enumerate(self.colors):
            q.add(separator if i else "").add(f"{name} {color}", name)
        q.add(". Swaps: ")
        for i, (label, (a, b)) in enumerate(zip(LABELS, self.swaps)):
            q.add((separator if i else "") + f"{label} ").add(f"{a} and {b}", f"swap {label}")
        before, after = ENDINGS[wording.ending].split("{}")
        return q.add("." + before).add(self.person, "target").add(after + ONLY_VALUES * wording.terse)

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        """The colors of both people, before and after (a Ann red Bob blue so Ann blue Bob red); terse: a blue red."""
        steps: list[Step] = []
        has = dict(self.colors)
        index: dict[str, int] = {}  # person -> the index of the latest step that touched them
        for number, (label, pair) in enumerate(zip(LABELS, self.swaps)):
            new = (has[pair[1]], has[pair[0]])
            start = f"{label} " if question.terse else f"{label} {_has(pair, (has[pair[0]], has[pair[1]]))} so "
            forms = _Forms(pair, start, question.terse)
            reads = (question.span(f"swap {label}"), *(question.span(name) for name in pair if name not in index))
            uses = tuple(sorted({index[name] for name in pair if name in index}))
            right = Step(forms(" ".join(new)), " ".join(new), uses, reads)
            correction = f"{label} " + forms(" ".join(new)).removeprefix(start)
            at = append_step(steps, number, right, slip, forms, correction)
            has.update(zip(pair, steps[at].value.split()))
            index.update(dict.fromkeys(pair, at))
        return closed(steps)

    def sources(self, number: int) -> dict[str, int | None]:
        """For each person of a swap, the latest earlier swap that touched them; None if there is none."""
        before = [(name, i) for i in range(number) for name in self.swaps[i]]
        return {name: dict(before).get(name) for name in self.swaps[number]}

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        number = LABELS.index(step.text.removeprefix("Wait, ")[0])
        sources = self.sources(number)
        swaps = sorted({i for i in sources.values() if i is not None})
        has = dict(text.split() for text in read[1:])
        for i, colors in zip(swaps, used):
            has |= {n: color for n, color in zip(self.swaps[i], colors.split()) if sources.get(n) == i}
        a, _, b = read[0].split()
        return f"{has[b]} {has[a]}"

    def answer(self, steps: tuple[Step, ...]) -> str:
        number = max(i for i, pair in enumerate(self.swaps) if self.person in pair)
        return value_of(LABELS[number], steps).split()[self.swaps[number].index(self.person)]

    def brief(self) -> str:
        return " ".join(step.text + step.stop for step in self.think(self.question(Wording(terse=True))))

    def wrong(self, number: int, rng: Random) -> str:
        """The right colors, but for one of the two people."""
        colors = self.think(self.question(Wording()))[number].value.split()
        who = rng.randrange(2)
        others = sorted({color for _, color in self.colors} - {colors[who]})
        colors[who] = rng.choice(others or [color for color in COLORS if color != colors[who]])
        return " ".join(colors)


class _Forms:
    """The text of a step with any colors."""

    def __init__(self, pair: tuple[str, str], start: str, terse: bool):
        self.pair, self.start, self.terse = pair, start, terse

    def __call__(self, colors: str) -> str:
        a, b = colors.split()
        return self.start + (colors if self.terse else _has(self.pair, (a, b)))


def _has(pair: tuple[str, str], colors: tuple[str, str]) -> str:
    return f"{pair[0]} {colors[0]} {pair[1]} {colors[1]}"
