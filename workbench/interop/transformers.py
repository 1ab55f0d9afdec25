"""A Trace from a causal language model of transformers, on any device, and nothing of it left in the model.

`record` uses forward hooks, and stands in place of the attention function under the very name that the model's config
says: its own function still makes the value that the run goes on with, so that a recorded run gives the bits of any
other, and neither config nor masks change. What no function of the model returns is computed beside the run and marked
"derived": a sink's share and scores from queries and keys, an expert's output by the model's own experts function,
which is asked for one choice at a time with weight 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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

CHUNK_POSITIONS = 256  # queries, or positions of an expert layer, that are computed beside the run at a time
# what a block calls its parts, where x + attention(norm(x)) and then x + mlp(norm(x)) is all that it does
SHAPES = (
    {"ln1": "input_layernorm", "attn": "self_attn", "ln2": "post_attention_layernorm", "mlp": "mlp"},
    {"ln1": "ln_1", "attn": "attn", "ln2": "ln_2", "mlp": "mlp"},
)
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
FUSED = (
    "this model's experts run in fused MXFP4 kernels, which show no expert on its own. Load it with "
    "quantization_config=Mxfp4Config(dequantize=True), or give wb.Model the folder: it keeps them packed and shows them"
)


def record(
    model: Any,
    ask: Any,
    *,
    record: str | Sequence[str] = "auto",
    tokenizer: Any = None,
    budget: float | None = None,
) -> Trace:
    """A Trace of a text that a model of transformers reads; the model is as before, bit for bit, also after an error.

    `model`: a `GptOssForCausalLM` on any device and in any attention and experts implementation, or another causal
    model: then residual streams, attention and, where it has a router, routes. `ask`: a question, a `wb.chat(…)`, ids,
    a Trace; a text for another model. `record` and `budget` as in `wb.Model.trace`. `tokenizer`: a folder or a
    tokenizer of transformers; by default the one beside the weights.

    `trace.source(name)` is "derived" for what was computed beside the run. What the model does not have is absent, and
    the notes say why.

    >>> from transformers import AutoModelForCausalLM
    >>> theirs = AutoModelForCausalLM.from_pretrained("data/pocket", dtype="float32")
    >>> trace = record(theirs, "What is 12+30?", record="residuals")
    >>> trace.verified, trace["resid_post"].shape == (6, len(trace), trace.config["d_model"])
    (True, True)

    Raises InteropError for what is no causal model that can be recorded, NotRecorded for a word of `record` of which it
    has nothing, HookNameError, PromptError, BudgetError, MissingDependency for a release that is not supported.
    """
    check_release("transformers")
    source = source_of(model, tokenizer)
    template = getattr(getattr(model, "tokenizer", tokenizer), "chat_template", None)
    folder = folder_of(_name(model))
    if template is None and folder is not None and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    tokens, notes = ids_of(ask, source.reader, template, source.is_gpt_oss)
    _check_ids(tokens, model)
    return adapter.record(source, tokens, record, budget, notes)


# -- where everything is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One block and its parts; None where it has none, or one that does something else than its name says."""

    block: Any
    attn: Any  # the module that calls the attention function
    ln1: Any = None
    ln2: Any = None
    mlp: Any = None
    router: Any = None
    experts: Any = None
    plain: bool = False  # whether it only adds what attention and mlp write


@dataclass(frozen=True)
class Places:
    """Where a model keeps what a trace speaks of."""

    model: Any
    embed: Any
    layers: tuple[Layer, ...]
    norm: Any
    unembed: Any
    config: Any  # transformers', of the text model
    is_gpt_oss: bool

    @property
    def fused(self) -> bool:
        """Whether the experts run in kernels that call neither router nor experts as modules."""
        return any(type(layer.mlp).__name__.startswith("Mxfp4") for layer in self.layers)


