"""A Trace from a causal language model of transformers, on any device. The model itself is left unchanged.

`record` uses forward hooks, and a wrapper around the attention function, registered under the name that the model's
config already has. The model's own function still computes the value that the run continues with, so a recorded run
has the same bits as any other, and neither config nor masks change. Values that no function of the model returns are
computed beside the run and marked "derived": a sink's share and scores from queries and keys, and an expert's output by
the model's own experts function, called for one choice at a time with weight 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.conversation.template import read_template
from workbench.errors import InteropError
from workbench.interop import adapter
from workbench.interop.adapter import ForeignSource
from workbench.interop.readers import ids_of, reader_of
from workbench.interop.versions import check_release
from workbench.model.arrays import exact
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.from_transformers import _folder as folder_of
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.taps import Tap
from workbench.traces import Trace

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["record"]

CHUNK_POSITIONS = 256  # queries, or positions of an expert layer, that are computed beside the run at a time
# the names of a block's parts, in blocks that do x + attention(norm(x)) and then x + mlp(norm(x)) and nothing else
SHAPES = (
    {"ln1": "input_layernorm", "attn": "self_attn", "ln2": "post_attention_layernorm", "mlp": "mlp"},
    {"ln1": "ln_1", "attn": "attn", "ln2": "ln_2", "mlp": "mlp"},
)
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
FUSED = (
    "this model's experts run in fused MXFP4 kernels, which expose no single expert. Load it with "
    "quantization_config=Mxfp4Config(dequantize=True), or load the folder with wb.Model, which keeps experts packed "
    "and exposes them"
)


def record(
    model: Any,
    prompt: Any,
    *,
    record: str | Sequence[str] = "auto",
    tokenizer: Any = None,
    budget: float | None = None,
) -> Trace:
    """A Trace of one text that a model of transformers runs; the model stays the same, bit for bit, also after errors.

    Args:
        model: a `GptOssForCausalLM` on any device and with any attention and experts implementation, or another causal
            language model: then residual streams, attention and, where it has a router, routes are recorded
        prompt: a question, a `wb.chat(…)`, token ids, or a Trace; for another model than gpt-oss a text
        record, budget: as in `wb.Model.trace`
        tokenizer: a folder or a tokenizer of transformers; by default the one beside the weights

    Returns:
        A Trace. `trace.source(name)` is "derived" for values computed beside the run. A hook point that the model
        does not have is absent, and the notes say why.

    Raises:
        InteropError: not a causal language model that can be recorded
        NotRecorded: a word of `record` stands for nothing that this model has
        MissingDependency: transformers is missing or its release is not supported
        HookNameError, PromptError, BudgetError

    >>> from transformers import AutoModelForCausalLM
    >>> hf_model = AutoModelForCausalLM.from_pretrained("data/pocket", dtype="float32")
    >>> trace = record(hf_model, "What is 12+30?", record="residuals")
    >>> trace.verified, trace["resid_post"].shape == (6, len(trace), trace.config["d_model"])
    (True, True)
    """
    check_release("transformers")
    source = source_of(model, tokenizer)
    template = getattr(getattr(model, "tokenizer", tokenizer), "chat_template", None)
    folder = folder_of(_name(model))
    if template is None and folder is not None:
        template = read_template(folder)
    tokens, notes = ids_of(prompt, source.reader, template, source.is_gpt_oss)
    _check_ids(tokens, model)
    return adapter.record(source, tokens, record, budget, notes)


# -- the parts of a model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One block and its parts. A part is None where the block has none, or one that differs from its name."""

    block: Any
    attn: Any  # the module that calls the attention function
    ln1: Any = None
    ln2: Any = None
    mlp: Any = None
    router: Any = None
    experts: Any = None
    plain: bool = False  # whether the block does nothing but add the outputs of attention and mlp


@dataclass(frozen=True)
class ModelParts:
    """The modules of a model that a trace records."""

    model: Any
    embed: Any
    layers: tuple[Layer, ...]
    norm: Any
    unembed: Any
    config: Any  # of the text model, in transformers' form
    is_gpt_oss: bool

    @property
    def fused(self) -> bool:
        """Whether the experts run in kernels that call neither router nor experts as modules."""
        return any(type(layer.mlp).__name__.startswith("Mxfp4") for layer in self.layers)


