"""One training run: synchronous workers, a schedule by tokens, a learning curve, bit-exact resumable checkpoints."""

from pathlib import Path

import torch
import torch.multiprocessing as mp

from workbench.pocket.families import rows
from workbench.pocket.train import checkpoint
from workbench.pocket.train.batches import Place
from workbench.pocket.train.imported import with_layers
from workbench.pocket.train.init import mimetic
from workbench.pocket.train.mix import COURSES
from workbench.pocket.train.model import Pocket
from workbench.pocket.train.plan import Plan, State
from workbench.pocket.train.shared import Shared
from workbench.pocket.train.worker import Job, guarded, work


def train(
    plan: Plan,
    folder: Path,
    *,
    workers: int = 2,
    compiled: bool = True,
    every: float = 5e5,
    steps: int | None = None,
    exam: int = 32,
) -> Path:
    """Trains a model, or resumes the run in `folder`, and returns the path of its checkpoint, `folder`/last.pt.

    `folder` also gets `curve.jsonl`, with a line every 50 steps and a line with the accuracies at every checkpoint, and
    the weights at-25.pt, at-50.pt and at-75.pt, after 25, 50 and 75 per cent of the tokens. Two runs with the same plan
    and number of workers are equal bit for bit on one kind of machine, resumed or not.

    Args:
        plan: The settings of the run.
        folder: The folder of the run.
        workers: The number of processes.
        compiled: Use torch.compile.
        every: Tokens between two checkpoints.
        steps: Stop after this many more steps, with a checkpoint; by default at the end of the run.
        exam: Held-out problems per family and effort in the evaluation at a checkpoint.

    Raises:
        CheckpointError: `folder` contains a run with another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    model = Pocket(plan.shape, plan.dtype)
    mimetic(model)
    if plan.start:
        model.load_state_dict(with_layers(checkpoint.load(Path(plan.start)), plan.shape.n_layers).state_dict())
    shared = Shared.of(model, workers, len(rows(COURSES[plan.course].families)))
    state = State(places=[Place() for _ in range(workers)])
    last = folder / "last.pt"
    if last.exists():
        checkpoint.resume(last, plan, shared, state)
    context = mp.get_context("spawn")
    until = None if steps is None else state.step + steps
    job = Job(plan, folder, shared, state, context.Barrier(workers), compiled, every, until, exam)
    others = [context.Process(target=guarded, args=(worker, job), daemon=True) for worker in range(1, workers)]
    for process in others:
        process.start()
    try:
        work(0, job)
        for process in others:
            process.join()
    finally:
        job.barrier.abort()
        for process in others:
            process.terminate()
    return last
