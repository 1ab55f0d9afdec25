"""What recording costs here and in three peers: time and peak memory of one forward pass, all on the same weights.

    python -m benchmarks.recording              # 256, 512, 1024, 2048 tokens, 5 rounds: half an hour on 2 cores
    python -m benchmarks.recording --quick      # 256 and 512 tokens, 3 rounds
    python -m benchmarks.recording --sizes 1024 --rounds 9 --threads 1 --json out.json
    python -m benchmarks.recording --shape 20b --sizes 2048 --rounds 3      # gpt-oss-20b's width: about 17 GB of memory

The model is random: 8 layers (window 128 in every second), 512 wide, 16 heads of 64 on 8 kv heads, 32 experts of which
4 run, d_mlp 512, vocabulary 8,192, fp32. Everybody computes the logits of the last position only (`logits_to_keep=1`,
here `logits_at`), without gradients, in a process of its own. The peers run transformers' model as it is by default on
a CPU: eager attention, experts by grouped_mm.

`--shape 20b` has the layers of gpt-oss-20b (2880 wide, 64 heads, d_mlp 2880, 4 experts for a token), but two of them,
of 16 experts each, and the vocabulary above: the peers dequantise, four processes are alive at once, and 24 layers of
32 experts in fp32 would be 80 GB for each. fp32, because torch multiplies bf16 at a fraction of its speed on a CPU
without bf16 instructions, which would make everybody's recording look cheap. Ours keeps its experts in MXFP4 there, and
dequantises them as it goes.

What runs, and what it keeps of every layer:

    workbench plain, recorded     rot_q and rot_k (with the sinks they give any pattern on demand), sink, router
                                  logits, expert indices and weights, resid_pre, resid_mid, resid_post
    workbench +patterns           the same and every pattern itself
    transformers plain, recorded  output_attentions, output_router_logits, output_hidden_states: no resid_mid, no sink
    nnsight plain, recorded       patterns, router logits, inputs and outputs of the layers, resid_mid, in a trace
    TransformerLens plain, rec.   patterns, router logits, resid_pre, resid_mid, resid_post, by run_with_cache

Before anything is measured, everybody's patterns, router logits and residual streams at the smallest size (256 at most)
must agree to 3e-5 of their largest value; ours are recomputed from rot_q, rot_k and sinks,
as a reader of a trace would.

Time. In each round fresh processes load the model, then every row runs once (256 tokens twice), starting two rows later
than in the round before. A figure is the median over the rounds of the ratio of two rows of the same round, with its
quartiles: other work on the machine then meets both, and how a process happened to get its memory, which made equal
work differ by a quarter, is drawn anew. Never compare times of different runs. CPU time counts all threads of a process
and is less exposed to neighbours than the wall clock. Threads wait asleep (OMP_WAIT_POLICY=PASSIVE, unless it is set):
spinning for a thread that a neighbour has pushed off its core made everybody five times slower on a shared machine.

Memory. Each row in a fresh process: load, a pass over 8 tokens, give free memory back to the system, one pass, and the
growth of the peak of resident memory until the pass has ended, what it recorded included. It is the figure that
`ru_maxrss` reports, read from /proc because only there can it be set back after loading; hence Linux only. Beside it,
the bytes of all tensors that the pass left in the caller's hands.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SMALL = {
    "n_layers": 8,
    "d_model": 512,
    "n_heads": 16,
    "n_kv_heads": 8,
    "d_head": 64,
    "n_experts": 32,
    "n_active": 4,
    "d_mlp": 512,
    "d_vocab": 8192,
    "window": 128,
}
SHAPES = {
    "small": SMALL,
    "20b": SMALL | {"n_layers": 2, "d_model": 2880, "n_heads": 64, "n_experts": 16, "d_mlp": 2880},
}
SHAPE = "WORKBENCH_RECORDING_SHAPE"  # how the processes that are started learn it
DIMS = dict(SHAPES[os.environ.get(SHAPE, "small")])
LAYERS = range(DIMS["n_layers"])
SIZES = (256, 512, 1024, 2048)
AGREE_AT = 256  # tokens at most: patterns of four tools are held at once
TOLERANCE = 3e-5  # fp32 sums of up to 2,880 terms in another order: 1.1e-5 was seen at that width
PEERS = ("transformers", "nnsight", "TransformerLens")
PLAIN, RECORDED, PATTERNS = "plain", "recorded", "+patterns"
OURS, OURS_RECORDED = ("workbench", PLAIN), ("workbench", RECORDED)
ROWS = (OURS, OURS_RECORDED, ("workbench", PATTERNS), *product(PEERS, (PLAIN, RECORDED)))
MOST_OVERHEAD, MOST_MEMORY = 1.15, 0.5  # the goals


# -- the four tools: called with tokens and a mode they give what they kept; `values` says it in common names ----------


class Workbench:
    POINTS = (
        "attn.hook_rot_q",
        "attn.hook_rot_k",
        "attn.hook_sink",
        "mlp.router.hook_out",
        "mlp.hook_expert_indices",
        "mlp.hook_expert_weights",
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
    )

    def __init__(self, folder: Path):
        from workbench.model.checkpoints import load

        self.model = load(folder / "mxfp4", dtype=torch.float32)

    def __call__(self, tokens: Tensor, mode: str):
        from workbench.model.gpt_oss import forward
        from workbench.recording.taps import Recorder

        points = {PLAIN: (), RECORDED: self.POINTS, PATTERNS: (*self.POINTS, "attn.hook_pattern")}[mode]
        tap = Recorder(f"blocks.{layer}.{point}" for layer in LAYERS for point in points) if points else None
        last = slice(tokens.shape[1] - 1, tokens.shape[1])
        return forward(self.model.config, self.model.weights, tokens, tap, logits_at=last), tap

    def values(self, kept) -> dict[str, np.ndarray]:
        from workbench.traces.patterns import recompute

        _, tap = kept
        values = {}
        for layer in LAYERS:
            here = f"blocks.{layer}."
            q, k = (tap[f"{here}attn.hook_rot_{x}"][0].numpy() for x in "qk")
            sinks = self.model.weights.blocks[layer].sinks.numpy()
            values[f"pattern {layer}"], _ = recompute(asdict(self.model.config), layer, q, k, sinks, q.dtype)
            if here + "attn.hook_pattern" in tap.seen:
                values[f"pattern itself {layer}"] = tap[here + "attn.hook_pattern"][0].numpy()
            values[f"router {layer}"] = tap[here + "mlp.router.hook_out"][0].numpy()
            for part in ("pre", "mid", "post"):
                values[f"resid_{part} {layer}"] = tap[f"{here}hook_resid_{part}"][0].numpy()
        return values


class Transformers:
    def __init__(self, folder: Path):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.GptOssForCausalLM.from_pretrained(folder / "bf16", dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        self.model.config.tie_last_hidden_states = False  # or the last residual is only there after the final norm
        kinds = self.model.config._attn_implementation, self.model.config._experts_implementation
        assert kinds == ("eager", "grouped_mm"), kinds

    def __call__(self, tokens: Tensor, mode: str):
        keep = mode == RECORDED
        return self.model(
            tokens,
            logits_to_keep=1,
            use_cache=False,
            output_attentions=keep,
            output_hidden_states=keep,
            output_router_logits=keep,
        )

    def values(self, kept) -> dict[str, np.ndarray]:
        values = {f"pattern {i}": kept.attentions[i][0] for i in LAYERS}
        values |= {f"router {i}": kept.router_logits[i] for i in LAYERS}
        values |= {f"resid_pre {i}": kept.hidden_states[i][0] for i in LAYERS}
        values |= {f"resid_post {i}": kept.hidden_states[i + 1][0] for i in LAYERS}
        return {name: x.numpy() for name, x in values.items()}


class NNsight:
    def __init__(self, folder: Path):
        import nnsight

        self.model = nnsight.NNsight(Transformers(folder).model)

    def __call__(self, tokens: Tensor, mode: str):
        kept = {}
        if mode == PLAIN:
            with self.model.trace(tokens, logits_to_keep=1, use_cache=False):
                kept["logits"] = self.model.lm_head.output.save()
            return kept
        with self.model.trace(tokens, logits_to_keep=1, use_cache=False):
            for i, block in enumerate(self.model.model.layers):  # in the order in which they run, or nnsight objects
                kept[f"resid_pre {i}"] = block.input.save()
                kept[f"pattern {i}"] = block.self_attn.output[1].save()
                kept[f"resid_mid {i}"] = block.post_attention_layernorm.input.save()
                kept[f"router {i}"] = block.mlp.router.output[0].save()
                kept[f"resid_post {i}"] = block.output.save()
            kept["logits"] = self.model.lm_head.output.save()
        return kept

    def values(self, kept) -> dict[str, np.ndarray]:
        return {k: (x if k.startswith("router") else x[0]).numpy() for k, x in kept.items() if k != "logits"}


class TransformerLens:
    NAMES = (
        ("pattern", "attn.hook_pattern"),
        ("router", "mlp.router.hook_out"),
        ("resid_pre", "hook_resid_pre"),
        ("resid_mid", "hook_resid_mid"),
        ("resid_post", "hook_resid_post"),
    )

    def __init__(self, folder: Path):
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        model = Transformers(folder).model
        self.model = TransformerBridge.boot_transformers("openai/gpt-oss-20b", hf_model=model, tokenizer=tokenizer)
        self.names = [f"blocks.{i}.{point}" for i in LAYERS for _, point in self.NAMES]

    def __call__(self, tokens: Tensor, mode: str):
        if mode == PLAIN:
            return self.model(tokens, logits_to_keep=1, use_cache=False)
        return self.model.run_with_cache(tokens, names_filter=self.names, logits_to_keep=1, use_cache=False)

    def values(self, kept) -> dict[str, np.ndarray]:
        _, cache = kept
        named = {f"{name} {i}": cache[f"blocks.{i}.{point}"] for i in LAYERS for name, point in self.NAMES}
        return {k: (x if k.startswith("router") else x[0]).numpy() for k, x in named.items()}


TOOLS = {"workbench": Workbench, "transformers": Transformers, "nnsight": NNsight, "TransformerLens": TransformerLens}


# -- in the processes -------------------------------------------------------------------------------------------------


def tokens_of(n: int) -> Tensor:
    return torch.randint(0, DIMS["d_vocab"], (1, n), generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def serve(pipe, tool: str, folder: Path, threads: int) -> None:
    """Loads one tool and answers jobs (what, mode, n) until it gets None."""
    torch.set_num_threads(threads)
    runner = TOOLS[tool](folder)
    pipe.send("ready")
    while job := pipe.recv():
        what, mode, n = job
        pipe.send({"time": seconds, "memory": growth, "values": recorded}[what](runner, mode, n))


def seconds(runner, mode: str, n: int) -> tuple[float, float]:
    """Wall and CPU time of a pass; short ones are repeated, so that a measurement is not all noise."""
    tokens, times = tokens_of(n), max(1, 512 // n)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        runner(tokens, mode)
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def recorded(runner, mode: str, n: int) -> dict[str, np.ndarray]:
    return runner.values(runner(tokens_of(n), mode))


def growth(runner, mode: str, n: int) -> tuple[int, int]:
    """Bytes by which the peak of resident memory grows during one pass, and of the tensors that it gave."""
    runner(tokens_of(8), mode)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = _resident("VmRSS")
    kept = runner(tokens_of(n), mode)
    return _resident("VmHWM") - before, sum(_storages(kept).values())


def _storages(kept) -> dict[int, int]:
    """Address -> bytes of the memory of all tensors in what a tool gave; views count once."""
    if isinstance(kept, Tensor):
        return {kept.untyped_storage().data_ptr(): kept.untyped_storage().nbytes()}
    inside = getattr(kept, "seen", getattr(kept, "cache_dict", kept))  # our Recorder, TransformerLens' cache
    values = inside.values() if hasattr(inside, "values") else inside if isinstance(inside, list | tuple) else ()
    return {address: n for x in values for address, n in _storages(x).items()}


def _resident(field: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


class Process:
    """One tool in a process of its own, ready for jobs."""

    def __init__(self, tool: str, folder: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, tool, folder, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def __call__(self, what: str, mode: str, n: int):
        self.pipe.send((what, mode, n))
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


# -- measuring --------------------------------------------------------------------------------------------------------


def write_model(folder: Path) -> None:
    """The same weights twice: as MXFP4, for workbench, and as bf16, which transformers loads faster on a CPU."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from tests.checkpoints import Random

    random = Random(seed=0, **DIMS)
    for name, x in random.tensors.items():  # made for 96 wide: here every layer would amplify roundings threefold
        if name.endswith(".scales"):
            x -= 2
        elif name.startswith("block.") and x.ndim == 2:
            x *= 0.25
    random.write_hf_mxfp4(folder / "mxfp4")
    random.write_hf_bf16(folder / "bf16")
    words = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))  # TransformerLens does not boot without
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(folder / "tokenizer")