def parts_of(candidate: Any) -> ModelParts:
    """Raises InteropError unless `candidate` is a causal language model of transformers with one stack of blocks."""
    import torch

    model: Any = candidate
    what = f"{type(model).__module__.split('.')[0]}'s {type(model).__name__}"
    if not isinstance(candidate, torch.nn.Module) or not hasattr(model, "config"):
        raise InteropError(f"{what} is not a model of transformers; give a model such as GptOssForCausalLM")
    unembed = getattr(model, "get_output_embeddings", lambda: None)()
    if unembed is None:
        raise InteropError(f"{what} has no unembedding, so it predicts no tokens; give the …ForCausalLM")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    block_types = set(getattr(model, "_no_split_modules", None) or ())
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    block_stacks = [s for s in stacks if type(s[1][0]).__name__ in block_types]
    block_stacks = block_stacks or [s for s in stacks if len(s[1]) == getattr(config, "num_hidden_layers", -1)]
    if not block_stacks:
        raise InteropError(f"{what} has no stack of blocks that can be recorded; its blocks must be one ModuleList")
    name, stack = max(block_stacks, key=lambda s: len(s[1]))
    parent = model.get_submodule(name.rpartition(".")[0])
    norm = next((module for n in FINAL_NORMS if (module := getattr(parent, n, None)) is not None), None)
    return ModelParts(
        model=model,
        embed=model.get_input_embeddings(),
        layers=tuple(_layer(block) for block in stack),
        norm=norm,
        unembed=unembed,
        config=config,
        is_gpt_oss=config.model_type == "gpt_oss",
    )


def _layer(block: Any) -> Layer:
    children = dict(block.named_children())
    attn = next((m for n, m in children.items() if "Attention" in type(m).__name__ and "cross" not in n), None)
    shape = next((s for s in SHAPES if set(s.values()) <= set(children)), None)
    norms = [n for n in children if "norm" in n.lower() or n.startswith("ln")]
    if shape is None or len(norms) != 2:
        return Layer(block, attn)
    mlp = children[shape["mlp"]]
    router = next((r for n in ("router", "gate") if (r := getattr(mlp, n, None)) is not None), None)
    parts = {name: children[shape[name]] for name in ("ln1", "ln2")}
    experts = getattr(mlp, "experts", None)
    return Layer(block, children[shape["attn"]], **parts, mlp=mlp, router=router, experts=experts, plain=True)


def source_of(model: Any, tokenizer: Any = None) -> ForeignSource:
    """A model of transformers as a source of recordings."""
    parts = parts_of(model)
    folder = folder_of(_name(model))
    dtype = str(parts.embed.weight.dtype).removeprefix("torch.")
    attention = parts.config._attn_implementation
    kernels = f"attention {attention}, experts {getattr(parts.config, '_experts_implementation', None) or 'none'}"
    source = ForeignSource(
        name=folder.name if folder is not None and "/" in _name(model) and folder.is_dir() else _name(model),
        format="transformers",
        digest=weights_digest({n: t.detach() for n, t in model.state_dict().items() if _is_materialized(t)}),
        config=_config(parts),
        dtype=dtype,
        device=str(parts.embed.weight.device),
        kernels=kernels,
        libraries=("transformers",),
        forward=lambda tokens, tap: run(parts, tokens, tap, source.derived),
        read_out=None if parts.norm is None else lambda resid: _read_out(parts, resid),
        reader=reader_of(tokenizer, folder, parts.is_gpt_oss),
        by_layer=[_identity_weights(layer) for layer in parts.layers],
        attention_copies=4 if attention == "eager" else 0,
    )
    if parts.fused:
        source.reasons |= {"blocks.*.mlp.hook_expert_out": FUSED}
    if not parts.is_gpt_oss:
        why = "no projection alone makes them in this model; rot_q and rot_k are the input of attention"
        source.reasons |= dict.fromkeys(("blocks.*.attn.hook_q", "blocks.*.attn.hook_k"), why)
    if not _uses_rope(parts):
        why = (
            "positions do not reach this model's attention by rotation, so there are no rotated queries and keys; "
            "record='patterns' records what its heads attend to"
        )
        source.reasons |= dict.fromkeys(("blocks.*.attn.hook_rot_q", "blocks.*.attn.hook_rot_k"), why)
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if others := sorted(kinds - {dtype}):  # transformers 5.9 leaves experts from MXFP4 in bfloat16, whatever the dtype
        source.notes.append(f"the model is in {dtype}, but some of its weights are in {', '.join(others)}")
    if hooks := sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()):
        source.notes.append(f"the model had {hooks} hooks of its own, and their effects are in these numbers")
    return source


