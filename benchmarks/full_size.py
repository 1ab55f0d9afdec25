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
    decode         tokens one by one after a context that is in both caches; they are random, nothing is sampled
    as generate    the same with what Model.generate records for each token: routes and predictions

The bound. A separate process reads 1 GB of memory in every round with as many threads. A token has to read all matrices
outside the experts, the chosen experts, the unembedding, and its keys and values. Bytes divided by read speed is the
minimum time for a token. Q8_0 has half the dense bytes of bf16, so its bound differs and is printed as well.

Memory is the kernel's figure: VmHWM, reset before a row runs for the first time, so it counts mapped files too; RssAnon
and RssFile, which the system cannot drop and can drop, are those after the row. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers_full import SAMPLED, clocks, serve_jobs, since
from workbench.taps import Tap

RECORD = "attention residuals"
PIECE = 512  # tokens that extend a context at once
MIN_COSINE = {"bf16": 0.95, "Q8_0": 0.5}  # of the last logits: measured were 0.997, and 0.81 to 0.95
READ = 1 << 30
TRACES = 2  # rounds with Model.trace, which takes several times as long as a prefill


# -- workbench's process ----------------------------------------------------------------------------------------------


class Parts(Tap):
    """Seconds by part of the model: the time until a hook point counts for the part that computed its value."""

    PARTS = (
        ("q k v o", ("hook_q", "hook_k", "hook_v", "hook_attn_out")),
        ("attention", ("hook_rot_q", "hook_rot_k", "hook_sink", "hook_z")),
        ("router", ("router.hook_out", "hook_expert_indices", "hook_expert_weights")),
        ("experts", ("hook_expert_out", "hook_mlp_out")),
        ("unembedding", ("hook_logits",)),
    )
    REST = "embedding, norms, sums"

    def __init__(self):
        self.seconds = dict.fromkeys((*(part for part, _ in self.PARTS), self.REST), 0.0)
        self.last = time.perf_counter()

    def __call__(self, name: str, x, offset: int = 0):
        now = time.perf_counter()
        part = next((part for part, ends in self.PARTS if name.endswith(ends)), self.REST)
        self.seconds[part] += now - self.last
        self.last = time.perf_counter()
        return x


