"""The hook point of an SAE from the name that another library has for it."""

import re

from workbench import hooks
from workbench.checks import check_text
from workbench.errors import HookNameError

MAX_NAME, MAX_LAYERS = 200, 1000

_FOREIGN_NAMES = (  # other libraries' names of sites with d_model values per position; {0} is the layer
    (r"(?:model\.)?layers\.(\d+)", "blocks.{0}.hook_resid_post"),
    (r"(?:model\.)?layers\.(\d+)\.self_attn", "blocks.{0}.hook_attn_out"),
    (r"(?:model\.)?layers\.(\d+)\.mlp", "blocks.{0}.hook_mlp_out"),
    (r"(?:model\.)?layers\.(\d+)\.input_layernorm", "blocks.{0}.ln1.hook_normalized"),
    (r"(?:model\.)?layers\.(\d+)\.post_attention_layernorm", "blocks.{0}.ln2.hook_normalized"),
    (r"resid_post_layer_(\d+)(?:[_/]trainer_\d+)?", "blocks.{0}.hook_resid_post"),  # andyrdt, dictionary_learning
    (r"(\d+)-resid-post-\w+", "blocks.{0}.hook_resid_post"),  # Neuronpedia
)


def site_of(name: str) -> str:
    """The hook point for a site name of another library.

    Accepted are TransformerLens hook names, transformers module names, Neuronpedia sources, and folders of published
    SAEs.

    >>> site_of("model.layers.3"), site_of("resid_post_layer_7_trainer_0"), site_of("11-resid-post-aa")
    ('blocks.3.hook_resid_post', 'blocks.7.hook_resid_post', 'blocks.11.hook_resid_post')

    Raises HookNameError for an unknown name, and for a site without d_model values per position.
    """
    name = check_text("site", name)
    if len(name) > MAX_NAME:
        raise HookNameError(f"a site has a name of at most {MAX_NAME} characters, got {len(name)}: {name[:40]!r}…")
    for pattern, hook_point in _FOREIGN_NAMES:
        if match := re.fullmatch(pattern, name, re.ASCII):
            return site_of(hook_point.format(int(match[1])))
    if hooks.axes(name) != ("pos", "d_model") or "*" in name:
        raise HookNameError(
            f"site {name!r} has the axes {' '.join(hooks.axes(name))}; an SAE needs d_model values per position of one "
            f"layer, as at 'blocks.3.hook_resid_post'"
        )
    if (hooks.layer_of(name) or 0) >= MAX_LAYERS:
        raise HookNameError(f"site {name!r} is of a layer that no model has; layers are 0 to {MAX_LAYERS - 1}.")
    return name
