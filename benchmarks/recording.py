"""The cost of recording here and in three other tools: time and peak memory of one forward pass on the same weights.

    python -m benchmarks.recording              # 256, 512, 1024, 2048 tokens, 5 rounds: half an hour on 2 cores
    python -m benchmarks.recording --quick      # 256 and 512 tokens, 3 rounds
    python -m benchmarks.recording --sizes 1024 --rounds 9 --threads 1 --json out.json
    python -m benchmarks.recording --shape 20b --sizes 2048 --rounds 3      # gpt-oss-20b's width: about 17 GB of memory

The model is random: 8 layers (window 128 in every second), 512 wide, 16 heads of 64 on 8 kv heads, 32 experts of which
4 run, d_mlp 512, vocabulary 8,192, fp32. Every tool computes the logits of the last position only (`logits_to_keep=1`,
here `logits_at`), without gradients, in its own process. The peers run transformers' model with its defaults on a CPU:
eager attention, experts by grouped_mm.

`--shape 20b` has the layers of gpt-oss-20b (2880 wide, 64 heads, d_mlp 2880, 4 experts for a token), but two of them,
of 16 experts each, and the vocabulary above: the peers dequantize, four processes are alive at once, and 24 layers of
32 experts in fp32 would be 80 GB for each. fp32, because torch multiplies bf16 at a fraction of its speed on a CPU
without bf16 instructions, which would make every tool's recording look cheap. workbench keeps its experts in MXFP4 in
this shape, and dequantizes them during the pass.

Rows, and what they keep of every layer:

    workbench plain, recorded     rot_q and rot_k (with the sinks they give any pattern on demand), sink, router
                                  logits, expert indices and weights, resid_pre, resid_mid, resid_post
    workbench +patterns           the same and every pattern itself
    transformers plain, recorded  output_attentions, output_router_logits, output_hidden_states: no resid_mid, no sink
    nnsight plain, recorded       patterns, router logits, inputs and outputs of the layers, resid_mid, in a trace
    TransformerLens plain, rec.   patterns, router logits, resid_pre, resid_mid, resid_post, by run_with_cache

Before anything is measured, patterns, router logits and residual streams of all tools at the smallest size (at most
256) must agree to 3e-5 of their largest value; workbench's are recomputed from rot_q, rot_k and sinks, as a reader of a
trace would.

Time. In each round fresh processes load the model, then every row runs once (256 tokens twice), starting two rows later
than in the round before. A figure is the median over the rounds of the ratio of two rows of the same round, with its
quartiles. Other work on the machine then affects both rows, and the placement of a process's memory, which made equal
work differ by a quarter, is redrawn in every round. Never compare times of different runs. CPU time counts all threads
of a process and is less exposed to neighbors than the wall clock. Threads sleep while they wait
(OMP_WAIT_POLICY=PASSIVE, unless it is set): spinning for a thread that a neighbor has pushed off its core made all
tools five times slower on a shared machine.

Memory. Each row in a fresh process: load, a pass over 8 tokens, give free memory back to the system, one pass, and the
growth of the peak of resident memory until the pass has ended, including what it recorded. It is the figure that
`ru_maxrss` reports, read from /proc because only there can it be reset after loading; hence Linux only. Beside it are
the bytes of all tensors that the pass returned to the caller.
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
SHAPE = "WORKBENCH_RECORDING_SHAPE"  # passes the shape to the processes that are started
DIMS = dict(SHAPES[os.environ.get(SHAPE, "small")])
LAYERS = range(DIMS["n_layers"])
SIZES = (256, 512, 1024, 2048)
AGREE_AT = 256  # tokens at most: patterns of four tools are in memory at once
TOLERANCE = 3e-5  # fp32 sums of up to 2,880 terms in another order: measured was 1.1e-5 at that width
PEERS = ("transformers", "nnsight", "TransformerLens")
PLAIN, RECORDED, PATTERNS = "plain", "recorded", "+patterns"
WORKBENCH, WORKBENCH_RECORDED = ("workbench", PLAIN), ("workbench", RECORDED)
ROWS = (WORKBENCH, WORKBENCH_RECORDED, ("workbench", PATTERNS), *product(PEERS, (PLAIN, RECORDED)))
MAX_OVERHEAD, MAX_MEMORY = 1.15, 0.5  # the goals


# -- the four tools: called with tokens and a mode, they return what they recorded; `values` renames it alike ----------


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

    def values(self, output) -> dict[str, np.ndarray]:
        from workbench.traces.patterns import recompute

        _, tap = output
        values = {}
        for layer in LAYERS:
            prefix = f"blocks.{layer}."
            q, k = (tap[f"{prefix}attn.hook_rot_{x}"][0].numpy() for x in "qk")
            sinks = self.model.weights.blocks[layer].sinks.numpy()
            values[f"pattern {layer}"], _ = recompute(asdict(self.model.config), layer, q, k, sinks, q.dtype)
            if prefix + "attn.hook_pattern" in tap.seen:
                values[f"pattern itself {layer}"] = tap[prefix + "attn.hook_pattern"][0].numpy()
            values[f"router {layer}"] = tap[prefix + "mlp.router.hook_out"][0].numpy()
            for part in ("pre", "mid", "post"):
                values[f"resid_{part} {layer}"] = tap[f"{prefix}hook_resid_{part}"][0].numpy()
        return values


class Transformers:
    def __init__(self, folder: Path):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.GptOssForCausalLM.from_pretrained(folder / "bf16", dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        self.model.config.tie_last_hidden_states = False  # else the last residual exists only after the final norm
        kinds = self.model.config._attn_implementation, self.model.config._experts_implementation
        assert kinds == ("eager", "grouped_mm"), kinds

    def __call__(self, tokens: Tensor, mode: str):
        recording = mode == RECORDED
        return self.model(
            tokens,
            logits_to_keep=1,
            use_cache=False,
            output_attentions=recording,
            output_hidden_states=recording,
            output_router_logits=recording,
        )

    def values(self, output) -> dict[str, np.ndarray]:
        values = {f"pattern {i}": output.attentions[i][0] for i in LAYERS}
        values |= {f"router {i}": output.router_logits[i] for i in LAYERS}
        values |= {f"resid_pre {i}": output.hidden_states[i][0] for i in LAYERS}
        values |= {f"resid_post {i}": output.hidden_states[i + 1][0] for i in LAYERS}
        return {name: x.numpy() for name, x in values.items()}


class NNsight:
    def __init__(self, folder: Path):
        import nnsight

        self.model = nnsight.NNsight(Transformers(folder).model)

    def __call__(self, tokens: Tensor, mode: str):
        output = {}
        if mode == PLAIN:
            with self.model.trace(tokens, logits_to_keep=1, use_cache=False):
                output["logits"] = self.model.lm_head.output.save()
            return output
        with self.model.trace(tokens, logits_to_keep=1, use_cache=False):
            for i, block in enumerate(self.model.model.layers):  # in the order of execution, which nnsight requires
                output[f"resid_pre {i}"] = block.input.save()
                output[f"pattern {i}"] = block.self_attn.output[1].save()
                output[f"resid_mid {i}"] = block.post_attention_layernorm.input.save()
                output[f"router {i}"] = block.mlp.router.output[0].save()
                output[f"resid_post {i}"] = block.output.save()
            output["logits"] = self.model.lm_head.output.save()
        return output

    def values(self, output) -> dict[str, np.ndarray]:
        return {k: (x if k.startswith("router") else x[0]).numpy() for k, x in output.items() if k != "logits"}


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

    def values(self, output) -> dict[str, np.ndarray]:
        _, cache = output
        named = {f"{name} {i}": cache[f"blocks.{i}.{point}"] for i in LAYERS for name, point in self.NAMES}
        return {k: (x if k.startswith("router") else x[0]).numpy() for k, x in named.items()}


TOOLS = {"workbench": Workbench, "transformers": Transformers, "nnsight": NNsight, "TransformerLens": TransformerLens}


# -- in the processes -------------------------------------------------------------------------------------------------


def tokens_of(n: int) -> Tensor:
    return torch.randint(0, DIMS["d_vocab"], (1, n), generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def serve(pipe, tool: str, folder: Path, threads: int) -> None:
    """Loads one tool and does jobs (kind, mode, n) until it gets None."""
    torch.set_num_threads(threads)
    runner = TOOLS[tool](folder)
    pipe.send("ready")
    while job := pipe.recv():
        kind, mode, n = job
        pipe.send({"time": seconds, "memory": growth, "values": recorded}[kind](runner, mode, n))


def seconds(runner, mode: str, n: int) -> tuple[float, float]:
    """Wall and CPU time of a pass; short passes are repeated to reduce noise."""
    tokens, times = tokens_of(n), max(1, 512 // n)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        runner(tokens, mode)
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def recorded(runner, mode: str, n: int) -> dict[str, np.ndarray]:
    return runner.values(runner(tokens_of(n), mode))


def growth(runner, mode: str, n: int) -> tuple[int, int]:
    """Bytes by which the peak of resident memory grows during one pass, and bytes of the tensors that it returned."""
    runner(tokens_of(8), mode)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _resident("VmRSS")
    output = runner(tokens_of(n), mode)
    return _resident("VmHWM") - before, sum(_storages(output).values())


def _storages(output) -> dict[int, int]:
    """Address -> bytes, of the memory of all tensors in a tool's output; views count once."""
    if isinstance(output, Tensor):
        return {output.untyped_storage().data_ptr(): output.untyped_storage().nbytes()}
    content = getattr(output, "seen", getattr(output, "cache_dict", output))  # workbench's Recorder, a TL cache
    values = content.values() if hasattr(content, "values") else content if isinstance(content, list | tuple) else ()
    return {address: n for x in values for address, n in _storages(x).items()}


