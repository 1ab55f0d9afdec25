"""One worker process of a run: computes gradients of its own batches, and does its share of the updates."""

import json
import time
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.pocket.families import rows
from workbench.pocket.train import checkpoint
from workbench.pocket.train.batches import Batch, Place, stream
from workbench.pocket.train.elementwise import compile_all
from workbench.pocket.train.exam import EFFORTS, exam, examine
from workbench.pocket.train.mix import COURSES
from workbench.pocket.train.model import Pocket
from workbench.pocket.train.optimizer import adamw, is_matrix, muon
from workbench.pocket.train.plan import Plan, State
from workbench.pocket.train.shared import Shared
from workbench.progress import progress_bar

LINE = 50  # steps between two lines of curve.jsonl


@dataclass(slots=True)
class Job:
    """The arguments that all workers of a run share."""

    plan: Plan
    folder: Path
    shared: Shared
    state: State
    barrier: Barrier
    compiled: bool
    every: float  # tokens between two checkpoints
    last: int | None  # step to stop after
    n_exam: int


def guarded(worker: int, job: Job) -> None:
    """Runs `work`; if it fails, breaks the barrier, so that the other workers stop too."""
    try:
        work(worker, job)
    except BaseException:
        job.barrier.abort()
        raise


def work(worker: int, job: Job) -> None:
    """Trains to the end of the run. Worker 0 also writes curve.jsonl and the checkpoints, and shows the progress."""
    torch.set_num_threads(1)
    if job.compiled:
        compile_all()
    if worker == 0:
        with (job.folder / "curve.jsonl").open("a", buffering=1, encoding="utf-8") as curve:
            Worker(worker, job).run(curve)
    else:
        Worker(worker, job).run(None)


class Worker:
    """A model with shared weights, and this worker's own stream of batches."""

    def __init__(self, worker: int, job: Job):
        self.worker, self.job, self.plan, self.shared, self.state = worker, job, job.plan, job.shared, job.state
        self.model = Pocket(self.plan.shape, self.plan.dtype)
        self.shared.adopt(self.model, worker)
        self.n_workers = len(self.shared.grads)
        self.families = tuple(COURSES[self.plan.course].families)
        c = self.plan.shape
        heads, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        self.sizes = {"w_qkv": [heads, kv, kv], "w_up": [c.d_mlp, c.d_mlp]}
        names = self.shared.owned(worker)
        self.matrices = [name for name in names if is_matrix(name)]
        self.rest = [name for name in names if not is_matrix(name)]
        self.place = self.state.places[worker]
        self.cpu_start, self.cpu = time.process_time(), self.state.cpu

    @property
    def progress(self) -> float:
        return self.state.tokens / self.plan.tokens

    def run(self, curve: TextIO | None) -> None:
        plan, state, job, wait = self.plan, self.state, self.job, self.job.barrier.wait
        batches = stream(plan.seed, self.worker, self.place, plan.batch, lambda: self.progress, plan.course)
        problems = exam(self.worker, self.n_workers, job.n_exam, self.families)
        losses: list[float] = []
        if curve and state.step == 0:
            _print({"plan": asdict(plan), "workers": self.n_workers}, curve)
        total, hidden = int(plan.tokens), None if curve else True
        with progress_bar(total=total, initial=int(state.tokens), unit="tok", unit_scale=True, disable=hidden) as bar:
            while state.tokens < plan.tokens and state.step != job.last:
                self.gradients(next(batches))
                wait()
                rate = plan.rate(state.step, self.progress)
                self.update(rate)
                before, quarter = state.tokens, int(4 * self.progress)
                state.tokens += float(self.shared.counts[:, 1].sum())
                state.step += 1
                losses.append(float(self.shared.counts[:, 0].mean()))
                self.shared.places[self.worker] = torch.tensor(self.place.row(), dtype=torch.float64)
                wait()
                state.cpu = self.cpu + (time.process_time() - self.cpu_start) * self.n_workers
                bar.update(int(state.tokens) - int(before))
                if curve and state.step % LINE == 0:
                    bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}", refresh=False)
                    _print(self.line(losses, rate), curve)
                    losses.clear()
                done = state.tokens >= plan.tokens or state.step == job.last
                if done or int(before // job.every) != int(state.tokens // job.every):
                    examine(self.model, problems, self.shared.scores)
                    wait()
                    if curve:
                        _print(self.scores(), curve)
                        self.save()
                    wait()
                if curve and quarter < int(4 * self.progress) < 4:
                    checkpoint.snapshot(self.model, job.folder / f"at-{25 * int(4 * self.progress)}.pt")

    def gradients(self, b: Batch) -> None:
        """Computes the gradients of the loss on one batch, in this worker's row of the shared gradients."""
        plan, shared, worker = self.plan, self.shared, self.worker
        shared.grads[worker].zero_()
        routing = self.model.routing(b.real, shared.load)
        loss = F.cross_entropy(self.model(b.ids, routing, b.at, b.position_ids).float(), b.target)
        (loss + plan.balance * routing.balance + plan.z_loss * routing.z_loss).backward()
        shared.now[worker] = torch.stack(routing.now)
        shared.counts[worker] = torch.tensor([loss.item(), b.real.sum().item()])

    def update(self, rate: float) -> None:
        """Updates the tensors that this worker owns, from the mean of all workers' gradients."""
        plan, shared, step = self.plan, self.shared, self.state.step + 1
        weights, mean, square = shared.cut(shared.weights), shared.cut(shared.mean), shared.cut(shared.square)
        grads = [shared.cut(g) for g in shared.grads]

        def mean_grads(names: list[str]) -> dict[str, Tensor]:
            return {name: torch.stack([g[name] for g in grads]).mean(0) for name in names}

        muon(weights, mean_grads(self.matrices), mean, plan.lr * rate, step, self.sizes)
        adamw(weights, mean_grads(self.rest), mean, square, plan.lr_rest * rate, step)
        if self.worker == 0:
            shared.load.lerp_(shared.now.mean(0), 0.03)

    def line(self, losses: list[float], rate: float) -> dict[str, Any]:
        even = self.shared.load * self.shared.load.shape[1]
        load = [round(even.min().item(), 2), round(even.max().item(), 2)]
        return {**self._when(), "loss": round(sum(losses) / len(losses), 4), "rate": round(rate, 4), "load": load}

    def scores(self) -> dict[str, Any]:
        columns = [dict(zip(rows(self.families), (round(x, 3) for x in c))) for c in self.shared.scores.t().tolist()]
        return {**self._when(), **dict(zip(EFFORTS, columns))}

    def save(self) -> None:
        self.state.places[:] = [Place.of(row) for row in self.shared.places.tolist()]
        self.state.places[self.worker] = self.place
        checkpoint.save(self.job.folder / "last.pt", self.plan, self.shared, self.state, self.model)

    def _when(self) -> dict[str, Any]:
        return {"step": self.state.step, "tokens": int(self.state.tokens), "cpu": round(self.state.cpu)}


def _print(line: dict[str, Any], file: TextIO) -> None:
    file.write(json.dumps(line) + "\n")
