"""All figures of one row of the benchmark."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import workbench as wb
from benchmarks.ground_truth import methods as table
from benchmarks.ground_truth.cases import Case, Matrix, fitting_problems, lengths, scored_problems
from benchmarks.ground_truth.cost import count_passes
from benchmarks.ground_truth.scores import Comparisons, auroc_within_problems, compare, intervals, pooled_pairs
from workbench.analysis.statistics import Interval
from workbench.pocket.problems import Problem

COLUMNS = {"all pairs": False, "equal distance": True}  # whether only pairs of equal distance are compared


def measure_row(model: wb.Model, row: str, n: int, seed: str) -> dict[str, Any]:
    """Every figure of one row, as JSON values: AUROCs over all lengths and by length, passes, seconds."""
    started = time.process_time()
    problems = scored_problems(row, n, seed)
    fitting = fitting_problems(row, table.N_FITTING_TEXTS)
    rules = table.baselines(fitting)
    methods = table.methods(model, fitting[: table.N_FITTING_RUNS])
    matrices: dict[str, list[Matrix]] = {
        name: [rule(problem) for problem in problems] for name, rule in rules.items()
    } | {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for problem in tqdm(problems, desc=row, leave=False, disable=None):
        case = Case(model, problem)
        for name, method in methods.items():
            before = time.process_time()
            matrices[name].append(method.scores(case))
            seconds[name] += time.process_time() - before
    if parsed := table.question_rule(problems):
        matrices[table.QUESTION_RULE] = parsed
    pairs = pooled_pairs(problems, matrices["nearness"])
    return {
        "row": row,
        "n_problems": n,
        "n_pairs": len(pairs.used),
        "n_used": int(pairs.used.sum()),
        "baselines": list(rules),
        "needs": {name: method.needs for name, method in methods.items()},
        "scored_pairs": {name: _share_scored(problems, of_method) for name, of_method in matrices.items()},
        "passes": _passes(model, problems, methods),
        **_figures(problems, matrices, list(rules)),
        "lengths": {
            str(length): _figures(*_of_length(problems, matrices, length), list(rules)) for length in lengths(row)
        },
        "seconds": seconds | {"in all": time.process_time() - started},
    }


def _passes(
    model: wb.Model, problems: Sequence[Problem], methods: Mapping[str, table.Method]
) -> dict[str, dict[str, float]]:
    """Forward passes of each method for the first problem of each length. Nothing is shared between methods."""
    first = {problem.length: problem for problem in reversed(problems)}
    passes: dict[str, dict[str, float]] = {name: {} for name in methods}
    for length, problem in sorted(first.items()):
        for name, method in methods.items():
            case = Case(model, problem)
            passes[name][str(length)] = round(count_passes(model, partial(method.scores, case), len(case.token_ids)), 3)
    return passes


def _figures(problems: Sequence[Problem], matrices: Mapping[str, Sequence[Matrix]], rules: Sequence[str]) -> dict:
    """For each column and method: AUROC, difference to the best baseline, and whether it is above all baselines."""
    figures = {}
    for column, same_distance in COLUMNS.items():
        comparisons: dict[str, Comparisons] = {
            name: compare(pooled_pairs(problems, of_method), len(problems), same_distance=same_distance)
            for name, of_method in matrices.items()
        }
        of_name = intervals(comparisons, rules)
        best = max(rules, key=lambda name: np.nan_to_num(of_name[name][0].value))
        figures[column] = {"best baseline": best, "auroc": {}, "above best baseline": {}, "works": []}
        figures[column]["within problems"] = {
            name: _number(auroc_within_problems(of_method)) for name, of_method in comparisons.items()
        }
        for name, (area, differences) in of_name.items():
            figures[column]["auroc"][name] = _numbers(area)
            if name not in rules and name != table.QUESTION_RULE:
                figures[column]["above best baseline"][name] = _numbers(differences[best])
                if all(difference.low > 0 for difference in differences.values()):
                    figures[column]["works"].append(name)
    return figures


def _of_length(
    problems: Sequence[Problem], matrices: Mapping[str, Sequence[Matrix]], length: int
) -> tuple[list[Problem], dict[str, list[Matrix]]]:
    """The problems of one length, and their matrices."""
    chosen = [number for number, problem in enumerate(problems) if problem.length == length]
    return [problems[k] for k in chosen], {name: [of[k] for k in chosen] for name, of in matrices.items()}


def _share_scored(problems: Sequence[Problem], matrices: Sequence[Matrix]) -> float:
    """The share of pairs that have a score."""
    return float(np.isfinite(pooled_pairs(problems, matrices).scores).mean())


def _numbers(interval: Interval) -> list[float | None]:
    """Value, lower and upper bound; None without comparisons."""
    return [_number(float(number)) for number in interval[:3]]


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
