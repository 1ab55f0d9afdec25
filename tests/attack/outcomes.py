"""Counts the outcomes of the attack from pytest's reports."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

OUTCOMES = ("refused", "right", "anything else")


def counts(terminalreporter: Any) -> dict[str, list[int]]:
    """Kind of input -> how many were refused clearly, right, and anything else; the last kind is "all"."""
    counted: Counter[tuple[str, str]] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if not isinstance(report, pytest.TestReport):
            continue
        if "attack" not in report.keywords:
            continue
        if report.failed:
            kind = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")
            counted[kind, "anything else"] += 1
        elif report.when == "call":
            for name, text in report.user_properties:
                if name == "attack":
                    kind, outcome, number = str(text).split("\t")
                    counted[kind, outcome] += int(number)
    table = {kind: [counted[kind, outcome] for outcome in OUTCOMES] for kind in sorted({kind for kind, _ in counted})}
    return table | ({"all": [sum(column) for column in zip(*table.values())]} if table else {})


def described(numbers: list[int]) -> str:
    return f"{numbers[0]} refused clearly, {numbers[1]} right, {numbers[2]} anything else"
