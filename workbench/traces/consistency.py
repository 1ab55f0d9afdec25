"""Checks that the parts of a manifest agree: the config, the tokens, the messages, and the table of arrays.

A hash proves that the bytes of a trace are those that were written. It does not prove that they fit together, and a
stranger's trace may have a valid hash around an array with ten positions for fifty tokens. These checks run whenever a
Manifest is made, so that an analysis may rely on them. `recorded_values.py` checks the numbers inside the arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from workbench import hooks
from workbench.errors import ArgumentError
from workbench.text import shown, visible
from workbench.traces.spans import Span

INTEGERS = ("I32", "I64")
FLOATS = ("F16", "BF16", "F32", "F64")
IDS = ("blocks.*.mlp.hook_expert_indices", "top_ids", "lens_ids")  # what holds whole numbers; all else holds floats
SIZES = {  # axis -> the key of the config that has its size
    "layer": "n_layers",
    "d_model": "d_model",
    "head": "n_heads",
    "kv_head": "n_kv_heads",
    "d_head": "d_head",
    "expert": "n_experts",
    "choice": "n_active",
    "d_vocab": "d_vocab",
}
# The numbers of a config that an analysis or a view reads, with the smallest and largest value allowed. Some analyses
# make arrays (layer expert expert), so the limits keep what a config of few bytes can ask for far below a gigabyte.
RANGES = {
    "n_layers": (1, 10_000),
    "d_model": (1, 1 << 24),
    "n_heads": (0, 4096),  # a cache of another library may have none
    "n_kv_heads": (0, 4096),
    "d_head": (1, 1 << 20),
    "n_experts": (0, 4096),
    "n_active": (0, 4096),
    "d_vocab": (1, 1 << 31),
    "window": (0, 1 << 31),  # 0: a model of another library without a limit
}
MAX_EXPERTS_IN_ALL = 1 << 17  # layers times experts
KINDS: dict[str, type] = {"sinks": bool, "shared_experts": bool, "router": str, "architecture": str}
SLIDING = "sliding_attention"
WEIGHTS = "mlp.hook_expert_weights"
ATTENTION = ("blocks.*.attn.hook_pattern", "blocks.*.attn.hook_rot_q")  # which need the kinds of the layers
# Layers of other architectures may differ in these, and queries from values (multi-head latent attention).
DIFFERS_ELSEWHERE = ("kv_head", "d_head")
_AXES = hooks.POINTS | hooks.SUMMARIES | hooks.GENERATION_STATE


class Described(Protocol):
    """What the checks read of a TensorInfo."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def axes(self) -> tuple[str, ...]: ...


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ArgumentError for numbers of a model's config that are out of range or contradict each other."""
    if "n_layers" not in config:
        raise ArgumentError("the config lacks n_layers")
    for key, (low, high) in RANGES.items():
        if key in config and not (type(config[key]) is int and low <= config[key] <= high):
            raise ArgumentError(
                f"{key} of the config must be a whole number from {low:,} to {high:,}, got {shown(config[key])}"
            )
    for key, kind in KINDS.items():
        if key in config and type(config[key]) is not kind:
            raise ArgumentError(f"{key} of the config must be of type {kind.__name__}, got {shown(config[key])}")
    layers, experts = config["n_layers"], config.get("n_experts", 0)
    if layers * experts > MAX_EXPERTS_IN_ALL:
        raise ArgumentError(f"the config has {layers} layers of {experts} experts; the limit is {MAX_EXPERTS_IN_ALL:,}")
    if "n_experts" in config and config.get("n_active", 0) > experts:
        raise ArgumentError(f"n_active of the config is {config['n_active']}, but there are {experts} experts")
    if config.get("n_kv_heads"):
        _check_shared_keys(config.get("n_heads", 0), config["n_kv_heads"], "of the config")
    _check_layer_types(config)


def _check_layer_types(config: Mapping[str, Any]) -> None:
    if "layer_types" not in config:
        return
    kinds, layers = config["layer_types"], config["n_layers"]
    if not (isinstance(kinds, list) and len(kinds) == layers and all(type(kind) is str for kind in kinds)):
        raise ArgumentError(
            f"layer_types of the config must be a list of {layers} texts, one a layer, got {shown(kinds)}"
        )
    if "architecture" not in config and (unknown := sorted({*kinds} - {SLIDING, "full_attention"})):
        raise ArgumentError(f"layer_types of the config has {visible(unknown[0])!r}; gpt-oss has {SLIDING} and full")
    if SLIDING in kinds and not config.get("window"):
        raise ArgumentError("the config has sliding layers, but no window")


def _check_shared_keys(heads: int, kv_heads: int, where: str) -> None:
    if kv_heads < 1 or heads % kv_heads:
        raise ArgumentError(f"the {heads} query heads {where} cannot share {kv_heads} key heads equally")


def check_spans(spans: Sequence[Span]) -> None:
    """Raises ArgumentError unless every message has tokens of its own, and they are in order."""
    end = 0
    for span in spans:
        if not (end <= span.start < span.stop):
            raise ArgumentError(
                f"the messages must be in order and have tokens of their own, but one has the positions "
                f"{span.start}:{span.stop} after one that ends at {end}"
            )
        end = span.stop


