"""gpt-oss in its own width beside llama.cpp: prefill, recording, decoding, memory, and what the memory bus allows.

    python -m benchmarks.full_size --model FOLDER --gguf-q8 Q8.gguf --gguf-bf16 BF16.gguf --llama PYTHON
    python -m benchmarks.full_size --model FOLDER --only ours               # all 24 layers: no room for two models
    python -m benchmarks.full_size … --threads 1 --rounds 9 --json out.json # on a shared machine: read the CPU column

PYTHON is an interpreter that has llama-cpp-python. The files hold one model three times: FOLDER in the published layout
(experts MXFP4, the rest bf16), the others made of it by benchmarks.gguf_of (experts the same, matrices outside them
Q8_0 or bf16). A cut of 6 layers is meant for this: what two processes map must stay in the page cache together with
what llama.cpp copies, 6 layers about 5 + 4 + 3 GB. Of the full 24 layers only one fits, hence `--only ours`. The layers
of a cut cost what they cost in the whole, but the unembedding weighs more: 24 layers are nearer to "per layer".

Side by side. Ours lives through the run, each form of llama.cpp (its default, which repacks weights; without repacking;
with bf16) while it is compared. In each round every row runs once, in turned order, after a round that does not count.
A figure is the median over the rounds of the ratio of two rows of one round, with its quartiles. Ratios are of time:
below 1 we are faster. The tables give both clocks: wall, for two threads on a machine of one's own, and CPU, of all
threads of a process, for a shared one (with --threads 1 it also leaves out waiting). OMP_WAIT_POLICY is as you set it:
a user has none, PASSIVE does not spin for neighbours. Never compare times of different runs.

What runs:

    prefill        all tokens from an empty cache, logits of the last position; both fill a cache of keys and values
    recorded       the same, and record="attention residuals" is kept
    trace          Model.trace(tokens, record="attention residuals"): also logits of every position, which every trace
                   has; its pass, its probe (two passes over 160 tokens) and the rest (checks) apart
    decode         tokens one by one after a context that both have read; they are random, nobody samples
    as generate    the same with what Model.generate records of each token: routes and predictions

The bound. A process of its own reads 1 GB of memory in every round on as many threads; a token has to read all matrices
outside the experts, the chosen experts, the unembedding, and its keys and values. Bytes by read speed is the least time
that a token can take. Q8_0 has half the dense bytes of bf16, so its bound is another one, told beside.

Memory is the kernel's: VmHWM, set back before a row runs for the first time, so it counts mapped files too; RssAnon and
RssFile, what the system cannot drop and what it can, as they are afterwards. Linux only.
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

from benchmarks.peers_full import SAMPLED, answer, clocks, since
from workbench.taps import Tap

RECORD = "attention residuals"
PIECE = 512  # tokens that extend a context at once
LEAST_COSINE = {"bf16": 0.95, "Q8_0": 0.5}  # of the last logits: 0.997 was seen, and 0.81 to 0.95
READ = 1 << 30
TRACES = 2  # rounds in which Model.trace takes part: it takes several times as long as a prefill


# -- ours, in its process ---------------------------------------------------------------------------------------------


class Parts(Tap):
    """Seconds by part of the model: the time until a hook point belongs to what computed its value."""

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


class Ours:
    """Answers what benchmarks.peers_full answers, and more."""

    def __init__(self, folder: str, threads: int, memory: str):
        from workbench import Model, hooks

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = Model(folder, memory=memory)
        self.config = self.model.config
        self.points = hooks.expand(RECORD.split(), self.config.n_layers)
        self.live = [n for n in hooks.match("blocks.*.mlp.*", self.config.n_layers) if n.endswith(self._routes)]
        self.cache = None

    _routes = ("router.hook_out", "hook_expert_indices", "hook_expert_weights")

    def about(self) -> dict:
        from workbench.model.kernels import native

        text = f"{self.model!r}, {native.why()}, torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        return {"text": text, "d_vocab": self.config.d_vocab, "n_layers": self.config.n_layers}

    def _read(self, tokens: list[int], tap=None):
        return self.model.forward(torch.tensor([tokens]), tap, self.cache, slice(-1, None))

    def prefill(self, tokens: list[int], record: bool = False) -> dict:
        from workbench.model.cache import KVCache
        from workbench.recording.taps import Recorder

        self.cache, before = KVCache(self.config), clocks()
        recorder = Recorder(self.points) if record else None
        logits = self._read(tokens, recorder)
        seconds = since(before)
        kept = sum(x.nbytes for name in recorder.seen for x in recorder.seen[name]) if recorder else 0
        return {"seconds": seconds, "logits": logits[0, -1, ::SAMPLED].float().tolist(), "kept": kept}

    def extend(self, tokens: list[int]) -> dict:
        before = clocks()
        for i in range(0, len(tokens), PIECE):
            self._read(tokens[i : i + PIECE])
        return {"seconds": since(before)}

    def decode(self, tokens: list[int], live: bool = False) -> dict:
        from workbench.recording.summaries import Predictions, TokenLogprobs
        from workbench.recording.taps import Recorder
        from workbench.taps import Chain

        assert self.cache is not None, "prefill comes first"
        tap, length, taken = None, self.cache.length(), []
        if live:
            tap = Chain(Recorder(self.live), Predictions(self.config.n_layers, self.config.d_vocab), TokenLogprobs([0]))
        for token in tokens:
            before = clocks()
            self._read([token], tap)
            taken.append(since(before))
        if live:
            self.cache.crop(length)  # it was an extra: the others are as far as before
        return {"seconds": taken}

    def trace(self, tokens: list[int]) -> dict:
        """The seconds of Model.trace, and of two of its parts."""
        import warnings

        from workbench.recording import record, verify

        inner: dict[str, list[float]] = {}
        where = {"record": record, "probe": verify}
        own = {name: getattr(module, name) for name, module in where.items()}

        def timed(name):
            def call(*args, **more):
                before = clocks()
                given = own[name](*args, **more)
                inner[name] = since(before)
                return given

            return call

        for name in own:
            setattr(where[name], name, timed(name))
        try:
            before = clocks()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a random model, bf16 may miss an identity
                self.model.trace(tokens, record=RECORD, budget=None)
            return {"seconds": since(before), **inner}
        finally:
            for name, function in own.items():
                setattr(where[name], name, function)

    def parts(self, tokens: list[int], cached: bool = False) -> dict:
        """Seconds by part: of all tokens at once without a cache, or of each after what the cache holds."""
        if cached:
            assert self.cache is not None, "prefill comes first"
            length, tap = self.cache.length(), Parts()
            for token in tokens:
                tap.last = time.perf_counter()
                self._read([token], tap)
            self.cache.crop(length)
            return dict(tap.seconds)
        self.cache, tap = None, Parts()
        self._read(tokens, tap)
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
        seen = {n: sum(min(n, c.window) if c.is_sliding(layer) else n for layer in range(c.n_layers)) for n in contexts}
        return {
            "outside": outside,
            "experts": chosen,
            "keys": {n: position * positions for n, positions in seen.items()},
        }


def serve(args: argparse.Namespace) -> None:
    ours = Ours(args.model, args.threads, args.memory)
    jobs = ("about", "prefill", "extend", "decode", "trace", "parts", "reads")
    answer({name: getattr(ours, name) for name in jobs})


class Child:
    """A worker in a process of its own; `child(do, …)` is its answer."""

    def __init__(self, *command: str):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the child)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout, self.command = self.process.stdin, self.process.stdout, command
        self._reply()

    def __call__(self, do: str, **more) -> dict:
        with suppress(BrokenPipeError):  # it has ended: _reply says how
            self.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self.stdin.flush()
        return self._reply()

    def _reply(self) -> dict:
        line = self.stdout.readline()
        reply = json.loads(line) if line else {"error": f"it ended with {self.process.wait()}"}
        if "error" in reply:
            self.errors.seek(0)
            said = self.errors.read()[-2000:]
            self.close()
            sys.exit(f"{' '.join(self.command)}\n{said}\n{reply['error']}")
        return reply

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.process.wait()
        self.errors.close()


# -- measuring --------------------------------------------------------------------------------------------------------


def read_speed(memory: torch.Tensor) -> float:
    """Bytes a second: the best of two ways of reading `memory` once, three times each."""
    rows, ones = memory.view(torch.float32).view(-1, 4096), torch.ones(4096)
    best = min(_took(way) for _ in range(3) for way in (memory.sum, lambda: rows.mv(ones)))
    return memory.nbytes / best


def _took(way) -> float:
    before = time.perf_counter()
    way()
    return time.perf_counter() - before


class Measurement:
    """Rounds of rows: [wall, CPU] seconds by row, and memory by row, of the first time that it ran."""

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
    """Runs jobs (row, child, request) in rounds, turned by one each, after one that does not count."""
    m = Measurement()
    logits: dict[str, list[float]] = {}
    for i in range(-1, rounds):
        turn = max(i, 0) % len(jobs)
        for row, who, request in (*jobs[turn:], *jobs[:turn]):
            if row == "trace" and not 0 <= i < TRACES:
                continue
            child, first = children[who], row not in m.peaks
            if first:
                child("reset")
            reply = child(**request)
            if first:
                m.peaks[row] = child("memory")
            if i < 0:
                logits.setdefault(who, reply.get("logits", []))
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


def compare(args, ours: Child, theirs: Child | None, d_vocab: int, extras: bool, read) -> dict[str, dict]:
    """Prefill by tokens, decode by context, of ours and one form of llama.cpp; `extras` are recordings and parts."""
    children = {"ours": ours} | ({"theirs": theirs} if theirs else {})
    prefill, decode, parts = {}, {}, {}
    for n in args.prefill:
        tokens = tokens_of(n, d_vocab, 0)
        jobs = [(who, who, {"do": "prefill", "tokens": tokens}) for who in children]
        if extras:
            jobs.insert(1, ("recorded", "ours", {"do": "prefill", "tokens": tokens, "record": True}))
            if not args.no_trace:
                jobs.append(("trace", "ours", {"do": "trace", "tokens": tokens}))
        prefill[n] = stage(children, jobs, args.rounds)
        if extras:
            parts[f"prefill {n}"] = [ours("parts", tokens=tokens) for _ in range(args.rounds)]
        say(f"prefill {n} done")
    length = 0
    for context in args.contexts:
        more = tokens_of(context, d_vocab, 1)[: context - length]
        for child in children.values():
            child("extend" if length else "prefill", tokens=more)
        tokens = tokens_of(args.decode, d_vocab, 2)
        jobs = [(who, who, {"do": "decode", "tokens": tokens}) for who in children]
        if extras:
            jobs.append(("as generate", "ours", {"do": "decode", "tokens": tokens, "live": True}))
        decode[context] = stage(children, jobs, args.rounds, read)
        if extras:
            parts[f"decode at {context}"] = [ours("parts", tokens=tokens, cached=True) for _ in range(args.rounds)]
        length = context + args.decode * (args.rounds + 1)
        say(f"decode at {context} done")
    return {"prefill": prefill, "decode": decode, "parts": parts}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- saying it --------------------------------------------------------------------------------------------------------


def ratio(a: np.ndarray, b: np.ndarray) -> str:
    """Median and quartiles of the wall ratio, and the median of the CPU ratio, over the rounds that have both."""
    b = b[: len(a)]
    q1, median, q3 = np.percentile(a[:, 0] / b[:, 0], (25, 50, 75))
    return f"{f'{median:.2f} ({q1:.2f}-{q3:.2f})':>18} {np.median(a[:, 1] / b[:, 1]):6.2f}"


def per_second(m: Measurement, row: str, n: int = 1) -> float:
    return n / statistics.median(m.array(row)[:, 0])


def gb(n: float) -> str:
    return f"{n / 1e9:.2f}"


def comparison(name: str, found: dict, clock: str) -> list[str]:
    lines = [f"\nagainst {name}: time / theirs, below 1 we are faster; {clock}"]
    lines.append(f"{'':22}{'ours tok/s':>11}{'theirs':>9}{'wall':>19}{'CPU':>7}")
    for n, m in found["prefill"].items():
        agreed = "" if m.cosine is None else f"   cosine of the last logits {m.cosine:.4f}"
        rows = [("prefill", "ours"), *([("recorded", "recorded")] if "recorded" in m.rows else [])]
        for said, row in rows:
            speeds = f"{per_second(m, row, n):11.1f}{per_second(m, 'theirs', n):9.1f}"
            lines.append(f"{f'{said} {n}':22}{speeds} {ratio(m.array(row), m.array('theirs'))}{agreed}")
            agreed = ""
    for n, m in found["decode"].items():
        speeds = f"{per_second(m, 'ours'):11.2f}{per_second(m, 'theirs'):9.2f}"
        lines.append(f"{f'decode at {n}':22}{speeds} {ratio(m.array('ours'), m.array('theirs'))}")
    lines.append(
        f"{'GB of memory':22}{'ours: peak':>11}{'anon':>7}{'file':>7}{'theirs: peak':>15}{'anon':>7}{'file':>7}"
    )
    for kind in ("prefill", "decode"):
        for n, m in found[kind].items():
            said = f"{kind} {n}" if kind == "prefill" else f"decode at {n}"
            a, b = m.peaks["ours"], m.peaks["theirs"]
            figures = [gb(x[k]) for x in (a, b) for k in ("peak", "anonymous", "file")]
            lines.append(f"{said:22}" + "".join(f"{x:>{w}}" for x, w in zip(figures, (11, 7, 7, 15, 7, 7))))
    return lines


def own(found: dict, reads: dict) -> list[str]:
    """Recording, the bound and the parts: ours alone."""
    lines = [
        f"\nrecord={RECORD!r}: time / plain prefill of the same round",
        f"{'':22}{'tok/s':>11}{'wall':>19}{'CPU':>7}",
    ]
    for n, m in found["prefill"].items():
        plain = m.array("ours")
        lines.append(f"{f'plain {n}':22}{per_second(m, 'ours', n):11.1f}")
        for row, said in (
            ("recorded", "recorded"),
            ("trace: record", "trace, its pass"),
            ("trace: probe", "trace, its probe"),
            ("trace", "trace, all of it"),
        ):
            if row in m.rows:
                lines.append(f"{f'{said} {n}':22}{per_second(m, row, n):11.1f} {ratio(m.array(row), plain)}")
        for row, said in (("ours", "plain"), ("recorded", "recorded"), ("trace", "trace")):
            if p := m.peaks.get(row):
                said = f"{said}: peak {gb(p['peak'])} GB"
                lines.append(f"{'':22}{said}, afterwards {gb(p['anonymous'])} anonymous, {gb(p['file'])} of files")
    lines.append("\ndecode: the least time that reading allows / ours; and with what generate records")
    lines.append(
        f"{'':22}{'tok/s':>9}{'bound':>9}{'of bound':>10}{'GB/token':>10}{'GB/s':>7}{'as generate / plain':>29}"
    )
    for n, m in found["decode"].items():
        bytes_ = reads["outside"] + reads["experts"] + reads["keys"][str(n)]
        speed = m.array("read")[:, 0]
        bound, took = bytes_ / speed, m.array("ours")[:, 0]
        share = np.median(bound / took)
        figures = f"{1 / np.median(took):9.2f}{1 / np.median(bound):9.2f}{share:10.2f}{gb(bytes_):>10}"
        live = ratio(m.array("as generate"), m.array("ours")) if "as generate" in m.rows else ""
        lines.append(f"{f'decode at {n}':22}{figures}{np.median(speed) / 1e9:7.1f}    {live}")
    q8 = reads["outside"] * 34 / 64 + reads["experts"]
    lines.append(
        f"a token reads {gb(reads['outside'])} GB outside the experts and {gb(reads['experts'])} GB of experts; with "
        f"Q8_0 {gb(q8)} GB in all, {q8 / (reads['outside'] + reads['experts']):.2f} of ours, besides keys and values"
    )
    lines.append("\nparts: share of the wall clock of a plain pass")
    for what, measured in found["parts"].items():
        if what == next(iter(found["parts"])):
            lines.append(" " * 22 + "".join(f"{part:>{max(12, len(part) + 2)}}" for part in measured[0]))
        shares = [np.median([x[part] / sum(x.values()) for x in measured]) for part in measured[0]]
        widths = [max(12, len(part) + 2) for part in measured[0]]
        lines.append(f"{what:22}" + "".join(f"{s:{w}.3f}" for s, w in zip(shares, widths)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.full_size", description="In full width, beside llama.cpp.")
    parser.add_argument("--model", required=True, help="folder of a gpt-oss in MXFP4")
    parser.add_argument("--gguf-q8", help="the same model, Q8_0 outside the experts")
    parser.add_argument("--gguf-bf16", help="the same model, bf16 outside the experts")
    parser.add_argument("--llama", help="a python that has llama-cpp-python")
    parser.add_argument("--only", choices=("ours",), help="without llama.cpp")
    parser.add_argument("--memory", default="fast", help="of wb.Model (default: fast)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 1024], help="tokens (default: 512 1024)")
    parser.add_argument("--contexts", type=int, nargs="*", default=[16, 1024, 4096], help="default: 16 1024 4096")
    parser.add_argument("--decode", type=int, default=8, help="tokens a round and context (default: 8)")
    parser.add_argument("--no-trace", action="store_true", help="leave Model.trace out, the longest row")
    parser.add_argument("--json", type=Path, help="write every single measurement there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    check_arguments(parser, args)
    return measured(args)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where the arguments do not fit each other."""
    if args.only != "ours" and not (args.llama and (args.gguf_q8 or args.gguf_bf16)):
        parser.error("--llama PYTHON and --gguf-q8 or --gguf-bf16 are missing; or --only ours")
    args.contexts = sorted(args.contexts)
    grown = args.decode * (args.rounds + 1)
    if any(b - a <= grown for a, b in zip(args.contexts, args.contexts[1:])):
        parser.error(f"contexts lie nearer than the {grown} tokens that the rounds add")


