"""What the answer hangs on: wrong steps, thoughts that are skipped, edges that are cut, sinks that are taken away."""

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import Tensor

from workbench.experiments.suppression import MaskKeys
from workbench.model.config import Config
from workbench.model.model import Model
from workbench.pocket.eval.accuracy import answered, problems, right
from workbench.pocket.eval.share import share
from workbench.pocket.eval.writing import read, write
from workbench.pocket.families import CHAINS, FAMILIES, slips
from workbench.pocket.problems import Problem, Slip
from workbench.pocket.rendering import ANALYSIS, FINAL, answer_in, final, prompt, thought
from workbench.pocket.vocabulary import encode
from workbench.taps import Tap


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


def prefix(problem: Problem, number: int, *, passed: bool) -> str:
    """Prompt and analysis up to the wrong step `number`; with `passed`, the comma after it is written too."""
    steps = problem.steps[: number + 1]
    said = " ".join(step.text + step.stop for step in steps)
    return prompt(problem, "high") + ANALYSIS + (said if passed else said[: -len(steps[-1].stop)])


def planted(family: str, n: int, *, foreign: bool = True) -> list[tuple[Problem, Slip]]:
    """Held-out problems with a slip each that leads to another answer, and has a step after it; without `foreign`, of
    the kind that is only seen by working the step out again.
    """
    rng = Random(f"slip {family}")
    cases: list[tuple[Problem, Slip]] = []
    for problem in problems(family, 20 * n):
        free = [Slip(s.number, s.value, corrected=False) for s in slips(problem, rng, foreign=foreign)]
        changed = [s for s in free if problem.slipped(s).answer != problem.answer]
        changed = [s for s in changed if problem.slipped(s).steps[s.number].stop == ","]
        if changed and len(cases) < n:
            cases.append((problem, rng.choice(changed)))
    return cases


def wrong_steps(model: Model, cases: Sequence[tuple[Problem, Slip]]) -> list[tuple[bool, bool, bool, bool]]:
    """A step is made wrong. Passed over by force: does the answer follow, is it right? Left free: is the step put
    right, and the answer?
    """
    wrong = [problem.slipped(slip) for problem, slip in cases]
    passed = [encode(prefix(w, s.number, passed=True)) for w, (_, s) in zip(wrong, cases)]
    free = [encode(prefix(w, s.number, passed=False)) for w, (_, s) in zip(wrong, cases)]
    after = [answer_in(text) for text in write(model, passed, desc="passed over")]
    mended = write(model, free, desc="left free")
    return [
        (a == w.answer, a == p.answer, text.startswith(". Wait,"), answer_in(text) == p.answer)
        for a, w, (p, _), text in zip(after, wrong, cases, mended)
    ]


def false_alarms(asked: Sequence[Problem], said: Sequence[str]) -> dict[str, Any]:
    """How often the model corrects itself where nothing was planted."""
    return share([" Wait," in text for text in said])


def skipped(model: Model, asked: Sequence[Problem]) -> list[bool]:
    """High effort, but the final message is begun by force: is the answer right?"""
    said = write(model, [encode(prompt(p, "high") + FINAL) for p in asked], max_tokens=24, desc="skipped")
    return [answer_in(FINAL + text) == p.answer for p, text in zip(asked, said)]


def cut_off(model: Model, asked: Sequence[Problem], part: str) -> dict[str, Any]:
    """The right text is read; the final message sees no analysis (or no user message). Is each answer token kept?"""
    kept: list[bool] = []
    for problem in asked:
        head = encode(prompt(problem, "high"))
        ids = head + encode(thought(problem.analysis)) + encode(final(problem))
        after = len(head) + len(encode(thought(problem.analysis)))
        user = slice(head.index(encode("user")[0]), len(head) - 2)
        hidden = {"analysis": slice(len(head), after - 2), "user": user, "nothing": slice(0, 0)}[part]
        ((_, likely),) = read(model, [ids], MaskKeys(hidden, after - 2))
        begin = after + len(encode(f"{FINAL}It is")) - 1
        kept.append(likely[0, begin:-1].tolist() == ids[begin + 1 :])
    return share(kept)


def causes(model: Model, n: int) -> dict[str, Any]:
    """All of these, family by family."""
    sets = {family: problems(family, n) for family in CHAINS}
    longest = {family: problems(family, n, length=FAMILIES[family].longest) for family in CHAINS}
    cases = {family: planted(family, n) for family in CHAINS}
    exchanged = planted("lists", n, foreign=False)
    plain = answered(model, sets, "high")
    no_sinks = answered(model, sets, "high", tap=NoSinks())
    long, near = answered(model, longest, "high"), answered(model, longest, "high", tap=Cut(model.config))
    followed = iter(wrong_steps(model, [case for family in CHAINS for case in cases[family]]))
    at_once = iter(skipped(model, [p for family in CHAINS for p in sets[family]]))
    out: dict[str, Any] = {}
    for family, asked in sets.items():
        follows, still, waits, mended = zip(*islice(followed, len(cases[family])))
        out[family] = {
            "plain": share(right(asked, plain[family])),
            "false_alarms": false_alarms(asked, plain[family]),
            "wrong_step": _wrong(follows, still, waits, mended),
            "analysis_skipped": share(list(islice(at_once, len(asked)))),
            "final_sees": {
                f"no {part}" if part != "nothing" else "everything": cut_off(model, asked, part)
                for part in ("nothing", "analysis", "user")
            },
            "sinks_removed": share(right(asked, no_sinks[family])),
            "longest": share(right(longest[family], long[family])),
            "longest_far_edges_cut": share(right(longest[family], near[family])),
        }
    out["lists"]["two_digits_exchanged"] = _wrong(*zip(*wrong_steps(model, exchanged)))
    return out


def _wrong(
    follows: Sequence[bool], still: Sequence[bool], waits: Sequence[bool], mended: Sequence[bool]
) -> dict[str, Any]:
    return {
        "passed_over": {"follows": share(follows), "is_right": share(still)},
        "left_free": {"says_wait": share(waits), "is_right": share(mended)},
    }
