"""Converts between a Config and config.json of a Hugging Face gpt-oss (or transformers' config object)."""

import math
from collections.abc import Mapping
from typing import Any

from workbench.errors import CheckpointError
from workbench.model.checkpoints.validate import RANGES, check_config
from workbench.model.config import Config
from workbench.text import brief

DEFAULT = Config()
UNPACKED = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
ROPE_KEYS = {"rope_type", "type", "factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate"}
ROPE_KEYS |= {"rope_theta", "attention_factor", "partial_rotary_factor"}
MAX_NUMBER = 1e30
MAX_INTEGER = (1 << 31) - 1  # each field has a narrower range of its own: validate.RANGES
# Field of Config -> its key, and another that some releases use
KEYS = {
    "d_model": ("hidden_size",),
    "n_heads": ("num_attention_heads",),
    "n_kv_heads": ("num_key_value_heads",),
    "d_head": ("head_dim",),
    "n_experts": ("num_local_experts", "num_experts"),
    "n_active": ("num_experts_per_tok", "experts_per_token"),
    "d_mlp": ("intermediate_size",),
    "d_vocab": ("vocab_size",),
}
OTHER_KEYS = {
    "n_layers": "num_hidden_layers",
    "n_ctx": "max_position_embeddings",
    "window": "sliding_window",
    "eps": "rms_norm_eps",
    "rope_factor": "factor",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
    "rope_original": "original_max_position_embeddings",
}
COPY = "Copy config.json again from where the weights came from."


def parse_hf_config(raw: Mapping[str, Any], where: str) -> Config:
    """The Config that `raw` describes. Raises CheckpointError if it is not gpt-oss's or lacks a value.

    A key may be absent or null only if every version of transformers fills in the value of the published models.

    >>> parse_hf_config({"model_type": "llama"}, "config.json")
    Traceback (most recent call last):
    workbench.errors.CheckpointError: config.json: model_type is 'llama'; workbench reads 'gpt_oss'.
    """
    if raw.get("model_type") != "gpt_oss":
        raise CheckpointError(
            f"{where}: model_type is {brief(repr(raw.get('model_type')))}; workbench reads 'gpt_oss'."
        )
    constants = {"tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu", "partial_rotary_factor": 1}
    for key, expected in constants.items():
        if raw.get(key) not in (None, expected):
            raise CheckpointError(f"{where}: {key} must be {expected!r}, as in gpt-oss, got {brief(repr(raw[key]))}.")
    n_layers = layer_count(raw, where, "num_hidden_layers")
    n_ctx = integer(raw, where, "max_position_embeddings")
    kinds = raw.get("layer_types") or [DEFAULT.layer_types[i % 2] for i in range(n_layers)]
    if not isinstance(kinds, list):
        raise CheckpointError(f"{where}: layer_types must be a list, got {brief(kinds)}.")
    slides = "sliding_attention" in kinds
    sizes: dict[str, Any] = {field: integer(raw, where, *keys) for field, keys in KEYS.items()}
    config = Config(
        n_layers=n_layers,
        **sizes,
        n_ctx=n_ctx,
        window=integer(raw, where, "sliding_window") if slides else n_ctx,
        layer_types=tuple(map(str, kinds)),
        eps=number(raw, where, "rms_norm_eps", default=DEFAULT.eps),
        swiglu_limit=number(raw, where, "swiglu_limit", default=DEFAULT.swiglu_limit),
        swiglu_alpha=number(raw, where, "swiglu_alpha", default=DEFAULT.swiglu_alpha),
        **_rope(raw, where),
    )
    return check_config(config, where, {field: keys[0] for field, keys in KEYS.items()} | OTHER_KEYS)


def hf_config_json(c: Config, *, packed: bool) -> dict[str, Any]:
    """The content of config.json for a Config, as in the published releases; `parse_hf_config` reads it back.

    `packed`: whether the experts are stored in MXFP4.
    """
    raw = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "head_dim": c.d_head,
        "hidden_act": "silu",
        "hidden_size": c.d_model,
        "initializer_range": 0.02,
        "intermediate_size": c.d_mlp,
        "layer_types": list(c.layer_types),
        "max_position_embeddings": c.n_ctx,
        "model_type": "gpt_oss",
        "num_attention_heads": c.n_heads,
        "num_experts_per_tok": c.n_active,
        "num_hidden_layers": c.n_layers,
        "num_key_value_heads": c.n_kv_heads,
        "num_local_experts": c.n_experts,
        "output_router_logits": False,
        "rms_norm_eps": c.eps,
        "rope_scaling": {
            "beta_fast": c.rope_beta_fast,
            "beta_slow": c.rope_beta_slow,
            "factor": c.rope_factor,
            "original_max_position_embeddings": c.rope_original,
            "rope_type": "yarn",
            "truncate": c.rope_truncate,
        },
        "rope_theta": int(c.rope_theta) if c.rope_theta.is_integer() else c.rope_theta,
        "router_aux_loss_coef": 0.9,
        "sliding_window": c.window,
        "swiglu_limit": c.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": c.d_vocab,
    }
    if packed:
        raw["quantization_config"] = {"modules_to_not_convert": list(UNPACKED), "quant_method": "mxfp4"}
    return raw


