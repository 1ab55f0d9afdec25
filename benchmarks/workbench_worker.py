"""workbench in its own process, for benchmarks.full_size: `python -m benchmarks.workbench_worker --model FOLDER`.

Takes the requests of benchmarks.peers_full, and more: each public method is one.
"""

import argparse
import time
from dataclasses import replace

import torch

from benchmarks.peers_full import SAMPLED, clocks, serve_jobs, since
from benchmarks.token_bytes import token_bytes
from workbench.taps import Tap

RECORD = "attention residuals"


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
    """A model, a KV cache, and a generation that continues a text."""

    def __init__(self, folder: str, threads: int, memory: str):
        from workbench import Model, hooks

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = Model(folder, memory=memory)
        self.config = self.model.config
        self.points = hooks.expand(RECORD.split(), self.config.n_layers)
        self.cache = None
        self.generation = None

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

    def start_generation(self, tokens: list[int]) -> dict:
        """Prefills `tokens` as Model.generate does, for `generate`, with a copy of its KV cache for `decode`."""
        from workbench.model.interrupts import Interrupt
        from workbench.recording.decoding import Generation, Settings
        from workbench.recording.next_token import next_token
        from workbench.recording.plan import affordable_plan
        from workbench.recording.source import ModelSource

        source = ModelSource(self.model)
        plan = affordable_plan(source, (), tokens, len(tokens) + 1, None)
        settings = Settings(max_tokens=1, temperature=0.0, top_p=1.0, seed=0, stop=())
        chosen_by = next_token(source, tokens, settings.top_p)
        self.generation = Generation(source, plan, settings, tokens, Interrupt(), chosen_by)
        self.generation.decode(lambda: None)
        self.cache = self.generation.cache.fork()
        return {}

    def generate(self, n: int) -> dict:
        """Continues the generation by `n` tokens: seconds of each, for all that Model.generate does for a token."""
        assert self.generation is not None, "start_generation comes first"
        g = self.generation
        g.settings = replace(g.settings, max_tokens=g.settings.max_tokens + n)
        seconds, before = [], clocks()

        def on_token() -> None:
            nonlocal before
            seconds.append(since(before))
            before = clocks()

        g.decode(on_token)
        return {"seconds": seconds}

    def batch(self, rows: list[list[int]], n: int) -> dict:
        """Generates n tokens after each of `rows`, together: seconds of each pass in which all of them decode.

        As Model.generate_many does, with everything that is recorded live, without the replay.
        """
        from workbench.model.interrupts import Interrupt
        from workbench.recording.batching import Batch
        from workbench.recording.decoding import Settings
        from workbench.recording.many import Request, job
        from workbench.recording.plan import affordable_plan
        from workbench.recording.source import ModelSource

        source = ModelSource(self.model)
        plan = affordable_plan(source, (), rows[0], len(rows[0]) + n, None)
        settings = Settings(max_tokens=n, temperature=0.0, top_p=1.0, seed=0, stop=())
        batch = Batch([job(source, i, Request(row, settings, ()), plan) for i, row in enumerate(rows)])
        seconds, n_chosen, before = [], [0], clocks()

        def after_pass() -> None:
            nonlocal before
            n_chosen.append(batch.n_tokens)
            if len(n_chosen) > 2 and n_chosen[-2] - n_chosen[-3] == n_chosen[-1] - n_chosen[-2] == len(rows):
                seconds.append(since(before))
            before = clocks()

        with self.model.interruptible():
            while not batch.is_done:
                batch.advance(Interrupt(), after_pass)
                batch.ended.popleft()
        return {"seconds": seconds}

    def decode(self, tokens: list[int]) -> dict:
        """Seconds of each of `tokens`, one after the other after those in the cache: the pass with all logits."""
        assert self.cache is not None, "prefill or start_generation comes first"
        seconds = []
        for token in tokens:
            before = clocks()
            self._forward([token])
            seconds.append(since(before))
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
        before, tap = self.cache, Parts()
        self.cache = before.fork() if before is not None and cached else None
        tap.last = time.perf_counter()
        for part in [[token] for token in tokens] if cached else [tokens]:
            self._forward(part, tap)
            tap.last = time.perf_counter()
        self.cache = before
        return dict(tap.seconds)

    def reads(self, contexts: list[int]) -> dict:
        """The bytes that one token has to read, by row: "generate" and "all logits"."""
        return {row: token_bytes(self.config, self.model.weights, row, contexts) for row in ("generate", "all logits")}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.workbench_worker", description="Controlled by JSON lines.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="fast")
    args = parser.parse_args()
    worker = WorkbenchWorker(args.model, args.threads, args.memory)
    jobs = ("about", "prefill", "start_generation", "generate", "decode", "trace", "parts", "reads")
    serve_jobs({name: getattr(worker, name) for name in jobs})


if __name__ == "__main__":
    main()