class WorkbenchWorker:
    """Takes the requests of benchmarks.peers_full, and more."""

    def __init__(self, folder: str, threads: int, memory: str):
        from workbench import Model, hooks

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = Model(folder, memory=memory)
        self.config = self.model.config
        self.points = hooks.expand(RECORD.split(), self.config.n_layers)
        routes = [n for n in hooks.match("blocks.*.mlp.*", self.config.n_layers) if n.endswith(self._routes)]
        self.route_points = routes
        self.cache = None

    _routes = ("router.hook_out", "hook_expert_indices", "hook_expert_weights")

    def about(self) -> dict:
        from workbench.model.kernels import native

        text = f"{self.model!r}, {native.status()}, torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        return {"text": text, "d_vocab": self.config.d_vocab, "n_layers": self.config.n_layers}

    def _forward(self, tokens: list[int], tap=None):
        return self.model.forward(torch.tensor([tokens]), tap, self.cache, slice(-1, None))

    def prefill(self, tokens: list[int], record: bool = False) -> dict:
        from workbench.model.cache import KVCache
        from workbench.recording.taps import Recorder

        self.cache, before = KVCache(self.config), clocks()
        recorder = Recorder(self.points) if record else None
        logits = self._forward(tokens, recorder)
        seconds = since(before)
        recorded = sum(x.nbytes for name in recorder.seen for x in recorder.seen[name]) if recorder else 0
        return {"seconds": seconds, "logits": logits[0, -1, ::SAMPLED].float().tolist(), "recorded_bytes": recorded}

    def extend(self, tokens: list[int]) -> dict:
        before = clocks()
        for i in range(0, len(tokens), PIECE):
            self._forward(tokens[i : i + PIECE])
        return {"seconds": since(before)}

    def decode(self, tokens: list[int], record_routes: bool = False) -> dict:
        from workbench.recording.summaries import Predictions, TokenLogprobs
        from workbench.recording.taps import Recorder
        from workbench.taps import Chain

        assert self.cache is not None, "prefill comes first"
        tap, length, seconds = None, self.cache.length(), []
        if record_routes:
            predictions = Predictions(self.config.n_layers, self.config.d_vocab)
            tap = Chain(Recorder(self.route_points), predictions, TokenLogprobs([0]))
        for token in tokens:
            before = clocks()
            self._forward([token], tap)
            seconds.append(since(before))
        if record_routes:
            self.cache.crop(length)  # an extra row: the cache must be as long as before for the other rows
        return {"seconds": seconds}

    def trace(self, tokens: list[int]) -> dict:
        """The seconds of Model.trace, and of two of its parts."""
        import warnings

        from workbench.recording import record, verify

        inner: dict[str, list[float]] = {}
        modules = {"record": record, "probe": verify}
        original = {name: getattr(module, name) for name, module in modules.items()}

        def timed(name):
            def call(*args, **more):
                before = clocks()
                result = original[name](*args, **more)
                inner[name] = since(before)
                return result

            return call

        for name in original:
            setattr(modules[name], name, timed(name))
        try:
            before = clocks()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a random model in bf16 may miss an identity
                self.model.trace(tokens, record=RECORD, budget=None)
            return {"seconds": since(before), **inner}
        finally:
            for name, function in original.items():
                setattr(modules[name], name, function)

    def parts(self, tokens: list[int], cached: bool = False) -> dict:
        """Seconds by part of the model: of all tokens at once without a cache, or of each after those in the cache."""
        if cached:
            assert self.cache is not None, "prefill comes first"
            length, tap = self.cache.length(), Parts()
            for token in tokens:
                tap.last = time.perf_counter()
                self._forward([token], tap)
            self.cache.crop(length)
            return dict(tap.seconds)
        self.cache, tap = None, Parts()
        self._forward(tokens, tap)
        return dict(tap.seconds)

    def reads(self, contexts: list[int]) -> dict:
        """Bytes that one token has to read: matrices outside the experts, chosen experts, keys and values."""
        from workbench.model.kernels.lora import plain

        c, w = self.config, self.model.weights
        outside, chosen = w.unembed.nbytes + w.ln_final.nbytes, 0.0
        for block in w.blocks:
            outside += sum(getattr(block, name).nbytes for name in block.__slots__ if name != "experts")
            m = block.experts
            parts = [
                t
                for x in (plain(m.up), plain(m.down))
                for t in ((x,) if isinstance(x, torch.Tensor) else (x.blocks, x.scales))
            ]
            chosen += sum(t.nbytes for t in (*parts, m.up_bias, m.down_bias)) * c.n_active / c.n_experts
        position = 2 * c.n_kv_heads * c.d_head * w.embed.itemsize
        attended = {
            n: sum(min(n, c.window) if c.is_sliding(layer) else n for layer in range(c.n_layers)) for n in contexts
        }
        return {
            "outside": outside,
            "experts": chosen,
            "keys": {n: position * positions for n, positions in attended.items()},
        }


def serve(args: argparse.Namespace) -> None:
    worker = WorkbenchWorker(args.model, args.threads, args.memory)
    jobs = ("about", "prefill", "extend", "decode", "trace", "parts", "reads")
    serve_jobs({name: getattr(worker, name) for name in jobs})


class Child:
    """A worker in its own process; `child(do, …)` sends a request and returns the reply."""

    def __init__(self, *command: str):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the child)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout, self.command = self.process.stdin, self.process.stdout, command
        self._reply()

    def __call__(self, do: str, **more) -> dict:
        with suppress(BrokenPipeError):  # the process has ended, which _reply reports
            self.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self.stdin.flush()
        return self._reply()

    def _reply(self) -> dict:
        line = self.stdout.readline()
        reply = json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}
        if "error" in reply:
            self.errors.seek(0)
            stderr = self.errors.read()[-2000:]
            self.close()
            sys.exit(f"{' '.join(self.command)}\n{stderr}\n{reply['error']}")
        return reply

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.process.wait()
        self.errors.close()


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


