"""Which method finds the steps that a step depends on? Scored against the true reasoning graphs of pocket's problems.

    python -m benchmarks.step_attribution                 # 40 problems a family, about ten minutes on 2 cores
    python -m benchmarks.step_attribution -n 100 --out docs/step_attribution.md --json out.json

Held-out problems of four steps and more are read as they should be solved. For each pair of steps, an earlier and a
later one, a method gives a score; the truth is whether the later one uses a value that the earlier one worked out.
(What a step uses of one that only restates the question, it may as well read there: such pairs are left out.) AUROC is
the probability that a true pair scores above one that is none: 0.5 is chance. Intervals are 95 %, resampled over
problems. Cost is in passes over the text, for S steps. "Nearness" is no method but what any of them must beat: steps
use what is near.

Then, over the same problems: does hiding an aside, which nothing depends on, change what follows by less than hiding a
step that is used? Once over whole steps, and once without the token that a step begins with: that one says which step
comes next, for which it matters that the aside has been said already; the others say what comes out. And when the
model is made to answer after each step, where does its belief jump?
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
    "suppression, routes held": "3 S",
    "routing shift": "S",
    "value changed": "S",
}
HIDDEN = {"steps": "the effect on a whole later step", "values": "the effect on a later step but for its first token"}


def problems(family: str, n: int) -> list[Problem]:
    rng = Random(f"step attribution {family}")
    longest = FAMILIES[family].longest
    lengths = [length for length in FAMILIES[family].lengths if length >= min(4, longest)]
    return [make(family, rng, length=rng.choice(lengths), split="test", wording=None) for _ in range(n)]


def scores(model: wb.Model, trace: Trace, parts: list[slice]) -> tuple[dict[str, Matrix], Matrix]:
    """What each method says of every pair of steps, and suppression without the tokens that steps begin with."""
    attention = step_attention(trace, parts)
    full = [layer for layer, kind in enumerate(trace.config["layer_types"]) if kind == "full_attention"]
    n = len(parts)
    found = {
        "nearness": -np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(float),
        "attention, all layers": attention.mean(("layer", "head")).values,
        "attention, full layers": attention.sel(layer=full).mean(("layer", "head")).values,
    }
    if n >= 7:
        heads = receiver_heads(attention)
        best = np.unravel_index(np.argsort(-heads["kurtosis"].fillna(-9).values, None)[:4], heads["kurtosis"].shape)
        vertical = heads["vertical"].values[best].mean(0)
        found["receiver heads"] = np.tile(np.nan_to_num(vertical, nan=-1.0), (n, 1))
    later = suppression(model, trace, parts, split_routing=True)
    found["suppression, later"] = later["effect"].values
    found["suppression, routes held"] = later["content"].values
    found["routing shift"] = later["routing"].values
    found["suppression, all"] = suppression(model, trace, parts, queries="all")["effect"].values
    found["value changed"] = changed(model, trace, parts)
    return found, np.stack([later["by_token"].values[p.start + 1 : p.stop].mean(0) for p in parts])


@torch.inference_mode()
def changed(model: wb.Model, trace: Trace, parts: list[slice]) -> Matrix:
    """The last token of a step becomes another of its kind: how much else do later steps predict?"""
    rng = np.random.default_rng(0)
    plain = CachedRun(model, trace.tokens)
    out = np.zeros((len(parts), len(parts)))
    for j, part in enumerate(parts):
        at = part.stop - 1
        own = trace.str_tokens[at]
        kin = sorted({t for t, p in zip(trace.tokens, trace.str_tokens) if p != own and alike(p) == alike(own)})
        if not kin:
            continue
        tokens = list(trace.tokens)
        tokens[at] = int(rng.choice(kin))
        other = CachedRun(model, tokens)
        last = model.config.n_layers
        kl = divergence(model, plain.resid(last), other.resid(last))[0].double().numpy()
        for i in range(j + 1, len(parts)):
            out[i, j] = kl[parts[i]].mean()
    return out


def alike(piece: str) -> str:
    text = piece.strip()
    return "digit" if text.isdigit() else "name" if text[:1].isupper() else "letter" if len(text) == 1 else text


def measured(model: wb.Model, family: str, n: int) -> dict:
    """AUROC of every method, the effect of asides, and where belief jumps, for one family."""
    points: dict[str, list[np.ndarray]] = {}
    cluster: dict[str, list[np.ndarray]] = {}
    truth: dict[str, list[np.ndarray]] = {}
    jumps: list[int] = []
    hidden: dict[str, dict[str, list[float]]] = {which: {"used": [], "unused": [], "asides": []} for which in HIDDEN}
    for number, problem in enumerate(tqdm(problems(family, n), desc=family, leave=False, disable=None)):
        rendered = render(problem, "high")
        trace = model.trace(list(rendered.ids), record="attention")
        parts, edges = list(rendered.steps), problem.edges
        worked = [step.kind in ("compute", "correction", "wrong") for step in problem.steps]
        pairs = np.array([(i, j) for i in range(len(parts)) for j in range(i) if worked[j] or j not in edges[i]])
        if not any(worked[j] for i, j in pairs if j in edges[i]):
            continue
        true = np.array([j in edges[i] for i, j in pairs])
        found, values = scores(model, trace, parts)
        for name, matrix in found.items():
            points.setdefault(name, []).append(matrix[pairs[:, 0], pairs[:, 1]])
            truth.setdefault(name, []).append(true)
            cluster.setdefault(name, []).append(np.full(len(pairs), number))
        aside = np.array([problem.steps[j].distractor for _, j in pairs])
        for which, matrix in zip(HIDDEN, (found["suppression, later"], values)):
            effect = matrix[pairs[:, 0], pairs[:, 1]]
            for kind, at in (("used", true), ("unused", ~true & ~aside), ("asides", aside)):
                hidden[which][kind] += effect[at].tolist()
        curve = forced_answer(model, trace, segments=parts)["p"].values[:, 0]
        if family != "addition":  # the digits of a sum are stated one by one
            other = [i for i, step in enumerate(problem.steps) if step.value != problem.answer]
            jumps.append(int(np.argmax(np.diff(curve))) - (max(other, default=-1) + 1))
    table = {}
    for name, parts_ in points.items():
        s, t = np.concatenate(parts_), np.concatenate(truth[name])
        interval = statistics.bootstrap_interval(area(s, t), len(s), np.concatenate(cluster[name]), resamples=1000)
        table[name] = [float(x) for x in (interval.value, interval.low, interval.high)]
    return {"auroc": table, "n": n, "hidden": hidden, "jumps": jumps}


def area(s: np.ndarray, t: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda rows: statistics.auroc(s[rows], t[rows])


def written(model: wb.Model, results: dict[str, dict]) -> str:
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
        for found in results.values():
            cell = found["auroc"].get(name)
            cells.append("—" if cell is None else f"{cell[0]:.2f} ({cell[1]:.2f}–{cell[2]:.2f})")
        lines.append(f"| {name} | {cost} | {' | '.join(cells)} |")
    for which, words in HIDDEN.items():
        lines += ["", f"Hiding one step from all later ones (`suppression, later`), {words}, in nats: the median.", ""]
        lines += ["| hidden | " + " | ".join(results) + " |", f"|---|{'---|' * len(results)}"]
        kinds = {"a step that it uses": "used", "a step that it does not use": "unused", "an aside": "asides"}
        effects = [f["hidden"][which] for f in results.values()]
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
    lines += ["", "Belief: how far its largest jump lies from the step from which on the answer stands, in steps.", ""]
    lines += ["| | " + " | ".join(results) + " |", f"|---|{'---|' * len(results)}"]
    lines.append(f"| problems | {' | '.join(str(len(f['jumps'])) for f in results.values())} |")
    jumps = [np.abs(f["jumps"]) for f in results.values()]
    lines.append(f"| mean distance | {' | '.join(f'{j.mean():.2f}' if len(j) else '—' for j in jumps)} |")
    lines.append(f"| at that very step | {' | '.join(f'{(j == 0).mean():.2f}' if len(j) else '—' for j in jumps)} |")
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
    text = written(model, results)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
