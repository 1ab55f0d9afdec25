"""Accuracy by family, effort and length, on held-out problems and wordings."""

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Any

from workbench.model.model import Model
from workbench.pocket.eval.generation import generate
from workbench.pocket.eval.share import share
from workbench.pocket.families import FAMILIES, make, wordings
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import EFFORTS, analysis, answer_in, call, prompt, result, thought
from workbench.pocket.vocabulary import encode
from workbench.taps import Tap


def held_out(family: str, n: int, *, length: int | None = None, trained_wording: bool = False) -> list[Problem]:
    """`n` held-out problems of a family, of one length or of all trained lengths."""
    rng = Random(f"eval {family} {length} {trained_wording}")
    choices = wordings(family, trained=trained_wording)
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
    """Whether each response has the problem's answer and, in family calculator, the right call."""
    return [answer_in(text) == p.answer and (not p.call or call(p) in text) for p, text in zip(problems, texts)]


def accuracy(model: Model, n: int, *, families: Sequence[str] = tuple(FAMILIES), efforts=EFFORTS) -> dict[str, Any]:
    """Accuracy by family and effort, with `n` held-out problems per set.

    Args:
        model: The model.
        n: Problems per set.
        families: The families.
        efforts: The efforts.

    Returns:
        "family/effort" -> a cell with the shares of right answers in new wordings (`new_wordings`), by length
        (`by_length`), in trained wordings (`trained_wordings`), and on problems one step longer than any trained
        (`one_longer`); the share of analyses equal to the reference (`same_analysis`, not at low effort); and an
        `example`.
    """
    cells: dict[str, Any] = {}
    for effort in efforts:
        sets: Sets = {}
        for family in families:
            sets[f"{family} new_wordings"] = held_out(family, n)
            sets[f"{family} trained_wordings"] = held_out(family, n, trained_wording=True)
            sets[f"{family} one_longer"] = held_out(family, n, length=FAMILIES[family].longest + 1)
        by_set = responses_by_set(model, sets, effort)
        for family in families:
            problems, texts = sets[f"{family} new_wordings"], by_set[f"{family} new_wordings"]
            hits = correct(problems, texts)
            lengths = sorted({p.length for p in problems})
            cell: dict[str, Any] = {"new_wordings": share(hits)}
            cell["by_length"] = {k: share([hit for p, hit in zip(problems, hits) if p.length == k]) for k in lengths}
            if effort != "low":
                cell["same_analysis"] = share([thought(analysis(p, effort)) in t for p, t in zip(problems, texts)])
            for name in ("trained_wordings", "one_longer"):
                cell[name] = share(correct(sets[f"{family} {name}"], by_set[f"{family} {name}"]))
            cell["example"] = {"question": problems[0].question, "answer": problems[0].answer, "wrote": texts[0]}
            cells[f"{family}/{effort}"] = cell
    return cells
