"""Causal tests of what the answer depends on: wrong steps, skipped analyses, masked attention, removed sinks."""

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import Tensor

from workbench.experiments.suppression import MaskKeys
from workbench.model.config import Config
from workbench.model.model import Model
from workbench.pocket.eval.accuracy import correct, held_out, responses_by_set
from workbench.pocket.eval.generation import generate, most_likely
from workbench.pocket.eval.share import share
from workbench.pocket.families import CHAINS, DAGS, FAMILIES, rows, slips
from workbench.pocket.problems import Problem, Slip
from workbench.pocket.rendering import ANALYSIS, FINAL, answer_in, final, prompt, thought
from workbench.pocket.vocabulary import encode
from workbench.taps import Tap


class NoSinks(Tap):
    """Removes the sinks: their mass is set to 0, and the keys share it."""

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        return torch.zeros_like(x) if name.endswith("attn.hook_sink") else x


class MaskFarKeys(Tap):
    """Limits full layers to the window of sliding layers: keys `window` or more positions back are masked."""

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
    """Prompt and analysis up to the wrong step `number`; with `passed`, including the comma after it."""
    steps = problem.steps[: number + 1]
    text = " ".join(step.text + step.stop for step in steps)
    return prompt(problem, "high") + ANALYSIS + (text if passed else text[: -len(steps[-1].stop)])


def planted(row: str, n: int, *, foreign: bool = True) -> list[tuple[Problem, Slip]]:
    """Held-out problems, each with a slip that changes the answer and is followed by another step.

    With `foreign`, the wrong value is easy to see; without, it can be detected only by computing the step again.
    """
    rng = Random(f"slip {row}")
    cases: list[tuple[Problem, Slip]] = []
    for problem in held_out(row, 20 * n):
        uncorrected = [Slip(s.number, s.value, corrected=False) for s in slips(problem, rng, foreign=foreign)]
        candidates = [s for s in uncorrected if problem.slipped(s).answer != problem.answer]
        candidates = [s for s in candidates if problem.slipped(s).steps[s.number].stop == ","]
        if candidates and len(cases) < n:
            cases.append((problem, rng.choice(candidates)))
    return cases


def wrong_steps(model: Model, cases: Sequence[tuple[Problem, Slip]]) -> list[tuple[bool, bool, bool, bool]]:
    """For each case, the model's response to a wrong step.

    Returns four values per case. With the comma after the wrong step prefilled ("passed over"): does the answer follow
    the wrong step, and is it right? Without the comma ("left free"): does "Wait" follow, and is the answer right?
    """
    wrong = [problem.slipped(slip) for problem, slip in cases]
    with_comma = [encode(prefix(w, s.number, passed=True)) for w, (_, s) in zip(wrong, cases)]
    without_comma = [encode(prefix(w, s.number, passed=False)) for w, (_, s) in zip(wrong, cases)]
    answers = [answer_in(text) for text in generate(model, with_comma, desc="passed over")]
    texts = generate(model, without_comma, desc="left free")
    return [
        (answer == w.answer, answer == p.answer, text.startswith(". Wait,"), answer_in(text) == p.answer)
        for answer, w, (p, _), text in zip(answers, wrong, cases, texts)
    ]


def false_alarms(texts: Sequence[str]) -> dict[str, Any]:
    """The share of responses in which the model corrects itself without a planted slip."""
    return share([" Wait," in text for text in texts])


def analysis_skipped(model: Model, problems: Sequence[Problem]) -> list[bool]:
    """Whether each answer is right at high effort if the header of the final message is prefilled at once."""
    prompts = [encode(prompt(p, "high") + FINAL) for p in problems]
    texts = generate(model, prompts, max_tokens=24, desc="skipped")
    return [answer_in(FINAL + text) == p.answer for p, text in zip(problems, texts)]


def final_without(model: Model, problems: Sequence[Problem], part: str) -> dict[str, Any]:
    """The share of reference texts whose answer stays the most likely if the final message cannot attend to `part`.

    `part` is "analysis", "user" (the question), or "nothing".
    """
    unchanged: list[bool] = []
    for problem in problems:
        head = encode(prompt(problem, "high"))
        ids = head + encode(thought(problem.analysis)) + encode(final(problem))
        after = len(head) + len(encode(thought(problem.analysis)))
        user = slice(head.index(encode("user")[0]), len(head) - 2)
        hidden = {"analysis": slice(len(head), after - 2), "user": user, "nothing": slice(0, 0)}[part]
        ((_, tokens),) = most_likely(model, [ids], MaskKeys(hidden, after - 2))
        begin = after + len(encode(f"{FINAL}It is")) - 1
        unchanged.append(tokens[0, begin:-1].tolist() == ids[begin + 1 :])
    return share(unchanged)


def causes(model: Model, n: int, families: Sequence[str] = CHAINS) -> dict[str, Any]:
    """All causal tests, as shares with intervals, by row (a family, or "dag terse").

    Args:
        model: The model.
        n: Problems per test.
        families: The families that the model was trained on; those without a chain of values are skipped.
    """
    tested = rows(family for family in families if family in CHAINS + DAGS)
    sets = {row: held_out(row, n) for row in tested}
    longest = {row: held_out(row, n, length=FAMILIES[row.partition(" ")[0]].longest) for row in tested}
    cases = {row: planted(row, n) for row in tested}
    exchanged = planted("lists", n, foreign=False) if "lists" in families else []
    plain = responses_by_set(model, sets, "high")
    no_sinks = responses_by_set(model, sets, "high", tap=NoSinks())
    long = responses_by_set(model, longest, "high")
    long_near_keys = responses_by_set(model, longest, "high", tap=MaskFarKeys(model.config))
    after_wrong_steps = iter(wrong_steps(model, [case for row in tested for case in cases[row]]))
    skipped = iter(analysis_skipped(model, [p for row in tested for p in sets[row]]))
    by_row: dict[str, Any] = {}
    for row, problems in sets.items():
        by_row[row] = {
            "plain": share(correct(problems, plain[row])),
            "false_alarms": false_alarms(plain[row]),
            "wrong_step": _shares(list(islice(after_wrong_steps, len(cases[row])))),
            "analysis_skipped": share(list(islice(skipped, len(problems)))),
            "final_sees": {
                f"no {part}" if part != "nothing" else "everything": final_without(model, problems, part)
                for part in ("nothing", "analysis", "user")
            },
            "sinks_removed": share(correct(problems, no_sinks[row])),
            "longest": share(correct(longest[row], long[row])),
            "longest_far_edges_cut": share(correct(longest[row], long_near_keys[row])),
        }
    if exchanged:
        by_row["lists"]["two_digits_exchanged"] = _shares(wrong_steps(model, exchanged))
    return by_row


def _shares(cases: Sequence[tuple[bool, bool, bool, bool]]) -> dict[str, Any]:
    """The results of `wrong_steps` as shares."""
    follows, right_after_comma, waits, right_if_free = zip(*cases)
    return {
        "passed_over": {"follows": share(follows), "is_right": share(right_after_comma)},
        "left_free": {"says_wait": share(waits), "is_right": share(right_if_free)},
    }
