"""The numbers of the model card: the tables of `results.json` as Markdown, exactly as `README.md` contains them.

python -m workbench.pocket.eval.card data/pocket     # writes the tables of its results.json into its README.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.files import atomic_write
from workbench.pocket.families import FAMILIES
from workbench.pocket.problems import Facts
from workbench.pocket.rendering import EFFORTS

BEGIN, END = "<!-- from results.json -->", "<!-- end -->"


def tables(results: dict[str, Any]) -> str:
    """All results as Markdown paragraphs and tables."""
    cells, causes, routing = results["accuracy"], results["causes"], results["routing"]
    rows = list(dict.fromkeys(name.partition("/")[0] for name in cells))
    parts = [
        f"Accuracy with greedy decoding, {results['n']} held-out problems per cell, in wordings that were never "
        "trained; ± is half of the 95 % Wilson interval. `one longer` is one step (digit, item) longer than any "
        "trained problem, at high effort.",
        _table(
            ["family", "lengths", *EFFORTS, "high, trained wordings", "one longer", "high, before MXFP4"],
            [
                [
                    row,
                    f"{_kind(row).shortest} to {_kind(row).longest}",
                    *(_share(cells[f"{row}/{effort}"]["new_wordings"]) for effort in EFFORTS),
                    _share(cells[f"{row}/high"]["trained_wordings"]),
                    _share(cells[f"{row}/high"]["one_longer"]),
                    _share(results["accuracy_bf16"][f"{row}/high"]["new_wordings"])
                    if "accuracy_bf16" in results
                    else "",
                ]
                for row in rows
            ],
        ),
        "Accuracy by length, at high effort (at low effort in parentheses):",
        _lengths(cells, rows),
        "What the answer depends on, at high effort:",
        _table(
            ["", *causes],
            [
                [name, *(_share(_at(of_row, path)) for of_row in causes.values())]
                for name, path in (
                    ("right answers", ["plain"]),
                    (
                        "wrong step and comma prefilled: the answer follows the wrong step",
                        ["wrong_step", "passed_over", "follows"],
                    ),
                    ("wrong step prefilled without comma: “Wait” follows", ["wrong_step", "left_free", "says_wait"]),
                    ("… and the answer is right", ["wrong_step", "left_free", "is_right"]),
                    ("“Wait” without a wrong step", ["false_alarms"]),
                    ("right answers, analysis skipped", ["analysis_skipped"]),
                    ("answer unchanged, final message attends to everything", ["final_sees", "everything"]),
                    ("… cannot attend to the analysis", ["final_sees", "no analysis"]),
                    ("… cannot attend to the question", ["final_sees", "no user"]),
                    ("right answers, sinks removed", ["sinks_removed"]),
                    ("right answers, longest trained length", ["longest"]),
                    ("… full layers limited to the window", ["longest_far_edges_cut"]),
                )
            ],
        ),
        "In lists the wrong step has a digit that was never in the list. If instead two digits are exchanged, which "
        "can be detected only by computing the step again: the answer follows the wrong step in "
        f"{_share(causes['lists']['two_digits_exchanged']['passed_over']['follows'])}, “Wait” follows in "
        f"{_share(causes['lists']['two_digits_exchanged']['left_free']['says_wait'])}.",
        *_rules(results.get("rules", {})),
        f"Routers, over {routing['tokens']} tokens of held-out texts: normalized mutual information of the first "
        "expert and a label (chance level in parentheses).",
        _table(
            ["layer", "load / even load", "dead", "family", "channel", "token class", "family, given the token class"],
            [
                [
                    str(number),
                    f"{layer['load_min']:.2f} to {layer['load_max']:.2f}",
                    str(layer["dead"]),
                    *(
                        f"{layer['knows'][name]['nmi']:.2f} ({layer['knows'][name]['null']:.3f})"
                        for name in ("family", "channel", "token class", "family given token class")
                    ),
                ]
                for number, layer in enumerate(routing["layers"])
            ],
        ),
        f"Sinks: {routing['heads_with_5_percent_somewhere']:.0%} of the heads have a sink mass of 5 % or more at some "
        f"token, {routing['heads_with_5_percent_on_average']:.0%} on average over tokens. Mean sink mass of the heads, "
        "by layer: " + "; ".join(" ".join(f"{mass:.2f}" for mass in row) for row in routing["sink_mean"]) + ".",
        "Compared with transformers in fp32: logits differ by at most "
        f"{results['transformers']['logits_differ_by']:.1e} (the largest logit is "
        f"{results['transformers']['largest_logit']:.0f}); the greedy text is equal for "
        f"{_share(results['transformers']['texts_alike'])} of {results['transformers']['texts_alike']['n']} prompts. "
        f"{results['tokens_per_second']} tokens per second on one thread.",
    ]
    return "\n\n".join(parts)


def filled(card: str, results: dict[str, Any]) -> str:
    """The card with these tables between its two markers."""
    before, rest = card.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{rest.split(END)[1]}"


def _rules(shares: dict[str, Any]) -> list[str]:
    """The table of `eval.rules`; nothing for a model that was not trained on these families."""
    if not shares:
        return []
    columns = list(dict.fromkeys(name for row in shares.values() for name in row))
    cells = [[row, *(_share(of[name]) if name in of else "" for name in columns)] for row, of in shares.items()]
    head = ["", *(name.replace("_", " ") for name in columns)]
    return [
        "Whether the known decision is the model's, at high effort (see `workbench.pocket.eval.rules`):",
        _table(head, cells),
    ]


def _kind(row: str) -> type[Facts]:
    return FAMILIES[row.partition(" ")[0]]


def _lengths(cells: dict[str, Any], names: Sequence[str]) -> str:
    most = max(_kind(name).longest for name in names)
    rows = []
    for name in names:
        by_effort = [cells[f"{name}/{effort}"]["by_length"] for effort in ("high", "low")]
        row = [name]
        for length in map(str, range(1, most + 1)):
            high, low = (by_length.get(length) for by_length in by_effort)
            row.append("" if None in (high, low) else f"{high['share']:.2f} ({low['share']:.2f})")
        rows.append(row)
    return _table(["family", *map(str, range(1, most + 1))], rows)


def _share(s: dict[str, float]) -> str:
    return f"{s['share']:.3f} ± {(s['high'] - s['low']) / 2:.3f}"


def _at(results: Any, path: Sequence[str]) -> Any:
    for name in path:
        results = results[name]
    return results


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    card = folder / "README.md"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    atomic_write(card, filled(card.read_text(encoding="utf-8"), results))
