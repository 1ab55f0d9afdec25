"""Saves an interrupted generation as a partial trace, and continues from one.

Besides the arrays that were recorded live, a partial trace has the state of the model after its last position: the keys
and values that the layers still need, and the logits of the next token or the residual stream that they come from. So
no position is computed twice, and the continued run is identical to the last bit.
"""

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from workbench import hooks, units
from workbench.edits.edit import Tally
from workbench.errors import ResumeError
from workbench.model.arrays import array, tensor
from workbench.model.cache import KVCache
from workbench.model.interrupts import Interrupt
from workbench.recording.assemble import assemble, numerics
from workbench.recording.budget import DTYPE_CODES
from workbench.recording.decoding import Generation, GenerationState, Settings
from workbench.recording.next_token import (
    NEXT_LOGITS,
    NEXT_RESIDUAL,
    FromLogits,
    FromResidual,
    NextToken,
    edits_logits,
)
from workbench.recording.plan import affordable_plan
from workbench.recording.record import reset_tallies
from workbench.recording.source import ModelSource
from workbench.recording.summaries import LIVE_POINTS
from workbench.traces import Trace
from workbench.traces.authorship import MODEL, first_stretches, prompt_then_model
from workbench.traces.manifest import bit_determining

NEXT = (NEXT_LOGITS, NEXT_RESIDUAL)
_TALLY = ("n_calls", "n_positions", "n_changed_calls", "squared_norms")
CACHE_POINTS = ("blocks.*.attn.cache_k", "blocks.*.attn.cache_v")


def save_partial(generation: Generation) -> Trace:
    """The partial trace of a stopped generation: all completely processed positions, and the state after them."""
    n, last, tallies = generation.state
    recorded = generation.arrays() | {"sinks": generation.source.sinks, generation.next_token.name: array(last)}
    for layer, keys_and_values in enumerate(generation.cache.crop(n).layers()):
        recorded |= {hooks.at_layer(point, layer): array(x) for point, x in zip(CACHE_POINTS, keys_and_values)}
    for edit, tally in zip(generation.source.edits, tallies):
        # without the calls of the interrupted pass; a copy, because the run may continue
        edit.tally = replace(tally)
    contents = "routing and predictions" if generation.next_token.live else "routing"
    authorship = generation.authorship._replace(written=first_stretches(generation.authorship.written, n))
    note = f"interrupted after {n} positions: not replayed, so it contains {contents} only"
    return assemble(
        generation.source, generation.plan, generation.tokens[:n], recorded, authorship=authorship,
        origin="live", notes=[note], status="partial", generation=generation.settings.to_manifest("interrupted"),
    )  # fmt: skip


def restore(source: ModelSource, partial: Trace, flag: Interrupt, to: Path | None) -> Generation:
    """The generation that was saved as `partial`. Raises ResumeError if this model cannot continue it exactly."""
    manifest, n, device = partial.manifest, len(partial), source.device
    settings = _settings(source, partial)
    source.model.check_prompt(partial.tokens[: partial.prompt_length], settings.max_tokens)
    prompt, next_token = manifest.tokens[: manifest.prompt_length], _next_token(source, partial)
    _check_arrays(source, partial, next_token)
    # the last note is about the interrupt
    notes = manifest.notes[:-1]
    if changed := _changed(manifest.numerics, numerics(source)):
        notes.append(f"the first {n} positions were computed with {', '.join(changed)}")
    items = [item for item in manifest.record if item != "auto"]  # the presets that "auto" selected are there too
    plan = affordable_plan(source, items, prompt, len(prompt) + settings.max_tokens, None, notes, to)
    # keep the request of the interrupted run, because what "auto" selects depends on the free memory
    plan = replace(plan, request=tuple(manifest.record), omitted=tuple(manifest.omitted))
    reset_tallies(source)

    def stored(name: str):
        return tensor(partial.raw(name)).to(device)

    keys_and_values = [
        (stored(hooks.at_layer(CACHE_POINTS[0], i)), stored(hooks.at_layer(CACHE_POINTS[1], i)))
        for i in range(source.n_layers)
    ]
    cache = KVCache.of(source.model.config, keys_and_values, n, whole=bool(source.edits))
    earlier = {name: partial.raw(name) for name, info in manifest.tensors.items() if "pos" in info.axes}
    tallies = [Tally.from_manifest(edit) for edit in manifest.edits]
    generation = Generation(source, plan, settings, prompt, flag, next_token)
    generation.follows = manifest.follows
    generation.continue_from(GenerationState(n, stored(next_token.name), tallies), manifest.tokens, cache, earlier)
    return generation


