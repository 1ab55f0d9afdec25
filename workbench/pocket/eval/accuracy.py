"""Accuracy by family, effort and length, on held-out problems and wordings."""

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Any

from workbench.model.model import Model
from workbench.pocket.eval.generation import generate
from workbench.pocket.eval.share import share
from workbench.pocket.families import FAMILIES, make, of_row, rows
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import EFFORTS, analysis, answer_in, call, prompt, result, thought
from workbench.pocket.vocabulary import encode
from workbench.taps import Tap


def held_out(row: str, n: int, *, length: int | None = None, trained_wording: bool = False) -> list[Problem]:
    """`n` held-out problems of a row (a family, or "dag terse"), of one length or of all trained lengths."""
    rng = Random(f"eval {row} {length} {trained_wording}")
    family, choices = of_row(row, trained=trained_wording)
    return [make(family, rng, length=length, split="test", wording=rng.choice(choices)) for _ in range(n)]


def responses(model: Model, problems: Sequence[Problem], effort: str, *, tap: Tap | None = None) -> list[str]:
    """The model's greedy response to each problem, including the calculator's result after a right call."""
    texts = generate(model, [encode(prompt(p, effort)) for p in problems], tap=tap, desc=f"{effort} effort")
    called = [i for i, p in enumerate(problems) if p.call and texts[i].endswith(call(p))]
    prompts = [encode(prompt(problems[i], effort) + texts[i] + result(problems[i])) for i in called]
    for i, text in zip(called, generate(model, prompts, tap=tap, desc="after the calculator")):
        texts[i] += result(problems[i]) + text
    return texts


Sets = dict[str, list[Problem]]  # by any name


def responses_by_set(model: Model, sets: Sets, effort: str, *, tap: Tap | None = None) -> dict[str, list[str]]:
    """`responses` for several sets at once, which is faster: prompts of the same length share a batch."""
    texts = iter(responses(model, [p for problems in sets.values() for p in problems], effort, tap=tap))
    return {name: list(islice(texts, len(problems))) for name, problems in sets.items()}


def correct(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    """Whether each response has the problem's answer and, if the calculator is to be called, the right call."""
    return [answer_in(text) == p.answer and (not p.call or call(p) in text) for p, text in zip(problems, texts)]


def accuracy(model: Model, n: int, *, families: Sequence[str] = tuple(FAMILIES), efforts=EFFORTS) -> dict[str, Any]:
    """Accuracy by family and effort, with `n` held-out problems per set.

    Args:
        model: The model.
        n: Problems per set.
        families: The families; their terse wordings have cells of their own.
        efforts: The efforts.

    Returns:
        "family/effort" (or "dag terse/high") -> a cell with the shares of right answers in new wordings
        (`new_wordings`), by length (`by_length`), in trained wordings (`trained_wordings`), and on problems one step
        longer than any trained (`one_longer`); the share of analyses equal to the reference (`same_analysis`, not at
        low effort); and an `example`.
    """
    cells: dict[str, Any] = {}
    for effort in efforts:
        sets: Sets = {}
        for row in rows(families):
            longer = FAMILIES[row.partition(" ")[0]].longest + 1
            sets[f"{row} new_wordings"] = held_out(row, n)
            sets[f"{row} trained_wordings"] = held_out(row, n, trained_wording=True)
            sets[f"{row} one_longer"] = held_out(row, n, length=longer)
        by_set = responses_by_set(model, sets, effort)
        for row in rows(families):
            problems, texts = sets[f"{row} new_wordings"], by_set[f"{row} new_wordings"]
            hits = correct(problems, texts)
            lengths = sorted({p.length for p in problems})
            cell: dict[str, Any] = {"new_wordings": share(hits)}
            cell["by_length"] = {k: share([hit for p, hit in zip(problems, hits) if p.length == k]) for k in lengths}
            if effort != "low":
                cell["same_analysis"] = share([thought(analysis(p, effort)) in t for p, t in zip(problems, texts)])
            for name in ("trained_wordings", "one_longer"):
                cell[name] = share(correct(sets[f"{row} {name}"], by_set[f"{row} {name}"]))
            cell["example"] = {"question": problems[0].question, "answer": problems[0].answer, "wrote": texts[0]}
            cells[f"{row}/{effort}"] = cell
    return cells