def _resident(field: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


class Process:
    """One tool in its own process, ready for jobs."""

    def __init__(self, tool: str, folder: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=serve, args=(child_pipe, tool, folder, threads), daemon=True)
        self.process.start()
        child_pipe.close()
        self.pipe.recv()

    def __call__(self, kind: str, mode: str, n: int):
        self.pipe.send((kind, mode, n))
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
    for name, x in random.tensors.items():  # scaled for a width of 96: here every layer would triple roundings
        if name.endswith(".scales"):
            x -= 2
        elif name.startswith("block.") and x.ndim == 2:
            x *= 0.25
    random.write_hf_mxfp4(folder / "mxfp4")
    random.write_hf_bf16(folder / "bf16")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))  # required by TransformerLens
    special_tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder / "tokenizer")


def disagreement(folder: Path, n: int, threads: int) -> dict[str, float]:
    """The largest difference between a tool's values and workbench's, relative to the largest value of that name."""
    reference = _run_once(folder, threads, "workbench", "values", PATTERNS, n)
    patterns = {name: x for name, x in reference.items() if name.startswith("pattern itself")}
    values_of = {tool: _run_once(folder, threads, tool, "values", RECORDED, n) for tool in PEERS}
    values_of["workbench's own patterns"] = {name.replace(" itself", ""): x for name, x in patterns.items()}
    return {
        tool: max(
            float(np.abs(x - reference[name]).max() / np.abs(reference[name]).max()) for name, x in values.items()
        )
        for tool, values in values_of.items()
    }