def places_of(given: Any) -> Places:
    """Raises InteropError if `given` is no causal language model of transformers with one stack of blocks."""
    import torch

    model: Any = given
    what = f"{type(model).__module__.split('.')[0]}'s {type(model).__name__}"
    if not isinstance(given, torch.nn.Module) or not hasattr(model, "config"):
        raise InteropError(f"{what} is no model of transformers; give a model such as GptOssForCausalLM")
    unembed = getattr(model, "get_output_embeddings", lambda: None)()
    if unembed is None:
        raise InteropError(f"{what} has no unembedding, so it predicts no tokens; give the …ForCausalLM")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    of_blocks = [s for s in stacks if type(s[1][0]).__name__ in blocks]
    of_blocks = of_blocks or [s for s in stacks if len(s[1]) == getattr(config, "num_hidden_layers", -1)]
    if not of_blocks:
        raise InteropError(f"no stack of blocks was found in {what}; its blocks should be one ModuleList")
    name, stack = max(of_blocks, key=lambda s: len(s[1]))
    above = model.get_submodule(name.rpartition(".")[0])
    norm = next((found for n in FINAL_NORMS if (found := getattr(above, n, None)) is not None), None)
    return Places(
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
    """What a trace says of a model, and how to run it."""
    places = places_of(model)
    folder = folder_of(_name(model))
    dtype = str(places.embed.weight.dtype).removeprefix("torch.")
    own = places.config._attn_implementation
    kernels = f"attention {own}, experts {getattr(places.config, '_experts_implementation', None) or 'none'}"
    source = ForeignSource(
        name=folder.name if folder is not None and "/" in _name(model) and folder.is_dir() else _name(model),
        format="transformers",
        digest=weights_digest({n: t.detach() for n, t in model.state_dict().items() if _is_there(t)}),
        config=_config(places),
        dtype=dtype,
        device=str(places.embed.weight.device),
        kernels=kernels,
        libraries=("transformers",),
        forward=lambda tokens, tap: run(places, tokens, tap, source.derived),
        read_out=None if places.norm is None else lambda resid: _read_out(places, resid),
        reader=reader_of(tokenizer, folder, places.is_gpt_oss),
        by_layer=[_extra(layer) for layer in places.layers],
        attention_copies=4 if own == "eager" else 0,
    )
    if places.fused:
        source.reasons |= {"blocks.*.mlp.hook_expert_out": FUSED}
    if not places.is_gpt_oss:
        why = "no projection alone makes them in this model; rot_q and rot_k are what attention gets"
        source.reasons |= dict.fromkeys(("blocks.*.attn.hook_q", "blocks.*.attn.hook_k"), why)
    if not _turns(places):
        why = "positions do not reach this model's attention by rotation; q and k are what it gets"
        source.reasons |= dict.fromkeys(("blocks.*.attn.hook_rot_q", "blocks.*.attn.hook_rot_k"), why)
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if others := sorted(kinds - {dtype}):  # transformers 5.9 leaves experts from MXFP4 in bfloat16, whatever is asked
        source.notes.append(f"the model is in {dtype}, but some of its weights are in {', '.join(others)}")
    if hooks := sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()):
        source.notes.append(f"the model had {hooks} hooks of its own, and what they do is in these numbers")
    return source


def _name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "") or type(model).__name__


def _is_there(x: Any) -> bool:
    import torch

    return isinstance(x, torch.Tensor) and not x.is_meta


def _config(places: Places) -> dict[str, Any]:
    """As our own runner says it for gpt-oss; the same keys, as far as they make sense, for another model."""
    if places.is_gpt_oss:
        made = asdict(parse_hf_config(places.model.config.to_dict(), f"the config of {_name(places.model)}"))
        return {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}
    c, n = places.config, len(places.layers)
    n_ctx = getattr(c, "max_position_embeddings", None) or getattr(c, "n_positions", 0)
    window = getattr(c, "sliding_window", None)
    kinds = getattr(c, "layer_types", None)
    if kinds is None:
        slides = [bool(getattr(layer.attn, "sliding_window", window)) for layer in places.layers]
        kinds = ["sliding_attention" if s else "full_attention" for s in slides]
    return {
        "architecture": type(places.model).__name__,
        "n_layers": n,
        "d_model": c.hidden_size,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": getattr(c, "num_key_value_heads", None) or c.num_attention_heads,
        "d_vocab": c.vocab_size,
        "n_ctx": n_ctx,
        "window": window or n_ctx,
        "layer_types": list(kinds)[:n],
        "sinks": any(hasattr(layer.attn, "sinks") for layer in places.layers),
        "shared_experts": any("shared" in name for layer in places.layers for name in _children(layer.mlp)),
    }


def _children(module: Any) -> list[str]:
    return [] if module is None else [name for name, _ in module.named_children()]


def _extra(layer: Layer) -> dict[str, np.ndarray]:
    """What the identities of a layer need besides its values."""
    extra = {}
    if (sinks := getattr(layer.attn, "sinks", None)) is not None:
        extra["sinks"] = exact(sinks)
    if (out := _by_head(layer.attn)) is not None:
        extra["b_o"] = exact(out.weight.new_zeros(out.weight.shape[0]) if out.bias is None else out.bias)
    return extra


