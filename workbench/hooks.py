"""The hook points of gpt-oss and the summaries of a run: their names, axes and presets.

Names are those of TransformerLens where it has one. `*` is the layer. Axis names are the same everywhere in
workbench: layer pos head kv_head query key d_model d_head expert choice step rank d_vocab.
"""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from workbench.checks import check_layer, check_text, check_whole
from workbench.errors import HookNameError
from workbench.text import shown

__all__ = [
    "ALWAYS_RECORDED",
    "POINTS",
    "PRESETS",
    "RANKS",
    "SUMMARIES",
    "all_points",
    "at_layer",
    "axes",
    "expand",
    "full_name",
    "layer_of",
    "match",
    "point_of",
    "short_name",
]

POINTS: dict[str, tuple[str, ...]] = {
    name: tuple(axes.split())
    for name, axes in {
        "hook_embed": "pos d_model",
        "blocks.*.hook_resid_pre": "pos d_model",
        "blocks.*.ln1.hook_normalized": "pos d_model",
        "blocks.*.attn.hook_q": "pos head d_head",
        "blocks.*.attn.hook_k": "pos kv_head d_head",
        "blocks.*.attn.hook_v": "pos kv_head d_head",
        "blocks.*.attn.hook_rot_q": "pos head d_head",  # after RoPE
        "blocks.*.attn.hook_rot_k": "pos kv_head d_head",
        "blocks.*.attn.hook_attn_scores": "head query key",  # -inf where a key is masked
        "blocks.*.attn.hook_sink": "head query",  # not in TransformerLens: the probability of the learned sink
        "blocks.*.attn.hook_pattern": "head query key",  # rows sum to 1 - sink
        "blocks.*.attn.hook_z": "pos head d_head",
        "blocks.*.attn.hook_result": "pos head d_model",
        "blocks.*.hook_attn_out": "pos d_model",
        "blocks.*.hook_resid_mid": "pos d_model",
        "blocks.*.ln2.hook_normalized": "pos d_model",  # the input of the router and the experts
        "blocks.*.mlp.router.hook_out": "pos expert",  # the router's logits
        "blocks.*.mlp.hook_expert_indices": "pos choice",
        "blocks.*.mlp.hook_expert_weights": "pos expert",  # dense; zero = not chosen
        "blocks.*.mlp.hook_expert_out": "pos choice d_model",  # not in TransformerLens: before the weight is applied
        "blocks.*.hook_mlp_out": "pos d_model",
        "blocks.*.hook_resid_post": "pos d_model",
        "ln_final.hook_normalized": "pos d_model",
        "hook_logits": "pos d_vocab",
    }.items()
}

# Summaries of a run, one small array each, stored under these names beside the hook points.
SUMMARIES: dict[str, tuple[str, ...]] = {
    name: tuple(axes.split())
    for name, axes in {
        "logprob": "pos",  # of the token at pos, conditional on the tokens before it; NaN at pos 0
        "entropy": "pos",  # of the prediction made at pos, in nats
        "top_ids": "pos rank",
        "top_logprobs": "pos rank",
        "margin": "layer pos",  # router logit of the last chosen expert minus that of the first not chosen
        "resid_norm": "layer pos",  # L2 norm of resid_post
        "attn_out_norm": "layer pos",
        "mlp_out_norm": "layer pos",
        "lens_ids": "layer pos rank",
        "lens_logprobs": "layer pos rank",
        "lens_entropy": "layer pos",
        "lens_kl": "layer pos",  # KL(final prediction || prediction of this layer), in nats
        "step_attention": "layer head step key_step",  # mean over the step's queries of the mass on the other step
        "sinks": "layer head",  # the learned sink logits: with rot_q and rot_k they give any pattern
    }.items()
}

# In partial traces only: the state of an interrupted generation, from which it is continued.
GENERATION_STATE: dict[str, tuple[str, ...]] = {
    "blocks.*.attn.cache_k": ("kv_head", "key", "d_head"),  # after RoPE; the last keys that the layer still needs
    "blocks.*.attn.cache_v": ("kv_head", "key", "d_head"),
    "next_logits": ("d_vocab",),  # of the next token
    "next_residual": ("d_model",),  # the normalized residual stream from which they come
}

