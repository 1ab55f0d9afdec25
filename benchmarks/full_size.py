"""gpt-oss at full width compared with llama.cpp: prefill, recording, decode, memory, and the limit of the memory bus.

    python -m benchmarks.full_size --model FOLDER --gguf-q8 Q8.gguf --gguf-bf16 BF16.gguf --llama PYTHON
    python -m benchmarks.full_size --model FOLDER --only workbench          # all 24 layers: no room for two models
    python -m benchmarks.full_size … --threads 1 --rounds 9 --json out.json # on a shared machine: read the CPU column

PYTHON is an interpreter that has llama-cpp-python. The files hold one model three times: FOLDER in the published layout
(experts MXFP4, the rest bf16), the others converted from it by benchmarks.gguf_of (experts the same, matrices outside
them Q8_0 or bf16). A cut of 6 layers is meant for this: the files that two processes map must stay in the page cache
together with llama.cpp's copies, for 6 layers about 5 + 4 + 3 GB. Of the full 24 layers only one model fits, hence
`--only workbench`. The layers of a cut cost the same as in the full model, but the unembedding weighs more: 24 layers
are closer to "per layer".

Comparison. workbench's process lives through the whole run, each form of llama.cpp (its default, which repacks weights;
without repacking; with bf16) while it is compared. In each round every row runs once, in rotated order, after a warm-up
round. A figure is the median over the rounds of the ratio of two rows of the same round, with its quartiles. Ratios are
of time: below 1 workbench is faster. The tables have both clocks: wall, for two threads on an otherwise idle machine,
and CPU, of all threads of a process, for a shared machine (with --threads 1 it also leaves out waiting).
OMP_WAIT_POLICY is as in the environment: users have none, PASSIVE does not spin, which spares neighbors. Never compare
times of different runs.

Rows:

    prefill        all tokens from an empty cache, logits of the last position; both fill a KV cache
    recorded       the same, with record="attention residuals" in memory
    trace          Model.trace(tokens, record="attention residuals"): also logits of every position, which every trace
                   has; its pass, its probe (two passes over 160 tokens) and the rest (checks) separately
    decode         tokens one by one after a context: Model.generate's loop, which chooses the most likely token, runs
                   the model on it, and records routes and predictions; llama.cpp gets random tokens and returns logits
    all logits     the same number of tokens without generate's loop: the pass with all logits, nothing recorded
    full           decode in a second process with WORKBENCH_DECODE=full; only with --full

The bound. A separate process reads 1 GB of memory in every round with as many threads. A token has to read all matrices
outside the experts, the chosen experts, the unembedding, and its keys and values (benchmarks.token_bytes). Bytes
divided by read speed is the minimum time for a token. Q8_0 has half the dense bytes of bf16, so its bound differs and
is printed as well.

A form of llama.cpp that ends or fails, while it loads or later, is reported with the reason in place of its figures,
and the others are measured. The exit status is 1 if no form could be measured.

Memory is the kernel's figure: VmHWM, reset before a row runs for the first time, so it counts mapped files too; RssAnon
and RssFile, which the system cannot drop and can drop, are those after the row. Linux only.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.child import Child, WorkerEnded
from benchmarks.workbench_worker import RECORD

MIN_COSINE = {"bf16": 0.95, "Q8_0": 0.5}  # of the last logits: measured were 0.997, and 0.81 to 0.95
READ = 1 << 30
TRACES = 2  # rounds with Model.trace, which takes several times as long as a prefill


# -- measuring --------------------------------------------------------------------------------------------------------


def read_speed(memory: torch.Tensor) -> float:
    """Bytes a second: `memory` is read three times in each of two ways, and the fastest counts."""
    rows, ones = memory.view(torch.float32).view(-1, 4096), torch.ones(4096)
    shortest = min(_seconds(read) for _ in range(3) for read in (memory.sum, lambda: rows.mv(ones)))
    return memory.nbytes / shortest


def _seconds(read) -> float:
    before = time.perf_counter()
    read()
    return time.perf_counter() - before


class Measurement:
    """Rounds of rows: [wall, CPU] seconds by row, and memory by row when it first ran."""

    def __init__(self):
        self.rows: dict[str, list[list[float]]] = {}
        self.peaks: dict[str, dict] = {}
        self.cosine: float | None = None

    def add(self, row: str, seconds: list) -> None:
        if seconds and isinstance(seconds[0], list):  # a decode: the median token
            seconds = np.median(seconds, 0).tolist()
        self.rows.setdefault(row, []).append(seconds)

    def array(self, row: str) -> np.ndarray:
        return np.array(self.rows[row])


def tokens_of(n: int, d_vocab: int, seed: int) -> list[int]:
    return np.random.default_rng((n, seed)).integers(0, d_vocab, n).tolist()


def stage(children: dict[str, Child], jobs: Sequence[tuple[str, str, dict]], rounds: int, read=None) -> Measurement:
    """Runs jobs (row, child, request) in rounds, rotated by one each, after a warm-up round."""
    m = Measurement()
    logits: dict[str, list[float]] = {}
    for i in range(-1, rounds):
        turn = max(i, 0) % len(jobs)
        for row, worker, request in (*jobs[turn:], *jobs[:turn]):
            if row == "trace" and not 0 <= i < TRACES:
                continue
            child, first = children[worker], row not in m.peaks
            if first:
                child("reset")
            reply = child(**request)
            if first:
                m.peaks[row] = child("memory")
            if i < 0:
                logits.setdefault(worker, reply.get("logits", []))
                continue
            m.add(row, reply["seconds"])
            for part in ("record", "probe"):
                if part in reply:
                    m.add(f"{row}: {part}", reply[part])
        if read is not None and i >= 0:
            m.rows.setdefault("read", []).append([read(), 0.0])
    if len(logits) == 2 and all(logits.values()):
        a, b = map(np.array, logits.values())
        m.cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return m


def compare(
    args: argparse.Namespace,
    workbench: Child,
    full: Child | None,
    peer: Child | None,
    d_vocab: int,
    extras: bool,
    read: Callable[[], float],
) -> dict[str, dict]:
    """Prefill by tokens and decode by context, of workbench and a form of llama.cpp.

    Args:
        args: the arguments of the command.
        workbench: its worker.
        full: the same with WORKBENCH_DECODE=full; only measured with `extras`.
        peer: llama.cpp's worker; None for workbench alone.
        d_vocab: tokens are below it.
        extras: whether to measure the rows of workbench alone and the parts of the model.
        read: returns the speed of reading memory, in bytes per second.

    Returns:
        {"prefill": by tokens, "decode": by context, "parts": by pass}.

    Raises:
        WorkerEnded: a worker ended or failed.
    """
    children = {"workbench": workbench} | ({"peer": peer} if peer else {})
    prefill, decode, parts = {}, {}, {}
    for n in args.prefill:
        tokens = tokens_of(n, d_vocab, 0)
        jobs = [(name, name, {"do": "prefill", "tokens": tokens}) for name in children]
        if extras:
            jobs.insert(1, ("recorded", "workbench", {"do": "prefill", "tokens": tokens, "record": True}))
            if not args.no_trace:
                jobs.append(("trace", "workbench", {"do": "trace", "tokens": tokens}))
        prefill[n] = stage(children, jobs, args.rounds)
        if extras:
            parts[f"prefill {n}"] = [workbench("parts", tokens=tokens) for _ in range(args.rounds)]
        log(f"prefill {n} done")
    if full and extras:
        children["full"] = full
    for context in args.contexts:
        before, tokens = tokens_of(context, d_vocab, 1), tokens_of(args.decode, d_vocab, 2)
        jobs = [("workbench", "workbench", {"do": "generate", "n": args.decode})]
        if peer:
            jobs.append(("peer", "peer", {"do": "decode", "tokens": tokens}))
        if extras:
            jobs.append(("all logits", "workbench", {"do": "decode", "tokens": tokens}))
        if "full" in children:
            jobs.append(("full", "full", {"do": "generate", "n": args.decode}))
        for name, child in children.items():
            child("prefill" if name == "peer" else "start_generation", tokens=before)
        decode[context] = stage(children, jobs, args.rounds, read)
        if extras:
            parts[f"decode at {context}"] = [workbench("parts", tokens=tokens, cached=True) for _ in range(args.rounds)]
        log(f"decode at {context} done")
    return {"prefill": prefill, "decode": decode, "parts": parts}


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- the report -------------------------------------------------------------------------------------------------------


def ratio(a: np.ndarray, b: np.ndarray) -> str:
    """Median and quartiles of the wall ratio, and the median of the CPU ratio, over the rounds that have both."""
    b = b[: len(a)]
    q1, median, q3 = np.percentile(a[:, 0] / b[:, 0], (25, 50, 75))
    return f"{f'{median:.2f} ({q1:.2f}-{q3:.2f})':>18} {np.median(a[:, 1] / b[:, 1]):6.2f}"


def per_second(m: Measurement, row: str, n: int = 1) -> float:
    return n / statistics.median(m.array(row)[:, 0])


def gb(n: float) -> str:
    return f"{n / 1e9:.2f}"


def comparison(name: str, results: dict, clock: str) -> list[str]:
    lines = [f"\nagainst {name}: time / llama.cpp's, below 1 workbench is faster; {clock}"]
    lines.append(f"{'':22}{'workbench tok/s':>16}{'llama.cpp':>11}{'wall':>19}{'CPU':>7}")
    for n, m in results["prefill"].items():
        agreement = "" if m.cosine is None else f"   cosine of the last logits {m.cosine:.4f}"
        rows = [("prefill", "workbench"), *([("recorded", "recorded")] if "recorded" in m.rows else [])]
        for label, row in rows:
            speeds = f"{per_second(m, row, n):16.1f}{per_second(m, 'peer', n):11.1f}"
            lines.append(f"{f'{label} {n}':22}{speeds} {ratio(m.array(row), m.array('peer'))}{agreement}")
            agreement = ""
    for n, m in results["decode"].items():
        speeds = f"{per_second(m, 'workbench'):16.2f}{per_second(m, 'peer'):11.2f}"
        lines.append(f"{f'decode at {n}':22}{speeds} {ratio(m.array('workbench'), m.array('peer'))}")
    lines.append(
        f"{'GB of memory':22}{'workbench: peak':>16}{'anon':>7}{'file':>7}{'llama.cpp: peak':>17}{'anon':>7}{'file':>7}"
    )
    for kind in ("prefill", "decode"):
        for n, m in results[kind].items():
            label = f"{kind} {n}" if kind == "prefill" else f"decode at {n}"
            a, b = m.peaks["workbench"], m.peaks["peer"]
            figures = [gb(x[k]) for x in (a, b) for k in ("peak", "anonymous", "file")]
            lines.append(f"{label:22}" + "".join(f"{x:>{w}}" for x, w in zip(figures, (16, 7, 7, 17, 7, 7))))
    return lines


def own(results: dict, reads: dict) -> list[str]:
    """Recording, the bound and the parts: workbench alone."""
    lines = [
        f"\nrecord={RECORD!r}: time / plain prefill of the same round",
        f"{'':22}{'tok/s':>11}{'wall':>19}{'CPU':>7}",
    ]
    for n, m in results["prefill"].items():
        plain = m.array("workbench")
        lines.append(f"{f'plain {n}':22}{per_second(m, 'workbench', n):11.1f}")
        for row, label in (
            ("recorded", "recorded"),
            ("trace: record", "trace, its pass"),
            ("trace: probe", "trace, its probe"),
            ("trace", "trace, all of it"),
        ):
            if row in m.rows:
                lines.append(f"{f'{label} {n}':22}{per_second(m, row, n):11.1f} {ratio(m.array(row), plain)}")
        for row, label in (("workbench", "plain"), ("recorded", "recorded"), ("trace", "trace")):
            if p := m.peaks.get(row):
                label = f"{label}: peak {gb(p['peak'])} GB"
                lines.append(f"{'':22}{label}, afterwards {gb(p['anonymous'])} anonymous, {gb(p['file'])} of files")
    lines += decoding(results["decode"], reads)
    lines.append("\nparts: share of the wall clock of a plain pass")
    for what, rounds in results["parts"].items():
        if what == next(iter(results["parts"])):
            lines.append(" " * 22 + "".join(f"{part:>{max(12, len(part) + 2)}}" for part in rounds[0]))
        shares = [np.median([x[part] / sum(x.values()) for x in rounds]) for part in rounds[0]]
        widths = [max(12, len(part) + 2) for part in rounds[0]]
        lines.append(f"{what:22}" + "".join(f"{s:{w}.3f}" for s, w in zip(shares, widths)))
    return lines


def decoding(measurements: dict[int, Measurement], reads: dict[str, dict]) -> list[str]:
    """Decode of workbench alone: each row beside the bound of its bytes, and its time / that of generate."""
    lines = ["\ndecode: the minimum time that reading allows / workbench's; and time / that of generate"]
    lines.append(f"{'':26}{'tok/s':>9}{'bound':>9}{'of bound':>10}{'GB/token':>10}{'GB/s':>7}{'wall':>19}{'CPU':>7}")
    for n, m in measurements.items():
        for row, label in (("workbench", "generate"), ("all logits", "all logits"), ("full", "full")):
            if row not in m.rows:
                continue
            parts = reads[label]
            bytes_ = parts["attention"] + parts["experts"] + parts["unembedding"] + parts["keys"][str(n)]
            speed = m.array("read")[:, 0]
            bound, seconds = bytes_ / speed, m.array(row)[:, 0]
            share = np.median(bound / seconds)
            figures = f"{1 / np.median(seconds):9.2f}{1 / np.median(bound):9.2f}{share:10.2f}{gb(bytes_):>10}"
            beside = "" if row == "workbench" else " " + ratio(m.array(row), m.array("workbench"))
            lines.append(f"{f'{label} at {n}':26}{figures}{np.median(speed) / 1e9:7.1f}{beside}")
    parts = reads["all logits"]
    outside, experts = parts["attention"] + parts["unembedding"], parts["experts"]
    q8 = outside * 34 / 64 + experts
    lines.append(
        f"with all logits a token reads {gb(outside)} GB outside the experts and {gb(experts)} GB of experts; with "
        f"Q8_0 {gb(q8)} GB in all, {q8 / (outside + experts):.2f} of workbench's, besides keys and values"
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.full_size", description="Full width, against llama.cpp.")
    parser.add_argument("--model", required=True, help="folder of a gpt-oss in MXFP4")
    parser.add_argument("--gguf-q8", help="the same model, Q8_0 outside the experts")
    parser.add_argument("--gguf-bf16", help="the same model, bf16 outside the experts")
    parser.add_argument("--llama", help="a python that has llama-cpp-python")
    parser.add_argument("--only", choices=("workbench",), help="without llama.cpp")
    parser.add_argument("--memory", default="fast", help="of wb.Model (default: fast)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 1024], help="tokens (default: 512 1024)")
    parser.add_argument("--contexts", type=int, nargs="*", default=[16, 1024, 4096], help="default: 16 1024 4096")
    parser.add_argument("--decode", type=int, default=8, help="tokens a round and context (default: 8)")
    parser.add_argument("--no-trace", action="store_true", help="skip Model.trace, the longest row")
    parser.add_argument("--full", action="store_true", help="decode also in a process with WORKBENCH_DECODE=full")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    args = parser.parse_args()
    if args.only != "workbench" and not (args.llama and (args.gguf_q8 or args.gguf_bf16)):
        parser.error("give --llama PYTHON and --gguf-q8 or --gguf-bf16; or --only workbench")
    try:
        return measured(args)
    except WorkerEnded as ended:
        sys.exit(f"{ended.stderr}\nworkbench's worker: {ended}")


def forms_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The forms of llama.cpp by name, with the arguments of their workers."""
    forms: dict[str, list[str]] = {}
    if args.only != "workbench":
        if args.gguf_q8:
            forms["llama.cpp, Q8_0"] = [args.gguf_q8]
            forms["llama.cpp, Q8_0, not repacked"] = [args.gguf_q8, "--no-repack"]
        if args.gguf_bf16:
            forms["llama.cpp, bf16"] = [args.gguf_bf16]
    return forms


