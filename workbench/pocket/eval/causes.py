"""What the answer hangs on: wrong steps, thoughts that are skipped, edges that are cut, sinks that are taken away."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from workbench.pocket.eval.accuracy import answers, problems, right
from workbench.pocket.eval.share import share
from workbench.pocket.eval.writing import read, write
from workbench.pocket.families import CHAINS, FAMILIES, slips
from workbench.pocket.problems import Problem, Slip
from workbench.pocket.rendering import ANALYSIS, FINAL, answer_in, final, prompt, thought
from workbench.pocket.vocabulary import encode
from workbench.runner.config import Config
from workbench.runner.model import Model
from workbench.runner.taps import Tap


class NoSinks(Tap):
    """Sinks get nothing; the keys share what they had."""

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        return torch.zeros_like(x) if name.endswith("attn.hook_sink") else x


class Cut(Tap):
    """Full layers see no further than sliding ones: edges over `window` or more positions are cut."""

    def __init__(self, config: Config):
        self.config, self.start = config, 0
        self.layers = {f"blocks.{n}.attn.hook_attn_scores" for n in range(config.n_layers) if not config.is_sliding(n)}

    def wants(self, name: str) -> bool:
        return name in self.layers

    def begin(self, start: int, n: int) -> None:
        self.start = start

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name not in self.layers:
            return x
        query = self.start + torch.arange(x.shape[-2])
        far = query[:, None] - torch.arange(x.shape[-1]) >= self.config.window
        return x.masked_fill(far, -torch.inf)


class Blind(Tap):
    """Queries from `after` on do not see the keys in `hidden`, in any layer."""

    def __init__(self, after: int, hidden: slice):
        self.after, self.hidden = after, hidden

    def wants(self, name: str) -> bool:
        return name.endswith("hook_attn_scores")

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if not self.wants(name):
            return x
        x = x.clone()
        x[..., self.after :, self.hidden] = -torch.inf
        return x


def prefix(problem: Problem, number: int, *, passed: bool) -> str:
    """Prompt and analysis up to the wrong step `number`; with `passed`, the comma after it is written too."""
    steps = problem.steps[: number + 1]
    said = " ".join(step.text + step.stop for step in steps)
    return prompt(problem, "high") + ANALYSIS + (said if passed else said[: -len(steps[-1].stop)])


def wrong_steps(model: Model, family: str, n: int) -> dict[str, Any]:
    """A step is made wrong. Passed over by force, does the answer follow? Left free, does the model correct it?

    Only slips that lead to another answer, and have a step after them, count.
    """
    rng = Random(f"slip {family}")
    cases: list[tuple[Problem, Slip]] = []
    for problem in problems(family, 20 * n):
        free = [Slip(s.number, s.value, corrected=False) for s in slips(problem, rng)]
        changed = [s for s in free if problem.slipped(s).answer != problem.answer]
        changed = [s for s in changed if problem.slipped(s).steps[s.number].stop == ","]
        if changed and len(cases) < n:
            cases.append((problem, rng.choice(changed)))
    wrong = [problem.slipped(slip) for problem, slip in cases]
    passed = [encode(prefix(w, s.number, passed=True)) for w, (_, s) in zip(wrong, cases)]
    free = [encode(prefix(w, s.number, passed=False)) for w, (_, s) in zip(wrong, cases)]
    after = [answer_in(text) for text in write(model, passed, desc=f"{family} passed over")]
    mended = write(model, free, desc=f"{family} left free")
    return {
        "passed_over": {
            "follows": share([a == w.answer for a, w in zip(after, wrong)]),
            "is_right": share([a == p.answer for a, (p, _) in zip(after, cases)]),
        },
        "left_free": {
            "says_wait": share([text.startswith(". Wait,") for text in mended]),
            "is_right": share([answer_in(text) == p.answer for text, (p, _) in zip(mended, cases)]),
        },
    }


def false_alarms(asked: Sequence[Problem], said: Sequence[str]) -> dict[str, Any]:
    """How often the model corrects itself where nothing was planted."""
    return share([" Wait," in text for text in said])


def skipped(model: Model, asked: Sequence[Problem]) -> dict[str, Any]:
    """High effort, but the final message is begun by force."""
    said = write(model, [encode(prompt(p, "high") + FINAL) for p in asked], max_tokens=24, desc="skipped")
    return share([answer_in(FINAL + text) == p.answer for p, text in zip(asked, said)])


def cut_off(model: Model, asked: Sequence[Problem], part: str) -> dict[str, Any]:
    """The right text is read; the final message sees no analysis (or no user message). Is each answer token kept?"""
    kept: list[bool] = []
    for problem in asked:
        head = encode(prompt(problem, "high"))
        ids = head + encode(thought(problem.analysis)) + encode(final(problem))
        after = len(head) + len(encode(thought(problem.analysis)))
        user = slice(head.index(encode("user")[0]), len(head) - 2)
        hidden = {"analysis": slice(len(head), after - 2), "user": user, "nothing": slice(0, 0)}[part]
        ((_, likely),) = read(model, [ids], Blind(after - 2, hidden))
        begin = after + len(encode(f"{FINAL}It is")) - 1
        kept.append(likely[0, begin:-1].tolist() == ids[begin + 1 :])
    return share(kept)


def causes(model: Model, n: int) -> dict[str, Any]:
    """All of these, family by family."""
    out: dict[str, Any] = {}
    for family in CHAINS:
        asked = problems(family, n)
        longest = problems(family, n, length=FAMILIES[family].longest)
        plain = answers(model, asked, "high")
        out[family] = {
            "plain": share(right(asked, plain)),
            "false_alarms": false_alarms(asked, plain),
            "wrong_step": wrong_steps(model, family, n),
            "analysis_skipped": skipped(model, asked),
            "final_sees": {
                f"no {part}" if part != "nothing" else "everything": cut_off(model, asked, part)
                for part in ("nothing", "analysis", "user")
            },
            "sinks_removed": share(right(asked, answers(model, asked, "high", tap=NoSinks()))),
            "longest": share(right(longest, answers(model, longest, "high"))),
            "longest_far_edges_cut": share(right(longest, answers(model, longest, "high", tap=Cut(model.config)))),
        }
    return out