def _by_head(attn: Any) -> Any:
    """The projection that heads write through, if it is a plain one."""
    import torch

    out = getattr(attn, "o_proj", None)
    return out if isinstance(out, torch.nn.Linear) and out.weight.is_floating_point() else None


def _check_ids(tokens: Sequence[int], model: Any) -> None:
    from workbench.errors import PromptError

    n = model.get_input_embeddings().weight.shape[0]
    if not tokens:
        raise PromptError("the prompt is empty; give at least one token")
    if min(tokens) < 0 or max(tokens) >= n:
        wrong = min(tokens) if min(tokens) < 0 else max(tokens)
        raise PromptError(f"token id {wrong} is out of range: {_name(model)} has ids 0..{n - 1}")


# -- running ----------------------------------------------------------------------------------------------------------


def run(places: Places, tokens: "Tensor", tap: Tap | None, derived: set[str]) -> "Tensor":
    """Logits (batch pos d_vocab) of one pass in eval mode, without gradients or a cache; `tap` sees it."""
    import torch

    tokens = tokens.to(places.embed.weight.device)
    with torch.no_grad(), _evaluating(places.model):
        if tap is None:
            return places.model(input_ids=tokens, use_cache=False).logits
        with ExitStack() as stack:
            _Emitter(places, tap, derived, stack)
            logits = places.model(input_ids=tokens, use_cache=False).logits
        tap("hook_logits", logits)
        return logits


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In eval mode: a model that drops out at random has no trace. Each module is put back as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def _read_out(places: Places, resid: "Tensor") -> "Tensor":
    import torch

    with torch.no_grad(), _evaluating(places.model):
        return places.unembed(places.norm(resid.to(places.unembed.weight.device)))