def check_tokens(tokens: Sequence[int], config: Mapping[str, Any]) -> None:
    """Raises ArgumentError for a token that the model does not have."""
    # the inputs of another architecture may be other ids than its outputs, whose number the config has
    if tokens and "d_vocab" in config and "architecture" not in config and max(tokens) >= config["d_vocab"]:
        raise ArgumentError(f"the token id {max(tokens)} is not below {config['d_vocab']}, d_vocab of the config")


def check_tensors(
    tensors: Mapping[str, Described], n_tokens: int, config: Mapping[str, Any], edits: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Raises ArgumentError for an array whose axes, dtype or sizes are not those of its name, the text and the config.

    Arrays with names that are neither a hook point nor a summary may have any dtype and axes; the sizes of known axes
    must still agree.
    """
    n_layers, foreign = config["n_layers"], "architecture" in config
    # an edit of the weights may let more experts run for a token than the model's own number
    more_run = any(point.endswith(WEIGHTS) for edit in edits for point in edit.get("points", ()))
    sizes = {axis: (config[key], f"{key} of the config") for axis, key in SIZES.items() if key in config}
    sizes |= dict.fromkeys(("pos", "query"), (n_tokens, "the number of tokens"))
    sizes["key"] = sizes["pos"]
    for name, info in tensors.items():
        point, layer = hooks.point_of(name), hooks.layer_of(name)
        axes = _AXES.get(point)
        if axes is not None:
            _check_kind(name, point, info, axes)
            if layer is not None and layer >= n_layers:
                raise ArgumentError(f"{name!r} is of a layer that the model does not have: it has {n_layers} layers")
            if point in ATTENTION and "layer_types" not in config:
                raise ArgumentError(f"{name!r} needs layer_types in the config, and it is missing")
        for axis, size in zip(info.axes, info.shape, strict=True):
            group = _group(axis, name, point, layer, foreign)
            if more_run and group == "choice" and point.endswith("hook_expert_out"):
                group = f"choice of {name}"
            expected, reason = sizes.setdefault(group, (size, f"as in {name!r}"))
            if size != expected and not (point in hooks.GENERATION_STATE and axis == "key" and size <= n_tokens):
                raise ArgumentError(f"{name!r} has the size {size} along {axis!r}, not {expected} ({reason})")
    _check_related(sizes, tensors, n_layers)


def _check_kind(name: str, point: str, info: Described, axes: tuple[str, ...]) -> None:
    if info.axes != axes:
        raise ArgumentError(f"{name!r} has the axes ({' '.join(info.axes)}), not ({' '.join(axes)})")
    allowed = INTEGERS if point in IDS else FLOATS
    if info.dtype not in allowed:
        raise ArgumentError(f"{name!r} has the dtype {info.dtype}; allowed are {', '.join(allowed)}")


def _group(axis: str, name: str, point: str, layer: int | None, foreign: bool) -> str:
    """The name under which sizes must agree: the axis, or a part of the arrays that have it."""
    if axis == "key_step":
        return "step"
    if axis == "rank":
        return f"rank of {name.split('_')[0]}"  # the top predictions and those of the lens have their own
    if foreign and axis in DIFFERS_ELSEWHERE:
        # queries and keys after RoPE are multiplied, so they must agree; others are read by themselves
        rotated = point.endswith(("hook_rot_q", "hook_rot_k"))
        return f"{axis} of {f'the rotated queries and keys of layer {layer}' if rotated else name}"
    return axis


def _check_related(sizes: Mapping[str, tuple[int, str]], tensors: Mapping[str, Described], n_layers: int) -> None:
    """The sizes of different axes that limit each other."""

    def at_most(small: str, large: str) -> None:
        if small in sizes and large in sizes and sizes[small][0] > sizes[large][0]:
            raise ArgumentError(
                f"the size {sizes[small][0]} of {small} is larger than that of {large}, {sizes[large][0]}"
            )

    at_most("choice", "expert")
    at_most("rank of top", "d_vocab")
    at_most("rank of lens", "rank of top")
    if sizes.get("expert", (0,))[0] * n_layers > MAX_EXPERTS_IN_ALL:
        raise ArgumentError(f"{n_layers} layers of {sizes['expert'][0]} experts are over {MAX_EXPERTS_IN_ALL:,} in all")
    for layer in range(n_layers):
        q, k = (tensors.get(f"blocks.{layer}.attn.hook_rot_{x}") for x in "qk")
        if q is not None and k is not None:
            _check_shared_keys(q.shape[1], k.shape[1], f"of layer {layer}")


def axis_size(tensors: Mapping[str, Described], config: Mapping[str, Any], axis: str) -> int | None:
    """The size of an axis such as "expert" in this trace; None if nothing tells it."""
    if SIZES[axis] in config:
        return config[SIZES[axis]]
    sizes = (info.shape[info.axes.index(axis)] for info in tensors.values() if axis in info.axes)
    return next(sizes, None)