def compare(args, workbench: Child, peer: Child | None, d_vocab: int, extras: bool, read) -> dict[str, dict]:
    """Prefill by tokens and decode by context, of workbench and a form of llama.cpp; `extras`: recordings and parts."""
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
    length = 0
    for context in args.contexts:
        extension = tokens_of(context, d_vocab, 1)[: context - length]
        for child in children.values():
            child("extend" if length else "prefill", tokens=extension)
        tokens = tokens_of(args.decode, d_vocab, 2)
        jobs = [(name, name, {"do": "decode", "tokens": tokens}) for name in children]
        if extras:
            jobs.append(("as generate", "workbench", {"do": "decode", "tokens": tokens, "record_routes": True}))
        decode[context] = stage(children, jobs, args.rounds, read)
        if extras:
            parts[f"decode at {context}"] = [workbench("parts", tokens=tokens, cached=True) for _ in range(args.rounds)]
        length = context + args.decode * (args.rounds + 1)
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
    lines.append("\ndecode: the minimum time that reading allows / workbench's; and with what generate records")
    lines.append(
        f"{'':22}{'tok/s':>9}{'bound':>9}{'of bound':>10}{'GB/token':>10}{'GB/s':>7}{'as generate / plain':>29}"
    )
    for n, m in results["decode"].items():
        bytes_ = reads["outside"] + reads["experts"] + reads["keys"][str(n)]
        speed = m.array("read")[:, 0]
        bound, seconds = bytes_ / speed, m.array("workbench")[:, 0]
        share = np.median(bound / seconds)
        figures = f"{1 / np.median(seconds):9.2f}{1 / np.median(bound):9.2f}{share:10.2f}{gb(bytes_):>10}"
        recorded = ratio(m.array("as generate"), m.array("workbench")) if "as generate" in m.rows else ""
        lines.append(f"{f'decode at {n}':22}{figures}{np.median(speed) / 1e9:7.1f}    {recorded}")
    q8 = reads["outside"] * 34 / 64 + reads["experts"]
    lines.append(
        f"a token reads {gb(reads['outside'])} GB outside the experts and {gb(reads['experts'])} GB of experts; with "
        f"Q8_0 {gb(q8)} GB in all, {q8 / (reads['outside'] + reads['experts']):.2f} of workbench's, besides keys and "
        f"values"
    )
    lines.append("\nparts: share of the wall clock of a plain pass")
    for what, rounds in results["parts"].items():
        if what == next(iter(results["parts"])):
            lines.append(" " * 22 + "".join(f"{part:>{max(12, len(part) + 2)}}" for part in rounds[0]))
        shares = [np.median([x[part] / sum(x.values()) for x in rounds]) for part in rounds[0]]
        widths = [max(12, len(part) + 2) for part in rounds[0]]
        lines.append(f"{what:22}" + "".join(f"{s:{w}.3f}" for s, w in zip(shares, widths)))
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
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    check_arguments(parser, args)
    return measured(args)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program if the arguments contradict each other."""
    if args.only != "workbench" and not (args.llama and (args.gguf_q8 or args.gguf_bf16)):
        parser.error("give --llama PYTHON and --gguf-q8 or --gguf-bf16; or --only workbench")
    args.contexts = sorted(args.contexts)
    added = args.decode * (args.rounds + 1)
    if any(b - a <= added for a, b in zip(args.contexts, args.contexts[1:])):
        parser.error(f"contexts must be more than {added} tokens apart: the rounds add as many")


def forms_of(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The peers: their names, and the arguments of their workers."""
    forms: list[tuple[str, list[str]]] = []
    if args.only != "workbench":
        if args.gguf_q8:
            forms += [
                ("llama.cpp, Q8_0", [args.gguf_q8]),
                ("llama.cpp, Q8_0, not repacked", [args.gguf_q8, "--no-repack"]),
            ]
        if args.gguf_bf16:
            forms += [("llama.cpp, bf16", [args.gguf_bf16])]
    return forms


def measured(args: argparse.Namespace) -> None:
    added = args.decode * (args.rounds + 1)
    forms = forms_of(args)
    common = ["--threads", str(args.threads)]
    workbench = Child(
        sys.executable, "-m", "benchmarks.full_size", "--serve", "--model", args.model, "--memory", args.memory, *common
    )  # fmt: skip
    about = workbench("about")
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    clock = f"{args.threads} threads, {args.rounds} rounds, OMP_WAIT_POLICY {policy}"
    print(f"{about['text']}\n{clock}, memory={args.memory!r}", flush=True)
    torch.set_num_threads(args.threads)
    memory = torch.ones(READ // 8, dtype=torch.int64)
    reads = workbench("reads", contexts=args.contexts)

    results: dict[str, dict] = {}
    n_ctx = max([*args.contexts, *args.prefill]) + added + 64
    for name, options in forms or [("", [])]:
        peer = None
        if name:
            worker = str(Path(__file__).with_name("peers_full.py"))
            peer = Child(args.llama, "-I", worker, *options, *common, "--n-ctx", str(n_ctx))
            log(f"{name}: {peer('about')['text']}")
        results[name] = compare(args, workbench, peer, about["d_vocab"], not results, lambda: read_speed(memory))
        if peer:
            peer.close()
            print("\n".join(comparison(name, results[name], clock)), flush=True)
        if len(results) == 1:
            print("\n".join(own(results[name], reads)), flush=True)
    workbench.close()
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
        args.json.write_text(
            json.dumps({"about": about["text"], "clock": clock, "reads": reads, "results": measurements}, indent=1)
        )


if __name__ == "__main__":
    main()
