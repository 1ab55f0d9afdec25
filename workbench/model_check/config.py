"""Compares the config that workbench read with transformers' reading of the same files, number by number.

Some wrong numbers change nothing on a short text: a window that is longer than it, a limit that no activation reaches,
an epsilon beside large values. So they are compared themselves.
"""

import math
from typing import TYPE_CHECKING, Any

from workbench.model.config import Config
from workbench.model_check.line import Line, compared
from workbench.text import brief

if TYPE_CHECKING:
    from transformers import GptOssConfig

FIELDS = {  # field of Config -> transformers' name
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "n_experts": "num_local_experts",
    "n_active": "num_experts_per_tok",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "eps": "rms_norm_eps",
    "swiglu_limit": "swiglu_limit",
    "swiglu_alpha": "swiglu_alpha",
}
ROPE = {
    "rope_theta": "rope_theta",
    "rope_factor": "factor",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
    "rope_original": "original_max_position_embeddings",
    "rope_truncate": "truncate",
}
SINGLE = 1e-6  # relative: a .gguf stores numbers in float32


def check_config(c: Config, config: "GptOssConfig") -> list[Line]:
    """One line for each number of the config; transformers without a setting of its own has nothing to compare."""
    pairs = [
        (name, getattr(c, field), getattr(config, name)) for field, name in FIELDS.items() if hasattr(config, name)
    ]
    rope: dict[str, Any] = config.rope_parameters or {}
    yarn = rope.get("rope_type") == "yarn"
    pairs += [
        (name, getattr(c, field), rope[name])
        for field, name in ROPE.items()
        if name in rope and (yarn or field == "rope_theta")
    ]
    kinds = list(config.layer_types or [])
    pairs.append(("layer_types", list(c.layer_types), kinds))
    if "sliding_attention" in kinds:
        pairs.append(("sliding_window", c.window, config.sliding_window))
    return [_line(name, read, reference) for name, read, reference in pairs]


def _line(name: str, read: Any, reference: Any) -> Line:
    if isinstance(read, list):
        same = read == reference
    else:
        same = reference is not None and math.isclose(read, reference, rel_tol=SINGLE)
    note = "" if same else f"workbench reads {brief(read)}, transformers {brief(reference)}"
    return compared("layers", None, f"config ({name})", 0.0 if same else math.inf, 0.0, note=note)