def times(
    folder: Path, sizes: Sequence[int], rounds: int, threads: int
) -> dict[int, dict[tuple[str, str], np.ndarray]]:
    """Wall and CPU seconds of each row at each size, round by round: [round, 2]."""
    seconds_of = {n: {row: [] for row in ROWS} for n in sizes}
    for i in range(rounds):
        processes = {tool: Process(tool, folder, threads) for tool in TOOLS}
        shift = i * 2 % len(ROWS)
        for n in sizes:
            for process in processes.values():
                process("time", RECORDED, n)  # warm up
            for row in ROWS[shift:] + ROWS[:shift]:
                tool, mode = row
                seconds_of[n][row].append(processes[tool]("time", mode, n))
            print(f"round {i + 1} of {rounds}, {n} tokens: timed", file=sys.stderr)
        for process in processes.values():
            process.close()
    return {n: {row: np.array(x) for row, x in rows.items()} for n, rows in seconds_of.items()}


def memory(folder: Path, n: int, threads: int) -> dict[tuple[str, str], tuple[int, int]]:
    """For each row, in its own process: peak growth in bytes, and the bytes of what it recorded."""
    return {row: _run_once(folder, threads, row[0], "memory", row[1], n) for row in ROWS}


def _run_once(folder: Path, threads: int, tool: str, *job):
    """The reply to one job, from a process that is closed afterwards."""
    process = Process(tool, folder, threads)
    reply = process(*job)
    process.close()
    return reply


