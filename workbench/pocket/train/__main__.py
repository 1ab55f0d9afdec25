"""`python -m workbench.pocket.train FOLDER`: trains the embedded model from scratch; its checkpoint is FOLDER/model.

With `--from WEIGHTS` it trains another course instead, from weights that it exported before: `--course families` on all
families, `--course terse` with more terse wordings, `--course boxes` with more of the family that is learned last.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from workbench.paths import expanded

MALLOC = (
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
)


def main(argv: list[str] | None = None) -> None:
    """Trains (or resumes) both courses of a run, then exports the model in gpt-oss's format: in MXFP4, and in bf16.

    The first course is in FOLDER. The second, in which more steps are wrong, starts from the first one's last.pt and is
    in FOLDER/slips. The third, with the families dag, boxes, tree, hint, refuse and tools besides the others, and the
    fourth, in which more of their wordings are terse, and the fifth, with more boxes, start from exported weights alone
    and are in FOLDER.
    """
    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run: last.pt, curve.jsonl, slips/, and finally model/")
    parser.add_argument("--tokens", type=float, default=18e6, help="tokens of the first course (default: 18e6)")
    parser.add_argument("--slips", type=float, default=6e6, help="tokens of the second course (default: 6e6)")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1280, help="tokens per worker and step (default: 1280)")
    parser.add_argument("--lr", type=float, default=0.002, help="learning rate of Muon (default: 0.002)")
    products = {"choices": ("float32", "bfloat16"), "default": "float32"}  # `DTYPES`, without loading torch for --help
    parser.add_argument("--dtype", **products, help="dtype of activations and matrix products (default: float32)")
    parser.add_argument("--every", type=float, default=5e5, help="tokens between two checkpoints (default: 5e5)")
    parser.add_argument("--steps", type=int, help="stop after STEPS steps of a course; the same command resumes")
    parser.add_argument(
        "--from",
        dest="weights",
        type=expanded,
        metavar="WEIGHTS",
        help="train a later course, from RUN/model-bf16, say",
    )
    courses = {"choices": ("families", "terse", "boxes"), "default": "families"}
    parser.add_argument("--course", **courses, help="the course after --from (default: families)")
    parser.add_argument("--families", type=float, default=18e6, help="tokens of that course (default: 18e6)")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model after --from (default: 8)")
    parser.add_argument("--start", type=Path, help="last.pt of a first course: train the second only")
    parser.add_argument("--plain", action="store_true", help="no torch.compile: half as fast, needs no compiler")
    args = parser.parse_args(argv)
    from workbench.pocket.train.checkpoint import finished, load
    from workbench.pocket.train.export import export
    from workbench.pocket.train.imported import with_layers
    from workbench.pocket.train.plan import Plan
    from workbench.pocket.train.run import train

    options = {"workers": args.workers, "compiled": not args.plain, "every": args.every, "steps": args.steps}
    plan = Plan(tokens=args.tokens, seed=args.seed, batch=args.batch, lr=args.lr, dtype=args.dtype)
    if args.weights:
        shape = with_layers(load(args.weights), args.layers).c
        later = replace(plan, tokens=args.families, course=args.course, start=str(args.weights), shape=shape)
        last = train(later, args.folder, **options)
    else:
        last = args.start or train(plan, args.folder, **options)
    if not args.weights and finished(last):
        second = replace(plan, tokens=args.slips, course="slips", start=str(last))
        last = train(second, args.folder / "slips", **options)
    model = load(last)
    export(model, args.folder / "model")
    export(model, args.folder / "model-bf16", packed=False)


if __name__ == "__main__":
    # Page faults take half the time of small products unless malloc keeps freed memory; glibc reads this at startup.
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, "-m", "workbench.pocket.train", *sys.argv[1:]])
    main()
