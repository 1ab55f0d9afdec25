"""Random gpt-oss models for tests: one seed gives the same weights in every published layout. Needs no network.

    model = Random(seed=0)
    model.checkpoint()                        # in memory, as a loader would give it
    model.transformers()                      # a GptOssForCausalLM with the same weights, eager
    model.write_hf_mxfp4(tmp_path / "model")  # and write_hf_bf16, write_original, write_gguf

All dimensions differ, so that nothing fits by accident: d_mlp != d_model, n_heads * d_head != d_model. Biases, norms
and sinks are far from 0 and 1; dense values are exact in bfloat16 and experts in MXFP4, so every layout holds the same.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.model.checkpoints.tensors import Block, Checkpoint, Experts, Weights
from workbench.model.config import Config

CONFIG = Config(
    n_layers=4,
    d_model=96,
    n_heads=10,
    n_kv_heads=2,
    d_head=16,
    n_experts=8,
    n_active=3,
    d_mlp=64,
    d_vocab=176,
    window=12,
    layer_types=("sliding_attention", "full_attention") * 2,
)
FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
STOP_IDS = (170, 171)  # what the written config.json and generation_config.json name


class Random:
    """A random gpt-oss; `dims` replace fields of CONFIG, e.g. Random(seed=1, n_layers=2, window=8).

    A tensor depends on the seed, its name and its shape only: two models that differ in n_layers share their first.
    """

    def __init__(self, seed: int = 0, **dims: Any):
        self.seed = seed
        if "n_layers" in dims and "layer_types" not in dims:
            kinds = ("sliding_attention", "full_attention")
            dims["layer_types"] = tuple(kinds[i % 2] for i in range(dims["n_layers"]))
        self.config = replace(CONFIG, **dims)
        self.tensors = self._original()  # under OpenAI's names; experts as MXFP4 blocks and scales

    def checkpoint(self, dtype: torch.dtype = torch.float32) -> Checkpoint:
        """The expected result of a loader, made without the loaders' code."""
        c, t = self.config, {k: v if v.dtype == torch.uint8 else v.to(dtype) for k, v in self.tensors.items()}
        rows = [c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_kv_heads * c.d_head]

        def block(n: int) -> Block:
            b = f"block.{n}."
            w_q, w_k, w_v = t[b + "attn.qkv.weight"].split(rows)
            b_q, b_k, b_v = t[b + "attn.qkv.bias"].split(rows)
            up, down = (
                _exact(t[f"{b}mlp.{m}_weight.blocks"], t[f"{b}mlp.{m}_weight.scales"]).to(dtype)
                for m in ("mlp1", "mlp2")
            )
            return Block(
                ln1=t[b + "attn.norm.scale"],
                w_q=w_q,
                b_q=b_q,
                w_k=w_k,
                b_k=b_k,
                w_v=w_v,
                b_v=b_v,
                sinks=t[b + "attn.sinks"],
                w_o=t[b + "attn.out.weight"],
                b_o=t[b + "attn.out.bias"],
                ln2=t[b + "mlp.norm.scale"],
                w_router=t[b + "mlp.gate.weight"],
                b_router=t[b + "mlp.gate.bias"],
                experts=Experts(up=up, up_bias=t[b + "mlp.mlp1_bias"], down=down, down_bias=t[b + "mlp.mlp2_bias"]),
            )

        return Checkpoint(
            config=c,
            weights=Weights(
                embed=t["embedding.weight"],
                blocks=tuple(block(n) for n in range(c.n_layers)),
                ln_final=t["norm.scale"],
                unembed=t["unembedding.weight"],
            ),
            name=f"random-{self.seed}",
            folder=None,
            format="original",
            digest=f"random:{self.seed}",
            stop_ids=STOP_IDS,
        )

    def transformers(self, dtype: torch.dtype = torch.float32) -> Any:
        """A transformers GptOssForCausalLM with these weights: eager attention, eager experts, in eval mode."""
        from transformers import GptOssConfig, GptOssForCausalLM

        config = self.hf_config()
        config.pop("quantization_config")
        config |= {"attn_implementation": "eager", "experts_implementation": "eager"}
        config = GptOssConfig(**config)
        model = GptOssForCausalLM._from_config(config, dtype=dtype)
        model.load_state_dict({k: v.to(dtype) for k, v in self.hf_tensors(mxfp4=False).items()}, strict=True)
        model.generation_config.eos_token_id = list(STOP_IDS)
        return model.eval().requires_grad_(False)

    def write_hf_mxfp4(self, folder: Path, *, shards: int = 3, base: int = 0) -> Path:
        """The layout of huggingface.co/openai/gpt-oss-20b, with its 0-based shard names (3 files "of 2")."""
        return write_hf(folder, self.hf_tensors(), self.hf_config(), shards=shards, base=base)

    def write_hf_bf16(self, folder: Path, *, shards: int = 1, base: int = 1) -> Path:
        """The layout that transformers saves after dequantizing: experts in bf16 as [expert, in, out]."""
        config = self.hf_config()
        config.pop("quantization_config")
        return write_hf(folder, self.hf_tensors(mxfp4=False), config | {"dtype": "bfloat16"}, shards=shards, base=base)

    def write_original(self, folder: Path, *, mxfp4: bool = True) -> Path:
        """OpenAI's own layout, `original/` in their repositories."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.clone() for k, v in self.tensors.items()}
        if not mxfp4:
            for k in [k for k in tensors if k.endswith(".blocks")]:
                name = k.removesuffix(".blocks")
                tensors[name] = _exact(tensors.pop(k), tensors.pop(name + ".scales")).bfloat16()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.original_config()))
        return folder

    def write_gguf(self, file: Path) -> Path:
        """One .gguf as llama.cpp's converter writes it: architecture "gpt-oss", dense tensors in float32."""
        import gguf

        c, file = self.config, Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        w = gguf.GGUFWriter(file, "gpt-oss")
        w.add_context_length(c.n_ctx)
        w.add_embedding_length(c.d_model)
        w.add_block_count(c.n_layers)
        w.add_feed_forward_length(c.d_mlp)
        w.add_expert_feed_forward_length(c.d_mlp)
        w.add_head_count(c.n_heads)
        w.add_head_count_kv(c.n_kv_heads)
        w.add_key_length(c.d_head)
        w.add_value_length(c.d_head)
        w.add_layer_norm_rms_eps(c.eps)
        w.add_rope_freq_base(c.rope_theta)
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(c.rope_factor)
        w.add_rope_scaling_orig_ctx_len(c.rope_original)
        w.add_sliding_window(c.window)
        w.add_expert_count(c.n_experts)
        w.add_expert_used_count(c.n_active)
        w.add_eos_token_id(STOP_IDS[0])
        for name, tensor in self.gguf_tensors().items():
            mxfp4 = gguf.GGMLQuantizationType.MXFP4 if tensor.dtype == torch.uint8 else None
            w.add_tensor(name, tensor.contiguous().numpy(), raw_dtype=mxfp4)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return file

    def hf_tensors(self, *, mxfp4: bool = True) -> dict[str, Tensor]:
        c, t = self.config, self.tensors
        rows = [c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_kv_heads * c.d_head]
        out = {
            "model.embed_tokens.weight": t["embedding.weight"],
            "model.norm.weight": t["norm.scale"],
            "lm_head.weight": t["unembedding.weight"],
        }
        for n in range(c.n_layers):
            b, h = f"block.{n}.", f"model.layers.{n}."
            out[h + "input_layernorm.weight"] = t[b + "attn.norm.scale"]
            out[h + "post_attention_layernorm.weight"] = t[b + "mlp.norm.scale"]
            out[h + "self_attn.sinks"] = t[b + "attn.sinks"]
            for s in ("weight", "bias"):
                for p, x in zip("qkv", t[b + "attn.qkv." + s].split(rows), strict=True):
                    out[f"{h}self_attn.{p}_proj.{s}"] = x
                out[h + "self_attn.o_proj." + s] = t[b + "attn.out." + s]
                out[h + "mlp.router." + s] = t[b + "mlp.gate." + s]
            for m, p in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
                blocks, scales = t[f"{b}mlp.{m}_weight.blocks"], t[f"{b}mlp.{m}_weight.scales"]
                out[f"{h}mlp.experts.{p}_bias"] = t[f"{b}mlp.{m}_bias"]
                if mxfp4:
                    out[f"{h}mlp.experts.{p}_blocks"], out[f"{h}mlp.experts.{p}_scales"] = blocks, scales
                else:
                    out[f"{h}mlp.experts.{p}"] = _exact(blocks, scales).bfloat16().transpose(1, 2)
        return {k: v.clone(memory_format=torch.contiguous_format) for k, v in out.items()}

    def gguf_tensors(self) -> dict[str, Tensor]:
        """float32, or uint8 for rows of ggml's MXFP4."""
        layer = {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "mlp.router": "ffn_gate_inp",
        }
        top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        names = dict(top)
        names |= {
            f"model.layers.{n}.{k}": f"blk.{n}.{v}" for n in range(self.config.n_layers) for k, v in layer.items()
        }
        t, out = self.hf_tensors(), {}
        for k, v in t.items():
            stem, _, kind = k.rpartition(".")
            if stem in names:
                out[f"{names[stem]}.{kind}"] = v.float()
        for n in range(self.config.n_layers):
            h, b = f"model.layers.{n}.", f"blk.{n}."
            e = h + "mlp.experts."
            up = _ggml(t[e + "gate_up_proj_blocks"], t[e + "gate_up_proj_scales"])
            out[b + "attn_sinks.weight"] = t[h + "self_attn.sinks"].float()
            out[b + "ffn_gate_exps.weight"], out[b + "ffn_up_exps.weight"] = up[:, 0::2], up[:, 1::2]
            out[b + "ffn_down_exps.weight"] = _ggml(t[e + "down_proj_blocks"], t[e + "down_proj_scales"])
            out[b + "ffn_gate_exps.bias"] = t[e + "gate_up_proj_bias"][:, 0::2].float()
            out[b + "ffn_up_exps.bias"] = t[e + "gate_up_proj_bias"][:, 1::2].float()
            out[b + "ffn_down_exps.bias"] = t[e + "down_proj_bias"].float()
        return out

    def hf_config(self) -> dict[str, Any]:
        """config.json as OpenAI published it, with these dimensions."""
        c = self.config
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "num_hidden_layers": c.n_layers,
            "hidden_size": c.d_model,
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads,
            "head_dim": c.d_head,
            "num_local_experts": c.n_experts,
            "num_experts_per_tok": c.n_active,
            "experts_per_token": c.n_active,
            "intermediate_size": c.d_mlp,
            "vocab_size": c.d_vocab,
            "max_position_embeddings": c.n_ctx,
            "initial_context_length": c.rope_original,
            "sliding_window": c.window,
            "layer_types": list(c.layer_types),
            "rms_norm_eps": c.eps,
            "swiglu_limit": c.swiglu_limit,
            "rope_theta": c.rope_theta,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": c.rope_factor,
                "beta_fast": c.rope_beta_fast,
                "beta_slow": c.rope_beta_slow,
                "original_max_position_embeddings": c.rope_original,
                "truncate": c.rope_truncate,
            },
            "hidden_act": "silu",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "eos_token_id": STOP_IDS[0],
            "pad_token_id": None,
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        }

    def original_config(self) -> dict[str, Any]:
        """original/config.json: it has no layer types, eps or alpha, which are constants of OpenAI's code."""
        c = self.config
        return {
            "num_hidden_layers": c.n_layers,
            "num_experts": c.n_experts,
            "experts_per_token": c.n_active,
            "vocab_size": c.d_vocab,
            "hidden_size": c.d_model,
            "intermediate_size": c.d_mlp,
            "swiglu_limit": c.swiglu_limit,
            "head_dim": c.d_head,
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads,
            "sliding_window": c.window,
            "initial_context_length": c.rope_original,
            "rope_theta": c.rope_theta,
            "rope_scaling_factor": c.rope_factor,
            "rope_ntk_alpha": c.rope_beta_slow,
            "rope_ntk_beta": c.rope_beta_fast,
        }

    def _original(self) -> dict[str, Tensor]:
        c = self.config
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head

        def generator(name: str) -> torch.Generator:
            return torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(name.encode()))

        def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> Tensor:
            return (mean + std * torch.randn(*shape, generator=generator(name))).bfloat16()

        def norm(name: str) -> Tensor:
            return normal(name, c.d_model, std=0.2, mean=1.0)

        t = {
            "embedding.weight": normal("embedding", c.d_vocab, c.d_model, std=1.0),
            "norm.scale": norm("norm"),
            "unembedding.weight": normal("unembedding", c.d_vocab, c.d_model, std=0.15),
        }
        for n in range(c.n_layers):
            b = f"block.{n}."
            t[b + "attn.norm.scale"] = norm(b + "attn.norm")
            t[b + "attn.qkv.weight"] = normal(b + "qkv", q + 2 * kv, c.d_model, std=0.15)
            t[b + "attn.qkv.bias"] = normal(b + "qkv.bias", q + 2 * kv, std=0.15)
            t[b + "attn.sinks"] = normal(b + "sinks", c.n_heads, std=1.0)
            t[b + "attn.out.weight"] = normal(b + "out", c.d_model, q, std=0.05)
            t[b + "attn.out.bias"] = normal(b + "out.bias", c.d_model, std=0.15)
            t[b + "mlp.norm.scale"] = norm(b + "mlp.norm")
            t[b + "mlp.gate.weight"] = normal(b + "gate", c.n_experts, c.d_model, std=0.15)
            t[b + "mlp.gate.bias"] = normal(b + "gate.bias", c.n_experts, std=0.15)
            # With these scales the gate's pre-activations have std 2, so the clamp at 7 is sometimes reached.
            for m, rows, cols, scale in (("mlp1", 2 * c.d_mlp, c.d_model, 121), ("mlp2", c.d_model, c.d_mlp, 119)):
                g, shape = generator(b + m), (c.n_experts, rows, cols // 32)
                blocks = torch.randint(0, 256, (*shape, 16), generator=g, dtype=torch.uint8)
                t[f"{b}mlp.{m}_weight.blocks"] = blocks
                t[f"{b}mlp.{m}_weight.scales"] = torch.randint(scale, scale + 4, shape, generator=g, dtype=torch.uint8)
                t[f"{b}mlp.{m}_bias"] = normal(f"{b}{m}.bias", c.n_experts, rows, std=0.15)
        return t


def write_hf(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, shards: int = 1, base: int = 1
) -> Path:
    """Writes any tensors and any config as a Hugging Face folder, to make invalid ones."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(STOP_IDS)}))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, where = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + base:05d}-of-{shards - 1 + base:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({k: tensors[k] for k in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    size = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def named(weights: Weights) -> dict[str, Tensor]:
    """Every tensor of the internal form under one flat name, for comparing two of them."""
    out = {"embed": weights.embed, "ln_final": weights.ln_final, "unembed": weights.unembed}
    for n, block in enumerate(weights.blocks):
        out |= {f"blocks.{n}.{f.name}": getattr(block, f.name) for f in fields(block) if f.name != "experts"}
        out |= {f"blocks.{n}.experts.{f.name}": getattr(block.experts, f.name) for f in fields(block.experts)}
    return out


def _exact(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 by its definition, in float64: slow, and independent of workbench's own."""
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2).long()
    return torch.ldexp(FP4[codes], scales.long()[..., None] - 127).flatten(-2)


def _ggml(blocks: Tensor, scales: Tensor) -> Tensor:
    """Rows of ggml's MXFP4: a scale, then 16 bytes with element j low and j + 16 high."""
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    return torch.cat((scales[..., None], codes[..., :16] | (codes[..., 16:] << 4)), -1).flatten(-2)