# -- the report -------------------------------------------------------------------------------------------------------


def ratio(a: np.ndarray, b: np.ndarray, clock: int = 0) -> tuple[float, float, float]:
    """Median and quartiles over the rounds of a / b."""
    q1, median, q3 = np.percentile(a[:, clock] / b[:, clock], (25, 50, 75))
    return float(median), float(q1), float(q3)


def peer_row(tool: str, mode: str) -> tuple[str, str]:
    """The row of workbench that a row of a peer is compared with."""
    return WORKBENCH if mode == PLAIN else WORKBENCH_RECORDED


def table(n: int, seconds_of: dict | None, growth_of: dict | None, bytes_of: dict | None) -> str:
    """Figures of each row; ratios are to workbench's plain and recorded rows, and in memory to the same mode."""
    head = f"{n} tokens".ljust(27)
    if seconds_of:
        head += f"{'  time / plain':21}{'  time / recorded':21}{'CPU / plain':>12}{'/ recorded':>12}"
    if growth_of:
        head += f"{'peak memory':>13}{'ratio':>9}{'bytes recorded':>31}"
    lines = [head]
    for row in ROWS:
        line = " ".join(row).ljust(27)
        if seconds_of:
            for base in (WORKBENCH, WORKBENCH_RECORDED):
                median, q1, q3 = ratio(seconds_of[row], seconds_of[base])
                line += f"{median:7.2f} ({q1:.2f}-{q3:.2f})".ljust(21)
            line += "".join(
                f"{ratio(seconds_of[row], seconds_of[base], 1)[0]:12.2f}" for base in (WORKBENCH, WORKBENCH_RECORDED)
            )
        if growth_of:
            assert bytes_of is not None, "both are measured together"
            line += f"{growth_of[row] / 1e6:10.0f} MB {growth_of[row] / growth_of[peer_row(*row)]:8.2f}"
            line += f"{bytes_of[row] / 1e6:28.1f} MB"
        lines.append(line)
    return "\n".join(lines)


