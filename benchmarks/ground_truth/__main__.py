"""Measures all rows, and goes on where an interrupted run stopped.

    python -m benchmarks.ground_truth                                      # development seed
    python -m benchmarks.ground_truth --confirm --page docs/ground_truth.md
    python -m benchmarks.ground_truth "dag terse" -n 8                     # one row, a few problems

Each finished row is a file in the folder; a row whose file exists is not measured again. Rows run side by side, one
thread each.
"""

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.ground_truth import report
from benchmarks.ground_truth.cases import CONFIRM, DEVELOPMENT
from benchmarks.ground_truth.finished_rows import measured
from workbench.files import atomic_write
from workbench.pocket.families import CHAINS, DAGS, rows

ROWS = [*rows(DAGS), *rows(CHAINS)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ground_truth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", default=ROWS, help=f"rows (default: {', '.join(ROWS)})")
    parser.add_argument("-n", "--problems", type=int, default=120, help="problems per row (default: 120)")
    parser.add_argument("--model", default="pocket", help="a name or a folder (default: pocket)")
    parser.add_argument("--confirm", action="store_true", help="use the confirm seed: once, when the methods are final")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time (default: 2)")
    parser.add_argument("--folder", type=Path, help="for the figures (default: out/ground_truth/SEED)")
    parser.add_argument("--json", type=Path, help="a file for all figures (default: figures.json in the folder)")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced")
    args = parser.parse_args(argv)
    seed = CONFIRM if args.confirm else DEVELOPMENT
    folder: Path = args.folder or Path("out/ground_truth") / seed
    folder.mkdir(parents=True, exist_ok=True)
    files = {row: folder / f"{row.replace(' ', '-')}.json" for row in args.rows}
    jobs = [(args.model, row, args.problems, seed, file) for row, file in files.items()]
    figures: dict[str, dict] = {}
    if args.jobs == 1:
        for job in jobs:
            figures[job[1]] = finished(measured(*job))
    else:
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
            running = {pool.submit(measured, *job): job[1] for job in jobs}
            for future in as_completed(running):
                figures[running[future]] = finished(future.result())
    figures = {row: figures[row] for row in args.rows}
    atomic_write(args.json or folder / "figures.json", json.dumps(figures, indent=1) + "\n")
    text = report.tables(figures)
    sys.stdout.write(text)
    if args.page:
        report.write_page(args.page, text)


def finished(figures: dict) -> dict:
    """The figures of a row, after a line on the screen."""
    sys.stderr.write(f"{figures['row']}: {figures['seconds']['in all']:.0f} CPU seconds\n")
    return figures


if __name__ == "__main__":
    main()
