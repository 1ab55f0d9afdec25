"""A partial trace: what an interrupted generation leaves, and how another one continues from it.

Besides what was recorded live it holds the state of the model after its last position: the keys and values that the
layers still need, and the logits of the token to come. So no position is read twice, and no bit differs.
"""

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from workbench import hooks
from workbench.edits.edit import Tally
from workbench.errors import ResumeError
from workbench.model.arrays import array, tensor
from workbench.model.cache import KVCache
from workbench.model.interrupts import Interrupt
from workbench.recording.assemble import assemble, numerics
from workbench.recording.decoding import Generation, GenerationState, Settings
from workbench.recording.plan import affordable_plan
from workbench.recording.record import reset_tallies
from workbench.recording.source import ModelSource
from workbench.traces import Trace
from workbench.traces.manifest import bit_determining

LOGITS = "next_logits"
CACHE = ("blocks.*.attn.cache_k", "blocks.*.attn.cache_v")


def save_partial(generation: Generation) -> Trace:
    """The partial trace of a generation that was stopped: all that was read to the end, and the state after it."""
    n, logits, tallies = generation.state
    recorded = generation.arrays() | {"sinks": generation.source.sinks, LOGITS: array(logits)}
    for layer, both in enumerate(generation.cache.crop(n).layers()):
        recorded |= {hooks.at_layer(point, layer): array(x) for point, x in zip(CACHE, both)}
    for edit, tally in zip(generation.source.edits, tallies):
        edit.tally = tally  # without what the interrupted pass had met
    note = f"interrupted after {n} positions: not replayed, so it holds routes and predictions only"
    return assemble(
        generation.source, generation.plan, generation.tokens[:n], recorded, prompt_length=generation.prompt_length,
        origin="live", notes=[note], status="partial", generation=generation.settings.to_manifest("interrupted"),
    )  # fmt: skip


def restore(source: ModelSource, partial: Trace, flag: Interrupt, to: Path | None) -> Generation:
    """The generation that left `partial`, as it was. Raises ResumeError if this model would continue another one."""
    manifest, n, device = partial.manifest, len(partial), source.device
    settings = _settings(source, partial)
    prompt, notes = manifest.tokens[: manifest.prompt_length], manifest.notes[:-1]  # the last is on the interrupt
    if changed := _changed(manifest.numerics, numerics(source)):
        notes.append(f"the first {n} positions were written with {', '.join(changed)}")
    words = [word for word in manifest.record if word != "auto"]  # what it stood for is there too
    plan = affordable_plan(source, words, prompt, len(prompt) + settings.max_tokens, None, notes, to)
    # under the words that the run had: what "auto" takes depends on the memory that is free
    plan = replace(plan, words=tuple(manifest.record), omitted=tuple(manifest.omitted))
    reset_tallies(source)

    def stored(name: str):
        return tensor(partial.raw(name)).to(device)

    keys_and_values = [
        (stored(hooks.at_layer(CACHE[0], i)), stored(hooks.at_layer(CACHE[1], i))) for i in range(source.n_layers)
    ]
    cache = KVCache.of(source.model.config, keys_and_values, n, whole=bool(source.edits))
    earlier = {name: partial.raw(name) for name, info in manifest.tensors.items() if "pos" in info.axes}
    tallies = [Tally.from_manifest(edit) for edit in manifest.edits]
    generation = Generation(source, plan, settings, prompt, flag)
    generation.continue_from(GenerationState(n, stored(LOGITS), tallies), manifest.tokens, cache, earlier)
    return generation


def _settings(source: ModelSource, partial: Trace) -> Settings:
    """The settings of the run. Raises ResumeError if this model cannot continue it."""

    def no(why: str) -> NoReturn:
        raise ResumeError(f"trace {partial.id[:8]} cannot be resumed: {why}")

    manifest, ours, edits = partial.manifest, source.identity(), source.edits
    if manifest.status != "partial" or manifest.generation is None:
        no("it is complete. What can be resumed is the partial trace of an interrupted generation.")
    wanted = [LOGITS, *(hooks.at_layer(point, layer) for point in CACHE for layer in range(source.n_layers))]
    by, here = manifest.model["name"], source.name
    for key, what in (("weights_digest", "weights"), ("tokenizer_digest", "tokenizer"), ("config", "config")):
        if manifest.model[key] != ours[key]:
            shown = "" if key == "config" else f": {_short(manifest.model[key])} there, {_short(ours[key])} here"
            no(f"it was written by {by}, and this is {here} with another {what}{shown}. Load the model that wrote it.")
    if (dtype := manifest.numerics.get("dtype")) != source.dtype:
        no(f"it was written in {dtype}, and this model runs in {source.dtype}. Load it with dtype={dtype!r}.")
    if any(name not in manifest.tensors for name in wanted):
        no("it does not hold the keys and values of the run. Generate again from its prompt.")
    then, now = [edit["identity"] for edit in manifest.edits], [edit.describe()["identity"] for edit in edits]
    if then != now:
        others = ", with other functions or values" if len(then) == len(now) else ""
        no(
            f"it was written {_under([str(edit.get('glob')) for edit in manifest.edits])}, and this run would be "
            f"{_under([edit.glob for edit in edits])}{others}. "
            f"Call resume inside `with model.edit(…):` of the same edits in the same order."
        )
    return Settings.from_manifest(manifest.generation)


def _changed(then: dict, now: dict) -> list[str]:
    """What the bits depended on then and is otherwise now. Of torch's they depend on threads and versions too."""
    then, now = bit_determining(then), bit_determining(now)
    return [f"{key} {then.get(key)}" for key in sorted(then.keys() & now.keys()) if then[key] != now[key]]


def _under(globs: list[str]) -> str:
    return f"under edits at {', '.join(globs)}" if globs else "without edits"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
