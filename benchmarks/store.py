"""A store: building the index, opening, queries, adding, each compared with its target.

    python -m benchmarks.store                      # 2,000 traces on disk, 100,000 manifests; some minutes, 1 GB
    python -m benchmarks.store --manifests 0        # without the 100,000
    python -m benchmarks.store --json out.json

The 2,000 traces are runs of pocket: one run, whose manifest and bytes are copied under other seeds, so each has its own
id. The 100,000 manifests are the same run with other seeds, efforts and questions, and without arrays. Times are of the
wall clock, medians of the rounds, with the slowest in brackets; they include what a user waits for, so a query includes
the look for new traces and the table of pandas. Files were written just before, so their folders are in memory. "add"
is durable: fsync of the trace, its manifest and its folder.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.stores.folder import RECENT, path_of
from workbench.traces.authorship import prompt_then_model
from workbench.traces.manifest import Manifest
from workbench.traces.reader import MANIFEST, encode_manifest
from workbench.traces.spans import Span

ROUNDS = 7
ADDS, PROCESSES = 300, 4


def with_seed(trace: wb.Trace, seed: int) -> wb.Trace:
    """The same run under another seed, so that it has another id."""
    generation = {**(trace.manifest.generation or {}), "seed": seed}
    arrays = {name: trace.raw(name) for name in trace.names()}
    return wb.Trace(replace(trace.manifest, generation=generation, tensors={}), arrays)


def write_traces(folder: Path, trace: wb.Trace, n: int) -> None:
    """n traces, with the parts of the first one linked: what differs is the manifest."""
    first = with_seed(trace, 0).save(folder / path_of(with_seed(trace, 0).id))
    manifest = wb.load(first).manifest
    for seed in range(1, n):
        own = replace(manifest, generation={**(manifest.generation or {}), "seed": seed})
        target = folder / path_of(own.id)
        target.mkdir(parents=True)
        for part in first.glob("part-*"):
            (target / part.name).hardlink_to(part)
        (target / MANIFEST).write_bytes(encode_manifest(own))


def manifests(n: int) -> Iterator[Manifest]:
    """Manifests of n runs with some words of their own, without arrays."""
    model: dict[str, Any] = {"name": "made", "format": "hf-bf16", "weights_digest": "d", "tokenizer_digest": None}
    model["config"] = {"n_layers": 4}
    spans = [Span(0, 1, 0, 1, "system"), Span(1, 2, 1, 2, "user"), Span(2, 3, 2, 3, "assistant", "analysis")]
    spans.append(Span(3, 4, 3, 4, "assistant", "final"))
    holds = {"identity": "i", "status": "holds", "max_error": 0.0, "tolerance": 1.0, "reason": ""}
    for number in range(n):
        effort = ("low", "medium", "high")[number % 3]
        question, thought = f"What is {number}+{number % 977}?", f"It is word{number % 1009} and word{number % 31}."
        generation = {"max_tokens": 9, "temperature": 1.0, "top_p": 1.0, "seed": number, "stop": []}
        yield Manifest(
            model=model,
            tokens=[number % 50_000, 1, 2, 3],
            str_tokens=[f"Reasoning: {effort}", question, thought, f"{number + number % 977}"],
            written=prompt_then_model(2, 4),
            spans=spans,
            generation=generation | {"finish_reason": "stop"},
            numerics={"dtype": "float32"},
            verification=[holds],
        )


def write_manifests(folder: Path, n: int) -> None:
    for manifest in manifests(n):
        target = folder / path_of(manifest.id)
        target.mkdir(parents=True)
        (target / MANIFEST).write_bytes(encode_manifest(manifest))


def timed(work: Callable[[], Any], rounds: int = ROUNDS, before: Callable[[], Any] = lambda: None) -> dict[str, float]:
    seconds = []
    for _ in range(rounds):
        before()
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "worst": max(seconds)}


def without_index(folder: Path) -> None:
    for path in folder.glob("index.sqlite*"):
        path.unlink()


def settled() -> None:
    """Waits until no folder counts as changed just now."""
    time.sleep(RECENT / 1e9 + 0.1)


def queries(store: wb.Store, word: str, question: str) -> dict[str, Callable[[], Any]]:
    some = next(iter(store))
    return {
        "by id": lambda: store[some[:12]],
        "find by columns": lambda: store.find(effort="high", verified=True, seed=(10, 20)),
        "find by words": lambda: store.find(text=word),
        "find by question": lambda: store.find(prompt=question),
        "sql, grouped": lambda: store.sql("select effort, edited, verified, count(*) from traces group by 1, 2, 3"),
    }


def measured(folder: Path, word: str, question: str, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {"build": timed(lambda: wb.Store(folder), rounds, lambda: without_index(folder))}
    settled()
    wb.Store(folder)
    result["open"] = timed(lambda: wb.Store(folder))
    store = wb.Store(folder)
    result |= {name: timed(query) for name, query in queries(store, word, question).items()}
    result["traces"] = len(store)
    result["index bytes"] = sum(path.stat().st_size for path in folder.glob("index.sqlite*"))
    return result


def add_many(folder: str, trace: wb.Trace, first: int) -> None:
    store = wb.Store(folder)
    for seed in range(first, first + ADDS):
        store.add(with_seed(trace, seed))


def adding(trace: wb.Trace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=add_many, args=(folder, trace, 10_000 * number)) for number in range(PROCESSES)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        store = wb.Store(folder)
        ok = all(worker.exitcode == 0 for worker in workers) and store.verify(sample=50).ok
        return {"processes": PROCESSES, "added": len(store), "ok": ok, "seconds": seconds}


def text(seconds: dict[str, float]) -> str:
    return f"{seconds['median'] * 1e3:,.1f} ms ({seconds['worst'] * 1e3:,.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=2000)
    parser.add_argument("--manifests", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    trace = wb.Model("pocket").generate(wb.chat("What is 12+30?", reasoning="high"), max_tokens=64, record="")
    results: dict[str, Any] = {}
    for name, n, write in (
        ("traces", args.traces, lambda folder: write_traces(folder, trace, args.traces)),
        ("manifests", args.manifests, lambda folder: write_manifests(folder, args.manifests)),
    ):
        if not n:
            continue
        folder = Path(tempfile.mkdtemp(prefix="workbench-store-"))
        try:
            write(folder)
            word, question = ("12+30", "What is 12+30?") if name == "traces" else ("word7", "What is 17+17?")
            results[name] = measured(folder, word, question, ROUNDS if n <= 5000 else 1)
        finally:
            shutil.rmtree(folder)
        print(f"{results[name]['traces']:,} {name}, index of {results[name]['index bytes'] / 1e6:.1f} MB")
        for what, seconds in results[name].items():
            if isinstance(seconds, dict):
                print(f"  {what:<18} {text(seconds)}")
    results["adding"] = adding(trace)
    print(f"adding by {PROCESSES} processes: {results['adding']}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
