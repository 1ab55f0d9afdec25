"""Makes a Plan from `record=`: the hook points and summaries, their size, and whether they fit."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import hooks
from workbench.errors import NotRecorded
from workbench.model import prefill
from workbench.model.checkpoints.decoding_copies import copies_note
from workbench.model.memory import free_memory
from workbench.recording import budget
from workbench.recording.assemble import TEXT_RANKS, all_prompt, draft
from workbench.recording.source import ModelSource, Source, text_of
from workbench.text import size_text
from workbench.traces import Manifest, predicted_bytes, verification
from workbench.traces.format import MAX_TENSOR

if TYPE_CHECKING:
    from workbench.model.model import Model

# of recorded values that are not written yet: they and the values they are made of are in memory together
MAX_PENDING_BYTES = 192 << 20
NEIGHBORS = (
    "with these kernels, the last bits at a position depend on the positions that are computed with it: positions "
    "before an edit may differ from those of an unedited run by rounding"
)


@dataclass(frozen=True)
class Plan:
    """The hook points and summaries that a run will record, by full name, and their size."""

    request: tuple[str, ...]  # as requested, and the presets that "auto" selected
    points: tuple[str, ...]
    summaries: tuple[str, ...]
    omitted: tuple[str, ...]  # presets that "auto" left out to fit the budget
    notes: tuple[str, ...]  # for the manifest
    chunk: int  # positions per pass
    working: int  # bytes of the run besides weights and recording
    estimate: budget.Estimate

    @property
    def lens(self) -> bool:
        return any(name.startswith("lens_") for name in self.summaries)


def always(n_layers: int) -> list[str]:
    """The hook points and summaries that every trace has."""
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
    """The plan of a run that is about to start. Raises what `plan` raises, and BudgetError if it does not fit."""
    checked = plan(source, request, tokens, n_pos, limit, notes, streamed=to is not None)
    over_limit = _arrays_over_limit(
        _table(source, [*checked.points, *checked.summaries], n_pos, checked.estimate.n_steps)
    )
    if over_limit or not checked.estimate.fits:
        available = source.available(tokens)
        size_of = _sizes(source, n_pos, checked.estimate.n_steps)
        items = [item for item in checked.request if item != "auto"]
        requested = {item: _only_available(hooks.expand([item], source.n_layers), available) for item in items}
        raise budget.too_big(checked.estimate, requested, size_of, available, source.n_layers, over_limit)
    if to is not None:
        budget.refuse_if_disk_too_small(checked.estimate.bytes, to)
    if source.device != "cpu":
        budget.refuse_if_device_too_small(checked.working, free_memory(source.device), source.device)
    return checked


def plan(
    source: Source,
    request: str | Sequence[str],
    tokens: Sequence[int],
    n_pos: int,
    limit: float | None,
    notes: Sequence[str] = (),
    streamed: bool = False,
) -> Plan:
    """The plan for a request, with its estimated size.

    Args:
        source: the model that will run.
        request: presets, hook points and globs; "auto" for what fits into the limit.
        tokens: the text so far.
        n_pos: its largest possible length.
        limit: bytes that "auto" may use; the default is a quarter of the free memory.
        notes: for the manifest, before those of the plan.
        streamed: whether recorded values are written to the disk after each chunk and freed.

    Returns:
        The plan, with its estimate.

    Raises:
        HookNameError: for an item of the request that matches no hook point.
        NotRecorded: for an item of which this source exposes nothing.
    """
    items, available, text = tuple(hooks.split_request(request)), source.available(tokens), text_of(source, tokens)
    n_steps = len(text.steps) + max(0, n_pos - len(tokens)) // 8  # a step rarely has fewer tokens
    size_of, free = _sizes(source, n_pos, n_steps), free_memory("cpu")  # recordings of a GPU are kept there too
    base = [name for name in always(source.n_layers) if name in available]
    explicit = [item for item in items if item != "auto"]
    expanded = _expanded(source, explicit, available)
    omitted: tuple[str, ...] = ()
    if "auto" in items:
        allowed = budget.AUTO_SHARE * free if limit is None else limit
        remaining = allowed - size_of([*base, *_only_available(expanded, available)])
        selected, omitted = _select_presets(remaining, size_of, available, source.n_layers)
        items = ("auto", *selected, *explicit)  # part of the trace's id: another budget gives another trace
        expanded = hooks.expand([*selected, *explicit], source.n_layers)
    requested = _only_available(expanded, available)
    table = _table(source, [*base, *requested], n_pos, n_steps)
    in_memory = sum(map(budget.size, table.values()))
    chunk = _chunk(source, n_pos, in_memory, streamed)
    longest = min(n_pos, chunk + prefill.MIN_LAST_CHUNK)
    working = source.working_memory(n_pos, requested, longest)
    if streamed:
        in_memory = in_memory * longest // max(n_pos, 1)
    estimate = budget.Estimate(
        bytes=_on_disk(source, draft(source, tokens, all_prompt(tokens), items, text), table, n_pos),
        memory=in_memory + (working if source.device == "cpu" else 0),
        free=free,
        by_name=budget.by_short_name(table),
        positions=n_pos,
        omitted=omitted,
        n_steps=n_steps,
    )
    names = [*requested, *base]
    return Plan(
        request=items,
        points=tuple(name for name in names if name not in hooks.SUMMARIES),
        summaries=tuple(name for name in names if name in hooks.SUMMARIES),
        omitted=omitted,
        notes=(*source.notes, *notes, *_caveats(source), *_absent(source, expanded, available)),
        chunk=chunk,
        working=working,
        estimate=estimate,
    )


def estimate(model: "Model", tokens: Sequence[int], request: str | Sequence[str], n_pos: int) -> budget.Estimate:
    """`Model.estimate` for a prompt that is already token ids."""
    planned = plan(ModelSource(model), request, tokens, n_pos, None).estimate
    copies = copies_note(model.weights).removeprefix(", ")
    return replace(planned, note=f"decoding with {copies}" if copies else "")


def _sizes(source: Source, n_pos: int, n_steps: int) -> Callable[[Sequence[str]], int]:
    """A function from names of hook points and summaries to their bytes."""
    return lambda names: sum(budget.size(source.entry(name, n_pos, n_steps)) for name in dict.fromkeys(names))


def _only_available(names: Sequence[str], available: Collection[str]) -> list[str]:
    return [name for name in names if name in available]


def _expanded(source: Source, items: Sequence[str], available: Collection[str]) -> list[str]:
    """The hook points and summaries of a request. Raises NotRecorded for an item of which nothing is available."""
    for item in items:
        names = hooks.expand([item], source.n_layers)
        if names and not any(name in available for name in names):
            exposed = dict.fromkeys(hooks.short_name(name) for name in available if name not in hooks.SUMMARIES)
            raise NotRecorded(
                f"{item!r} cannot be recorded from {source.name}: {source.why_absent(item, names)}. "
                f"Available: {', '.join(exposed)}."
            )
    return hooks.expand(items, source.n_layers)


def _select_presets(
    remaining: float, size_of: Callable[[Sequence[str]], int], available: Collection[str], n_layers: int
) -> tuple[list[str], tuple[str, ...]]:
    """The presets that "auto" selects within `remaining` bytes, and those that it leaves out.

    No two of them share a name, so their sizes add up.
    """
    selected: list[str] = []
    omitted = []
    for choice in budget.AUTO:
        preset, names = choice, _only_available(hooks.expand(choice, n_layers), available)
        if choice == "attention" and not names:  # this model has no rotated queries and keys
            preset, names = "patterns", _only_available(hooks.expand("patterns", n_layers), available)
        nbytes = size_of(names)
        if names and nbytes <= remaining:
            remaining -= nbytes
            selected.append(preset)
        elif names:
            omitted.append(f"{preset} ({size_text(nbytes)})")
    return selected, tuple(omitted)


def _chunk(source: Source, n_pos: int, nbytes: int, streamed: bool) -> int:
    """The positions per pass: fewer if much is recorded, because a chunk is in memory until it is written."""
    if not source.in_chunks:
        return n_pos
    if not streamed:
        return prefill.CHUNK_POSITIONS
    fits = MAX_PENDING_BYTES * n_pos // max(nbytes, 1) // prefill.CHUNK_ALIGN * prefill.CHUNK_ALIGN
    return min(prefill.CHUNK_POSITIONS, max(prefill.CHUNK_ALIGN, fits))


def _on_disk(source: Source, manifest: Manifest, table: budget.Shapes, n_pos: int) -> int:
    """The bytes of the trace on disk: exact for known tokens, approximate for tokens to be generated."""
    manifest = replace(manifest, verification=verification.Findings(source.dtype).report())
    to_come = int((n_pos - len(manifest.tokens)) * 24)  # approximate bytes of their ids and texts
    if (
        source.reader is not None
    ):  # the texts of predicted tokens; the number of different ones is known only after the run
        predictions = n_pos * TEXT_RANKS * (1 + 0.5 * source.n_layers * ("lens_ids" in table))
        to_come += int(18 * min(source.config["d_vocab"], 0.1 * predictions))
    if _arrays_over_limit(table):  # no trace can have these arrays; `affordable_plan` refuses them
        return sum(map(budget.size, table.values())) + to_come
    return predicted_bytes(manifest, table) + to_come


def _table(source: Source, names: Sequence[str], n_pos: int, n_steps: int) -> budget.Shapes:
    """Dtype and shape of each array."""
    return {name: source.entry(name, n_pos, n_steps) for name in names}


def _arrays_over_limit(table: budget.Shapes) -> dict[str, int]:
    """The bytes of the arrays that are larger than any array of a trace may be."""
    return {name: nbytes for name, entry in table.items() if (nbytes := budget.size(entry)) > MAX_TENSOR}


def _caveats(source: Source) -> list[str]:
    by_position = any(edit.positions is not None for edit in source.edits)
    return [NEIGHBORS] if by_position and not source.rows_independent else []


def _absent(source: Source, expanded: Sequence[str], available: Collection[str]) -> list[str]:
    """Notes on hook points that are requested or always recorded, but not available."""
    names = [name for name in [*expanded, *always(source.n_layers)] if name not in available]
    if not names:
        return []
    in_some_layers = {hooks.point_of(name) for name in available}
    points: dict[str, list[str]] = {}
    for point in dict.fromkeys(map(hooks.point_of, names)):
        if point not in hooks.SUMMARIES:
            reason = source.why_absent(point, [point]) + (" in some layers" if point in in_some_layers else "")
            points.setdefault(reason, []).append(hooks.short_name(point))
    return [f"not recorded: {', '.join(shorts)} ({reason})" for reason, shorts in points.items()]
