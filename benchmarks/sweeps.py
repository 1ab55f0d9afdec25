"""Time of an activation patching sweep: layers x positions of the residual stream, here and in two other tools.

    python -m benchmarks.sweeps                      # pocket and a random model of 8 layers; 128 tokens, 3 rounds
    python -m benchmarks.sweeps --tokens 64 --rounds 5 --json out.json

Two texts differ in their first token, so every layer and position may matter. Each tool computes the metric (the
difference of two logits at the last position: the most and the least likely token of the clean run) for every layer and
position, with the clean run's residual stream there, on the same weights in fp32. workbench uses
`wb.patching.activation_patching`, TransformerLens its own `patching.get_act_patch_resid_pre` on a bridge, and nnsight
the loop of its documentation, one trace for each layer and position. In the peers the cost does not depend on the
position, so they sweep every eighth position (`--every`) and their times are multiplied; their results must equal
workbench's to 1e-4.

A figure is the median over the rounds of the ratio of two times of the same round, in one process, in turn.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
TOLERANCE = 1e-4
GOAL = 5.0  # a peer's time / workbench's time


class Case:
    """One model in all three tools, and two texts for it."""

    def __init__(self, folder: Path, n: int):
        import nnsight
        import transformers
        from transformer_lens.model_bridge import TransformerBridge

        import workbench as wb

        transformers.utils.logging.set_verbosity_error()
        self.workbench = wb.Model(folder, dtype="float32")
        hf = transformers.GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32)
        hf.eval().requires_grad_(False)
        self.nnsight = nnsight.NNsight(hf)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.lens = TransformerBridge.boot_transformers("openai/gpt-oss-20b", hf_model=hf, tokenizer=tokenizer)
        rng = torch.Generator().manual_seed(0)
        self.corrupted = torch.randint(0, self.workbench.config.d_vocab - 2, (1, n), generator=rng)
        self.clean = self.corrupted.clone()
        self.clean[0, 0] += 1
        self.n, self.n_layers = n, self.workbench.config.n_layers
        with torch.inference_mode():
            last = self.workbench.forward(self.clean, logits_at=slice(-1, None))[0, -1]
            self.token, self.other = int(last.argmax()), int(last.argmin())  # far apart, so rounding is negligible

    def logit_diff(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, self.token] - logits[:, self.other]


def workbench(case: Case, every: int) -> np.ndarray:
    import workbench as wb

    metric = wb.patching.logit_diff(case.workbench, case.token, case.other)
    sweep = wb.patching.activation_patching(
        case.workbench, case.clean[0].tolist(), case.corrupted[0].tolist(), metric, positions=range(0, case.n, every)
    )
    return sweep.values * (sweep.attrs["clean"] - sweep.attrs["corrupted"]) + sweep.attrs["corrupted"]


@torch.no_grad()
def transformer_lens(case: Case, every: int) -> np.ndarray:
    from transformer_lens import patching

    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(case.n_layers)]
    _, cache = case.lens.run_with_cache(case.clean, names_filter=names, use_cache=False)
    import pandas as pd

    index = pd.DataFrame([(layer, pos) for layer in range(case.n_layers) for pos in range(0, case.n, every)])
    index.columns = ["layer", "pos"]
    results = patching.generic_activation_patch(
        case.lens,
        case.corrupted,
        cache,
        lambda logits: case.logit_diff(logits[:, -1])[0],
        patching.layer_pos_patch_setter,
        "resid_pre",
        index_df=index,
    )
    return results.reshape(case.n_layers, -1).double().numpy()


@torch.no_grad()
def nnsight(case: Case, every: int) -> np.ndarray:
    model, layers = case.nnsight, case.nnsight.model.layers
    clean = []
    with model.trace(case.clean, use_cache=False):
        for layer in layers:
            clean.append(layer.input.save())  # noqa: PERF401  nnsight parses the source of this block
    results = np.zeros((case.n_layers, len(range(0, case.n, every))))
    for i in range(case.n_layers):
        for j, pos in enumerate(range(0, case.n, every)):
            with model.trace(case.corrupted, logits_to_keep=1, use_cache=False):
                layers[i].input[:, pos] = clean[i][:, pos]
                logits = model.lm_head.output.save()
            last = logits[:, -1]  # pyright: ignore[reportPossiblyUnboundVariable]  nnsight always runs the block
            results[i, j] = case.logit_diff(last)[0].item()
    return results


PEERS: dict[str, Callable[[Case, int], np.ndarray]] = {"TransformerLens": transformer_lens, "nnsight": nnsight}


def measured(folder: Path, n: int, rounds: int, every: int) -> dict:
    case = Case(folder, n)
    reference = workbench(case, every)
    differences = {
        name: float(np.abs(tool(case, every) - reference).max() / np.abs(reference).max())
        for name, tool in PEERS.items()
    }
    ratios: dict[str, list[float]] = {name: [] for name in PEERS}
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        workbench(case, 1)
        seconds.append(time.perf_counter() - start)
        for name, tool in PEERS.items():
            start = time.perf_counter()
            tool(case, every)
            scale = n / len(range(0, n, every))
            ratios[name].append((time.perf_counter() - start) * scale / seconds[-1])
    return {
        "n": n,
        "layers": case.n_layers,
        "workbench_s": float(np.median(seconds)),
        "differences": differences,
        "ratios": ratios,
    }


def random_model(folder: Path) -> Path:
    from benchmarks.recording import SMALL, write_model

    assert SMALL["n_layers"] == 8 and SMALL["d_model"] == 512
    write_model(folder)
    for file in (folder / "tokenizer").iterdir():
        (folder / "bf16" / file.name).write_bytes(file.read_bytes())
    return folder / "bf16"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=8, help="stride of the positions of the peers (default: 8)")
    parser.add_argument("--models", nargs="*", default=["pocket", "random"], choices=["pocket", "random"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from workbench.model.checkpoints.bundled import embedded_folder

    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            folder = embedded_folder() if name == "pocket" else random_model(Path(scratch))
            results[name] = result = measured(folder, args.tokens, args.rounds, args.every)
            print(f"{name}: {result['layers']} layers x {result['n']} positions in {result['workbench_s']:.1f} s")
            for peer, ratios in result["ratios"].items():
                q1, median, q3 = np.percentile(ratios, (25, 50, 75))
                verdict = "met" if median >= GOAL else "missed"
                print(
                    f"  {peer:16} {median:6.1f} x workbench's time ({q1:.1f}-{q3:.1f}; goal {GOAL:g}: {verdict}), "
                    f"results differ by {result['differences'][peer]:.1e}"
                )
                assert result["differences"][peer] <= TOLERANCE, "the sweeps differ"
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
