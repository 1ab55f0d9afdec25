"""A partial trace: what an interrupted generation leaves, and how another goes on from it as if nothing had happened.

Besides what was recorded live it holds the state of the model after its last position: the keys and values that the
layers still need, and the logits of the token to come. So no position is read twice, and no bit differs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workbench import hooks
from workbench.edits.edit import Edit, Tally
from workbench.errors import ResumeError
from workbench.model.arrays import array, tensor
from workbench.model.cache import KVCache
from workbench.model.interrupts import Interrupt
from workbench.recording import tracing
from workbench.recording.generation import Live, Reached, Settings
from workbench.traces import Trace
from workbench.traces.manifest import deciding

if TYPE_CHECKING:
    from workbench.model.model import Model

LOGITS = "next_logits"
CACHE = ("blocks.*.attn.cache_k", "blocks.*.attn.cache_v")


def leave(live: Live) -> Trace:
    """The partial trace of a generation that was stopped: all that was read to the end, and where it stood."""
    n, logits, tallies = live.reached
    kept = live.arrays() | {"sinks": tracing.sinks(live.model), LOGITS: array(logits)}
    for layer, both in enumerate(live.cache.crop(n).layers()):
        kept |= {hooks.at(point, layer): array(x) for point, x in zip(CACHE, both)}
    for edit, tally in zip(live.run.edits, tallies):
        edit.tally = tally  # without what the interrupted pass had met
    note = f"interrupted after {n} positions: not replayed, so it holds routes and predictions only"
    return tracing.build(
        live.run, live.tokens[:n], live.prompt_length, kept, dict.fromkeys(kept, "live"), [note],
        generation=live.settings.told("interrupted"), status="partial",
    )  # fmt: skip


def take_up(model: "Model", partial: Trace, flag: Interrupt, to: Path | None) -> Live:
    """The generation that left `partial`, where it stood. Raises ResumeError if this model would go on with another."""
    told, edits = partial.manifest, model.edits_in_force()
    settings = _refuse(model, partial, edits)
    prompt, c, n = told.tokens[: told.prompt_length], model.config, len(partial)
    notes, changed = told.notes[:-1], _changed(told.numerics, tracing.numerics(model))  # the last is on the interrupt
    if changed:
        notes.append(f"the first {n} positions were written with {', '.join(changed)}")
    asked = [word for word in told.record if word != "auto"]  # what it stood for is there too
    run = tracing.start(model, asked, prompt, len(prompt) + settings.max_tokens, None, notes, to)
    run = tracing.as_planned(run, told.record, told.gave_way)

    def held(name: str):
        return tensor(partial.stored(name)).to(model.device)

    cache = [(held(hooks.at(CACHE[0], layer)), held(hooks.at(CACHE[1], layer))) for layer in range(c.n_layers)]
    before = {name: partial.stored(name) for name in told.tensors if "pos" in told.tensors[name].axes}
    live = Live(run, settings, prompt, flag)
    live.go_on(
        told.tokens,
        before,
        KVCache.of(c, cache, n, whole=bool(edits)),
        Reached(n, held(LOGITS), [Tally.from_manifest(edit) for edit in told.edits]),
    )
    return live


def _refuse(model: "Model", partial: Trace, edits: list[Edit]) -> Settings:
    """The settings of the run, if this model can go on with it."""

    def no(why: str) -> NoReturn:
        raise ResumeError(f"trace {partial.id[:8]} cannot be resumed: {why}")

    told, ours = partial.manifest, tracing.model_of(model)
    if told.status != "partial" or told.generation is None:
        no("it is complete. What can be resumed is the partial trace of an interrupted generation.")
    wanted = [LOGITS, *(hooks.at(point, layer) for point in CACHE for layer in range(model.config.n_layers))]
    by, here = told.model["name"], model.name
    for key, what in (("weights_digest", "weights"), ("tokenizer_digest", "tokenizer"), ("config", "config")):
        if told.model[key] != ours[key]:
            shown = "" if key == "config" else f": {_short(told.model[key])} there, {_short(ours[key])} here"
            no(f"it was written by {by}, and this is {here} with another {what}{shown}. Load the model that wrote it.")
    if (dtype := told.numerics.get("dtype")) != model.dtype_name:
        no(f"it was written in {dtype}, and this model runs in {model.dtype_name}. Load it with dtype={dtype!r}.")
    if any(name not in told.tensors for name in wanted):
        no("it does not hold the keys and values of the run. Generate again from its prompt.")
    then, now = [edit["identity"] for edit in told.edits], [edit.describe()["identity"] for edit in edits]
    if then != now:
        others = ", with other functions or values" if len(then) == len(now) else ""
        no(
            f"it was written {_under([str(edit.get('glob')) for edit in told.edits])}, and this run would be "
            f"{_under([edit.glob for edit in edits])}{others}. "
            f"Call resume inside `with model.edit(…):` of the same edits in the same order."
        )
    return Settings.again(told.generation)


def _changed(then: dict, now: dict) -> list[str]:
    """What the bits depended on then and is otherwise now. Of torch's they depend on threads and versions too."""
    then, now = deciding(then), deciding(now)
    return [f"{key} {then.get(key)}" for key in sorted(then.keys() & now.keys()) if then[key] != now[key]]


def _under(globs: list[str]) -> str:
    return f"under edits at {', '.join(globs)}" if globs else "without edits"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
