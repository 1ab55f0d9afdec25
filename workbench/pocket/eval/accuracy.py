"""How often the answer is right, by family, effort and length, on problems and wordings that were never trained."""

from collections.abc import Sequence
from random import Random
from typing import Any

from workbench.pocket.eval.share import share
from workbench.pocket.eval.writing import write
from workbench.pocket.families import FAMILIES, make, wordings
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import EFFORTS, analysis, answer_in, call, prompt, result, thought
from workbench.pocket.vocabulary import encode
from workbench.runner.model import Model
from workbench.runner.taps import Tap


def problems(family: str, n: int, *, length: int | None = None, trained_wording: bool = False) -> list[Problem]:
    """`n` held-out problems of a family, of the trained lengths or all of one."""
    rng = Random(f"eval {family} {length} {trained_wording}")
    words = wordings(family, trained=trained_wording)
    return [make(family, rng, length=length, split="test", wording=rng.choice(words)) for _ in range(n)]


def answers(model: Model, asked: Sequence[Problem], effort: str, *, tap: Tap | None = None) -> list[str]:
    """What the model writes to each problem; where it calls the calculator rightly, it is given the result."""
    label = f"{asked[0].family} {effort}"
    said = write(model, [encode(prompt(p, effort)) for p in asked], tap=tap, desc=label)
    called = [i for i, p in enumerate(asked) if p.call and said[i].endswith(call(p))]
    again = [encode(prompt(asked[i], effort) + said[i] + result(asked[i])) for i in called]
    for i, more in zip(called, write(model, again, tap=tap, desc=label)):
        said[i] += result(asked[i]) + more
    return said


def right(asked: Sequence[Problem], said: Sequence[str]) -> list[bool]:
    """Whether each text gives the problem's answer; for the calculator, it must have been called too."""
    return [answer_in(text) == p.answer and (not p.call or call(p) in text) for p, text in zip(asked, said)]


def accuracy(model: Model, n: int, *, families: Sequence[str] = tuple(FAMILIES), efforts=EFFORTS) -> dict[str, Any]:
    """By family and effort: the share of right answers in new wordings, in trained ones, by length, one step longer."""
    out: dict[str, Any] = {}
    for family in families:
        for effort in efforts:
            asked = problems(family, n)
            said = answers(model, asked, effort)
            ok = right(asked, said)
            lengths = sorted({p.length for p in asked})
            cell: dict[str, Any] = {"new_wordings": share(ok)}
            cell["by_length"] = {k: share([o for p, o in zip(asked, ok) if p.length == k]) for k in lengths}
            if effort != "low":
                exact = [thought(analysis(p, effort)) in text for p, text in zip(asked, said)]
                cell["same_analysis"] = share(exact)
            known = problems(family, n, trained_wording=True)
            cell["trained_wordings"] = share(right(known, answers(model, known, effort)))
            longer = problems(family, n, length=FAMILIES[family].longest + 1)
            cell["one_longer"] = share(right(longer, answers(model, longer, effort)))
            cell["example"] = {"question": asked[0].question, "answer": asked[0].answer, "wrote": said[0]}
            out[f"{family}/{effort}"] = cell
    return out