def workbench_child(args: argparse.Namespace, environment: dict[str, str] | None = None) -> Child:
    options = ["--model", args.model, "--memory", args.memory, "--threads", str(args.threads)]
    return Child(sys.executable, "-m", "benchmarks.workbench_worker", *options, environment=environment)


def peer_child(args: argparse.Namespace, options: list[str]) -> Child:
    n_ctx = max([*args.contexts, *args.prefill]) + args.decode * (args.rounds + 1) + 64
    worker = str(Path(__file__).with_name("peers_full.py"))
    return Child(args.llama, "-I", worker, *options, "--threads", str(args.threads), "--n-ctx", str(n_ctx))


def measured(args: argparse.Namespace) -> None:
    workbench = workbench_child(args)
    full = workbench_child(args, {"WORKBENCH_DECODE": "full"}) if args.full else None
    about = workbench("about")
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    clock = f"{args.threads} threads, {args.rounds} rounds, OMP_WAIT_POLICY {policy}"
    print(f"{about['text']}\n{clock}, memory={args.memory!r}", flush=True)
    torch.set_num_threads(args.threads)
    memory = torch.ones(READ // 8, dtype=torch.int64)
    reads = workbench("reads", contexts=args.contexts)
    if full:
        reads["full"] = full("reads", contexts=args.contexts)["generate"]

    def compared(peer: Child | None, extras: bool) -> dict[str, dict]:
        return compare(args, workbench, full, peer, about["d_vocab"], extras, lambda: read_speed(memory))

    forms = forms_of(args)
    if forms:
        results, endings = compare_forms(args, forms, compared, clock, reads)
    else:
        results, endings = {"": compared(None, True)}, {}
        print("\n".join(own(results[""], reads)), flush=True)
    for child in (workbench, full):
        if child:
            child.close()
    for name, result in results.items():
        minimum = next((x for kind, x in MIN_COSINE.items() if kind in name), -1)
        for n, m in result["prefill"].items():
            if m.cosine is not None and m.cosine < minimum:
                print(f"\nWARNING: {name} at {n}: last logits agree to a cosine of {m.cosine:.3f}: not the same model?")
    if args.json:
        kinds = ("prefill", "decode")
        measurements = {
            name: {kind: {n: {"seconds": m.rows, "memory": m.peaks} for n, m in result[kind].items()} for kind in kinds}
            | {"parts": result["parts"]}
            for name, result in results.items()
        }
        measurements |= {name: {"ended": reason} for name, reason in endings.items()}
        args.json.write_text(
            json.dumps({"about": about["text"], "clock": clock, "reads": reads, "results": measurements}, indent=1)
        )
    if not results:
        sys.exit("no form could be measured; --only workbench measures without it")


def compare_forms(
    args: argparse.Namespace,
    forms: dict[str, list[str]],
    compared: Callable[[Child, bool], dict[str, dict]],
    clock: str,
    reads: dict[str, dict],
) -> tuple[dict[str, dict], dict[str, str]]:
    """Compares workbench with each form of llama.cpp and prints the tables.

    Args:
        args: the arguments of the command.
        forms: the arguments of each form's worker.
        compared: returns the measurements beside a form's worker, with or without the rows of workbench alone.
        clock: how the times were taken, for the tables.
        reads: the bytes of a token by row.

    Returns:
        The measurements by form, and the endings of the forms whose process ended or failed.

    Raises:
        WorkerEnded: workbench's own worker ended or failed.
    """
    results: dict[str, dict] = {}
    endings: dict[str, str] = {}
    for name, options in forms.items():
        peer = None
        try:
            peer = peer_child(args, options)
            log(f"{name}: {peer('about')['text']}")
            results[name] = compared(peer, not results)
        except WorkerEnded as ended:
            if peer is not None and peer.process.poll() is None:  # it runs: workbench's worker ended
                peer.close()
                raise
            endings[name] = str(ended)
            log(ended.stderr)
            print(f"\nagainst {name}: {ended}", flush=True)
            continue
        peer.close()
        print("\n".join(comparison(name, results[name], clock)), flush=True)
        if len(results) == 1:
            print("\n".join(own(results[name], reads)), flush=True)
    return results, endings


if __name__ == "__main__":
    main()