def _name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "") or type(model).__name__


def _is_materialized(x: Any) -> bool:
    import torch

    return isinstance(x, torch.Tensor) and not x.is_meta


def _config(parts: ModelParts) -> dict[str, Any]:
    """For gpt-oss the config of workbench's own runner; for another model the same keys, as far as they apply."""
    if parts.is_gpt_oss:
        config = asdict(parse_hf_config(parts.model.config.to_dict(), f"the config of {_name(parts.model)}"))
        return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    hf_config, n = parts.config, len(parts.layers)
    n_ctx = getattr(hf_config, "max_position_embeddings", None) or getattr(hf_config, "n_positions", 0)
    window = getattr(hf_config, "sliding_window", None)
    kinds = getattr(hf_config, "layer_types", None)
    if kinds is None:
        slides = [bool(getattr(layer.attn, "sliding_window", window)) for layer in parts.layers]
        kinds = ["sliding_attention" if s else "full_attention" for s in slides]
    return {
        "architecture": type(parts.model).__name__,
        "n_layers": n,
        "d_model": hf_config.hidden_size,
        "n_heads": hf_config.num_attention_heads,
        "n_kv_heads": getattr(hf_config, "num_key_value_heads", None) or hf_config.num_attention_heads,
        "d_vocab": hf_config.vocab_size,
        "n_ctx": n_ctx,
        "window": window or n_ctx,
        "layer_types": list(kinds)[:n],
        "sinks": any(hasattr(layer.attn, "sinks") for layer in parts.layers),
        "shared_experts": any("shared" in name for layer in parts.layers for name in _children(layer.mlp)),
    }


def _children(module: Any) -> list[str]:
    return [] if module is None else [name for name, _ in module.named_children()]


def _identity_weights(layer: Layer) -> dict[str, np.ndarray]:
    """The weights that the identities of a layer need besides its values."""
    weights = {}
    if (sinks := getattr(layer.attn, "sinks", None)) is not None:
        weights["sinks"] = exact(sinks)
    if (out := _output_projection(layer.attn)) is not None:
        weights["b_o"] = exact(out.weight.new_zeros(out.weight.shape[0]) if out.bias is None else out.bias)
    return weights


def _output_projection(attn: Any) -> Any:
    """The output projection of the heads, if it is a plain linear layer."""
    import torch

    out = getattr(attn, "o_proj", None)
    return out if isinstance(out, torch.nn.Linear) and out.weight.is_floating_point() else None


def _check_ids(tokens: Sequence[int], model: Any) -> None:
    from workbench.errors import PromptError

    n = model.get_input_embeddings().weight.shape[0]
    if not tokens:
        raise PromptError("the prompt is empty; give at least one token")
    if min(tokens) < 0 or max(tokens) >= n:
        invalid = min(tokens) if min(tokens) < 0 else max(tokens)
        raise PromptError(f"token id must be between 0 and {n - 1} for {_name(model)}, got {invalid}: out of range")


# -- running ----------------------------------------------------------------------------------------------------------


def run(parts: ModelParts, tokens: "Tensor", tap: Tap | None, derived: set[str]) -> "Tensor":
    """Logits (batch pos d_vocab) of one pass in eval mode, without gradients or a cache, with `tap` at its hooks.

    Args:
        parts: the model, and where its hook points are.
        tokens: token ids (batch pos).
        tap: called with the name and value of every hook point; None for a plain pass.
        derived: the names of hook points that are computed from others; extended here.
    """
    import torch

    tokens = tokens.to(parts.embed.weight.device)
    with torch.no_grad(), _evaluating(parts.model):
        if tap is None:
            return parts.model(input_ids=tokens, use_cache=False).logits
        with ExitStack() as stack:
            _Emitter(parts, tap, derived, stack)
            logits = parts.model(input_ids=tokens, use_cache=False).logits
        tap("hook_logits", logits)
        return logits


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In eval mode, because dropout would change the numbers. Each module's mode is restored afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def _read_out(parts: ModelParts, resid: "Tensor") -> "Tensor":
    import torch

    with torch.no_grad(), _evaluating(parts.model):
        return parts.unembed(parts.norm(resid.to(parts.unembed.weight.device)))


