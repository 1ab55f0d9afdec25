"""One training run: workers in step, a schedule by tokens, a learning curve, checkpoints that resume bit for bit."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tqdm.auto import tqdm

from workbench.errors import CheckpointError
from workbench.pocket.families import FAMILIES, make
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import render
from workbench.pocket.train.batches import Place, batch, split, stream
from workbench.pocket.train.elementwise import compile_all
from workbench.pocket.train.init import mimetic
from workbench.pocket.train.model import SHAPE, Pocket
from workbench.pocket.train.optimiser import adamw, is_matrix, muon
from workbench.pocket.train.shared import Shared
from workbench.runner.config import Config


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out of a run, but for the number of workers."""

    tokens: float = 20e6
    batch: int = 1280  # tokens a worker and a step
    lr: float = 0.005  # Muon
    lr_rest: float = 0.0015  # AdamW
    warm_up: int = 60  # steps
    decay: float = 0.6  # the last part of the run, in which the rate falls to 0
    balance: float = 0.02
    z_loss: float = 0.001
    seed: int = 0
    shape: Config = field(default_factory=lambda: SHAPE)
    start: str | None = None  # a checkpoint whose weights it begins with; then all problems are there at once

    def rate(self, step: int, progress: float) -> float:
        """The share of the learning rates: a warm-up, a plateau, a line to 0.

        >>> [round(Plan().rate(step, p), 2) for step, p in ((29, 0), (500, 0.3), (900, 0.7), (2000, 1))]
        [0.5, 1.0, 0.5, 0.0]
        """
        return min(1.0, (step + 1) / self.warm_up) * min(1.0, max(0.0, 1 - progress) / self.decay)


@dataclass(slots=True)
class State:
    """How far a run is."""

    step: int = 0
    tokens: float = 0.0
    cpu: float = 0.0  # seconds, all workers
    places: list[Place] = field(default_factory=list)


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
    """Trains a model and gives the path of its checkpoint, `folder`/last.pt; goes on where a run in `folder` stopped.

    `curve.jsonl` beside it gets a line every 50 steps, and one with the accuracies after `every` so many tokens. Two
    runs with the same plan and number of workers are equal bit for bit on one kind of machine, resumed or not. With
    `steps` it stops after so many more, and keeps a checkpoint. `exam`: held-out problems of a family and effort.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    model = Pocket(plan.shape)
    mimetic(model)
    if plan.start:
        model.load_state_dict(torch.load(plan.start, weights_only=True)["model"])
    shared = Shared.of(model, workers, (plan.shape.n_layers, plan.shape.n_experts))
    state = State(places=[Place() for _ in range(workers)])
    if (folder / "last.pt").exists():
        _resume(folder / "last.pt", plan, shared, state)
    context = mp.get_context("spawn")
    barrier = context.Barrier(workers)
    places = torch.tensor([[p.pool, p.index, p.progress] for p in state.places], dtype=torch.float64).share_memory_()
    scores = torch.zeros(len(FAMILIES), 2).share_memory_()
    last = None if steps is None else state.step + steps
    args = (plan, folder, shared, state, places, scores, barrier, compiled, every, last, exam)
    others = [context.Process(target=_guarded, args=(worker, *args), daemon=True) for worker in range(1, workers)]
    for process in others:
        process.start()
    try:
        _work(0, *args)
        for process in others:
            process.join()
    finally:
        barrier.abort()
        for process in others:
            process.terminate()
    return folder / "last.pt"


def _guarded(worker: int, *args: Any) -> None:
    """A worker that fails breaks the barrier, so that the others stop too."""
    try:
        _work(worker, *args)
    except BaseException:
        args[6].abort()
        raise


def _work(
    worker: int,
    plan: Plan,
    folder: Path,
    shared: Shared,
    state: State,
    places: torch.Tensor,
    scores: torch.Tensor,
    barrier: Barrier,
    compiled: bool,
    every: float,
    last: int | None,
    n_exam: int,
) -> None:
    torch.set_num_threads(1)
    if compiled:
        compile_all()
    model = Pocket(plan.shape)
    shared.adopt(model, worker)
    n_workers = len(shared.grads)
    mine = shared.owned(worker)
    weights, mean, square = shared.cut(shared.weights), shared.cut(shared.mean), shared.cut(shared.square)
    grads = [shared.cut(g) for g in shared.grads]
    c = plan.shape
    heads, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    sizes = {"w_qkv": [heads, kv, kv], "w_up": [c.d_mlp, c.d_mlp]}
    progress = [state.tokens / plan.tokens]
    place = state.places[worker]
    batches = stream(plan.seed, worker, place, plan.batch, lambda: 1.0 if plan.start else progress[0])
    exam = _exam(worker, n_workers, n_exam)
    lead = worker == 0
    began, cpu = time.process_time(), state.cpu
    losses: list[float] = []
    curve = folder / "curve.jsonl"
    bar = tqdm(total=int(plan.tokens), initial=int(state.tokens), unit="tok", unit_scale=True, disable=not lead or None)
    with curve.open("a", buffering=1, encoding="utf-8") as report, bar:
        if lead and state.step == 0:
            print(json.dumps({"plan": asdict(plan), "workers": n_workers, "dtype": str(model.dtype)}), file=report)
        while state.tokens < plan.tokens and state.step != last:
            b = next(batches)
            shared.grads[worker].zero_()
            routing = model.routing(b.real, shared.load)
            loss = F.cross_entropy(model(b.ids, routing, b.at).float(), b.target)
            (loss + plan.balance * routing.balance + plan.z_loss * routing.z_loss).backward()
            shared.now[worker] = torch.stack(routing.now)
            shared.counts[worker] = torch.tensor([loss.item(), b.real.sum().item(), len(b.at)])
            barrier.wait()
            rate = plan.rate(state.step, progress[0])
            together = {name: torch.stack([g[name] for g in grads]).mean(0) for name in mine}
            matrices = {name: g for name, g in together.items() if is_matrix(name)}
            rest = {name: g for name, g in together.items() if not is_matrix(name)}
            muon(weights, matrices, mean, plan.lr * rate, state.step + 1, sizes)
            adamw(weights, rest, mean, square, plan.lr_rest * rate, state.step + 1)
            if lead:
                shared.load.lerp_(shared.now.mean(0), 0.03)
            before = state.tokens
            state.tokens += float(shared.counts[:, 1].sum())
            state.step += 1
            progress[0] = state.tokens / plan.tokens
            losses.append(float(shared.counts[:, 0].mean()))
            places[worker] = torch.tensor([place.pool, place.index, place.progress], dtype=torch.float64)
            barrier.wait()
            state.cpu = cpu + (time.process_time() - began) * n_workers
            bar.update(int(state.tokens) - int(before))
            done = state.tokens >= plan.tokens or state.step == last
            if state.step % 50 == 0 and lead:
                bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}", refresh=False)
                print(json.dumps(_line(state, losses, rate, shared)), file=report)
                losses.clear()
            if done or int(before // every) != int(state.tokens // every):
                _examine(model, exam, scores)
                barrier.wait()
                if lead:
                    print(json.dumps(_scores(state, scores)), file=report)
                    _save(folder, plan, shared, state, places, model)
                barrier.wait()


def _line(state: State, losses: list[float], rate: float, shared: Shared) -> dict[str, Any]:
    even = shared.load * shared.load.shape[1]
    return {
        "step": state.step,
        "tokens": int(state.tokens),
        "cpu": round(state.cpu),
        "loss": round(sum(losses) / len(losses), 4),
        "rate": round(rate, 4),
        "load": [round(even.min().item(), 2), round(even.max().item(), 2)],
    }


def _exam(worker: int, n_workers: int, n: int) -> dict[int, dict[str, list]]:
    """Held-out problems in held-out wordings, for this worker's share of the families, at low and high effort."""
    exam = {}
    for number, family in list(enumerate(FAMILIES))[worker::n_workers]:
        problems = exam_problems(family, n)
        exam[number] = {e: split([render(p, e) for p in problems], 4096) for e in ("low", "high")}
    return exam