class _Emitter:
    """The hooks of one pass: registered when made, gone when `stack` closes, whatever happened in between."""

    def __init__(self, places: Places, tap: Tap, derived: set[str], stack: ExitStack):
        from threading import get_ident

        self.places, self.tap, self.derived, self.stack = places, tap, derived, stack
        self.thread, self.current = get_ident, get_ident()
        self.routed: set[int] = set()  # layers whose router was called as a module
        self.layer_of = {id(layer.attn): i for i, layer in enumerate(places.layers)}
        self._after(places.embed, lambda a, k, out: self.emit("hook_embed", out))
        for i, layer in enumerate(places.layers):
            self._block(i, layer)
        if places.norm is not None:
            self._after(places.norm, lambda a, k, out: self.emit("ln_final.hook_normalized", out))
        for interface, name, function in self._attention_functions():
            stack.enter_context(_in_place(interface, name, function))

    def emit(self, name: str, x: "Tensor", derived: bool = False) -> None:
        if derived:
            self.derived.add(name)
        self.tap(name, x)

    def _after(self, module: Any, emit_it: Callable) -> None:
        def hook(module, args, kwargs, out) -> None:
            if self.thread() == self.current:
                emit_it(args, kwargs, out)

        self.stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

    def _before(self, module: Any, emit_it: Callable) -> None:
        def hook(module, args, kwargs) -> None:
            if self.thread() == self.current:
                emit_it(args[0] if args else kwargs["hidden_states"])

        self.stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    # -- the parts of a block

    def _block(self, i: int, layer: Layer) -> None:
        here = f"blocks.{i}."
        self._before(layer.block, lambda x: self.emit(here + "hook_resid_pre", x))
        self._after(layer.block, lambda a, k, out: self.emit(here + "hook_resid_post", _first(out)))
        self._projections(here + "attn.", layer.attn)
        if not layer.plain:
            return
        self._after(layer.ln1, lambda a, k, out: self.emit(here + "ln1.hook_normalized", out))
        self._after(layer.attn, lambda a, k, out: self.emit(here + "hook_attn_out", _first(out)))
        self._before(layer.ln2, lambda x: self.emit(here + "hook_resid_mid", x))
        self._after(layer.ln2, lambda a, k, out: self.emit(here + "ln2.hook_normalized", out))
        if layer.router is not None:
            self._after(layer.router, lambda a, k, out: self._router(i, _first(out)))
        if layer.experts is not None:
            self._after(layer.experts, lambda a, k, out: self._experts(here + "mlp.", layer.experts, a, k))
        self._after(layer.mlp, lambda a, k, out: self._mlp(i, layer, a, out))

    def _projections(self, here: str, attn: Any) -> None:
        """Queries and keys before RoPE, where a projection is all that makes them."""
        if attn is None or any(hasattr(attn, name) for name in ("q_norm", "k_norm")):
            return
        for name, point in (("q_proj", "hook_q"), ("k_proj", "hook_k")):
            if hasattr(attn, name) and hasattr(attn, "head_dim"):
                by_head = lambda a, k, out, point=point: self.emit(here + point, out.unflatten(-1, (-1, attn.head_dim)))  # noqa: E731
                self._after(getattr(attn, name), by_head)

    def _router(self, i: int, logits: "Tensor") -> None:
        self.routed.add(i)
        self.emit(f"blocks.{i}.mlp.router.hook_out", _rows(logits))

    def _experts(self, here: str, experts: Any, args: tuple, kwargs: dict) -> None:
        """The routes as the experts got them, and each chosen expert's own output."""
        hidden, chosen, share = [*args, *kwargs.values()][:3]
        hidden, chosen, share = _rows(hidden), _rows(chosen), _rows(share)
        self.emit(here + "hook_expert_indices", chosen)
        logits = experts.num_experts
        spread = share.new_zeros(*share.shape[:2], logits).scatter(-1, chosen, share)
        self.emit(here + "hook_expert_weights", spread)
        if self.tap.wants(here + "hook_expert_out"):
            self.emit(here + "hook_expert_out", _one_by_one(experts.forward, hidden[0], chosen[0])[None], derived=True)

    def _mlp(self, i: int, layer: Layer, args: tuple, out: Any) -> None:
        here = f"blocks.{i}.mlp."
        if self.places.fused and i not in self.routed:
            self._fused(here, layer, args[0], out)
        self.emit(f"blocks.{i}.hook_mlp_out", _first(out).reshape(args[0].shape))

    def _fused(self, here: str, layer: Layer, x: "Tensor", out: Any) -> None:
        """Routes of kernels that call no router: the logits are the block's own, the choice follows from them."""
        import torch

        logits, router = out[1], layer.router
        given = isinstance(logits, torch.Tensor) and logits.shape[-1] == router.weight.shape[0]
        logits = logits if given else torch.nn.functional.linear(x, router.weight, router.bias)
        logits = _rows(logits.reshape(-1, logits.shape[-1]))
        self.emit(here + "router.hook_out", logits, derived=not given)
        top = logits.topk(router.top_k, -1)
        self.emit(here + "hook_expert_indices", top.indices, derived=True)
        spread = torch.zeros_like(logits).scatter(-1, top.indices, top.values.softmax(-1))
        self.emit(here + "hook_expert_weights", spread, derived=True)

    # -- attention

    def _attention_functions(self) -> list[tuple[Any, str, Callable]]:
        """One entry for each file of transformers that these layers call attention from: where, its name, ours."""
        import sys

        found = {}
        for layer in self.places.layers:
            own = getattr(getattr(layer.attn, "config", None), "_attn_implementation", None)
            for kind in type(layer.attn).__mro__:
                file: Any = sys.modules.get(kind.__module__)
                interface = getattr(file, "ALL_ATTENTION_FUNCTIONS", None)
                if own is not None and interface is not None and hasattr(file, "eager_attention_forward"):
                    before = interface.get(own, file.eager_attention_forward)
                    found[id(interface), own] = (interface, own, self._attention(before, eager=own == "eager"))
                    break
        return list(found.values())

    def _attention(self, own: Callable, eager: bool) -> Callable:
        def function(module, query, key, value, attention_mask, *args, **kwargs):
            out, weights = own(module, query, key, value, attention_mask, *args, **kwargs)
            i = self.layer_of.get(id(module))
            if i is not None and self.thread() == self.current:
                self._heads(i, module, query, key, value, attention_mask, out, weights if eager else None, kwargs)
            return out, weights

        return function

    def _heads(self, i, module, query, key, value, mask, out, weights, kwargs) -> None:
        """query, key and value: batch head pos d_head, as the function got them. out: batch pos head d_head."""
        here = f"blocks.{i}.attn."
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        usual = kwargs.get("softcap") is None and abs(scale * query.shape[-1] ** 0.5 - 1) < 1e-6
        turned = _turns(self.places)
        if turned and usual:
            self.emit(here + "hook_rot_q", query.transpose(1, 2))
            self.emit(here + "hook_rot_k", key.transpose(1, 2))
        elif not turned:
            self.emit(here + "hook_q", query.transpose(1, 2))
            self.emit(here + "hook_k", key.transpose(1, 2))
        self.emit(here + "hook_v", value.transpose(1, 2))
        sinks = getattr(module, "sinks", None)
        if kwargs.get("softcap") is None:
            self._beside(here, query, key, mask, scale, sinks, weights, kwargs.get("sliding_window"))
        elif weights is not None:
            self._pattern(here, weights)
        self.emit(here + "hook_z", out)
        if self.tap.wants(here + "hook_result") and (project := _by_head(module)) is not None:
            import torch

            w = project.weight.view(-1, *out.shape[-2:])
            self.emit(here + "hook_result", torch.einsum("bphd,mhd->bphm", out, w), derived=True)

    def _pattern(self, here: str, pattern: "Tensor", derived: bool = False) -> None:
        if self.tap.wants(here + "hook_pattern"):
            self.emit(here + "hook_pattern", pattern, derived)
        if see := self.tap.pattern_rows(here):
            see(pattern, 0, 0)

    def _beside(self, here, query, key, mask, scale, sinks, weights, window) -> None:
        """Scores, sink and pattern, some queries at a time; the pattern is the run's own where it gave one."""
        import torch

        wants = {point: self.tap.wants(here + f"hook_{point}") for point in ("attn_scores", "pattern", "sink")}
        wants["sink"] &= sinks is not None
        wants["pattern"] |= self.tap.pattern_rows(here) is not None
        if weights is not None and wants["pattern"]:
            self._pattern(here, weights)
            wants["pattern"] = False
        if not any(wants.values()):
            return
        n, wide = query.shape[2], torch.promote_types(query.dtype, torch.float32)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3)
        kept: dict[str, list[Tensor]] = {point: [] for point in wants}
        for start in range(0, n, CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            s = (query[:, :, rows] @ keys * scale).to(wide)
            s = s.masked_fill(_hidden(mask, rows, n, window, s.device), -torch.inf)
            kept["attn_scores"] += [s] if wants["attn_scores"] else []
            if sinks is not None:
                s = torch.cat((s, sinks.to(wide).view(1, -1, 1, 1).expand(*s.shape[:3], 1)), -1)
            p = s.softmax(-1)
            kept["sink"] += [p[..., -1]] if wants["sink"] else []
            kept["pattern"] += [p[..., :n].to(query.dtype)] if wants["pattern"] else []
        for point in ("attn_scores", "sink"):
            if wants[point]:
                self.emit(here + f"hook_{point}", torch.cat(kept[point], 2), derived=True)
        if wants["pattern"]:
            self._pattern(here, torch.cat(kept["pattern"], 2), derived=True)


def _turns(places: Places) -> bool:
    """Whether positions reach attention by rotation."""
    return any(getattr(places.config, name, None) is not None for name in ("rope_parameters", "rope_theta"))


@contextmanager
def _in_place(interface: Any, name: str, function: Callable) -> Iterator[None]:
    """`function` under `name` in one of transformers' interfaces, and what was there before put back."""
    local = interface._local_mapping
    before, there = local.get(name), name in local
    interface[name] = function
    try:
        yield
    finally:
        if there:
            interface[name] = before
        else:
            del interface[name]


def _hidden(mask: Any, rows: slice, n: int, window: int | None, device: Any) -> "Tensor":
    """query key: True where a key may not be seen; without a mask of numbers, causal and inside the window."""
    import torch

    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        m = mask[:, :, rows, :n]
        return ~m if m.dtype == torch.bool else m <= torch.finfo(m.dtype).min / 2
    query = torch.arange(n, device=device)[rows, None]
    key = torch.arange(n, device=device)
    late = key > query
    return late | (key <= query - window) if window else late


def _one_by_one(experts: Callable, hidden: "Tensor", chosen: "Tensor") -> "Tensor":
    """pos choice d_model: what each chosen expert says before its weight, by the model's own experts function."""
    import torch

    k, said = chosen.shape[-1], []
    for start in range(0, len(hidden), CHUNK_POSITIONS):
        x, which = hidden[start : start + CHUNK_POSITIONS], chosen[start : start + CHUNK_POSITIONS]
        ones = torch.ones(which.numel(), 1, dtype=x.dtype, device=x.device)
        said.append(experts(x.repeat_interleave(k, 0), which.reshape(-1, 1), ones).view(len(x), k, -1))
    return torch.cat(said)


def _first(out: Any) -> "Tensor":
    return out[0] if isinstance(out, tuple) else out


def _rows(x: "Tensor") -> "Tensor":
    """With a batch axis: transformers flattens batch and positions before its routers."""
    return x if x.ndim == 3 else x[None]
