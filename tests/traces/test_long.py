"""Damage and death by the thousand. The usual run takes a few seconds of each; `WORKBENCH_LONG=1` is the run before a
release: 10,000 mutants and 1,000 kills, about two minutes each, in processes of their own without torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

LONG = os.environ.get("WORKBENCH_LONG") == "1"
MUTANTS, KILLS = (10_000, 1_000) if LONG else (1_000, 100)
ROOT = Path(__file__).parents[2]


def counted(module: str, count: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.traces.{module}", str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_damaged_trace_is_a_typed_error_and_never_a_wrong_number() -> None:
    outcomes = counted("mutants", MUTANTS)
    good = ("refused: ", "unchanged", "forged: another trace")
    assert [what for what in outcomes if not what.startswith(good)] == []
    assert sum(outcomes.values()) == MUTANTS
    assert outcomes["refused: TraceCorrupt"] > MUTANTS / 2


def test_killing_the_writer_never_loses_or_tears_a_committed_trace() -> None:
    counts = counted("kills", KILLS)
    assert counts["reported"] > KILLS / 10
    assert counts["unfinished"] > KILLS / 10  # the kills did land in the middle of writes
    assert (counts["lost"], counts["torn"], counts["wrong"], counts["stale"]) == (0, 0, 0, 0)
