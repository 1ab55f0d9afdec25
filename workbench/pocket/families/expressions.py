"""Chains of labeled sums and differences modulo 10: step a, then b, then c. Shared by dag, tree, hint and tools.

There are no products: with a sum or a difference, another operand always gives another value, so every edge of the
graph has an effect. The labels are in the order of the chain, so they say which step is next; the graph is in the
question alone.
"""

from collections.abc import Sequence
from random import Random

from workbench.pocket.families.variables import last_digit
from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed, letters

LABELS = "abcdefghi"  # of the steps, in the order of the chain
LENGTHS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 8)  # of training problems: the middle ones most often
ONLY_VALUES = " Only values."  # the end of a question in a terse wording
ONLY_STEPS = " Only steps."  # the same with the operands' values
Uses = list[list[int]]  # for each step, the earlier steps that it uses


class Expressions(Facts):
    """A chain of expressions of two operands, such as "a+3": digits, or labels of earlier steps."""

    expressions: tuple[str, ...]  # by step

    @property
    def length(self) -> int:
        return len(self.expressions)

    def suffix(self, number: int, value: str) -> str:
        """What step `number` says after its value."""
        return ""

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        return closed(self.chain(question, slip))

    def chain(self, question: Question, slip: Slip | None) -> list[Step]:
        """One step for each expression.

        A spoken step restates the expression with names, then with values, then the result (c=a+b=7+5 so c=2): each
        token needs a look-up or the adjacent tokens only. A terse step is its label and its value (c 2), and if the
        question asks for it, the values that it is computed from (c 7+5 so 2).
        """
        steps: list[Step] = []
        index: dict[str, int] = {}  # label -> the index of the step with its value
        for number, (label, expression) in enumerate(zip(LABELS, self.expressions)):
            working = "".join(steps[index[part]].value if part in index else part for part in expression)
            shown = f"{label}={expression}" + f"={working}" * (working != expression)
            terse = (f"{label} " + f"{working} so " * question.working, f"{label} ")
            start, result = terse if question.terse else (f"{shown} so {label}=", f"{label}=")
            texts = {v: f"{v}{self.suffix(number, v)}" for v in "0123456789"}
            value = last_digit(working)
            reads = tuple(question.span(f"{label}.{part}") for part in ("left", "sign", "right"))
            uses = tuple(sorted(index[name] for name in letters(expression)))
            right = Step(start + texts[value], value, uses, reads)
            forms = {v: start + text for v, text in texts.items()}
            index[label] = append_step(steps, number, right, slip, forms.__getitem__, result + texts[value])
        return steps

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        values = dict(zip(sorted(letters("".join(read))), used))
        return last_digit("".join(values.get(part, part) for part in read))

    def brief(self) -> str:
        wording = Wording(terse=True)
        return " ".join(step.text + step.stop for step in self.think(self.question(wording)))

    def wrong(self, number: int, rng: Random) -> str | None:
        right = self.think(self.question(Wording()))[number].value
        return rng.choice([digit for digit in "0123456789" if digit != right])


def style(wording: Wording) -> str:
    """The end of a question that says which chain it asks for; empty for a spoken one."""
    return (ONLY_STEPS if wording.working else ONLY_VALUES) * wording.terse


def value_of(label: str, steps: Sequence[Step]) -> str:
    """The value of the step with this label; of a corrected step, the correction's."""
    return steps[place_of(label, steps)].value


def place_of(label: str, steps: Sequence[Step]) -> int:
    """The index of the step with this label; of a corrected step, the correction's."""
    return max(i for i, step in enumerate(steps) if step.text.removeprefix("Wait, ")[0] == label)


def expression(rng: Random, names: Sequence[str]) -> str:
    """A random sum or difference of these names and, if there are fewer than two, of random digits.

    >>> expression(Random(1), ["a"])
    '2-a'
    """
    parts = [*names, *(str(rng.randrange(10)) for _ in range(2 - len(names)))]
    rng.shuffle(parts)
    return rng.choice("+-").join(parts)


def expressions(rng: Random, uses: Uses) -> tuple[str, ...]:
    """A random expression for each step, of the steps that it uses."""
    return tuple(expression(rng, [LABELS[j] for j in used]) for used in uses)


def depths(uses: Uses) -> list[int]:
    """How many steps each step needs, one after the other, itself included.

    >>> depths([[], [0], [], [1, 2]])
    [1, 2, 1, 3]
    """
    found: list[int] = []
    for used in uses:
        found.append(1 + max((found[j] for j in used), default=0))
    return found
