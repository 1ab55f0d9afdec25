"""How long a sweep of activation patching takes: layers x positions of the residual stream, here and in two peers.

    python -m benchmarks.sweeps                      # pocket and a random model of 8 layers; 128 tokens, 3 rounds
    python -m benchmarks.sweeps --tokens 64 --rounds 5 --json out.json

Two texts differ in their first token, so every place may matter. Each tool computes the outcome (the difference of two
logits at the last position, the clean run's likeliest and least likely) for every layer and position, with the clean
run's residual stream there, on the same weights in fp32: we by `wb.patching.activation_patching`, TransformerLens by
its own `patching.get_act_patch_resid_pre` on a bridge, and nnsight by the loop of its documentation, a trace a place.
For a peer a place costs the same wherever it is, so the peers sweep every eighth position (`--every`) and their times
are multiplied; what they find must be ours to 1e-4.

A figure is the median over the rounds of the ratio of two times of one round, one process, in turn.
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
GOAL = 5.0  # times as many seconds


class Case:
    """One model in all three tools, and two texts for it."""

    def __init__(self, folder: Path, n: int):
        import nnsight
        import transformers
        from transformer_lens.model_bridge import TransformerBridge

        import workbench as wb

        transformers.utils.logging.set_verbosity_error()
        self.ours = wb.Model(folder, dtype="float32")
        hf = transformers.GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32)
        hf.eval().requires_grad_(False)
        self.nnsight = nnsight.NNsight(hf)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.lens = TransformerBridge.boot_transformers("openai/gpt-oss-20b", hf_model=hf, tokenizer=tokenizer)
        dice = torch.Generator().manual_seed(0)
        self.corrupted = torch.randint(0, self.ours.config.d_vocab - 2, (1, n), generator=dice)
        self.clean = self.corrupted.clone()
        self.clean[0, 0] += 1
        self.n, self.n_layers = n, self.ours.config.n_layers
        with torch.inference_mode():
            last = self.ours.forward(self.clean, logits_at=slice(-1, None))[0, -1]
        self.one, self.other = int(last.argmax()), int(last.argmin())  # far apart: rounding is small beside it

    def gap(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, self.one] - logits[:, self.other]


def ours(case: Case, every: int) -> np.ndarray:
    import workbench as wb

    gap = wb.patching.logit_diff(case.ours, case.one, case.other)
    sweep = wb.patching.activation_patching(
        case.ours, case.clean[0].tolist(), case.corrupted[0].tolist(), gap, positions=range(0, case.n, every)
    )
    return sweep.values * (sweep.attrs["clean"] - sweep.attrs["corrupted"]) + sweep.attrs["corrupted"]


@torch.no_grad()
def transformer_lens(case: Case, every: int) -> np.ndarray:
    from transformer_lens import patching

    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(case.n_layers)]
    _, cache = case.lens.run_with_cache(case.clean, names_filter=names, use_cache=False)
    import pandas as pd

    places = pd.DataFrame([(layer, pos) for layer in range(case.n_layers) for pos in range(0, case.n, every)])
    places.columns = ["layer", "pos"]
    found = patching.generic_activation_patch(
        case.lens,
        case.corrupted,
        cache,
        lambda logits: case.gap(logits[:, -1])[0],
        patching.layer_pos_patch_setter,
        "resid_pre",
        index_df=places,
    )
    return found.reshape(case.n_layers, -1).double().numpy()


@torch.no_grad()
def nnsight(case: Case, every: int) -> np.ndarray:
    model, layers = case.nnsight, case.nnsight.model.layers
    clean = []
    with model.trace(case.clean, use_cache=False):
        for layer in layers:
            clean.append(layer.input.save())  # noqa: PERF401  nnsight reads the source of this block
    found = np.zeros((case.n_layers, len(range(0, case.n, every))))
    for i in range(case.n_layers):
        for j, pos in enumerate(range(0, case.n, every)):
            with model.trace(case.corrupted, logits_to_keep=1, use_cache=False):
                layers[i].input[:, pos] = clean[i][:, pos]
                logits = model.lm_head.output.save()
            last = logits[:, -1]  # pyright: ignore[reportPossiblyUnboundVariable]  nnsight always runs the block
            found[i, j] = case.gap(last)[0].item()
    return found


PEERS: dict[str, Callable[[Case, int], np.ndarray]] = {"TransformerLens": transformer_lens, "nnsight": nnsight}


def measured(folder: Path, n: int, rounds: int, every: int) -> dict:
    case = Case(folder, n)
    part = ours(case, every)
    apart = {name: float(np.abs(tool(case, every) - part).max() / np.abs(part).max()) for name, tool in PEERS.items()}
    ratios: dict[str, list[float]] = {name: [] for name in PEERS}
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        ours(case, 1)
        seconds.append(time.perf_counter() - began)
        for name, tool in PEERS.items():
            began = time.perf_counter()
            tool(case, every)
            scale = n / len(range(0, n, every))
            ratios[name].append((time.perf_counter() - began) * scale / seconds[-1])
    return {"n": n, "layers": case.n_layers, "ours_s": float(np.median(seconds)), "apart": apart, "ratios": ratios}


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
    parser.add_argument("--every", type=int, default=8, help="peers sweep every so many positions (default: 8)")
    parser.add_argument("--models", nargs="*", default=["pocket", "random"], choices=["pocket", "random"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from workbench.model.checkpoints.bundled import embedded_folder

    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            where = embedded_folder() if name == "pocket" else random_model(Path(scratch))
            results[name] = found = measured(where, args.tokens, args.rounds, args.every)
            print(f"{name}: {found['layers']} layers x {found['n']} positions in {found['ours_s']:.1f} s")
            for peer, ratios in found["ratios"].items():
                q1, median, q3 = np.percentile(ratios, (25, 50, 75))
                holds = "holds" if median >= GOAL else "falls short"
                print(
                    f"  {peer:16} {median:6.1f} x our time ({q1:.1f}-{q3:.1f}; goal {GOAL:g}: {holds}), "
                    f"results differ by {found['apart'][peer]:.1e}"
                )
                assert found["apart"][peer] <= TOLERANCE, "not the same sweep"
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
