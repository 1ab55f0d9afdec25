"""Rules that do not use the model: what a reader of the text could say about which step uses which.

A method shows something about the model only if it is above the rules that read the chain alone. A rule that also reads
the question is not a baseline but a solution: the question defines the graph of dag, tree and boxes, so parsing it
gives the truth. It is in the table as a check of the benchmark.
"""

import re
from collections.abc import Callable

import numpy as np

from benchmarks.ground_truth.cases import Matrix
from workbench.pocket.balance import BASELINES, NAME, Rule
from workbench.pocket.problems import Problem, Step

WORD = re.compile(r"[A-Za-z]+|\d")


def equal_token(earlier: Step, later: Step, distance: int) -> float:
    """How many words, names and digits the texts of both steps have in common.

    >>> equal_token(Step("a=7-2 so a=5", "5"), Step("b=a+4=5+4 so b=9", "9"), 1)
    3
    """
    return len({*WORD.findall(earlier.text)} & {*WORD.findall(later.text)})


def defined_label(step: Step) -> str | None:
    """The label that a step gives a value to: the letter that it starts with.

    >>> defined_label(Step("c=a+b=3+7 so c=0", "0")), defined_label(Step("Kay to Dee", "Dee"))
    ('c', None)
    """
    label = re.match(r"(?:Wait, )?([a-z])\b", step.text)
    return label[1] if label else None


def named_in_chain(problem: Problem) -> Matrix:
    """1 where the later step prints a name that it got from the earlier step, as far as the chain shows.

    A label comes from the latest earlier step that gives it a value; a person from the latest earlier step that
    mentions them. This reads the chain alone, and finds every edge of a spoken dag, tree and boxes.
    """
    steps = problem.steps
    matrix = np.zeros((len(steps), len(steps)))
    for i, later in enumerate(steps):
        for name in {*NAME.findall(later.text)} - {defined_label(later)}:
            sources = [
                j
                for j in range(i)
                if name in ({defined_label(steps[j])} if len(name) == 1 else NAME.findall(steps[j].text))
            ]
            if sources:
                matrix[i, sources[-1]] = 1
    return matrix


def consistent_values(problem: Problem) -> Matrix:
    """The number of ways in which the later value is a sum or difference of the earlier one and another earlier one.

    Modulo 10, and 0 for values that are not digits.
    """
    values = [int(step.value) if re.fullmatch(r"\d", step.value) else None for step in problem.steps]
    matrix = np.zeros((len(values), len(values)))
    for i, result in enumerate(values):
        for j in range(i):
            a, others = values[j], [b for k, b in enumerate(values[:i]) if k != j and b is not None]
            if result is not None and a is not None:
                matrix[i, j] = sum((x - result) % 10 == 0 for b in others for x in (a + b, a - b, b - a))
    return matrix


def of_rule(rule: Rule) -> Callable[[Problem], Matrix]:
    """The matrix of a rule about two steps."""

    def matrix(problem: Problem) -> Matrix:
        steps = problem.steps
        scores = np.zeros((len(steps), len(steps)))
        for i, later in enumerate(steps):
            scores[i, :i] = [rule(steps[j], later, i - j) for j in range(i)]
        return scores

    return matrix


CHAIN_RULES: dict[str, Callable[[Problem], Matrix]] = {
    **{name: of_rule(rule) for name, rule in BASELINES.items()},
    "equal token": of_rule(equal_token),
    "named in the chain": named_in_chain,
}


def named_in_question(problem: Problem) -> Matrix | None:
    """1 where the question makes the later step use the earlier one; None for families whose steps have no labels.

    It reads the definition of the later step's label in the question: "c=a+b" (dag), the labels directly inside the
    brackets of "c(…)c" (tree), or the latest earlier swap of each of the two people of "c Ann and Bob" (boxes).
    """
    labels = [defined_label(step) for step in problem.steps]
    if problem.family not in ("dag", "tree", "boxes", "hint", "tools"):
        return None
    matrix = np.zeros((len(labels), len(labels)))
    for i, label in enumerate(labels):
        for name in _sources(problem, label) if label else ():
            matrix[i, labels.index(name)] = 1
    return matrix


def _sources(problem: Problem, label: str) -> list[str]:
    """The labels that the question names as sources of a label."""
    question = problem.question
    if problem.family == "tree":
        inside = re.search(rf"{label}[(\[](.*)[)\]]{label}", question)
        assert inside, question
        return re.findall(r"([a-i])[(\[]", re.sub(r"([a-i])([(\[]).*?[)\]]\1", r"\1\2", inside[1]))
    if problem.family == "boxes":
        swaps = re.findall(r"\b([a-i]) ([A-Z]\w+) and ([A-Z]\w+)", question)
        before = [(name, people) for name, *people in swaps if name < label]
        people = next(pair for name, *pair in swaps if name == label)
        return [mentions[-1] for person in people if (mentions := [name for name, pair in before if person in pair])]
    definition = re.search(rf"\b{label}=([^,;.]+)", question)
    assert definition, question
    return re.findall(r"[a-z]", definition[1])
