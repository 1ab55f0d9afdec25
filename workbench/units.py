"""The label and the units of each hook point and summary, for arrays, views and figures. "1" is a number without units.

Activations have no units of their own: "activation" says that the numbers are those of the model's stream.
"""

from typing import TYPE_CHECKING

from workbench import hooks

if TYPE_CHECKING:
    import xarray as xr

_ACTIVATION, _PROBABILITY, _LOGITS, _NATS = "activation", "probability", "logits", "nats"

# Hook point or summary -> its label and its units.
LABELS: dict[str, tuple[str, str]] = {
    "hook_embed": ("embedding", _ACTIVATION),
    "blocks.*.hook_resid_pre": ("residual stream before the layer", _ACTIVATION),
    "blocks.*.ln1.hook_normalized": ("normalized input of attention", _ACTIVATION),
    "blocks.*.attn.hook_q": ("query before RoPE", _ACTIVATION),
    "blocks.*.attn.hook_k": ("key before RoPE", _ACTIVATION),
    "blocks.*.attn.hook_v": ("value", _ACTIVATION),
    "blocks.*.attn.hook_rot_q": ("query", _ACTIVATION),
    "blocks.*.attn.hook_rot_k": ("key", _ACTIVATION),
    "blocks.*.attn.hook_attn_scores": ("attention score", _LOGITS),
    "blocks.*.attn.hook_sink": ("mass on the sink", _PROBABILITY),
    "blocks.*.attn.hook_pattern": ("attention", _PROBABILITY),
    "blocks.*.attn.hook_z": ("values weighted by attention", _ACTIVATION),
    "blocks.*.attn.hook_result": ("output of the head", _ACTIVATION),
    "blocks.*.hook_attn_out": ("output of attention", _ACTIVATION),
    "blocks.*.hook_resid_mid": ("residual stream after attention", _ACTIVATION),
    "blocks.*.ln2.hook_normalized": ("normalized input of the experts", _ACTIVATION),
    "blocks.*.mlp.router.hook_out": ("router logit", _LOGITS),
    "blocks.*.mlp.hook_expert_indices": ("chosen expert", "expert"),
    "blocks.*.mlp.hook_expert_weights": ("weight of the expert", _PROBABILITY),
    "blocks.*.mlp.hook_expert_out": ("output of the expert", _ACTIVATION),
    "blocks.*.hook_mlp_out": ("output of the experts", _ACTIVATION),
    "blocks.*.hook_resid_post": ("residual stream after the layer", _ACTIVATION),
    "ln_final.hook_normalized": ("normalized input of the unembedding", _ACTIVATION),
    "hook_logits": ("logit", _LOGITS),
    "logprob": ("log-probability of the token", _NATS),
    "entropy": ("entropy of the next token", _NATS),
    "top_ids": ("most likely next tokens", "token id"),
    "top_logprobs": ("log-probability of the most likely next tokens", _NATS),
    "margin": ("router margin", _LOGITS),
    "resid_norm": ("L2 norm of resid_post", _ACTIVATION),
    "attn_out_norm": ("L2 norm of attn_out", _ACTIVATION),
    "mlp_out_norm": ("L2 norm of mlp_out", _ACTIVATION),
    "lens_ids": ("most likely next tokens in the lens", "token id"),
    "lens_logprobs": ("log-probability in the lens", _NATS),
    "lens_entropy": ("entropy in the lens", _NATS),
    "lens_kl": ("KL(final prediction || lens)", _NATS),
    "step_attention": ("attention between steps", _PROBABILITY),
    "sinks": ("learned sink", _LOGITS),
    "blocks.*.attn.cache_k": ("kept key", _ACTIVATION),
    "blocks.*.attn.cache_v": ("kept value", _ACTIVATION),
    "next_logits": ("logit of the next token", _LOGITS),
    "next_residual": ("residual stream of the next token", _ACTIVATION),
}


def labels(name: str) -> dict[str, str]:
    """`long_name` and `units` of a hook point or summary, for the `attrs` of an array; empty for an unknown name.

    >>> labels("blocks.3.attn.hook_pattern")
    {'long_name': 'attention', 'units': 'probability'}
    """
    label = LABELS.get(hooks.point_of(name))
    return {} if label is None else {"long_name": label[0], "units": label[1]}


def with_units(dataset: "xr.Dataset", units: str = "1", **by_name: str) -> "xr.Dataset":
    """The Dataset, each of whose variables has its units and, if the Dataset has a number of observations, its `n`.

    `units` are those of all variables that `by_name` does not name. Texts have none.

    >>> import xarray as xr
    >>> measured = xr.Dataset({"share": 0.5, "distance": 3.0}, attrs={"n": 9})
    >>> with_units(measured, "probability", distance="tokens")["distance"].attrs
    {'units': 'tokens', 'n': 9}
    """
    n = dataset.attrs.get("n")
    for name, variable in dataset.variables.items():
        if name in dataset.data_vars and variable.dtype.kind not in "OUST":
            count = n.get(name) if isinstance(n, dict) else n
            variable.attrs["units"] = by_name.get(str(name), units)
            variable.attrs |= {} if count is None else {"n": count}
    return dataset