def exam_problems(family: str, n: int) -> list[Problem]:
    """The same `n` held-out problems in every run, in wordings that are never trained."""
    rng = Random(f"exam {family}")
    return [make(family, rng, split="test", wording=None) for _ in range(n)]


@torch.no_grad()
def _examine(model: Pocket, exam: dict[int, dict[str, list]], scores: torch.Tensor) -> None:
    """Writes the share of problems of which every supervised token is the likeliest one, given those before it."""
    for number, efforts in exam.items():
        for column, rendered in enumerate(efforts.values()):
            right = total = 0
            for part in rendered:
                b = batch(part)
                wrong = model(b.ids, None, b.at).argmax(-1) != b.target
                right += len(part) - len(b.row[wrong].unique())
                total += len(part)
            scores[number, column] = right / total


def _scores(state: State, scores: torch.Tensor) -> dict[str, Any]:
    columns = [dict(zip(FAMILIES, (round(x, 3) for x in column))) for column in scores.t().tolist()]
    return {
        "step": state.step,
        "tokens": int(state.tokens),
        "cpu": round(state.cpu),
        **dict(zip(("low", "high"), columns)),
    }


def _save(folder: Path, plan: Plan, shared: Shared, state: State, places: torch.Tensor, model: Pocket) -> None:
    """last.pt, whole or not at all."""
    held = {
        "model": {name: p.detach().clone() for name, p in model.named_parameters()},
        "shape": asdict(plan.shape),
        "plan": asdict(plan),
        "state": shared.state(),
        "places": places.clone(),
        "step": state.step,
        "tokens": state.tokens,
        "cpu": state.cpu,
    }
    torch.save(held, folder / ".last.pt")
    os.replace(folder / ".last.pt", folder / "last.pt")


def _resume(path: Path, plan: Plan, shared: Shared, state: State) -> None:
    held = torch.load(path, weights_only=True)
    if held["plan"] != asdict(plan) or len(held["places"]) != len(state.places):
        raise CheckpointError(
            f"{path} is of another run: {held['plan']} with {len(held['places'])} workers. Give the same plan and "
            f"number of workers to go on with it, or another folder to begin a new run."
        )
    shared.restore(held["state"])
    state.step, state.tokens, state.cpu = held["step"], held["tokens"], held["cpu"]
    state.places = [Place(int(p), int(i), float(q)) for p, i, q in held["places"].tolist()]


def load(path: Path) -> Pocket:
    """The model of a checkpoint, on its own."""
    held = torch.load(path, weights_only=True)
    model = Pocket(Config(**{**held["shape"], "layer_types": tuple(held["shape"]["layer_types"])}))
    model.load_state_dict(held["model"])
    return model
