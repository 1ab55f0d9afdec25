"""Which method finds the steps that a step depends on? Scored against the true reasoning graphs of pocket's problems.

    python -m benchmarks.step_attribution                 # 40 problems a family, about ten minutes on 2 cores
    python -m benchmarks.step_attribution -n 100 --out docs/step_attribution.md --json out.json

Held-out problems of four steps and more are run with their correct solutions. A method gives a score for each pair of
an earlier and a later step. The truth is whether the later step uses a value that the earlier one computed. (If the
earlier step only restates the question, the later step may read the value in the question instead: these pairs are left
out.) AUROC is the probability that a true pair has a higher score than another pair: 0.5 is chance. Intervals are 95 %,
resampled over problems. Cost is in passes over the text, for S steps. "Nearness" is the trivial baseline that every
method must beat: steps use what is near.

Two further questions on the same problems. Does hiding an aside, on which nothing depends, change what follows by less
than hiding a step that is used? This is measured over whole steps, and without the first token of a step: the first
token decides which step comes next, which depends on whether the aside has been written already; the other tokens
decide its content. And at which step does the probability of a forced answer jump?
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from tqdm.auto import tqdm

import workbench as wb
from workbench.analysis import statistics
from workbench.analysis.heads import receiver_heads, step_attention
from workbench.experiments.cached_run import CachedRun, divergence
from workbench.experiments.forced_answers import forced_answer
from workbench.experiments.suppression import suppression
from workbench.pocket.families import CHAINS, FAMILIES, make
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import render
from workbench.traces import Trace

Matrix = np.ndarray  # step key_step
COST = {
    "nearness": "0",
    "attention, all layers": "1",
    "attention, full layers": "1",
    "receiver heads": "1",
    "suppression, later": "S",
    "suppression, all": "S",
    "suppression, frozen routing": "3 S",
    "routing shift": "S",
    "value changed": "S",
}
HIDDEN = {"steps": "the effect on a whole later step", "values": "the effect on a later step except its first token"}


def problems(family: str, n: int) -> list[Problem]:
    rng = Random(f"step attribution {family}")
    longest = FAMILIES[family].longest
    lengths = [length for length in FAMILIES[family].lengths if length >= min(4, longest)]
    return [make(family, rng, length=rng.choice(lengths), split="test", wording=None) for _ in range(n)]


def scores(model: wb.Model, trace: Trace, segments: list[slice]) -> tuple[dict[str, Matrix], Matrix]:
    """The scores of every method for every pair of steps, and suppression without the first tokens of steps."""
    attention = step_attention(trace, segments)
    full = [layer for layer, kind in enumerate(trace.config["layer_types"]) if kind == "full_attention"]
    n = len(segments)
    scores_of = {
        "nearness": -np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(float),
        "attention, all layers": attention.mean(("layer", "head")).values,
        "attention, full layers": attention.sel(layer=full).mean(("layer", "head")).values,
    }
    if n >= 7:
        heads = receiver_heads(attention)
        largest = np.unravel_index(np.argsort(-heads["kurtosis"].fillna(-9).values, None)[:4], heads["kurtosis"].shape)
        vertical = heads["vertical"].values[largest].mean(0)
        scores_of["receiver heads"] = np.tile(np.nan_to_num(vertical, nan=-1.0), (n, 1))
    later = suppression(model, trace, segments, split_routing=True)
    scores_of["suppression, later"] = later["effect"].values
    scores_of["suppression, frozen routing"] = later["content"].values
    scores_of["routing shift"] = later["routing"].values
    scores_of["suppression, all"] = suppression(model, trace, segments, queries="all")["effect"].values
    scores_of["value changed"] = value_change(model, trace, segments)
    return scores_of, np.stack(
        [later["by_token"].values[segment.start + 1 : segment.stop].mean(0) for segment in segments]
    )


@torch.inference_mode()
def value_change(model: wb.Model, trace: Trace, segments: list[slice]) -> Matrix:
    """Divergence of the predictions in later steps after a step's last token is replaced by another of its class."""
    rng = np.random.default_rng(0)
    plain = CachedRun(model, trace.tokens)
    effects = np.zeros((len(segments), len(segments)))
    for j, segment in enumerate(segments):
        at = segment.stop - 1
        original = trace.str_tokens[at]
        same_class = sorted(
            {
                t
                for t, text in zip(trace.tokens, trace.str_tokens)
                if text != original and token_class(text) == token_class(original)
            }
        )
        if not same_class:
            continue
        tokens = list(trace.tokens)
        tokens[at] = int(rng.choice(same_class))
        other = CachedRun(model, tokens)
        last = model.config.n_layers
        kl = divergence(model, plain.resid(last), other.resid(last))[0].double().numpy()
        for i in range(j + 1, len(segments)):
            effects[i, j] = kl[segments[i]].mean()
    return effects


def token_class(piece: str) -> str:
    text = piece.strip()
    return "digit" if text.isdigit() else "name" if text[:1].isupper() else "letter" if len(text) == 1 else text


