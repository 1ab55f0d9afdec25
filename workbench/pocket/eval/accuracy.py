"""How often the answer is right, by family, effort and length, on problems and wordings that were never trained."""

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Any

from workbench.model.model import Model
from workbench.pocket.eval.share import share
from workbench.pocket.eval.writing import write
from workbench.pocket.families import FAMILIES, make, wordings
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import EFFORTS, analysis, answer_in, call, prompt, result, thought
from workbench.pocket.vocabulary import encode
from workbench.taps import Tap


def problems(family: str, n: int, *, length: int | None = None, trained_wording: bool = False) -> list[Problem]:
    """`n` held-out problems of a family, of the trained lengths or all of one."""
    rng = Random(f"eval {family} {length} {trained_wording}")
    words = wordings(family, trained=trained_wording)
    return [make(family, rng, length=length, split="test", wording=rng.choice(words)) for _ in range(n)]


def answers(model: Model, asked: Sequence[Problem], effort: str, *, tap: Tap | None = None) -> list[str]:
    """What the model writes to each problem; where it calls the calculator rightly, it is given the result."""
    said = write(model, [encode(prompt(p, effort)) for p in asked], tap=tap, desc=f"{effort} effort")
    called = [i for i, p in enumerate(asked) if p.call and said[i].endswith(call(p))]
    again = [encode(prompt(asked[i], effort) + said[i] + result(asked[i])) for i in called]
    for i, more in zip(called, write(model, again, tap=tap, desc="after the calculator")):
        said[i] += result(asked[i]) + more
    return said


Sets = dict[str, list[Problem]]  # by any name


def answered(model: Model, sets: Sets, effort: str, *, tap: Tap | None = None) -> dict[str, list[str]]:
    """The same for several sets at once: the more prompts there are of one length, the faster it goes."""
    said = iter(answers(model, [p for asked in sets.values() for p in asked], effort, tap=tap))
    return {name: list(islice(said, len(asked))) for name, asked in sets.items()}


def right(asked: Sequence[Problem], said: Sequence[str]) -> list[bool]:
    """Whether each text gives the problem's answer; for the calculator, it must have been called too."""
    return [answer_in(text) == p.answer and (not p.call or call(p) in text) for p, text in zip(asked, said)]


def accuracy(model: Model, n: int, *, families: Sequence[str] = tuple(FAMILIES), efforts=EFFORTS) -> dict[str, Any]:
    """By family and effort: the share of right answers in new wordings, in trained ones, by length, one step longer."""
    out: dict[str, Any] = {}
    for effort in efforts:
        sets: Sets = {}
        for family in families:
            sets[f"{family} new_wordings"] = problems(family, n)
            sets[f"{family} trained_wordings"] = problems(family, n, trained_wording=True)
            sets[f"{family} one_longer"] = problems(family, n, length=FAMILIES[family].longest + 1)
        said = answered(model, sets, effort)
        for family in families:
            asked, wrote = sets[f"{family} new_wordings"], said[f"{family} new_wordings"]
            ok = right(asked, wrote)
            lengths = sorted({p.length for p in asked})
            cell: dict[str, Any] = {"new_wordings": share(ok)}
            cell["by_length"] = {k: share([o for p, o in zip(asked, ok) if p.length == k]) for k in lengths}
            if effort != "low":
                cell["same_analysis"] = share([thought(analysis(p, effort)) in t for p, t in zip(asked, wrote)])
            for name in ("trained_wordings", "one_longer"):
                cell[name] = share(right(sets[f"{family} {name}"], said[f"{family} {name}"]))
            cell["example"] = {"question": asked[0].question, "answer": asked[0].answer, "wrote": wrote[0]}
            out[f"{family}/{effort}"] = cell
    return out