def disagreement(folder: Path, n: int, threads: int) -> dict[str, float]:
    """The largest difference between a tool's values and ours, relative to the largest value of the same name."""
    ours = _asked(folder, threads, "workbench", "values", PATTERNS, n)
    itself = {name: x for name, x in ours.items() if name.startswith("pattern itself")}
    theirs = {tool: _asked(folder, threads, tool, "values", RECORDED, n) for tool in PEERS}
    theirs["workbench's own patterns"] = {name.replace(" itself", ""): x for name, x in itself.items()}
    return {
        tool: max(float(np.abs(x - ours[name]).max() / np.abs(ours[name]).max()) for name, x in values.items())
        for tool, values in theirs.items()
    }


def times(
    folder: Path, sizes: Sequence[int], rounds: int, threads: int
) -> dict[int, dict[tuple[str, str], np.ndarray]]:
    """Wall and CPU seconds of each row at each size, round by round: [round, 2]."""
    taken = {n: {row: [] for row in ROWS} for n in sizes}
    for i in range(rounds):
        processes = {tool: Process(tool, folder, threads) for tool in TOOLS}
        shift = i * 2 % len(ROWS)
        for n in sizes:
            for process in processes.values():
                process("time", RECORDED, n)  # warm up
            for row in ROWS[shift:] + ROWS[:shift]:
                tool, mode = row
                taken[n][row].append(processes[tool]("time", mode, n))
            print(f"round {i + 1} of {rounds}, {n} tokens: timed", file=sys.stderr)
        for process in processes.values():
            process.close()
    return {n: {row: np.array(x) for row, x in rows.items()} for n, rows in taken.items()}