def measured(model: wb.Model, family: str, n: int) -> dict:
    """AUROC of every method, the effect of asides, and the jumps of the forced answer, for one family."""
    scores_by_method: dict[str, list[np.ndarray]] = {}
    cluster: dict[str, list[np.ndarray]] = {}
    truth: dict[str, list[np.ndarray]] = {}
    jumps: list[int] = []
    hidden: dict[str, dict[str, list[float]]] = {
        measure: {"used": [], "unused": [], "asides": []} for measure in HIDDEN
    }
    for number, problem in enumerate(tqdm(problems(family, n), desc=family, leave=False, disable=None)):
        rendered = render(problem, "high")
        trace = model.trace(list(rendered.ids), record="attention")
        segments, edges = list(rendered.steps), problem.edges
        computed = [step.kind in ("compute", "correction", "wrong") for step in problem.steps]
        pairs = np.array([(i, j) for i in range(len(segments)) for j in range(i) if computed[j] or j not in edges[i]])
        if not any(computed[j] for i, j in pairs if j in edges[i]):
            continue
        true = np.array([j in edges[i] for i, j in pairs])
        method_scores, values = scores(model, trace, segments)
        for name, matrix in method_scores.items():
            scores_by_method.setdefault(name, []).append(matrix[pairs[:, 0], pairs[:, 1]])
            truth.setdefault(name, []).append(true)
            cluster.setdefault(name, []).append(np.full(len(pairs), number))
        aside = np.array([problem.steps[j].distractor for _, j in pairs])
        for measure, matrix in zip(HIDDEN, (method_scores["suppression, later"], values)):
            effect = matrix[pairs[:, 0], pairs[:, 1]]
            for kind, at in (("used", true), ("unused", ~true & ~aside), ("asides", aside)):
                hidden[measure][kind] += effect[at].tolist()
        curve = forced_answer(model, trace, segments=segments)["p"].values[:, 0]
        if family != "addition":  # the digits of a sum are stated one by one
            other = [i for i, step in enumerate(problem.steps) if step.value != problem.answer]
            jumps.append(int(np.argmax(np.diff(curve))) - (max(other, default=-1) + 1))
    table = {}
    for name, values_by_problem in scores_by_method.items():
        s, t = np.concatenate(values_by_problem), np.concatenate(truth[name])
        interval = statistics.bootstrap_interval(area(s, t), len(s), np.concatenate(cluster[name]), resamples=1000)
        table[name] = [float(x) for x in (interval.value, interval.low, interval.high)]
    return {"auroc": table, "n": n, "hidden": hidden, "jumps": jumps}


def area(s: np.ndarray, t: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda rows: statistics.auroc(s[rows], t[rows])


def report(model: wb.Model, results: dict[str, dict]) -> str:
    lines = [
        "# Which method finds what a step depends on?",
        "",
        f"Made by `python -m benchmarks.step_attribution -n {next(iter(results.values()))['n']}` on `{model.name}` "
        f"({model.digest[:19]}…): AUROC of pairs of steps against the true reasoning graph, with 95 % intervals over "
        "problems; S is the number of steps.",
        "",
        f"| method | passes | {' | '.join(results)} |",
        f"|---|---|{'---|' * len(results)}",
    ]
    for name, cost in COST.items():
        cells = []
        for result in results.values():
            cell = result["auroc"].get(name)
            cells.append("—" if cell is None else f"{cell[0]:.2f} ({cell[1]:.2f}–{cell[2]:.2f})")
        lines.append(f"| {name} | {cost} | {' | '.join(cells)} |")
    for measure, effect in HIDDEN.items():
        lines += ["", f"Hiding one step from all later ones (`suppression, later`), {effect}, in nats: the median.", ""]
        lines += ["| hidden | " + " | ".join(results) + " |", f"|---|{'---|' * len(results)}"]
        kinds = {"a step that it uses": "used", "a step that it does not use": "unused", "an aside": "asides"}
        effects = [f["hidden"][measure] for f in results.values()]
        for name, key in kinds.items():
            cells = [f"{np.median(e[key]):.3f}" if e[key] else "—" for e in effects]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        cells = [
            f"{np.mean(np.array(e['asides']) <= np.quantile(e['unused'], 0.95)):.2f} (n={len(e['asides'])})"
            if e["asides"] and e["unused"]
            else "—"
            for e in effects
        ]
        lines.append(f"| asides inside the null: no larger than 95 % of those not used | {' | '.join(cells)} |")
    lines += [
        "",
        "Forced answers: distance in steps between the largest jump and the step from which the answer is final.",
        "",
    ]
    lines += ["| | " + " | ".join(results) + " |", f"|---|{'---|' * len(results)}"]
    lines.append(f"| problems | {' | '.join(str(len(f['jumps'])) for f in results.values())} |")
    jumps = [np.abs(f["jumps"]) for f in results.values()]
    lines.append(f"| mean distance | {' | '.join(f'{j.mean():.2f}' if len(j) else '—' for j in jumps)} |")
    lines.append(f"| at the same step | {' | '.join(f'{(j == 0).mean():.2f}' if len(j) else '—' for j in jumps)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_attribution", description=__doc__)
    parser.add_argument("-n", type=int, default=40, help="problems a family (default: 40)")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--families", nargs="*", default=CHAINS)
    parser.add_argument("--out", type=Path, help="a file for the tables, as Markdown")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    args = parser.parse_args()
    model = wb.Model(args.model)
    results = {family: measured(model, family, args.n) for family in args.families}
    text = report(model, results)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