def forms_of(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The peers: their names, and the arguments of their workers."""
    forms: list[tuple[str, list[str]]] = []
    if args.only != "ours":
        if args.gguf_q8:
            forms += [
                ("llama.cpp, Q8_0", [args.gguf_q8]),
                ("llama.cpp, Q8_0, not repacked", [args.gguf_q8, "--no-repack"]),
            ]
        if args.gguf_bf16:
            forms += [("llama.cpp, bf16", [args.gguf_bf16])]
    return forms


def measured(args: argparse.Namespace) -> None:
    grown = args.decode * (args.rounds + 1)
    forms = forms_of(args)
    common = ["--threads", str(args.threads)]
    ours = Child(
        sys.executable, "-m", "benchmarks.full_size", "--serve", "--model", args.model, "--memory", args.memory, *common
    )  # fmt: skip
    about = ours("about")
    wait = os.environ.get("OMP_WAIT_POLICY", "not set")
    clock = f"{args.threads} threads, {args.rounds} rounds, OMP_WAIT_POLICY {wait}"
    print(f"{about['text']}\n{clock}, memory={args.memory!r}", flush=True)
    torch.set_num_threads(args.threads)
    memory = torch.ones(READ // 8, dtype=torch.int64)
    reads = ours("reads", contexts=args.contexts)

    found: dict[str, dict] = {}
    n_ctx = max([*args.contexts, *args.prefill]) + grown + 64
    for name, more in forms or [("", [])]:
        theirs = None
        if name:
            worker = str(Path(__file__).with_name("peers_full.py"))
            theirs = Child(args.llama, "-I", worker, *more, *common, "--n-ctx", str(n_ctx))
            say(f"{name}: {theirs('about')['text']}")
        found[name] = compare(args, ours, theirs, about["d_vocab"], not found, lambda: read_speed(memory))
        if theirs:
            theirs.close()
            print("\n".join(comparison(name, found[name], clock)), flush=True)
        if len(found) == 1:
            print("\n".join(own(found[name], reads)), flush=True)
    ours.close()
    for name, f in found.items():
        least = next((x for kind, x in LEAST_COSINE.items() if kind in name), -1)
        for n, m in f["prefill"].items():
            if m.cosine is not None and m.cosine < least:
                print(f"\nWARNING: {name} at {n}: last logits agree to a cosine of {m.cosine:.3f}: not the same model?")
    if args.json:
        kinds = ("prefill", "decode")
        every = {
            name: {kind: {n: {"seconds": m.rows, "memory": m.peaks} for n, m in f[kind].items()} for kind in kinds}
            | {"parts": f["parts"]}
            for name, f in found.items()
        }
        args.json.write_text(
            json.dumps({"about": about["text"], "clock": clock, "reads": reads, "found": every}, indent=1)
        )


if __name__ == "__main__":
    main()
