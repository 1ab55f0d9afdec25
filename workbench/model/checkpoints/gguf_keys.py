"""The settings in a .gguf's metadata: which are used, which must have gpt-oss's value, and which change nothing.

llama.cpp shares its settings between all architectures. A file may therefore contain a setting that changes what the
model computes and that this loader does not support. Such a setting is refused, and the error names it.
"""

import math
from collections.abc import Mapping
from typing import Any

from workbench.errors import CheckpointError
from workbench.model.checkpoints.validate import listed
from workbench.model.config import Config
from workbench.text import brief

ARCH = "gpt-oss."
CONVERT = "Convert the model again with llama.cpp's convert_hf_to_gguf.py."
INSTEAD = "Use a file made by llama.cpp's converter, such as ggml-org/gpt-oss-20b-GGUF, or the safetensors."
# settings that become fields of Config
USED = {
    "context_length", "embedding_length", "block_count", "expert_feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window",
    "attention.sliding_window_pattern", "expert_count", "expert_used_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "swiglu_clamp_exp",
}  # fmt: skip
# settings of features that gpt-oss does not have: dense MLPs, embeddings of whole texts, expert weights that do not
# sum to 1 (a softmax over the chosen experts does)
HARMLESS = {"feed_forward_length", "rope.scaling.finetuned", "pooling_type", "expert_weights_norm"}
SOFTMAX_OVER_CHOSEN = 3  # LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX_WEIGHT


def required(c: Config) -> dict[str, tuple[Any, ...]]:
    """Setting -> the values that gpt-oss has. Any other value would change what the model computes."""
    none, one = (0,), (1,)
    return {
        "vocab_size": (c.d_vocab,),
        "embedding_length_out": (c.d_model,),
        "attention.value_length": (c.d_head,),
        "attention.key_length_swa": (c.d_head,),
        "attention.value_length_swa": (c.d_head,),
        "attention.scale": (c.d_head**-0.5,),
        "attention.causal": one,
        "attention.output_scale": one,
        "rope.dimension_count": (c.d_head,),
        "rope.dimension_count_swa": (c.d_head,),
        "rope.freq_base_swa": (c.rope_theta,),
        "rope.scaling.attn_factor": one,
        "rope.scaling.yarn_attn_factor": one,
        "rope.scaling.yarn_ext_factor": one,
        "rope.scaling.yarn_log_multiplier": none,
        "logit_scale": one,
        "embedding_scale": one,
        "residual_scale": one,
        "expert_weights_scale": one,
        "expert_gating_func": (SOFTMAX_OVER_CHOSEN,),
        "expert_group_count": (0, 1),
        "expert_group_used_count": (0, 1),
        "interleave_moe_layer_step": one,
        "moe_every_n_layers": (0, 1),
    } | dict.fromkeys(
        (
            "attention.clamp_kqv", "attention.max_alibi_bias", "attention.shared_kv_layers", "attn_logit_softcapping",
            "router_logit_softcapping", "final_logit_softcapping", "expert_shared_count",
            "expert_shared_feed_forward_length", "leading_dense_block_count", "nextn_predict_layers",
            "use_parallel_residual",
        ),
        none,
    )  # fmt: skip


def check_keys(meta: Mapping[str, Any], config: Config, where: str) -> None:
    """Raises CheckpointError for a setting in `meta` that changes, or may change, what the model computes.

    llama.cpp reads the settings that begin with the file's architecture; all others ("general.name") describe the file.
    """
    if (kind := meta.get("general.type", "model")) != "model":
        raise CheckpointError(
            f"{where}: general.type must be 'model', got {brief(repr(kind))}. "
            f"Give the file that contains the model itself."
        )
    allowed = required(config)
    unknown = []
    for key, value in meta.items():
        name = key.removeprefix(ARCH)
        if name == key or name in USED | HARMLESS:
            continue
        if name not in allowed:
            unknown.append(key)
        elif not any(_same(value, neutral) for neutral in allowed[name]):
            values = " or ".join(f"{neutral:g}" for neutral in allowed[name])
            raise CheckpointError(
                f"{where}: {key} is {brief(repr(value))}, which would change what the model computes; it must be "
                f"{values}. {INSTEAD}"
            )
    if unknown:
        what = listed(sorted(unknown), "setting that is not gpt-oss's", "settings that are not gpt-oss's")
        raise CheckpointError(f"{where} has {what}. It may change what the model computes. {INSTEAD}")


def layer_types(meta: Mapping[str, Any], n_layers: int, where: str) -> tuple[str, ...]:
    """ "sliding_attention" or "full_attention" for each layer.

    `sliding_window_pattern` is a list with one value for each layer, or a period: n means n - 1 sliding layers, then
    one with full attention. Without it the layers alternate, as in gpt-oss.
    """
    pattern = meta.get(ARCH + "attention.sliding_window_pattern", 2)
    if isinstance(pattern, list) and len(pattern) == n_layers and all(value in (0, 1) for value in pattern):
        slides = [bool(value) for value in pattern]
    elif type(pattern) is int and pattern >= 1:
        slides = [layer % pattern < pattern - 1 for layer in range(n_layers)]
    else:
        raise CheckpointError(
            f"{where}: {ARCH}attention.sliding_window_pattern must be a period, or a list with one value for each of "
            f"the {n_layers} layers; got {brief(repr(pattern))}. {CONVERT}"
        )
    return tuple("sliding_attention" if sliding else "full_attention" for sliding in slides)


def swiglu_limit(meta: Mapping[str, Any], default: float, where: str) -> float:
    """The clamping limit of SwiGLU: one number for all layers."""
    value = meta.get(ARCH + "swiglu_clamp_exp", default)
    limits = set(value) if isinstance(value, list) else {value}
    if len(limits) != 1 or not all(isinstance(limit, int | float) and 0 < limit < math.inf for limit in limits):
        raise CheckpointError(
            f"{where}: {ARCH}swiglu_clamp_exp must be one positive number for all layers, got "
            f"{brief(repr(value))}. {INSTEAD}"
        )
    return float(limits.pop())


def _same(value: Any, neutral: float) -> bool:
    """Whether two numbers are equal in float32, the precision of GGUF."""
    return isinstance(value, int | float) and math.isclose(value, neutral, rel_tol=1e-6)
