"""The numbers of the model card: the tables of `results.json` as Markdown, exactly as `README.md` contains them.

python -m workbench.pocket.eval.card data/pocket     # writes the tables of its results.json into its README.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.files import atomic_write
from workbench.pocket.families import CHAINS, FAMILIES
from workbench.pocket.rendering import EFFORTS

BEGIN, END = "<!-- from results.json -->", "<!-- end -->"


def tables(results: dict[str, Any]) -> str:
    """All results as Markdown paragraphs and tables."""
    cells, causes, routing = results["accuracy"], results["causes"], results["routing"]
    parts = [
        f"Accuracy with greedy decoding, {results['n']} held-out problems per cell, in wordings that were never "
        "trained; ± is half of the 95 % Wilson interval. `one longer` is one step (digit, item) longer than any "
        "trained problem, at high effort.",
        _table(
            ["family", "lengths", *EFFORTS, "high, trained wordings", "one longer", "high, before MXFP4"],
            [
                [
                    family,
                    f"{kind.shortest} to {kind.longest}",
                    *(_share(cells[f"{family}/{effort}"]["new_wordings"]) for effort in EFFORTS),
                    _share(cells[f"{family}/high"]["trained_wordings"]),
                    _share(cells[f"{family}/high"]["one_longer"]),
                    _share(results["accuracy_bf16"][f"{family}/high"]["new_wordings"])
                    if "accuracy_bf16" in results
                    else "",
                ]
                for family, kind in FAMILIES.items()
            ],
        ),
        "Accuracy by length, at high effort (at low effort in parentheses):",
        _lengths(cells),
        "What the answer depends on, at high effort:",
        _table(
            ["", *CHAINS],
            [
                [name, *(_share(_at(causes[family], path)) for family in CHAINS)]
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


def _lengths(cells: dict[str, Any]) -> str:
    most = max(kind.longest for kind in FAMILIES.values())
    rows = []
    for family in FAMILIES:
        by_effort = [cells[f"{family}/{effort}"]["by_length"] for effort in ("high", "low")]
        row = [family]
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
