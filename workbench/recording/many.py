"""`Model.generate_many`: a Trace of each of several prompts, which are generated together."""

import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench import hooks
from workbench.checks import check_count, check_flag, check_items
from workbench.conversation.chat import with_reasoning
from workbench.errors import BatchError, BudgetError, WorkbenchError
from workbench.model.arguments import per_prompt
from workbench.model.interrupts import Interrupt
from workbench.model.memory import free_memory, is_out_of_memory, out_of_memory_text
from workbench.progress import Bar, progress_bar
from workbench.recording import budget as budgets
from workbench.recording.assemble import all_prompt, require_valid
from workbench.recording.batching import MAX_ROWS, Batch, Job, Row
from workbench.recording.decoding import Decoding, Generation, Settings
from workbench.recording.generation import replayed, stops
from workbench.recording.next_token import next_token
from workbench.recording.plan import Plan, affordable_plan
from workbench.recording.resume import save_partial
from workbench.recording.source import ModelSource
from workbench.text import size_text
from workbench.traces import Trace

if TYPE_CHECKING:
    from workbench.model.model import Model


class BatchInterrupted(KeyboardInterrupt):
    """`generate_many` was stopped by Ctrl-C, SIGTERM, SIGHUP or `model.stop()`. `signum` is the signal."""

    def __init__(self, n_unfinished: int, signum: int = signal.SIGINT):
        super().__init__(
            f"interrupted with {n_unfinished} prompts unfinished; `model.partials` has the traces of those that were "
            f"begun, by number of prompt: continue each with `model.resume`"
        )
        self.n_unfinished, self.signum = n_unfinished, signum

    def __reduce__(self):
        return BatchInterrupted, (self.n_unfinished, self.signum)


@dataclass(frozen=True)
class Request:
    """One prompt of `generate_many`, as token ids."""

    prompt: Sequence[int]
    settings: Settings
    notes: Sequence[str]  # on how it was rendered


def generate_many(
    model: "Model",
    prompts: Sequence[Any],
    *,
    max_tokens: Any,
    temperature: Any,
    top_p: Any,
    seed: Any,
    record: str | Sequence[str],
    stop: Any,
    reasoning: Any,
    budget: float | None,
    max_rows: int,
    ordered: bool,
) -> Iterator[Trace]:
    """`Model.generate_many`. All prompts are checked before it returns."""
    model.partial, model.partials = None, {}
    prompts = check_items("prompts", prompts)
    max_rows, ordered, n = check_count("max_rows", max_rows), check_flag("ordered", ordered), len(prompts)
    several_stops = isinstance(stop, list | tuple) and any(isinstance(each, list | tuple) for each in stop)
    stops_of = [stops(model, each) for each in (per_prompt("stop", stop, n) if several_stops else [stop])]
    stops_of = stops_of if several_stops else stops_of * n
    items, efforts = tuple(hooks.split_request(record)), per_prompt("reasoning", reasoning, n)
    by_name = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    values = {name: per_prompt(name, value, n) for name, value in by_name.items()}
    source, rows = ModelSource(model), []
    for number, prompt in enumerate(prompts):
        with _about(number):
            tokens, notes = model.render(with_reasoning(prompt, efforts[number]))
            own = {name: each[number] for name, each in values.items()}
            rows.append((source, Request(tokens, Settings(**own, stop=stops_of[number]), notes)))
    return traces_of(model, rows, items, budget=budget, max_rows=max_rows, ordered=ordered)


def traces_of(
    model: "Model",
    rows: Sequence[tuple[ModelSource, Request]],
    items: Sequence[str],
    *,
    budget: float | None = None,
    max_rows: int = MAX_ROWS,
    ordered: bool = True,
) -> Iterator[Trace]:
    """The traces of several requests, each for the model under the edits of its source. All are checked first.

    Args:
        model: the model of all sources.
        rows: the source and the request of each text.
        items: what is recorded.
        budget: bytes of each trace for "auto".
        max_rows: the largest number of texts in progress at a time.
        ordered: whether the traces come in the order of `rows`; otherwise as they are finished.
    """
    jobs, largest = [], 0
    for number, (source, r) in enumerate(progress_bar(rows, desc="checking the prompts", unit=" prompts")):
        with _about(number):
            model.check_prompt(r.prompt, r.settings.max_tokens)
            plan = affordable_plan(source, items, r.prompt, len(r.prompt) + r.settings.max_tokens, budget, r.notes)
            require_valid(source, plan, r.prompt, all_prompt(r.prompt), r.settings.to_manifest("length"))
        jobs.append(job(source, number, r, plan))
        largest = max(largest, plan.estimate.memory)
    batch = Batch(jobs, max_rows, bytes_for_rows(rows[0][0], [each.nbytes for each in jobs], max_rows, largest))
    finished: dict[int, Trace] = {}  # and not yielded
    ended = _run(model, batch, finished)
    return _in_order(ended, finished) if ordered else _as_finished(ended, finished)