def verdict(seconds_of: dict[int, dict], growth_of: dict[int, dict]) -> dict[str, tuple[bool, list[str]]]:
    """The goals: whether each is met, and the figures that decide it."""
    speed_ratios, memory_ratios = [], []
    for n, mode, tool in product(seconds_of, (PLAIN, RECORDED), PEERS):
        own_row = peer_row(tool, mode)
        speed_ratios.append((ratio(seconds_of[n][tool, mode], seconds_of[n][own_row])[0], f"{tool} {mode} at {n}"))
        if growth_of:
            memory_ratios.append((growth_of[n][own_row] / growth_of[n][tool, mode], f"{tool} {mode} at {n}"))
    overhead = [(ratio(seconds_of[n][WORKBENCH_RECORDED], seconds_of[n][WORKBENCH])[0], f"at {n}") for n in seconds_of]

    def judge(figures: list[tuple[float, str]], is_met, closest) -> tuple[bool, list[str]]:
        misses = [f"{x:.2f} {label}" for x, label in figures if not is_met(x)]
        x, label = closest(figures)
        return not misses, misses or [f"the closest is {x:.2f} {label}"]

    goals = {
        "fastest of the four at every size (peer's time / workbench's > 1)": judge(speed_ratios, lambda x: x > 1, min),
        f"workbench recorded <= {MAX_OVERHEAD} x plain": judge(overhead, lambda x: x <= MAX_OVERHEAD, max),
    }
    if growth_of:
        goal = f"workbench's peak memory <= {MAX_MEMORY} x any peer's (workbench's / peer's)"
        goals[goal] = judge(memory_ratios, lambda x: x <= MAX_MEMORY, max)
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.recording", description="The cost of recording, compared with other tools."
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small", help="default: small")
    parser.add_argument("--sizes", type=int, nargs="+", help="tokens (default: 256 512 1024 2048)")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    parser.add_argument("--quick", action="store_true", help="256 and 512 tokens, 3 rounds by default")
    parser.add_argument("--only", choices=("time", "memory"), help="measure one of the two")
    args = parser.parse_args()
    os.environ[SHAPE] = args.shape
    DIMS.update(SHAPES[args.shape])
    sizes = sorted(args.sizes or (SIZES[:2] if args.quick else SIZES))
    rounds = args.rounds or (3 if args.quick else 5)
    with_memory = args.only != "time" and sys.platform == "linux"

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when a process starts, so only the children have it
    d = DIMS
    print(
        f"{d['n_layers']} layers, d_model {d['d_model']}, {d['n_heads']} heads x {d['d_head']}, {d['n_kv_heads']} kv "
        f"heads, {d['n_experts']} experts top-{d['n_active']}, d_mlp {d['d_mlp']}, vocabulary {d['d_vocab']}, window "
        f"{d['window']}, fp32, logits of the last position; {args.threads} threads, {rounds} rounds, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    seconds_of, growth_of, bytes_of = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        differences = disagreement(folder, min(sizes[0], AGREE_AT), args.threads)
        summary = ", ".join(f"{tool} {x:.0e}" for tool, x in differences.items())
        print(f"largest relative difference from workbench's values: {summary}", flush=True)
        if max(differences.values()) > TOLERANCE:
            sys.exit(f"the tools' values differ by more than {TOLERANCE:.0e}. Nothing was measured.")
        if args.only != "memory":
            seconds_of = times(folder, sizes, rounds, args.threads)
        if with_memory:
            measured = {n: memory(folder, n, args.threads) for n in sizes}
            growth_of, bytes_of = (
                {n: {row: x[i] for row, x in rows.items()} for n, rows in measured.items()} for i in (0, 1)
            )

    for n in sizes:
        print("\n" + table(n, seconds_of.get(n), growth_of.get(n), bytes_of.get(n)))
    goals = verdict(seconds_of, growth_of) if seconds_of else {}
    print()
    for goal, (met, figures) in goals.items():
        print(f"{'met   ' if met else 'MISSED'}  {goal}: {'; '.join(figures)}")
    if args.json:
        runs = {n: {" ".join(row): x.tolist() for row, x in rows.items()} for n, rows in seconds_of.items()}
        peaks, recorded = (
            {n: {" ".join(row): x for row, x in rows.items()} for n, rows in values.items()}
            for values in (growth_of, bytes_of)
        )
        about = {"dims": DIMS, "threads": args.threads, "torch": torch.__version__, "differences": differences}
        outcome = {goal: {"met": met, "figures": figures} for goal, (met, figures) in goals.items()}
        args.json.write_text(
            json.dumps(
                about | {"wall_cpu_seconds": runs, "peak_bytes": peaks, "recorded_bytes": recorded, "goals": outcome},
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
