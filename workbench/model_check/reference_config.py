"""transformers' config of a checkpoint, made from its files without workbench's own reading of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GptOssConfig

ARCHITECTURE = (  # the keys of a config.json that a layer depends on; others may hold anything
    *("num_hidden_layers", "num_local_experts", "num_experts_per_tok", "vocab_size", "hidden_size", "head_dim"),
    *("intermediate_size", "num_attention_heads", "num_key_value_heads", "sliding_window", "layer_types"),
    *("max_position_embeddings", "rms_norm_eps", "swiglu_limit", "swiglu_alpha", "attention_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
)
FLOATS = ("rms_norm_eps", "swiglu_limit", "swiglu_alpha")  # transformers refuses 7 for 7.0
KINDS = ("sliding_attention", "full_attention")


def reference_config(path: Path, layout: str) -> "GptOssConfig":
    """The GptOssConfig of the checkpoint at `path`: a folder, or a .gguf file. Attention and experts are "eager"."""
    from transformers import GptOssConfig

    config = GptOssConfig(**LAYOUTS[layout](path))
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def _hugging_face(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "config.json").read_text("utf-8"))
    aliases = {"num_local_experts": "num_experts", "num_experts_per_tok": "experts_per_token"}
    values = {new: values.get(old) for new, old in aliases.items()} | {k: v for k, v in values.items() if v is not None}
    values |= {key: float(values[key]) for key in FLOATS if type(values.get(key)) is int}
    return {key: values[key] for key in ARCHITECTURE if values.get(key) is not None}


def _original(folder: Path) -> dict[str, Any]:
    """OpenAI's names; what they leave out are constants of openai/gpt-oss (gpt_oss/torch/model.py)."""
    c = json.loads((folder / "config.json").read_text("utf-8"))
    n_layers = c["num_hidden_layers"]
    return {
        "num_hidden_layers": n_layers,
        "num_local_experts": c["num_experts"],
        "num_experts_per_tok": c["experts_per_token"],
        "vocab_size": c["vocab_size"],
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["intermediate_size"],
        "head_dim": c["head_dim"],
        "num_attention_heads": c["num_attention_heads"],
        "num_key_value_heads": c["num_key_value_heads"],
        "sliding_window": c["sliding_window"],
        "swiglu_limit": c.get("swiglu_limit", 7.0),
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "layer_types": [KINDS[layer % 2] for layer in range(n_layers)],
        "max_position_embeddings": int(c["initial_context_length"] * c["rope_scaling_factor"]),
        "rope_parameters": _yarn(
            c["rope_theta"],
            c["rope_scaling_factor"],
            c["rope_ntk_beta"],
            c["rope_ntk_alpha"],
            c["initial_context_length"],
        ),
    }


def _gguf(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    fields = GGUFReader(str(file)).fields

    def value(key: str, default: Any = None) -> Any:
        field = fields.get("gpt-oss." + key)
        return default if field is None else field.contents()

    n_layers = value("block_count")
    embedding = next(t for t in GGUFReader(str(file)).tensors if t.name == "token_embd.weight")
    factor, context = value("rope.scaling.factor"), value("rope.scaling.original_context_length")
    return {
        "num_hidden_layers": n_layers,
        "num_local_experts": value("expert_count"),
        "num_experts_per_tok": value("expert_used_count"),
        "vocab_size": int(embedding.shape[-1]),  # ggml lists the axes backward
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("expert_feed_forward_length"),
        "head_dim": value("attention.key_length"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "sliding_window": value("attention.sliding_window"),
        "swiglu_limit": 7.0,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "attention_bias": True,
        "layer_types": [KINDS[layer % 2] for layer in range(n_layers)],
        "max_position_embeddings": value("context_length"),
        "rope_parameters": _yarn(
            value("rope.freq_base"),
            factor,
            value("rope.scaling.yarn_beta_fast", 32.0),
            value("rope.scaling.yarn_beta_slow", 1.0),
            context,
        ),
    }


def _yarn(theta: float, factor: float, beta_fast: float, beta_slow: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rope_theta": float(theta),
        "factor": float(factor),
        "beta_fast": float(beta_fast),
        "beta_slow": float(beta_slow),
        "original_max_position_embeddings": int(original),
        "truncate": False,
    }


LAYOUTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hf-mxfp4": _hugging_face,
    "hf-bf16": _hugging_face,
    "original": _original,
    "gguf": _gguf,
}
