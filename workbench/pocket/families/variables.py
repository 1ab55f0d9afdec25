"""Chains of variables modulo 10, among unused definitions: a plan backwards, then values forwards."""

import re
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from workbench.pocket.problems import Facts, Question, Slip, Step, Wording, append_step, closed, ended, letters

LETTERS = "abcdefghijklmnop"
OPENINGS = ("Mod 10: ", "Modulo 10: ", "Last digits: ")
SEPARATORS = (", ", "; ")
ENDINGS = (" Find {}.", " What is {}?", " Give {}.")
SECOND = 0.35  # probability that a definition also uses a variable further back


@dataclass(frozen=True)
class Variables(Facts):
    """`chain` leads from a constant to the variable in question; `defined` are all names in the question's order."""

    defined: tuple[str, ...]
    meaning: tuple[str, ...]
    chain: tuple[str, ...]
    note: str | None = None  # an unused constant that the question asks to mention

    family: ClassVar[str] = "variables"
    wordings: ClassVar = (len(OPENINGS), len(SEPARATORS), len(ENDINGS))
    shortest: ClassVar = 1
    longest: ClassVar = 8
    lengths: ClassVar = (1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 8)

    @classmethod
    def draw(cls, rng: Random, length: int) -> Self:
        spare = rng.choice((0, 1, 1, 2, 2, 3))
        names = rng.sample(LETTERS, length + 1 + spare)
        chain, others = names[: length + 1], names[length + 1 :]
        means = {chain[0]: str(rng.randrange(10))}
        for i, name in enumerate(chain[1:], 1):
            if i > 1 and rng.random() < SECOND:
                means[name] = f"{chain[i - 1]}{rng.choice('+-')}{rng.choice(chain[: i - 1])}"
            else:
                means[name] = _simple(rng, chain[i - 1])
        for i, name in enumerate(others):  # independent of the chain
            means[name] = str(rng.randrange(10)) if i == 0 or rng.random() < 0.4 else _simple(rng, others[i - 1])
        rng.shuffle(names)
        note = others[0] if others and rng.random() < 0.3 else None
        return cls(tuple(names), tuple(means[name] for name in names), tuple(chain), note)

    @property
    def length(self) -> int:
        return len(self.chain) - 1

    @property
    def _means(self) -> dict[str, str]:
        return dict(zip(self.defined, self.meaning))

    def question(self, wording: Wording) -> Question:
        q = Question(OPENINGS[wording.opening])
        for i, (name, meaning) in enumerate(zip(self.defined, self.meaning)):
            q.add(SEPARATORS[wording.body] if i else "").add(f"{name}={meaning}", name)
        before, after = ENDINGS[wording.ending].split("{}")
        q.add("." + before).add(self.chain[-1], "target").add(after)
        return q if self.note is None else q.add(f" Note {self.note}.", "note")

    def think(self, question: Question, slip: Slip | None = None) -> tuple[Step, ...]:
        means = self._means
        steps: list[Step] = []
        plan: dict[str, int] = {}
        for name in reversed(self.chain):
            plan[name] = len(steps)
            uses = (len(steps) - 1,) if steps else ()
            reads = (question.span(name),) if steps else (question.span("target"), question.span(name))
            steps.append(Step(f"{name}={means[name]}", means[name], uses, reads, "plan"))
        steps[-1] = ended(steps[-1])
        if self.note is not None:
            reads = (question.span("note"), question.span(self.note))
            steps.append(Step(f"Note {self.note}={means[self.note]}", means[self.note], (), reads, "aside", "."))
        known = {self.chain[0]: plan[self.chain[0]]}  # name -> the index of the step with its value
        number = len(steps)
        for name in self.chain[1:]:
            working = means[name]
            for other in dict.fromkeys(letters(working)):
                working = working.replace(other, steps[known[other]].value)
            sources = (plan[name], *(known[other] for other in dict.fromkeys(letters(means[name]))))
            value = last_digit(working)
            text = f"{name}={means[name]}={working} so {name}={{}}".format
            right = Step(text(value), value, tuple(sorted(set(sources))))
            known[name] = append_step(steps, number, right, slip, text, f"{name}={value}")
            number += 1
        return closed(steps)

    def derive(self, step: Step, used: list[str], read: list[str]) -> str:
        if step.kind in ("plan", "aside"):
            return read[-1].partition("=")[2]
        name = step.text.removeprefix("Wait, ").partition("=")[0]
        means = self._means
        value_of = dict(zip(self._sources(name), used))
        working = means[name]
        for other in dict.fromkeys(letters(working)):
            working = working.replace(other, value_of[other])
        return last_digit(working)

    def _sources(self, name: str) -> list[str]:
        """The names whose steps are the `uses` of the step that computes `name`, in the order of the steps."""
        others = list(dict.fromkeys(letters(self._means[name])))
        plan = {n: i for i, n in enumerate(reversed(self.chain))}
        first = self.chain[0]
        order = {n: plan[n] if n == first else len(plan) + self.chain.index(n) for n in others}
        order[name] = plan[name]
        return sorted(order, key=lambda n: order[n])

    def answer(self, steps: tuple[Step, ...]) -> str:
        return steps[-1].value

    def brief(self) -> str:
        steps = self.think(self.question(Wording()))
        plan = [step.text for step in steps if step.kind == "plan"]
        values = [f"{name}={step.value}" for name, step in zip(self.chain[1:], steps[-self.length :])]
        return ", ".join(plan) + ". " + ", ".join(values) + "."

    def wrong(self, number: int, rng: Random) -> str | None:
        step = self.think(self.question(Wording()))[number]
        return rng.choice([d for d in "0123456789" if d != step.value]) if step.kind == "compute" else None


def _simple(rng: Random, name: str) -> str:
    sign = rng.choice("+-*")
    return f"{name}{sign}{rng.randrange(2 if sign == '*' else 1, 10)}"


def last_digit(working: str) -> str:
    """The last digit of one sum, difference or product.

    >>> last_digit("4-8"), last_digit("7*6"), last_digit("6")
    ('6', '2', '6')
    """
    match = re.fullmatch(r"(\d)(?:([-+*])(\d))?", working)
    assert match, working
    a, sign, b = match.groups()
    if sign is None:
        return a
    x, y = int(a), int(b)
    return str((x + y if sign == "+" else x - y if sign == "-" else x * y) % 10)