def memory(folder: Path, n: int, threads: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Peak growth in bytes of each row, each in a process of its own, and the bytes that it kept."""
    return {row: _asked(folder, threads, row[0], "memory", row[1], n) for row in ROWS}


def _asked(folder: Path, threads: int, tool: str, *job):
    """One answer from a process that lives no longer."""
    process = Process(tool, folder, threads)
    answer = process(*job)
    process.close()
    return answer


# -- saying it --------------------------------------------------------------------------------------------------------


def ratio(a: np.ndarray, b: np.ndarray, clock: int = 0) -> tuple[float, float, float]:
    """Median and quartiles over the rounds of a / b."""
    q1, median, q3 = np.percentile(a[:, clock] / b[:, clock], (25, 50, 75))
    return float(median), float(q1), float(q3)


def peer_row(tool: str, mode: str) -> tuple[str, str]:
    """Our row that a row of a peer is to be compared with."""
    return OURS if mode == PLAIN else OURS_RECORDED


def table(n: int, taken: dict | None, grown: dict | None, kept: dict | None) -> str:
    head = f"{n} tokens".ljust(27)
    if taken:
        head += "  time / ours plain  time / ours recorded    CPU / plain  / recorded"
    if grown:
        head += "  peak memory  / ours in the same mode        kept"
    lines = [head]
    for row in ROWS:
        line = " ".join(row).ljust(27)
        if taken:
            for base in (OURS, OURS_RECORDED):
                median, q1, q3 = ratio(taken[row], taken[base])
                line += f"{median:7.2f} ({q1:.2f}-{q3:.2f})".ljust(21)
            line += "".join(f"{ratio(taken[row], taken[base], 1)[0]:12.2f}" for base in (OURS, OURS_RECORDED))
        if grown:
            assert kept is not None, "they are measured together"
            line += f"{grown[row] / 1e6:10.0f} MB {grown[row] / grown[peer_row(*row)]:8.2f}"
            line += f"{kept[row] / 1e6:28.1f} MB"
        lines.append(line)
    return "\n".join(lines)


def verdict(taken: dict[int, dict], grown: dict[int, dict]) -> dict[str, tuple[bool, list[str]]]:
    """The goals: whether each is met, and the figures that decide it."""
    fastest, memories = [], []
    for n, mode, tool in product(taken, (PLAIN, RECORDED), PEERS):
        ours = peer_row(tool, mode)
        fastest.append((ratio(taken[n][tool, mode], taken[n][ours])[0], f"{tool} {mode} at {n}"))
        if grown:
            memories.append((grown[n][ours] / grown[n][tool, mode], f"{tool} {mode} at {n}"))
    overhead = [(ratio(taken[n][OURS_RECORDED], taken[n][OURS])[0], f"at {n}") for n in taken]

    def judged(figures: list[tuple[float, str]], good, worst) -> tuple[bool, list[str]]:
        missed = [f"{x:.2f} {what}" for x, what in figures if not good(x)]
        x, what = worst(figures)
        return not missed, missed or [f"the closest is {x:.2f} {what}"]

    goals = {
        "fastest of the four at every size (peer's time / ours > 1)": judged(fastest, lambda x: x > 1, min),
        f"ours recorded <= {MOST_OVERHEAD} x ours plain": judged(overhead, lambda x: x <= MOST_OVERHEAD, max),
    }
    if grown:
        goal = f"our peak memory <= {MOST_MEMORY} x any peer's (ours / peer's)"
        goals[goal] = judged(memories, lambda x: x <= MOST_MEMORY, max)
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.recording", description="What recording costs, side by side."
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small", help="default: small")
    parser.add_argument("--sizes", type=int, nargs="+", help="tokens (default: 256 512 1024 2048)")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--json", type=Path, help="write every single measurement there")
    parser.add_argument("--quick", action="store_true", help="256 and 512 tokens, 3 rounds, unless said otherwise")
    parser.add_argument("--only", choices=("time", "memory"), help="measure one of the two")
    args = parser.parse_args()
    os.environ[SHAPE] = args.shape
    DIMS.update(SHAPES[args.shape])
    sizes = sorted(args.sizes or (SIZES[:2] if args.quick else SIZES))
    rounds = args.rounds or (3 if args.quick else 5)
    weigh = args.only != "time" and sys.platform == "linux"

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when a process starts: ours has, theirs will
    d = DIMS
    print(
        f"{d['n_layers']} layers, d_model {d['d_model']}, {d['n_heads']} heads x {d['d_head']}, {d['n_kv_heads']} kv "
        f"heads, {d['n_experts']} experts top-{d['n_active']}, d_mlp {d['d_mlp']}, vocabulary {d['d_vocab']}, window "
        f"{d['window']}, fp32, logits of the last position; {args.threads} threads, {rounds} rounds, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    taken, grown, kept = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        differences = disagreement(folder, min(sizes[0], AGREE_AT), args.threads)
        said = ", ".join(f"{tool} {x:.0e}" for tool, x in differences.items())
        print(f"largest relative difference from what workbench recorded: {said}", flush=True)
        if max(differences.values()) > TOLERANCE:
            sys.exit(f"they did not record the same thing: over {TOLERANCE:.0e}. Nothing was measured.")
        if args.only != "memory":
            taken = times(folder, sizes, rounds, args.threads)
        if weigh:
            weighed = {n: memory(folder, n, args.threads) for n in sizes}
            grown, kept = ({n: {row: x[i] for row, x in rows.items()} for n, rows in weighed.items()} for i in (0, 1))

    for n in sizes:
        print("\n" + table(n, taken.get(n), grown.get(n), kept.get(n)))
    goals = verdict(taken, grown) if taken else {}
    print()
    for goal, (met, figures) in goals.items():
        print(f"{'met   ' if met else 'MISSED'}  {goal}: {'; '.join(figures)}")
    if args.json:
        runs = {n: {" ".join(row): x.tolist() for row, x in rows.items()} for n, rows in taken.items()}
        peaks, left = (
            {n: {" ".join(row): x for row, x in rows.items()} for n, rows in found.items()} for found in (grown, kept)
        )
        about = {"dims": DIMS, "threads": args.threads, "torch": torch.__version__, "differences": differences}
        seen = {goal: {"met": met, "figures": figures} for goal, (met, figures) in goals.items()}
        args.json.write_text(
            json.dumps(
                about | {"wall_cpu_seconds": runs, "peak_bytes": peaks, "kept_bytes": left, "goals": seen}, indent=1
            )
        )


if __name__ == "__main__":
    main()
