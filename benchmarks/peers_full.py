"""llama.cpp in its own process, for benchmarks.full_size: one model that takes requests in JSON lines over stdin.

    PYTHON -I benchmarks/peers_full.py FILE.gguf --threads 2 [--no-repack]     # PYTHON has llama-cpp-python

It imports nothing of workbench, because llama-cpp-python has its own environment. The settings are those of llama.cpp's
own command line: mmap where it chooses to, flash attention "auto", f16 keys and values, batches of 2,048 in pieces of
512, and a cache of sliding layers that is no longer than their window. `--no-repack` switches off the copy of the
weights that it makes for its fastest kernels (use_extra_bufts).

Requests, which the worker of workbench takes as well:

    {"do": "about"}                     a description of the model
    {"do": "prefill", "tokens": […]}    from an empty cache: seconds [wall, CPU], and some logits of the last position
    {"do": "decode", "tokens": […]}     one token after the other, after those in the cache: seconds of each
    {"do": "batch", "rows": [[…], …], "n": 9}   the n most likely tokens after each row, together: seconds of each step
    {"do": "reset"}                     resets the peak of resident memory
    {"do": "memory"}                    peak since then; resident now, of it anonymous and of files; in bytes
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

SAMPLED = 997  # stride of the logits that are compared


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> list[float]:
    """Wall and CPU seconds since `before`."""
    return [now - then for now, then in zip(clocks(), before)]


def reset_peak() -> dict:
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    return {}


def disk_bytes_read() -> int:
    """Bytes that this process has read from disk."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def memory() -> dict:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"peak": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: int(lines[field].split()[0]) * 1024 for name, field in fields.items()}


def serve_jobs(jobs: dict[str, Callable[..., dict]]) -> None:
    """Replies to requests until stdin ends. Other output to stdout goes to stderr instead."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs = {"reset": reset_peak, "memory": memory, **jobs}
    replies.write(json.dumps({"ready": True}) + "\n")
    replies.flush()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = jobs[request.pop("do")](**request)
        except Exception as e:
            reply = {"error": f"{type(e).__name__}: {e}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


class Llama:
    def __init__(self, file: str, threads: int, repack: bool, n_ctx: int, n_sequences: int = 1):
        import ctypes

        import llama_cpp

        self.lib, self.threads, self.repack = llama_cpp, threads, repack
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(file), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {file}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.swa_full = n_ctx, 2048, 512, False
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max = n_sequences
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {n_ctx} positions")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.length = 0

    def about(self) -> dict:
        features = self.lib.llama_print_system_info().decode().strip(" |")
        return {"text": f"llama-cpp-python {self.lib.__version__}, repacking {self.repack}, {features}"}

    def _forward(self, tokens: list[int]) -> None:
        last = len(tokens) - 1
        self._decode([(token, self.length + i, 0, i == last) for i, token in enumerate(tokens)])
        self.length += len(tokens)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """One batch of (token, position, sequence, whether its logits are computed)."""
        batch = self.lib.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, with_logits) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = with_logits
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {len(entries)} tokens")
        self.lib.llama_synchronize(self.context)

    def _most_likely(self, i: int) -> int:
        """The token with the largest logit at entry i of the last batch."""
        import numpy as np

        logits = self.lib.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, (self.n_vocab,)).argmax())

    def batch(self, rows: list[list[int]], n: int) -> dict:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        tokens, position = [], len(rows[0])
        for sequence, row in enumerate(rows):
            self._decode([(token, i, sequence, i == len(row) - 1) for i, token in enumerate(row)])
            tokens.append(self._most_likely(-1))
        seconds = []
        for step in range(n):
            before = clocks()
            self._decode([(token, position + step, sequence, True) for sequence, token in enumerate(tokens)])
            tokens = [self._most_likely(i) for i in range(len(rows))]
            seconds.append(since(before))
        return {"seconds": seconds}

    def prefill(self, tokens: list[int]) -> dict:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.length, before = 0, clocks()
        for i in range(0, len(tokens), 2048):
            self._forward(tokens[i : i + 2048])
        seconds = since(before)
        logits = self.lib.llama_get_logits_ith(self.context, -1)
        return {"seconds": seconds, "logits": [logits[i] for i in range(0, self.n_vocab, SAMPLED)]}

    def decode(self, tokens: list[int]) -> dict:
        seconds = []
        for token in tokens:
            before = clocks()
            self._forward([token])
            self.lib.llama_get_logits_ith(self.context, -1)
            seconds.append(since(before))
        return {"seconds": seconds}


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="llama.cpp, controlled by JSON lines.")
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--n-ctx", type=int, default=4608)
    parser.add_argument("--sequences", type=int, default=1)
    args = parser.parse_args()
    llama = Llama(args.file, args.threads, not args.no_repack, args.n_ctx, args.sequences)
    serve_jobs({name: getattr(llama, name) for name in ("about", "prefill", "decode", "batch")})


if __name__ == "__main__":
    main()
