"""`python -m workbench.pocket.eval FOLDER`: evaluates a model, and writes results.json and figures."""

import argparse
import json
from pathlib import Path

import torch

from workbench.files import atomic_write
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.model import Model
from workbench.paths import expanded
from workbench.pocket.eval.accuracy import accuracy
from workbench.pocket.eval.causes import causes
from workbench.pocket.eval.figures import draw
from workbench.pocket.eval.parity import parity, speed
from workbench.pocket.eval.routing import routing
from workbench.pocket.eval.rules import rules
from workbench.pocket.families import FAMILIES, RULES


def main(argv: list[str] | None = None) -> None:
    """Evaluates a model and writes results.json and the figures."""
    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.eval", description=__doc__)
    parser.add_argument("folder", help='a folder with a checkpoint, or "pocket"')
    parser.add_argument("-n", type=int, default=300, help="problems per table cell (default: 300)")
    parser.add_argument("--unrounded", help="the same model in bf16, to measure the loss due to MXFP4")
    parser.add_argument(
        "--out", type=expanded, default=Path("eval"), help="folder for results.json and figures (default: eval)"
    )
    parser.add_argument("--curve", type=Path, help="curve.jsonl of its training, for the learning curve")
    parser.add_argument(
        "--only", choices=("accuracy", "causes", "rules", "routing", "parity"), help="run one part only"
    )
    parser.add_argument(
        "--families",
        nargs="*",
        choices=tuple(FAMILIES),
        help="families (default: those in the results.json beside the weights, or all if there is none)",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    model = Model(args.folder)
    families = args.families or evaluated(embedded_folder() if args.folder == "pocket" else Path(args.folder))
    results = {"model": model.name, "digest": model.digest, "n": args.n}
    if args.only in (None, "accuracy"):
        results["accuracy"] = accuracy(model, args.n, families=families)
        _write(results, args.out)
        if args.unrounded:
            results["accuracy_bf16"] = accuracy(Model(args.unrounded), args.n, families=families, efforts=("high",))
    if args.only in (None, "causes"):
        results["causes"] = causes(model, args.n, families)
        _write(results, args.out)
    if args.only in (None, "rules") and set(families) & set(RULES):
        results["rules"] = rules(model, args.n, families)
        _write(results, args.out)
    if args.only in (None, "routing"):
        results["routing"] = routing(model, min(args.n, 60))
    if args.only in (None, "parity"):
        results["tokens_per_second"] = speed(model)
        results["transformers"] = parity(model, args.folder, min(args.n, 200), families)
    _write(results, args.out)
    draw(results, args.curve, args.out)


def evaluated(folder: Path) -> list[str]:
    """The families in the results.json of a folder with weights; all families if it has none.

    >>> evaluated(embedded_folder())[:3]
    ['variables', 'addition', 'hops']
    """
    path = folder / "results.json"
    if not path.is_file():
        return list(FAMILIES)
    cells = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
    return [family for family in FAMILIES if f"{family}/high" in cells]


def _write(results: dict, out: Path) -> None:
    atomic_write(out / "results.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
