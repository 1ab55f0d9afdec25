"""The figures of a model card, as Markdown: what `results.json` says, in tables. `README.md` holds them word for word.

python -m workbench.pocket.eval.card data/pocket     # puts the tables of its results.json into its README.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.pocket.families import CHAINS, FAMILIES
from workbench.pocket.rendering import EFFORTS

BEGIN, END = "<!-- from results.json -->", "<!-- end -->"


def tables(results: dict[str, Any]) -> str:
    """Everything that was measured, ready for the card."""
    cells, causes, routing = results["accuracy"], results["causes"], results["routing"]
    parts = [
        f"Greedy, {results['n']} held-out problems a cell, in wordings that were never trained; ± is half of Wilson's "
        "95 % interval. `one longer` is one step (digit, item) longer than anything trained, at high effort.",
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
        "By length, at high effort (and at low):",
        _lengths(cells),
        "What the answer hangs on, at high effort:",
        _table(
            ["", *CHAINS],
            [
                [name, *(_share(_at(causes[family], path)) for family in CHAINS)]
                for name, path in (
                    ("right", ["plain"]),
                    (
                        "a wrong step, passed over: the answer follows",
                        ["wrong_step", "passed_over", "follows"],
                    ),
                    ("a wrong step, left free: it says “Wait”", ["wrong_step", "left_free", "says_wait"]),
                    ("… and the answer is right", ["wrong_step", "left_free", "is_right"]),
                    ("says “Wait” where nothing was wrong", ["false_alarms"]),
                    ("analysis skipped by force", ["analysis_skipped"]),
                    ("final message reads everything", ["final_sees", "everything"]),
                    ("… does not see the analysis", ["final_sees", "no analysis"]),
                    ("… does not see the question", ["final_sees", "no user"]),
                    ("sinks taken away", ["sinks_removed"]),
                    ("longest trained length", ["longest"]),
                    ("… full layers see no further than the window", ["longest_far_edges_cut"]),
                )
            ],
        ),
        "In lists a wrong step has a digit that was never in the list. Two digits exchanged, which only working the "
        "step out again shows: the answer follows "
        f"{_share(causes['lists']['two_digits_exchanged']['passed_over']['follows'])}, it says “Wait” "
        f"{_share(causes['lists']['two_digits_exchanged']['left_free']['says_wait'])}.",
        f"Routers, over {routing['tokens']} tokens of held-out texts: the share of what is to be known that the first "
        "expert tells (normalised mutual information), and by chance.",
        _table(
            ["layer", "load, of an even share", "dead", "family", "channel", "token class", "family, given the class"],
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
        f"Sinks: {routing['heads_with_5_percent_somewhere']:.0%} of the heads give theirs 5 % and more somewhere, "
        f"{routing['heads_with_5_percent_on_average']:.0%} on average. Mean mass by layer: "
        + "; ".join(" ".join(f"{mass:.2f}" for mass in row) for row in routing["sink_mean"])
        + ".",
        f"In transformers, fp32: logits within {results['transformers']['logits_differ_by']:.1e} (the largest is "
        f"{results['transformers']['largest_logit']:.0f}), greedy text equal in "
        f"{_share(results['transformers']['texts_alike'])} of {results['transformers']['texts_alike']['n']} prompts. "
        f"{results['tokens_per_second']} tokens a second on one thread.",
    ]
    return "\n\n".join(parts)


def filled(card: str, results: dict[str, Any]) -> str:
    """The card with these tables between its two marks."""
    before, rest = card.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{rest.split(END)[1]}"


def _lengths(cells: dict[str, Any]) -> str:
    most = max(kind.longest for kind in FAMILIES.values())
    rows = []
    for family in FAMILIES:
        by = [cells[f"{family}/{effort}"]["by_length"] for effort in ("high", "low")]
        row = [family]
        for length in map(str, range(1, most + 1)):
            both = [part.get(length) for part in by]
            row.append("" if None in both else f"{both[0]['share']:.2f} ({both[1]['share']:.2f})")
        rows.append(row)
    return _table(["family", *map(str, range(1, most + 1))], rows)


def _share(s: dict[str, float]) -> str:
    return f"{s['share']:.3f} ± {(s['high'] - s['low']) / 2:.3f}"


def _at(found: Any, path: Sequence[str]) -> Any:
    for name in path:
        found = found[name]
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    card = folder / "README.md"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    card.write_text(filled(card.read_text(encoding="utf-8"), results), encoding="utf-8")