PRESETS: dict[str, tuple[str, ...]] = {
    "residuals": ("hook_embed", "blocks.*.hook_resid_pre", "blocks.*.hook_resid_mid", "blocks.*.hook_resid_post"),
    "writes": ("blocks.*.hook_attn_out", "blocks.*.hook_mlp_out"),
    "attention": ("blocks.*.attn.hook_rot_q", "blocks.*.attn.hook_rot_k"),  # any pattern, exactly, on demand
    "patterns": ("blocks.*.attn.hook_pattern",),
    "values": ("blocks.*.attn.hook_v", "blocks.*.attn.hook_z"),
    "experts": ("blocks.*.mlp.hook_expert_out",),
    "logits": ("hook_logits",),
    "lens": ("lens_ids", "lens_logprobs", "lens_entropy", "lens_kl"),
    "steps": ("step_attention",),
    "everything": tuple(POINTS),
}

# Recorded in every trace: they are small, and most views need them.
ALWAYS_RECORDED: tuple[str, ...] = (
    "blocks.*.attn.hook_sink",
    "blocks.*.mlp.router.hook_out",
    "blocks.*.mlp.hook_expert_indices",
    "blocks.*.mlp.hook_expert_weights",
    "logprob",
    "entropy",
    "top_ids",
    "top_logprobs",
    "margin",
    "resid_norm",
    "attn_out_norm",
    "mlp_out_norm",
    "sinks",
)
MAX_LAYERS = 10_000  # far more than any model has; a larger number is a mistake
MAX_COMPARED = 200  # characters: to compare a longer name with all names takes seconds
RANKS = {"top_ids": 20, "top_logprobs": 20, "lens_ids": 5, "lens_logprobs": 5}


def at_layer(point: str, layer: int) -> str:
    """The hook point of one layer.

    >>> at_layer("blocks.*.hook_resid_post", 3)
    'blocks.3.hook_resid_post'
    """
    return check_text("point", point).replace("*", str(check_whole("layer", layer, 0, MAX_LAYERS)), 1)


def layer_of(name: str) -> int | None:
    """The layer in a hook point's name; None where it has none.

    >>> layer_of("blocks.12.attn.hook_z"), layer_of("hook_embed")
    (12, None)
    """
    parts = check_text("name", name).split(".")
    return (
        int(parts[1]) if parts[0] == "blocks" and len(parts) > 1 and parts[1].isascii() and parts[1].isdigit() else None
    )


def point_of(name: str) -> str:
    """The entry of `POINTS` that a full name belongs to.

    >>> point_of("blocks.12.attn.hook_z")
    'blocks.*.attn.hook_z'
    """
    layer = layer_of(name)
    return name if layer is None else name.replace(f"blocks.{layer}.", "blocks.*.", 1)


def axes(name: str) -> tuple[str, ...]:
    """The axes of a hook point or summary, in order; a Trace has no batch axis.

    >>> axes("blocks.0.attn.hook_pattern")
    ('head', 'query', 'key')
    """
    known = POINTS | SUMMARIES | GENERATION_STATE
    point = point_of(name)
    if point not in known:
        raise unknown_name(name, known)
    return known[point]


def all_points(n_layers: int) -> tuple[str, ...]:
    """Every hook point of a model, in the order of the forward pass.

    >>> points = all_points(6)
    >>> len(points), points[0], points[-1]
    (129, 'hook_embed', 'hook_logits')
    """
    return _all_points(check_whole("n_layers", n_layers, 1, MAX_LAYERS))


@lru_cache(maxsize=64)
def _all_points(n_layers: int) -> tuple[str, ...]:
    points, block = list(POINTS), [p for p in POINTS if "*" in p]
    first = points.index(block[0])
    layers = [at_layer(p, layer) for layer in range(n_layers) for p in block]
    return (*points[:first], *layers, *points[first + len(block) :])


def short_name(name: str) -> str:
    """The short form of a hook point, as in `trace["resid_post", 3]`.

    >>> [short_name(f"blocks.*.{name}") for name in ("hook_resid_post", "mlp.router.hook_out", "ln1.hook_normalized")]
    ['resid_post', 'router_logits', 'ln1_normalized']
    """
    tail = point_of(name).removeprefix("blocks.*.")
    if tail == "mlp.router.hook_out":
        return "router_logits"
    module, _, last = tail.rpartition(".")
    last = last.removeprefix("hook_")
    return f"{module}_{last}" if last == "normalized" else last


_BY_SHORT = {short_name(p): p for p in POINTS}


def full_name(name: str, layer: int | None = None) -> str:
    """The full name for a short name and a layer, as in `trace["resid_post", 3]`.

    >>> full_name("pattern", 3), full_name("logits"), full_name("router_logits", 0)
    ('blocks.3.attn.hook_pattern', 'hook_logits', 'blocks.0.mlp.router.hook_out')

    Raises HookNameError, with the nearest names, if no hook point has that name.
    """
    point = _BY_SHORT.get(check_text("name", name), name)
    if point not in POINTS and point_of(name) not in POINTS:
        raise unknown_name(name, [*_BY_SHORT, *POINTS])
    return point if layer is None else at_layer(point, layer)


