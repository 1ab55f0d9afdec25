"""Expression trees: sub-results are computed in a random order in which operands precede what is made of them."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.families.expressions import LABELS, LENGTHS, Expressions, Uses, expressions, style, value_of
from workbench.pocket.problems import Question, Step, Wording

OPENINGS = ("Mod 10 of ", "Last digit of ", "Compute Mod 10 of ")
BRACKETS = ("()", "[]")
ENDINGS = ("", " Think.", " Find it.")
TILT = 4  # weights of possible parents: their distance to this power; makes near and far parents about equally likely


def random_tree(rng: Random, n: int) -> Uses:
    """A tree of `n` steps: each is used once, by a later step, and each uses at most two; the last step is the root.

    The last but one can be used by the last only, at distance 1, so the other steps prefer distant parents.
    """
    while True:
        uses: Uses = [[] for _ in range(n)]
        if n > 1:
            uses[-1].append(n - 2)
        for k in rng.sample(range(max(0, n - 2)), max(0, n - 2)):
            free = [i for i in range(k + 1, n) if len(uses[i]) < 2]
            if not free:
                break
            uses[rng.choices(free, [(i - k) ** TILT for i in free])[0]].append(k)
        else:
            return [sorted(used) for used in uses]


@dataclass(frozen=True)
class Tree(Expressions):
    """A nested expression. Each bracket has the label of its step at both ends; the last label is the root's."""

    expressions: tuple[str, ...]

    family: ClassVar[str] = "tree"
    wordings: ClassVar = (len(OPENINGS), len(BRACKETS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 8
    lengths: ClassVar = LENGTHS
    has_terse: ClassVar = True

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        return cls(expressions(rng, random_tree(rng, length)))

    def question(self, wording: Wording) -> Question:
        q = Question(OPENINGS[wording.opening], terse=wording.terse, working=wording.working)
        self._write(q, LABELS[self.length - 1], "root", BRACKETS[wording.body])
        return q.add("." + ENDINGS[wording.ending] + style(wording))

    def _write(self, q: Question, label: str, key: str, brackets: str) -> None:
        q.add(label, key).add(brackets[0])
        for name, part in zip(("left", "sign", "right"), self.expressions[LABELS.index(label)]):
            if part in LABELS:
                self._write(q, part, f"{label}.{name}", brackets)
            else:
                q.add(part, f"{label}.{name}")
        q.add(brackets[1] + label)

    def answer(self, steps: tuple[Step, ...]) -> str:
        return value_of(LABELS[self.length - 1], steps)