@contextmanager
def _about(number: int) -> Iterator[None]:
    """Errors in the block say that they are about this prompt."""
    try:
        yield
    except WorkbenchError as error:
        error.add_note(f"This is about prompts[{number}].")
        raise


def job(source: ModelSource, number: int, r: Request, plan: Plan) -> Job:
    """The Job of a request that is recorded with this plan."""

    def start(tokens: Sequence[int]) -> Decoding:
        own = source.for_row()
        return Generation(own, plan, r.settings, tokens, Interrupt(), next_token(own, tokens, r.settings.top_p))

    nbytes = budgets.row_memory(source.model.config, source.dtype, plan.estimate.positions)
    chosen_by = type(next_token(source, r.prompt, r.settings.top_p))  # its state is a part of what is shared
    return Job(number, r.prompt, start, nbytes, chosen_by if source.in_chunks else None)


def bytes_for_rows(source: ModelSource, nbytes: Sequence[int], max_rows: int, reserved: int = 0) -> float:
    """The memory for texts that are generated together, of `nbytes` each. Warns if it does not suffice for `max_rows`.

    `reserved`: bytes for the trace of one of them.
    """
    free = free_memory(source.device)
    allowed = max(0.0, budgets.REFUSE_SHARE * free - (reserved if source.device == "cpu" else 0))
    needed = sum(sorted(nbytes)[-max_rows:])
    if needed > allowed:
        warnings.warn(
            f"{min(max_rows, len(nbytes))} prompts together may need {size_text(needed)} of memory, and there are "
            f"{size_text(int(allowed))} for them: fewer are generated at a time. Their traces are the same.",
            stacklevel=4,
        )
    return allowed


def _as_finished(ended: Iterator[int], finished: dict[int, Trace]) -> Iterator[Trace]:
    """The traces of `finished` as they come; `ended` gives the number of each prompt that has ended."""
    for number in ended:
        if number in finished:
            yield finished.pop(number)


def _in_order(ended: Iterator[int], finished: dict[int, Trace]) -> Iterator[Trace]:
    """The traces of `finished` in the order of the prompts."""
    have_ended, first = set(), 0
    for number in ended:
        have_ended.add(number)
        while first in have_ended:
            if first in finished:
                yield finished.pop(first)
            first += 1


def _run(model: "Model", batch: Batch, finished: dict[int, Trace]) -> Iterator[int]:
    """Yields the number of each prompt that has ended, with its trace in `finished`. Failures are raised at the end."""
    failed: list[Row] = []
    n = batch.n_left
    with progress_bar(total=n, desc="generating", unit=" prompts") as bar:
        try:
            while not batch.is_done:
                row = _next(model, batch, finished, bar)
                bar.update()
                failed += [row] if row.error else []
                yield row.job.number
        finally:  # also if the caller takes no more traces
            model.keep_many(lambda: _partials(model, [*failed, *batch.begun()], finished))
    if failed:
        raise _batch_error(n, {row.job.number: row.error for row in failed if row.error}) from failed[0].error


def _next(model: "Model", batch: Batch, finished: dict[int, Trace], bar: Bar) -> Row:
    """The next text that has ended; if it did not fail, with its trace in `finished`."""

    def show() -> None:
        bar.set_postfix_str(f"{batch.n_tokens:,} tokens", refresh=False)
        bar.update(0)

    try:
        with model.interruptible() as flag:
            flag.has_something_to_lose = True
            batch.advance(flag, show)
            row = batch.ended[0]
            if row.error is None:
                _replay(row, finished, flag)
            batch.ended.popleft()
    except KeyboardInterrupt as interrupt:
        n_left = batch.n_left + len(finished)
        raise BatchInterrupted(n_left, getattr(interrupt, "signum", signal.SIGINT)) from interrupt
    return row


def _replay(row: Row, finished: dict[int, Trace], flag: Interrupt) -> None:
    generation = row.started
    assert isinstance(generation, Generation) and row.finish_reason
    try:
        finished[row.job.number] = replayed(generation, row.finish_reason, flag)
    except Exception as error:  # of an edit that raises in this pass, or memory that runs out: this text only
        row.error = BudgetError(out_of_memory_text(error)) if is_out_of_memory(error) else error


def _partials(model: "Model", rows: Sequence[Row], finished: dict[int, Trace]) -> dict[int, Trace]:
    """By number of the prompt: the partial traces of these texts, and the traces that were not taken."""
    traces = dict(finished)
    with model.interruptible():
        for row in rows:
            if isinstance(row.decoding, Generation) and row.decoding.has_started:
                traces[row.job.number] = save_partial(row.decoding)
    return dict(sorted(traces.items()))


def _batch_error(n: int, errors: dict[int, Exception]) -> BatchError:
    shown = [f"prompts[{number}]: {type(error).__name__}: {error}" for number, error in sorted(errors.items())]
    error = BatchError(
        f"{len(errors)} of {n} prompts failed, and the traces of all others were complete. {'; '.join(shown[:3])}"
        f"{'; …' if len(shown) > 3 else ''}. `model.partials` has the tokens of these prompts so far, by number."
    )
    error.errors = errors
    return error
