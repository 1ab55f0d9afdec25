"""From a request to a Plan: what `record=` stands for, how much it takes, and whether it fits."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import hooks
from workbench.errors import NotRecorded
from workbench.model import prefill
from workbench.model.memory import free_memory
from workbench.recording import budget
from workbench.recording.assemble import TEXT_RANKS, draft
from workbench.recording.source import ModelSource, Source, text_of
from workbench.text import size_text
from workbench.traces import Manifest, predicted_bytes, verification

if TYPE_CHECKING:
    from workbench.model.model import Model

MAX_PENDING_BYTES = 192 << 20  # of a recording that waits to be written: it and what it is made of are held together
NEIGHBORS = (
    "with these kernels a position's last bits depend on what is computed beside it: positions before an edit may "
    "differ from those of an unedited run by rounding"
)


@dataclass(frozen=True)
class Plan:
    """What a run will record, by full name."""

    words: tuple[str, ...]  # as requested, and what "auto" took
    points: tuple[str, ...]
    lanes: tuple[str, ...]
    omitted: tuple[str, ...]  # what "auto" left out
    notes: tuple[str, ...]  # for the manifest
    chunk: int  # positions that are read at a time
    working: int  # bytes that the run takes besides weights and recording
    estimate: budget.Estimate

    @property
    def lens(self) -> bool:
        return any(lane.startswith("lens_") for lane in self.lanes)


def always(n_layers: int) -> list[str]:
    """The hook points and lanes that every trace has."""
    return [name for p in hooks.ALWAYS_RECORDED for name in (hooks.match(p, n_layers) if p in hooks.POINTS else [p])]


def affordable_plan(
    source: Source,
    request: str | Sequence[str],
    tokens: Sequence[int],
    n_pos: int,
    limit: float | None,
    notes: Sequence[str] = (),
    to: Path | None = None,
) -> Plan:
    """The plan of a run that is about to start. Raises what `plan` raises, and BudgetError if it would not fit."""
    made = plan(source, request, tokens, n_pos, limit, notes, streamed=to is not None)
    if not made.estimate.fits:
        available = source.available(tokens)
        price = _prices(source, n_pos, made.estimate.n_steps)
        words = [word for word in made.words if word != "auto"]
        requested = {word: _there(hooks.expand([word], source.n_layers), available) for word in words}
        raise budget.too_big(made.estimate, requested, price, available, source.n_layers)
    if to is not None:
        budget.refuse_if_disk_too_small(made.estimate.bytes, to)
    if source.device != "cpu":
        budget.refuse_if_device_too_small(made.working, free_memory(source.device), source.device)
    return made


def plan(
    source: Source,
    request: str | Sequence[str],
    tokens: Sequence[int],
    n_pos: int,
    limit: float | None,
    notes: Sequence[str] = (),
    streamed: bool = False,
) -> Plan:
    """What a request stands for.

    Args:
        source: the model that will run.
        request: presets, hook points and globs; "auto" for what fits into the limit.
        tokens: the text as far as it is known.
        n_pos: how long it may become.
        limit: bytes that "auto" may take; a quarter of the free memory unless given.
        notes: for the manifest, before those of the plan.
        streamed: whether what was recorded leaves the memory after each chunk.

    Returns:
        The plan, with its estimate.

    Raises:
        HookNameError: for a word that means nothing.
        NotRecorded: for one of which this source can show nothing.
    """
    words, available, text = tuple(hooks.split_request(request)), source.available(tokens), text_of(source, tokens)
    n_steps = len(text.steps) + max(0, n_pos - len(tokens)) // 8  # a step is rarely shorter
    price, free = _prices(source, n_pos, n_steps), free_memory("cpu")  # recordings are kept there, also those of a GPU
    base = [name for name in always(source.n_layers) if name in available]
    expanded = _expanded(source, [word for word in words if word != "auto"], available)
    omitted: tuple[str, ...] = ()
    if "auto" in words:
        asked = [word for word in words if word != "auto"]
        left = (budget.AUTO_SHARE * free if limit is None else limit) - price([*base, *_there(expanded, available)])
        taken, omitted = _what_fits(left, price, available, source.n_layers)
        words = ("auto", *taken, *asked)  # part of what identifies the run: another budget is another trace
        expanded = hooks.expand([*taken, *asked], source.n_layers)
    wanted = _there(expanded, available)
    table = {name: source.entry(name, n_pos, n_steps) for name in [*base, *wanted]}
    held = sum(map(budget.size, table.values()))
    chunk = _chunk(source, n_pos, held, streamed)
    longest = min(n_pos, chunk + prefill.MIN_LAST_CHUNK)
    working = source.working_memory(n_pos, wanted, longest)
    if streamed:
        held = held * longest // max(n_pos, 1)
    estimate = budget.Estimate(
        bytes=_on_disk(source, draft(source, tokens, len(tokens), words, text), table, n_pos),
        memory=held + (working if source.device == "cpu" else 0),
        free=free,
        by_name=budget.by_short_name(table),
        positions=n_pos,
        omitted=omitted,
        n_steps=n_steps,
    )
    names = [*wanted, *base]
    return Plan(
        words=words,
        points=tuple(name for name in names if name not in hooks.SUMMARIES),
        lanes=tuple(name for name in names if name in hooks.SUMMARIES),
        omitted=omitted,
        notes=(*source.notes, *notes, *_caveats(source), *_absent(source, expanded, available)),
        chunk=chunk,
        working=working,
        estimate=estimate,
    )


def estimate(model: "Model", tokens: Sequence[int], request: str | Sequence[str], n_pos: int) -> budget.Estimate:
    """What `Model.estimate` does, for a prompt that is already token ids."""
    return plan(ModelSource(model), request, tokens, n_pos, None).estimate


def _prices(source: Source, n_pos: int, n_steps: int) -> Callable[[Sequence[str]], int]:
    """The bytes that hook points and lanes take."""
    return lambda names: sum(budget.size(source.entry(name, n_pos, n_steps)) for name in dict.fromkeys(names))


def _there(names: Sequence[str], available: Collection[str]) -> list[str]:
    return [name for name in names if name in available]


def _expanded(source: Source, words: Sequence[str], available: Collection[str]) -> list[str]:
    """What the words stand for. Raises NotRecorded for a word of which nothing is available."""
    for word in words:
        names = hooks.expand([word], source.n_layers)
        if names and not any(name in available for name in names):
            shown = dict.fromkeys(hooks.short_name(name) for name in available if name not in hooks.SUMMARIES)
            raise NotRecorded(
                f"{word!r} cannot be recorded from {source.name}: {source.why_absent(word, names)}. "
                f"There is: {', '.join(shown)}."
            )
    return hooks.expand(words, source.n_layers)


def _what_fits(
    left: float, price: Callable[[Sequence[str]], int], available: Collection[str], n_layers: int
) -> tuple[list[str], tuple[str, ...]]:
    """The presets that "auto" takes within `left` bytes, and those that it leaves out."""
    taken: list[str] = []
    omitted = []
    for preset in budget.AUTO:
        names = _there(hooks.expand(preset, n_layers), available)  # no two presets of AUTO share a name
        cost = price(names)
        if names and cost <= left:
            left -= cost
            taken.append(preset)
        elif names:
            omitted.append(f"{preset} ({size_text(cost)})")
    return taken, tuple(omitted)


def _chunk(source: Source, n_pos: int, held: int, streamed: bool) -> int:
    """How many positions are read at a time: fewer if much is recorded, for a chunk is held until it is written."""
    if not source.in_chunks:
        return n_pos
    if not streamed:
        return prefill.CHUNK_POSITIONS
    fits = MAX_PENDING_BYTES * n_pos // max(held, 1) // prefill.CHUNK_ALIGN * prefill.CHUNK_ALIGN
    return min(prefill.CHUNK_POSITIONS, max(prefill.CHUNK_ALIGN, fits))


def _on_disk(source: Source, manifest: Manifest, table: budget.Shapes, n_pos: int) -> int:
    """The bytes of the trace: exact for a text that is known, and about right for tokens that are still to come."""
    manifest = replace(manifest, verification=verification.Findings(source.dtype).report())
    to_come = int((n_pos - len(manifest.tokens)) * 24)  # ids and texts: about as long as those that are known
    if source.reader is not None:  # the texts of predicted tokens; how many differ is known only afterwards
        predictions = n_pos * TEXT_RANKS * (1 + 0.5 * source.n_layers * ("lens_ids" in table))
        to_come += int(18 * min(source.config["d_vocab"], 0.1 * predictions))
    return predicted_bytes(manifest, table) + to_come


def _caveats(source: Source) -> list[str]:
    by_position = any(edit.positions is not None for edit in source.edits)
    return [NEIGHBORS] if by_position and not source.rows_independent else []


def _absent(source: Source, expanded: Sequence[str], available: Collection[str]) -> list[str]:
    """Notes on the hook points that every trace should have or that were requested, and that are not there."""
    names = [name for name in [*expanded, *always(source.n_layers)] if name not in available]
    if not names:
        return []
    some = {hooks.point_of(name) for name in available}
    points: dict[str, list[str]] = {}
    for point in dict.fromkeys(map(hooks.point_of, names)):
        if point not in hooks.SUMMARIES:
            why = source.why_absent(point, [point]) + (" in some layers" if point in some else "")
            points.setdefault(why, []).append(hooks.short_name(point))
    return [f"not recorded: {', '.join(shorts)} ({why})" for why, shorts in points.items()]