def _settings(source: ModelSource, partial: Trace) -> Settings:
    """The settings of the run. Raises ResumeError if this model cannot continue it."""

    def refuse(reason: str) -> NoReturn:
        _refuse(partial, reason)

    manifest, identity, edits = partial.manifest, source.identity(), source.edits
    if manifest.status != "partial" or manifest.generation is None:
        refuse("it is complete. Only the partial trace of an interrupted generation can be resumed.")
    needed = [hooks.at_layer(point, layer) for point in CACHE_POINTS for layer in range(source.n_layers)]
    labels = {"weights_digest": "weights digest", "tokenizer_digest": "tokenizer digest", "config": "config"}
    for key, label in labels.items():
        if manifest.model[key] != identity[key]:
            digests = ""
            if key != "config":
                digests = f": {_short(manifest.model[key])} in the trace, {_short(identity[key])} in the model"
            refuse(
                f"it was generated by {manifest.model['name']}, and the {label} of this model ({source.name}) differs"
                f"{digests}. Load the model that generated it."
            )
    if (dtype := manifest.numerics.get("dtype")) != source.dtype:
        refuse(f"it was generated in {dtype}, and this model runs in {source.dtype}. Load it with dtype={dtype!r}.")
    if any(name not in manifest.tensors for name in needed) or manifest.tensors.keys().isdisjoint(NEXT):
        refuse("it does not have the keys and values of the run. Generate again from its prompt.")
    recorded = [edit.get("identity_after", edit["identity"]) for edit in manifest.edits]
    current = [edit.identity() for edit in edits]
    if recorded != current:
        functions = ", with other functions or values" if len(recorded) == len(current) else ""
        refuse(
            f"it was generated {_under([str(edit.get('glob')) for edit in manifest.edits])}, and this run would be "
            f"{_under([edit.glob for edit in edits])}{functions}. "
            f"Call resume inside `with model.edit(…):` with the same edits in the same order."
        )
    if any(manifest.generation[key] is None for key in ("max_tokens", "temperature", "top_p", "seed", "stop")):
        refuse("it lacks settings of the generation. Generate again from its prompt.")
    if any(key not in edit for edit in manifest.edits for key in _TALLY):
        refuse("it does not say how often its edits were called. Generate again from its prompt.")
    if partial.written != prompt_then_model(partial.prompt_length, len(partial)):
        refuse("not all tokens after its prompt are the model's. Generate again from its prompt.")
    n_generated = len(partial.written_by(MODEL))
    if partial.prompt_length < 1 or n_generated > manifest.generation["max_tokens"]:
        refuse(f"it has {n_generated} generated tokens, and its max_tokens is {manifest.generation['max_tokens']}.")
    return Settings.from_manifest(manifest.generation)


def _next_token(source: ModelSource, partial: Trace) -> NextToken:
    """How the run chose its tokens: the rest of it is recorded in the same way, also if this model has no screen."""
    if NEXT_LOGITS in partial.manifest.tensors:
        return FromLogits(source, partial.tokens[: partial.prompt_length])
    if edits_logits(source.edits):
        _refuse(partial, f"its edits change the logits, and it lacks {NEXT_LOGITS!r}. Generate again from its prompt.")
    return FromResidual(source)


def _check_arrays(source: ModelSource, partial: Trace, next_token: NextToken) -> None:
    """Raises ResumeError unless the saved arrays have exactly the shapes and dtypes that the run would have now.

    A wrong shape may fit by broadcasting: keys of a single head would serve all heads, and give other tokens.
    """
    config, n, tensors = source.model.config, len(partial), partial.manifest.tensors
    points = [hooks.at_layer(point, layer) for point in LIVE_POINTS for layer in range(source.n_layers)]
    expected = {name: source.entry(name, n, 0) for name in (*points, *next_token.live, "margin")}
    for point in CACHE_POINTS:
        for layer in range(source.n_layers):
            slides = not source.edits and config.is_sliding(layer)
            n_keys = min(n, config.window - 1) if slides else n
            shape = (config.n_kv_heads, n_keys, config.d_head)
            expected[hooks.at_layer(point, layer)] = DTYPE_CODES[source.dtype], shape
    width = config.d_vocab if next_token.name == NEXT_LOGITS else config.d_model
    expected[next_token.name] = DTYPE_CODES[source.dtype], (width,)
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            _refuse(partial, f"it lacks {name!r}. Generate again from its prompt.")
        if (tensors[name].dtype, tensors[name].shape) != (dtype, shape):
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            _refuse(partial, f"{name!r} is {found}, not {dtype} {list(shape)}. Generate again from its prompt.")
    if not next_token.is_usable(tensor(partial.raw(next_token.name))):
        label = units.labels(next_token.name)["long_name"]
        _refuse(partial, f"the {label} contains NaN or infinity. Generate again from its prompt.")


def _refuse(partial: Trace, reason: str) -> NoReturn:
    raise ResumeError(f"trace {partial.id[:8]} cannot be resumed: {reason}")


def _changed(recorded: dict, current: dict) -> list[str]:
    """The recorded numerics that determine the bits and differ now.

    For torch's kernels these include threads and versions.
    """
    recorded, current = bit_determining(recorded), bit_determining(current)
    common = sorted(recorded.keys() & current.keys())
    return [f"{key} {recorded.get(key)}" for key in common if recorded[key] != current[key]]


def _under(globs: list[str]) -> str:
    return f"under edits at {', '.join(globs)}" if globs else "without edits"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