def match(glob: str, n_layers: int) -> list[str]:
    """The hook points that match a name, short name or glob, in the model's order.

    >>> match("blocks.*.hook_attn_out", 2)
    ['blocks.0.hook_attn_out', 'blocks.1.hook_attn_out']

    Raises HookNameError, with the nearest names, if nothing matches, and SelectionError for a layer that the model does
    not have.
    """
    n_layers = check_whole("n_layers", n_layers, 1, MAX_LAYERS)
    matching = _matching(_BY_SHORT.get(check_text("a hook point", glob), glob), n_layers)
    if not matching:
        layer = layer_of(glob)
        if layer is not None and _matching(point_of(glob), 1):
            check_layer(layer, n_layers)
        raise unknown_name(glob, [*_BY_SHORT, *all_points(n_layers)])
    return list(matching)


@lru_cache(maxsize=512)
def _matching(pattern: str, n_layers: int) -> tuple[str, ...]:
    return tuple(name for name in all_points(n_layers) if fnmatchcase(name, pattern))


def split_request(record: str | Iterable[str]) -> list[str]:
    """The presets, globs and names in `record`, as a list. Raises HookNameError for an item that is not a string.

    >>> split_request("residuals attention")
    ['residuals', 'attention']
    """
    if isinstance(record, str):
        return record.split()
    several = (
        isinstance(record, Iterable) and getattr(record, "ndim", 1) == 1 and not isinstance(record, Mapping | bytes)
    )
    items: list[Any] = list(record) if several else [record]
    if invalid := [item for item in items if not isinstance(item, str)]:
        raise HookNameError(
            f"record must be names of presets, hook points or globs, as in record='residuals attention', or '' for "
            f"none; got {shown(invalid[0])}"
        )
    return items


def expand(record: str | Iterable[str], n_layers: int) -> list[str]:
    """The hook points and summaries that `record` selects, without those in `ALWAYS_RECORDED`.

    >>> expand("residuals", 1)
    ['hook_embed', 'blocks.0.hook_resid_pre', 'blocks.0.hook_resid_mid', 'blocks.0.hook_resid_post']

    Raises HookNameError, with the nearest names and the presets, for a word that matches nothing, and SelectionError
    for a layer that the model does not have.
    """
    names: set[str] = set()
    for word in split_request(record):
        for glob in PRESETS.get(word, (word,)):
            if glob in SUMMARIES:
                names.add(glob)
                continue
            try:
                names.update(match(glob, n_layers))
            except HookNameError:
                known = [*PRESETS, *SUMMARIES, *_BY_SHORT, *all_points(n_layers)]
                raise unknown_name(word, known, presets=True) from None
    always = {name for p in ALWAYS_RECORDED if p in POINTS for name in match(p, n_layers)} | set(ALWAYS_RECORDED)
    names -= always
    return [name for name in [*all_points(n_layers), *SUMMARIES] if name in names]


def unknown_name(name: str, known: Iterable[str], *, presets: bool = False) -> HookNameError:
    """The error for a name that matches nothing, with the nearest names, and the presets where they are allowed."""
    near = _nearest(name, known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    allowed = f" Presets: {', '.join(PRESETS)}." if presets else ""
    return HookNameError(
        f"no hook point matches {shown(name)}.{hint}{allowed} "
        f"Names look like 'blocks.0.hook_resid_pre'; `workbench.hooks.POINTS` lists all of them."
    )


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names, in the layer of `name` if it has one, those with the nearest last part first."""
    if len(name) > MAX_COMPARED:
        return []
    layer, last = layer_of(name), _last_part(name)
    by_short: dict[str, tuple[float, float, str]] = {}
    for other in sorted(set(known)):
        if layer is None:
            candidate = point_of(other)
        elif layer_of(other) in (None, layer):
            candidate = at_layer(other, layer)
        else:
            continue
        short = short_name(candidate)
        part = max(_similarity(last, _last_part(candidate)), _similarity(last, short))
        score = (part, _similarity(name, candidate), candidate)
        if part >= 0.6:
            by_short[short] = max(score, by_short.get(short, score))
    return [candidate for *_, candidate in sorted(by_short.values(), reverse=True)[:3]]


def _last_part(name: str) -> str:
    return name.rpartition(".")[2].removeprefix("hook_")


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def __dir__() -> list[str]:  # for completion
    return __all__
