"""From the key of an array, such as ("resid_post", 3), to the full names of what was recorded; and all such keys."""

from collections.abc import Iterable

from workbench import hooks
from workbench.checks import check_layer, resolve_layer
from workbench.errors import HookNameError, NotRecorded
from workbench.text import shown, visible
from workbench.traces.manifest import Manifest

Key = str | tuple[str, int]


def keys(names: Iterable[str], n_layers: int) -> list[Key]:
    """The keys for completion: each short name that gives an array, then each pair of short name and layer that does.

    A hook point that was not recorded in every layer has only pairs.

    >>> keys(["entropy", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"], 2)
    ['entropy', 'resid_post', ('resid_post', 0), ('resid_post', 1), ('z', 1)]
    """
    layers: dict[str, list[int]] = {}
    for name in names:
        layer = hooks.layer_of(name)
        layers.setdefault(hooks.short_name(name), []).extend([] if layer is None else [layer])
    whole = [name for name, of_name in layers.items() if len(of_name) in (0, n_layers)]
    return [*whole, *((name, layer) for name, of_name in layers.items() for layer in of_name)]


def ordered_names(manifest: Manifest) -> list[str]:
    """The full names of all arrays, in the order of the forward pass, then the summaries."""
    order = {name: place for place, name in enumerate(hooks.all_points(manifest.model["config"]["n_layers"]))}
    return sorted(manifest.tensors, key=lambda name: (order.get(name, len(order)), name))


def contents(manifest: Manifest) -> str:
    """The short names of all arrays, as text for an error."""
    return visible(", ".join(dict.fromkeys(map(hooks.short_name, ordered_names(manifest))))) or "nothing"


def find(manifest: Manifest, key: object) -> tuple[list[str], int | None, bool]:
    """The full names for a key, the index on a summary's layer axis, and whether to stack the layers.

    Raises what `trace[key]` raises.
    """
    n_layers = manifest.model["config"]["n_layers"]
    name, layer = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
    if not isinstance(name, str):
        raise HookNameError(f"{shown(key)} is not a name. Use trace['resid_post', 3] or trace['logprob'].")
    if layer is not None:
        layer = resolve_layer(layer, n_layers)
    tensors = manifest.tensors
    if name in tensors or name in hooks.SUMMARIES:
        return [name], _layer_axis(manifest, name, layer), False
    try:
        point = hooks.full_name(name)
    except HookNameError:
        known = [*hooks.SUMMARIES, *hooks.POINTS, *map(hooks.short_name, hooks.POINTS), *tensors]
        raise HookNameError(f"{hooks.unknown_name(name, known)} This trace contains: {contents(manifest)}.") from None
    named_layer = hooks.layer_of(point)
    if named_layer is not None:
        check_layer(named_layer, n_layers)
    if "*" not in point:
        if layer is not None and layer != named_layer:
            raise HookNameError(f"{point!r} is one array without a layer axis; use trace[{point!r}]")
        if point not in tensors:
            raise _not_recorded(manifest, point, hooks.short_name(point))
        return [point], None, False
    if layer is not None:
        if hooks.at_layer(point, layer) not in tensors:
            raise _not_recorded(manifest, hooks.at_layer(point, layer), hooks.short_name(point))
        return [hooks.at_layer(point, layer)], None, False
    layers = layers_of(manifest, point)
    if len(layers) < n_layers:
        raise NotRecorded(
            f"{name!r} was recorded only in the layers {', '.join(map(str, layers))}, not in all {n_layers}. "
            f"Select one of them: trace[{name!r}, {layers[0]}]."
        )
    return [hooks.at_layer(point, number) for number in layers], None, True


def layers_of(manifest: Manifest, point: str) -> list[int]:
    """The layers in which a hook point was recorded. Raises NotRecorded if there are none."""
    n_layers = manifest.model["config"]["n_layers"]
    layers = [layer for layer in range(n_layers) if hooks.at_layer(point, layer) in manifest.tensors]
    if not layers:
        raise _not_recorded(manifest, hooks.short_name(point), hooks.short_name(point))
    return layers


def _layer_axis(manifest: Manifest, name: str, layer: int | None) -> int | None:
    """The index on the layer axis of the array stored under exactly this name; None for the whole array."""
    tensors = manifest.tensors
    if name not in tensors:
        raise _not_recorded(manifest, name, name)
    if layer is None:
        return None
    if "layer" in tensors[name].axes[:1] and layer < tensors[name].shape[0]:
        return layer
    if layer != hooks.layer_of(name):
        raise HookNameError(f"{name!r} is one array without a layer axis; use trace[{name!r}]")
    return None


def _not_recorded(manifest: Manifest, name: str, record: str) -> NotRecorded:
    point = record if record in hooks.SUMMARIES else hooks.full_name(record)
    record = next((preset for preset, points in hooks.PRESETS.items() if record in points), record)
    layers = [str(hooks.layer_of(n)) for n in ordered_names(manifest) if "*" in point and hooks.point_of(n) == point]
    recorded = f" {record!r} was recorded in the layers {', '.join(layers)}." if layers else ""
    return NotRecorded(
        f"{name!r} was not recorded in this trace.{recorded} It contains: {contents(manifest)}. "
        f"Run again with record={record!r}."
    )