def integer(
    raw: Mapping[str, Any],
    where: str,
    *keys: str,
    advice: str = COPY,
    low: int = -MAX_INTEGER,
    high: int = MAX_INTEGER,
) -> int:
    """The integer under the first of `keys` that is present and not null.

    Args:
        raw: the settings.
        where: the file, for the message.
        keys: names of the setting.
        advice: what to do about a wrong value.
        low: the smallest value that is allowed.
        high: the largest value that is allowed.

    Raises:
        CheckpointError: there is none, or it is not allowed.
    """
    for key in keys:
        if (value := raw.get(key)) is not None:
            if type(value) is not int:
                raise CheckpointError(f"{where}: {key} must be an integer, got {brief(repr(value))}. {advice}")
            if not low <= value <= high:
                limit = f"at most {high:,}" if value > high else f"at least {low:,}"
                got = f"{value:,}" if abs(value) < 10**20 else brief(value)
                raise CheckpointError(f"{where}: {key} must be {limit}, got {got}. {advice}")
            return value
    raise CheckpointError(f"{where} has no {keys[0]}. {advice}")


def layer_count(raw: Mapping[str, Any], where: str, key: str, *, advice: str = COPY) -> int:
    """The number of layers. Raises CheckpointError out of range: lists of that length would fill the memory."""
    low, high = map(int, RANGES["n_layers"])
    return integer(raw, where, key, advice=advice, low=low, high=high)


def number(raw: Mapping[str, Any], where: str, key: str, *, default: float | None = None, advice: str = COPY) -> float:
    """The finite number under `key`, or `default` if it is absent or null. Raises CheckpointError without either."""
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise CheckpointError(f"{where} has no {key}. {advice}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{where}: {key} must be a number, got {brief(repr(value))}. {advice}")
    if not abs(value) <= MAX_NUMBER:  # also refuses NaN
        raise CheckpointError(f"{where}: {key} must be a finite number, got {brief(value)}. {advice}")
    return float(value)


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `rope_…` fields of Config, from `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5)."""
    theta = number(raw, where, "rope_theta", default=DEFAULT.rope_theta) if raw.get("rope_theta") is not None else None
    present = {key: raw[key] for key in ("rope_parameters", "rope_scaling") if key in raw}
    if not present:  # every version of transformers fills in the published values
        return {} if theta is None else {"rope_theta": theta}
    key, rope = next(((k, v) for k, v in present.items() if v is not None), ("rope_scaling", None))
    wrong = ((k, v) for k, v in present.items() if v is not None and not isinstance(v, dict))
    name, value = next(wrong, (key, rope))
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where}: {name} is {brief(repr(value))}, which transformers 4 reads as plain RoPE and transformers 5 as "
            f"YaRN. Replace it by an object with the rope_type that the model was trained with."
        )
    if len(present) == 2 and None not in present.values() and _differ(*present.values()):
        raise CheckpointError(f"{where}: rope_parameters and rope_scaling contradict each other. Remove one of them.")
    where = f"{where}: {key}"
    rope = {key: value for key, value in (rope or {}).items() if value is not None}
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in ("yarn", "default"):
        raise CheckpointError(
            f"{where}: rope_type must be 'yarn' (gpt-oss) or 'default' (no YaRN), got {brief(repr(kind))}."
        )
    if unknown := sorted(rope.keys() - ROPE_KEYS):
        raise CheckpointError(
            f"{where}: {brief(unknown[0])!r} would change RoPE, and the forward pass here does not support it."
        )
    if (part := rope.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise CheckpointError(
            f"{where}: partial_rotary_factor is {brief(repr(part))}; gpt-oss rotates all dimensions (1)."
        )
    fields = {"rope_theta": number(rope, where, "rope_theta", default=DEFAULT.rope_theta if theta is None else theta)}
    if kind == "default":
        return fields | {"rope_factor": 1.0}
    if type(rope.get("truncate")) is not bool:
        raise CheckpointError(
            f"{where} has no 'truncate'. The published gpt-oss models have false. transformers assumes true if the key "
            f'is absent, which changes the frequencies in the middle. Add "truncate": false if this model descends '
            f'from the published ones, or "truncate": true if it was trained by transformers with exactly '
            f"this config.json."
        )
    if "original_max_position_embeddings" not in rope:
        n_ctx = integer(raw, where, "max_position_embeddings")
        raise CheckpointError(
            f"{where} has no original_max_position_embeddings (the context length before YaRN). The published "
            f"gpt-oss models have {DEFAULT.rope_original}. transformers assumes max_position_embeddings ({n_ctx}) if "
            f"it is absent, which changes the frequencies. Add "
            f'"original_max_position_embeddings": {DEFAULT.rope_original} if '
            f"this model descends from the published ones, or {n_ctx} if it was trained by transformers with "
            f"exactly this config.json."
        )
    factor = number(rope, where, "factor")
    low, high = RANGES["rope_factor"]
    if not low <= factor <= high:
        raise CheckpointError(f"{where}: factor (rope_factor) must be between {low} and {high:,}, got {factor}.")
    attention = 0.1 * math.log(factor) + 1
    if not math.isclose(number(rope, where, "attention_factor", default=attention), attention, rel_tol=1e-6):
        raise CheckpointError(
            f"{where}: attention_factor must be YaRN's own value, {attention}; got {brief(rope['attention_factor'])}."
        )
    return fields | {
        "rope_factor": factor,
        "rope_beta_fast": number(rope, where, "beta_fast", default=DEFAULT.rope_beta_fast),
        "rope_beta_slow": number(rope, where, "beta_slow", default=DEFAULT.rope_beta_slow),
        "rope_original": integer(rope, where, "original_max_position_embeddings"),
        "rope_truncate": rope["truncate"],
    }


def _differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two RoPE configs have different values under a shared key; null counts as absent."""
    return any(a[k] != b[k] for k in a.keys() & b.keys() if k != "type" and None not in (a[k], b[k]))
