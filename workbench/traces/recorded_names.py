"""The keys of a trace's arrays, for completion: `trace["<Tab>` and `trace["pattern", <Tab>`."""

from collections.abc import Iterable

from workbench import hooks

Key = str | tuple[str, int]


def keys(names: Iterable[str], n_layers: int) -> list[Key]:
    """Each short name that gives an array, then each pair of a short name and a layer that does.

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