class _Emitter:
    """The hooks of one pass: registered by __init__, removed when `stack` closes, also after an error."""

    def __init__(self, parts: ModelParts, tap: Tap, derived: set[str], stack: ExitStack):
        from threading import get_ident

        self.parts, self.tap, self.derived, self.stack = parts, tap, derived, stack
        self.thread, self.current = get_ident, get_ident()
        self.routed: set[int] = set()  # layers whose router was called as a module
        self.layer_of = {id(layer.attn): i for i, layer in enumerate(parts.layers)}
        self._after(parts.embed, lambda a, k, out: self.emit("hook_embed", out))
        for i, layer in enumerate(parts.layers):
            self._block(i, layer)
        if parts.norm is not None:
            self._after(parts.norm, lambda a, k, out: self.emit("ln_final.hook_normalized", out))
        for interface, name, function in self._attention_functions():
            stack.enter_context(_replaced(interface, name, function))

    def emit(self, name: str, x: "Tensor", derived: bool = False) -> None:
        if derived:
            self.derived.add(name)
        self.tap(name, x)

    def _after(self, module: Any, callback: Callable) -> None:
        def hook(module, args, kwargs, out) -> None:
            if self.thread() == self.current:
                callback(args, kwargs, out)

        self.stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

    def _before(self, module: Any, callback: Callable) -> None:
        def hook(module, args, kwargs) -> None:
            if self.thread() == self.current:
                callback(args[0] if args else kwargs["hidden_states"])

        self.stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    # -- the parts of a block

    def _block(self, i: int, layer: Layer) -> None:
        prefix = f"blocks.{i}."
        self._before(layer.block, lambda x: self.emit(prefix + "hook_resid_pre", x))
        self._after(layer.block, lambda a, k, out: self.emit(prefix + "hook_resid_post", _first(out)))
        self._projections(prefix + "attn.", layer.attn)
        if not layer.plain:
            return
        self._after(layer.ln1, lambda a, k, out: self.emit(prefix + "ln1.hook_normalized", out))
        self._after(layer.attn, lambda a, k, out: self.emit(prefix + "hook_attn_out", _first(out)))
        self._before(layer.ln2, lambda x: self.emit(prefix + "hook_resid_mid", x))
        self._after(layer.ln2, lambda a, k, out: self.emit(prefix + "ln2.hook_normalized", out))
        if layer.router is not None:
            self._after(layer.router, lambda a, k, out: self._router(i, _first(out)))
        if layer.experts is not None:
            self._after(layer.experts, lambda a, k, out: self._experts(prefix + "mlp.", layer.experts, a, k))
        self._after(layer.mlp, lambda a, k, out: self._mlp(i, layer, a, out))

    def _projections(self, prefix: str, attn: Any) -> None:
        """Queries and keys before RoPE, where a projection alone computes them."""
        if attn is None or any(hasattr(attn, name) for name in ("q_norm", "k_norm")):
            return
        for name, point in (("q_proj", "hook_q"), ("k_proj", "hook_k")):
            if hasattr(attn, name) and hasattr(attn, "head_dim"):

                def emit_heads(args, kwargs, out, point=point) -> None:
                    self.emit(prefix + point, out.unflatten(-1, (-1, attn.head_dim)))

                self._after(getattr(attn, name), emit_heads)

    def _router(self, i: int, logits: "Tensor") -> None:
        self.routed.add(i)
        self.emit(f"blocks.{i}.mlp.router.hook_out", _rows(logits))

    def _experts(self, prefix: str, experts: Any, args: tuple, kwargs: dict) -> None:
        """The routes as the experts received them, and each chosen expert's own output."""
        hidden, chosen, weights = [*args, *kwargs.values()][:3]
        hidden, chosen, weights = _rows(hidden), _rows(chosen), _rows(weights)
        self.emit(prefix + "hook_expert_indices", chosen)
        all_weights = weights.new_zeros(*weights.shape[:2], experts.num_experts).scatter(-1, chosen, weights)
        self.emit(prefix + "hook_expert_weights", all_weights)
        if self.tap.wants(prefix + "hook_expert_out"):
            self.emit(
                prefix + "hook_expert_out", _expert_outputs(experts.forward, hidden[0], chosen[0])[None], derived=True
            )

    def _mlp(self, i: int, layer: Layer, args: tuple, out: Any) -> None:
        prefix = f"blocks.{i}.mlp."
        if self.parts.fused and i not in self.routed:
            self._fused(prefix, layer, args[0], out)
        self.emit(f"blocks.{i}.hook_mlp_out", _first(out).reshape(args[0].shape))

    def _fused(self, prefix: str, layer: Layer, x: "Tensor", out: Any) -> None:
        """Routes of kernels that call no router: the logits are the block's own, the choice is computed from them."""
        import torch

        logits, router = out[1], layer.router
        has_logits = isinstance(logits, torch.Tensor) and logits.shape[-1] == router.weight.shape[0]
        logits = logits if has_logits else torch.nn.functional.linear(x, router.weight, router.bias)
        logits = _rows(logits.reshape(-1, logits.shape[-1]))
        self.emit(prefix + "router.hook_out", logits, derived=not has_logits)
        top = logits.topk(router.top_k, -1)
        self.emit(prefix + "hook_expert_indices", top.indices, derived=True)
        expert_weights = torch.zeros_like(logits).scatter(-1, top.indices, top.values.softmax(-1))
        self.emit(prefix + "hook_expert_weights", expert_weights, derived=True)

    # -- attention

    def _attention_functions(self) -> list[tuple[Any, str, Callable]]:
        """One entry for each file of transformers with an attention function: registry, name in it, our wrapper."""
        import sys

        wrappers = {}
        for layer in self.parts.layers:
            name = getattr(getattr(layer.attn, "config", None), "_attn_implementation", None)
            for kind in type(layer.attn).__mro__:
                source_file: Any = sys.modules.get(kind.__module__)
                interface = getattr(source_file, "ALL_ATTENTION_FUNCTIONS", None)
                if name is not None and interface is not None and hasattr(source_file, "eager_attention_forward"):
                    original = interface.get(name, source_file.eager_attention_forward)
                    wrappers[id(interface), name] = (interface, name, self._attention(original, eager=name == "eager"))
                    break
        return list(wrappers.values())

    def _attention(self, original: Callable, eager: bool) -> Callable:
        def function(module, query, key, value, attention_mask, *args, **kwargs):
            out, weights = original(module, query, key, value, attention_mask, *args, **kwargs)
            i = self.layer_of.get(id(module))
            if i is not None and self.thread() == self.current:
                used = weights if eager else None
                self._attention_values(i, module, query, key, value, attention_mask, out, used, kwargs)
            return out, weights

        return function

    def _attention_values(self, i, module, query, key, value, mask, out, weights, kwargs) -> None:
        """query, key and value: (batch head pos d_head), as the function received them. out: (batch pos head d_head)"""
        prefix = f"blocks.{i}.attn."
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        standard = kwargs.get("softcap") is None and abs(scale * query.shape[-1] ** 0.5 - 1) < 1e-6
        rope = _uses_rope(self.parts)
        if rope and standard:
            self.emit(prefix + "hook_rot_q", query.transpose(1, 2))
            self.emit(prefix + "hook_rot_k", key.transpose(1, 2))
        elif not rope:
            self.emit(prefix + "hook_q", query.transpose(1, 2))
            self.emit(prefix + "hook_k", key.transpose(1, 2))
        self.emit(prefix + "hook_v", value.transpose(1, 2))
        sinks = getattr(module, "sinks", None)
        if kwargs.get("softcap") is None:
            self._derive_attention(prefix, query, key, mask, scale, sinks, weights, kwargs.get("sliding_window"))
        elif weights is not None:
            self._pattern(prefix, weights)
        self.emit(prefix + "hook_z", out)
        if self.tap.wants(prefix + "hook_result") and (project := _output_projection(module)) is not None:
            import torch

            w_o = project.weight.view(-1, *out.shape[-2:])
            self.emit(prefix + "hook_result", torch.einsum("bphd,mhd->bphm", out, w_o), derived=True)

    def _pattern(self, prefix: str, pattern: "Tensor", derived: bool = False) -> None:
        if self.tap.wants(prefix + "hook_pattern"):
            self.emit(prefix + "hook_pattern", pattern, derived)
        if add_pattern := self.tap.pattern_rows(prefix):
            add_pattern(pattern, 0, 0)

    def _derive_attention(self, prefix, query, key, mask, scale, sinks, weights, window) -> None:
        """Scores, sink and pattern, a chunk of queries at a time. The pattern is the run's own if it returned one."""
        import torch

        needed = {point: self.tap.wants(prefix + f"hook_{point}") for point in ("attn_scores", "pattern", "sink")}
        needed["sink"] &= sinks is not None
        needed["pattern"] |= self.tap.pattern_rows(prefix) is not None
        if weights is not None and needed["pattern"]:
            self._pattern(prefix, weights)
            needed["pattern"] = False
        if not any(needed.values()):
            return
        n, accurate = query.shape[2], torch.promote_types(query.dtype, torch.float32)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3)
        chunks: dict[str, list[Tensor]] = {point: [] for point in needed}
        for start in range(0, n, CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            scores = (query[:, :, rows] @ keys * scale).to(accurate)
            scores = scores.masked_fill(_masked_keys(mask, rows, n, window, scores.device), -torch.inf)
            chunks["attn_scores"] += [scores] if needed["attn_scores"] else []
            if sinks is not None:
                scores = torch.cat((scores, sinks.to(accurate).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
            shares = scores.softmax(-1)
            chunks["sink"] += [shares[..., -1]] if needed["sink"] else []
            chunks["pattern"] += [shares[..., :n].to(query.dtype)] if needed["pattern"] else []
        for point in ("attn_scores", "sink"):
            if needed[point]:
                self.emit(prefix + f"hook_{point}", torch.cat(chunks[point], 2), derived=True)
        if needed["pattern"]:
            self._pattern(prefix, torch.cat(chunks["pattern"], 2), derived=True)


def _uses_rope(parts: ModelParts) -> bool:
    """Whether attention gets positions by rotation (RoPE)."""
    return any(getattr(parts.config, name, None) is not None for name in ("rope_parameters", "rope_theta"))


@contextmanager
def _replaced(interface: Any, name: str, function: Callable) -> Iterator[None]:
    """`function` as `name` in one of transformers' attention registries; the previous entry is restored."""
    local = interface._local_mapping
    before, was_set = local.get(name), name in local
    interface[name] = function
    try:
        yield
    finally:
        if was_set:
            interface[name] = before
        else:
            del interface[name]


def _masked_keys(mask: Any, rows: slice, n: int, window: int | None, device: Any) -> "Tensor":
    """True where a query must not see a key (query key); without a numeric mask, causal and inside the window."""
    import torch

    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        m = mask[:, :, rows, :n]
        return ~m if m.dtype == torch.bool else m <= torch.finfo(m.dtype).min / 2
    query = torch.arange(n, device=device)[rows, None]
    key = torch.arange(n, device=device)
    late = key > query
    return late | (key <= query - window) if window else late


def _expert_outputs(experts: Callable, hidden: "Tensor", chosen: "Tensor") -> "Tensor":
    """Each chosen expert's output before its weight (pos choice d_model), by the model's own experts function."""
    import torch

    k, outputs = chosen.shape[-1], []
    for start in range(0, len(hidden), CHUNK_POSITIONS):
        x, expert_ids = hidden[start : start + CHUNK_POSITIONS], chosen[start : start + CHUNK_POSITIONS]
        ones = torch.ones(expert_ids.numel(), 1, dtype=x.dtype, device=x.device)
        outputs.append(experts(x.repeat_interleave(k, 0), expert_ids.reshape(-1, 1), ones).view(len(x), k, -1))
    return torch.cat(outputs)


def _first(out: Any) -> "Tensor":
    return out[0] if isinstance(out, tuple) else out


def _rows(x: "Tensor") -> "Tensor":
    """`x` with a batch axis, since transformers flattens batch and positions before its routers."""
    return x if x.ndim == 3 else x[None]
