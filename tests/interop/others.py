"""Random models of other families, as transformers builds them from a config: small, offline, all sizes different."""

from functools import cache
from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 180,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


def _configs() -> dict[str, Any]:
    import transformers as t

    full_kv: dict[str, Any] = {"num_key_value_heads": 6}  # the number of query heads
    gpt2: dict[str, Any] = {
        "vocab_size": 180,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 6,
        "n_positions": 256,
        "bos_token_id": 1,
    }
    return {
        "gpt2": lambda: t.GPT2Config(**gpt2, eos_token_id=2),
        "llama": lambda: t.LlamaConfig(**SMALL),
        "mistral": lambda: t.MistralConfig(**SMALL, sliding_window=12),
        "qwen3": lambda: t.Qwen3Config(**SMALL, head_dim=16),
        "gemma2": lambda: t.Gemma2Config(**SMALL, head_dim=16, sliding_window=12),
        "qwen2_moe": lambda: t.Qwen2MoeConfig(
            **SMALL | EXPERTS, num_experts=5, shared_expert_intermediate_size=32, mlp_only_layers=[1]
        ),
        "olmoe": lambda: t.OlmoeConfig(**SMALL, num_experts=5, num_experts_per_tok=2),
        "mixtral": lambda: t.MixtralConfig(**SMALL, num_local_experts=5, num_experts_per_tok=2),
        "deepseek_v3": lambda: t.DeepseekV3Config(
            **SMALL | EXPERTS | full_kv, n_routed_experts=8, n_shared_experts=1, n_group=2,
            topk_group=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=12,
        ),
    }  # fmt: skip


DENSE = ("gpt2", "llama", "mistral", "qwen3", "gemma2")
ROUTED = ("qwen2_moe", "olmoe", "mixtral", "deepseek_v3")


@cache
def other(family: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Any:
    """A model whose weights are far from 0 and 1, in eval mode."""
    from transformers import AutoModelForCausalLM

    config = _configs()[family]()
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    return model.eval().requires_grad_(False)
