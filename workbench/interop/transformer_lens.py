"""A Trace from TransformerLens (from a bridge's run or an ActivationCache), and a Trace as an ActivationCache.

Hook points have the same names, with one exception: TransformerLens's hook_normalized is before the norm's scale, and
workbench's is TransformerLens's hook_out of the norm, the value that attention and router read. TransformerLens exposes
no sink: its share is computed from the scores and the learned sink logits and marked "derived". A cache whose rows and
sinks do not sum to 1 is refused.

Compatibility mode folds the value biases into the output bias, which assumes that every row of a pattern sums to 1. In
a model with sinks no row does, so the processed model is a different one (measured on gpt-oss's shape: only 58 % of the
most likely next tokens agree), and it is refused. `bridge.enable_compatibility_mode(fold_value_biases=False)` folds the
rest and is right; ln1, ln2 and ln_final then have other values, and are left out.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import hooks
from workbench.checks import require
from workbench.errors import InteropError
from workbench.interop import adapter
from workbench.interop.adapter import ForeignSource
from workbench.interop.readers import ids_of, reader_of
from workbench.interop.versions import check_release
from workbench.model.arrays import exact, tensor
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.taps import Tap
from workbench.traces import Trace, verification

if TYPE_CHECKING:
    from torch import Tensor

FOLDED = (
    "its weights were processed with value biases folded into the output bias. That is right only where the rows of a "
    "pattern sum to 1, and this model's sum to 1 - sink: the processed model is a different one. Boot a new bridge, "
    "and leave compatibility mode off, or enable_compatibility_mode(fold_value_biases=False)"
)
FLAT = ("mlp.router.hook_out", "mlp.hook_expert_weights", "mlp.hook_expert_indices")  # without a batch axis there
RESULT = "blocks.*.attn.hook_result"
LOGITS = ("unembed.hook_out", "hook_unembed")
NORMED = ("ln1.hook_normalized", "ln2.hook_normalized", "ln_final.hook_normalized")


def record(
    bridge: Any,
    prompt: Any,
    *,
    record: str | Sequence[str] = "auto",
    tokenizer: Any = None,
    budget: float | None = None,
) -> Trace:
    """A Trace of one text that a `TransformerBridge` runs; hooks on the bridge stay in force.

    Args:
        bridge: a `TransformerBridge`
        prompt, record, budget: as in `wb.interop.transformers.record`
        tokenizer: a folder or a tokenizer of transformers; the bridge's own by default

    Returns:
        A Trace.

    Raises:
        InteropError: the bridge's value biases were folded although the model has sinks, or its rows and sinks do not
            sum to 1
        NotRecorded, HookNameError, PromptError, BudgetError, MissingDependency

    >>> from transformer_lens.model_bridge import TransformerBridge  # doctest: +SKIP
    >>> bridge = TransformerBridge.boot_transformers("openai/gpt-oss-20b")  # doctest: +SKIP
    >>> wb.interop.transformer_lens.record(bridge, "What is 2+2?", record="attention")  # doctest: +SKIP
    <Trace openai/gpt-oss-20b: 76 tokens, 24 layers; verified (9 identities); rot_q, rot_k, sink, router_logits, …>
    """
    check_release("transformers", "transformer-lens")
    source = _source(bridge, tokenizer)
    source.forward = lambda tokens, tap: _run(bridge, source, tokens, tap)
    template = getattr(bridge.tokenizer, "chat_template", None)
    tokens, notes = ids_of(prompt, source.reader, template, source.is_gpt_oss)
    return adapter.record(source, tokens, record, budget, notes)


def from_cache(
    cache: Any,
    tokens: Any,
    *,
    logits: "Tensor | None" = None,
    model: Any = None,
    row: int | None = None,
    record: str | Sequence[str] = "everything",
    tokenizer: Any = None,
) -> Trace:
    """The Trace of one text from an `ActivationCache` or a dict of its names.

    Args:
        cache: what `run_with_cache` returned
        tokens: the ids that were run (pos, or batch pos)
        logits: the run's logits; by default those in the cache, or else the model's from the last residual stream
        model: the bridge; by default the cache's
        row: the index of the text in a batch
        record, tokenizer: as in `wb.interop.transformers.record`

    Returns:
        A Trace of what the cache holds.

    Raises:
        InteropError: the cache belongs to other tokens or has no logits, the bridge's value biases were folded although
            the model has sinks, or rows and sinks do not sum to 1
        MissingDependency

    >>> logits, cache = bridge.run_with_cache(tokens)  # doctest: +SKIP
    >>> wb.interop.transformer_lens.from_cache(cache, tokens, logits=logits).verified  # doctest: +SKIP
    True
    """
    check_release("transformers", "transformer-lens")
    activations = dict(cache.items())
    bridge = getattr(cache, "model", None) if model is None else model
    ids = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    batch = ids if ids and isinstance(ids[0], list) else [ids]
    if len(batch) > 1 and row is None:
        raise InteropError(
            f"a trace is one text, and this is a batch of {len(batch)}: choose one with row=0 … row={len(batch) - 1}"
        )
    row = row or 0
    if not 0 <= row < len(batch):
        raise InteropError(f"row must be between 0 and {len(batch) - 1}, got {row}")
    values = _values(activations, len(batch), len(batch[0]), row, getattr(cache, "has_batch_dim", True))
    if logits is not None:
        values["hook_logits"] = logits if logits.ndim == 3 and len(logits) == 1 else logits[row][None]
    source = _source(bridge, tokenizer) if hasattr(bridge, "adapter") else _source_without_model(values)
    if "hook_logits" not in values:
        last = f"blocks.{source.n_layers - 1}.hook_resid_post"
        if source.read_out is None or last not in values:
            raise InteropError(f"this cache holds no logits: pass logits=…, or let the cache include {LOGITS[0]!r}")
        values["hook_logits"] = source.read_out(values[last])
    source.forward = lambda ids, tap: _play(values, source, ids.shape[1], tap)
    source.replays = True
    source.unreliable_hooks.discard(RESULT)  # a result in the cache was computed
    source.notes.append("from an ActivationCache: the run itself was not observed")
    return adapter.record(source, batch[row], record, None)


def to_cache(trace: Trace, model: Any = None) -> Any:
    """The hook points of a trace as an `ActivationCache`, in TransformerLens's shapes: batch first, except for routes.

    `model`: a bridge, for those methods of the cache that need one. Hook points without a name in TransformerLens
    (sink, expert_out) keep workbench's.

    >>> cache = wb.interop.transformer_lens.to_cache(trace)
    >>> cache["blocks.1.attn.hook_sink"].shape == (1, trace.config["n_heads"], len(trace))
    True

    Raises MissingDependency.
    """
    check_release("transformer-lens")
    ActivationCache = require("transformer_lens", extra="interop").ActivationCache
    activations = {}
    for name in trace.names():
        if hooks.point_of(name) not in hooks.POINTS:
            continue
        x = tensor(trace.raw(name))
        x = x.long() if name.endswith("hook_expert_indices") else x
        activations[_tl_name(name)] = x if name.endswith(FLAT) else x[None]
        if name == "hook_logits":
            activations |= dict.fromkeys(LOGITS, x[None])
    return ActivationCache(activations, model)


def _tl_name(name: str) -> str:
    """TransformerLens's name of a hook point."""
    return name.replace("hook_normalized", "hook_out") if name.endswith(NORMED) else name


def _hook_name(tl_name: str) -> str:
    """The hook point that holds the value TransformerLens calls `tl_name`; "" if its values are defined otherwise."""
    if tl_name in LOGITS:
        return "hook_logits"
    if tl_name.endswith(NORMED):
        return ""
    norm = tl_name.replace("hook_out", "hook_normalized")
    return norm if norm.endswith(NORMED) else tl_name


# -- a bridge as a source ---------------------------------------------------------------------------------------------


def _source(bridge: Any, tokenizer: Any) -> ForeignSource:
    if not hasattr(bridge, "original_model") or not hasattr(bridge, "run_with_hooks"):
        raise InteropError(
            f"a {type(bridge).__name__} is not a TransformerBridge; boot one, or pass a cache to from_cache"
        )
    original, cfg = bridge.original_model, bridge.cfg
    is_gpt_oss = getattr(original.config, "model_type", None) == "gpt_oss"
    weights = _weights(original, is_gpt_oss)
    embed = bridge.embed.W_E
    source = ForeignSource(
        name=str(cfg.model_name),
        format="TransformerLens",
        digest=weights_digest(weights),
        config=_gpt_oss(original) if is_gpt_oss else _config(cfg),
        dtype=str(embed.dtype).removeprefix("torch."),
        device=str(embed.device),
        kernels="TransformerBridge",
        libraries=("transformer-lens", "transformers"),
        forward=lambda tokens, tap: tokens,  # a placeholder: the callers set it
        read_out=lambda resid: _read_out(bridge, resid),
        reader=reader_of(tokenizer or bridge.tokenizer, None, is_gpt_oss),
        attention_copies=4,
    )
    prefix = "model.layers.{}.self_attn."
    sinks = [weights.get(prefix.format(i) + "sinks") for i in range(source.n_layers)]
    biases = [weights.get(prefix.format(i) + "o_proj.bias") for i in range(source.n_layers)]
    source.by_layer = [
        {key: exact(x) for key, x in (("sinks", sink), ("b_o", bias)) if x is not None}
        for sink, bias in zip(sinks, biases, strict=True)
    ]
    if not cfg.use_attn_result:
        source.unreliable_hooks.add(RESULT)
        source.reasons[RESULT] = "the bridge computes it after bridge.set_use_attn_result(True)"
    processed = getattr(bridge, "_weights_processed", False) or _norms_are_folded(weights, source.n_layers)
    if bridge.compatibility_mode and processed:
        values = [weights.get(prefix.format(i) + "v_proj.bias") for i in range(source.n_layers)]
        if source.sinks is not None and all(b is not None and not b.any() for b in values):
            raise InteropError(f"this bridge cannot be recorded: {FOLDED}.")
        source.notes.append("TransformerLens had processed the weights (compatibility mode)")
        for point in ("blocks.*.ln1.hook_normalized", "blocks.*.ln2.hook_normalized", "ln_final.hook_normalized"):
            source.reasons[point] = "compatibility mode has folded its scale into the weights that read it"
            source.unreliable_hooks.add(point)
    return source


def _norms_are_folded(weights: dict[str, "Tensor"], n_layers: int) -> bool:
    """Whether the norms' scales are all 1, that is, folded into the weights that follow."""
    scales = [weights.get(f"model.layers.{i}.input_layernorm.weight") for i in range(n_layers)]
    return all(scale is not None and bool((scale == 1).all()) for scale in scales)


def _weights(original: Any, is_gpt_oss: bool) -> dict[str, "Tensor"]:
    """The model's own tensors under the model's names, without the second names that a bridge gives them."""
    tensors, seen = {}, set()
    for name, x in original.state_dict().items():
        if (x.data_ptr(), x.shape) not in seen and not x.is_meta:
            seen.add((x.data_ptr(), x.shape))
            tensors[name.replace("._original_component", "")] = x.detach()
    if is_gpt_oss and not tensors.get("lm_head.bias", np.zeros(1)).any():
        tensors.pop("lm_head.bias", None)  # a bridge adds one of zeros
    return tensors


def _gpt_oss(original: Any) -> dict[str, Any]:
    config = asdict(parse_hf_config(original.config.to_dict(), "the config of this bridge"))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _config(cfg: Any) -> dict[str, Any]:
    kinds = getattr(cfg, "layer_types", None) or ["full_attention"] * cfg.n_layers
    return {
        "architecture": str(cfg.architecture),
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "n_heads": cfg.n_heads,
        "n_kv_heads": getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        "d_vocab": cfg.d_vocab,
        "n_ctx": cfg.n_ctx,
        "window": getattr(cfg, "sliding_window", None) or cfg.n_ctx,
        "layer_types": list(kinds),
        "sinks": False,
        "shared_experts": True,  # unknown here whether there are any
    }


def _source_without_model(values: dict[str, "Tensor"]) -> ForeignSource:
    """The source of a cache without a model: only the cache's own values are known."""
    layers = [layer for name in values if (layer := hooks.layer_of(name)) is not None]
    if not layers:
        raise InteropError("this cache holds no hook point of a block, so no trace can be made from it")
    pattern = next((x for name, x in values.items() if name.endswith("hook_pattern")), None)
    sums = None if pattern is None else pattern.double().sum(-1)
    some = next(iter(values.values()))
    n = next(x.shape[1] for name, x in values.items() if hooks.axes(name)[0] == "pos")
    z = next((x.shape[-2] for name, x in values.items() if name.endswith(("hook_z", "hook_q"))), 0)
    return ForeignSource(
        name="a cache",
        format="TransformerLens",
        digest="not known: the cache came without its model",
        config={
            "architecture": "ActivationCache",
            "n_layers": max(layers) + 1,
            "n_heads": z if pattern is None else pattern.shape[1],
            "window": n,
            "layer_types": ["full_attention"] * (max(layers) + 1),
            "sinks": sums is not None and bool((sums < 1 - 1e-3).any()),
            "shared_experts": True,
        },
        dtype=str(some.dtype).removeprefix("torch."),
        device=str(some.device),
        kernels="not known",
        libraries=("transformer-lens",),
        forward=lambda tokens, tap: tokens,
    )


# -- running ----------------------------------------------------------------------------------------------------------


def _run(bridge: Any, source: ForeignSource, tokens: "Tensor", tap: Tap | None) -> "Tensor":
    import torch

    tokens = tokens.to(source.device)
    with torch.no_grad():
        if tap is None:
            return bridge(tokens, use_cache=False)
        emitter = _Emitter(source, tap)
        bridge_hooks = bridge.hook_dict
        points = [name for name in hooks.all_points(source.n_layers) if _tl_name(name) in bridge_hooks]
        points = [name for name in points if hooks.point_of(name) not in source.unreliable_hooks]
        forward_hooks = [(_tl_name(name), lambda x, hook, name=name: emitter.emit(name, x)) for name in points]
        logits = bridge.run_with_hooks(tokens, fwd_hooks=forward_hooks, use_cache=False)
        tap("hook_logits", logits)
        return logits


def _play(values: dict[str, "Tensor"], source: ForeignSource, n: int, tap: Tap | None) -> "Tensor":
    """Plays a cache back as a run: the first `n` positions of every value, in the order of a forward pass."""
    sliced = {}
    for name, x in values.items():
        slices = tuple(slice(n) if axis in ("pos", "query", "key") else slice(None) for axis in hooks.axes(name))
        sliced[name] = x[(slice(None), *slices)]
    if tap is not None:
        emitter = _Emitter(source, tap)
        for name in hooks.all_points(source.n_layers):
            if name in sliced and name != "hook_logits":
                emitter.emit(name, sliced[name])
        tap("hook_logits", sliced["hook_logits"])
    return sliced["hook_logits"]


def _read_out(bridge: Any, resid: "Tensor") -> "Tensor":
    import torch

    with torch.no_grad():
        return bridge.unembed(bridge.ln_final(resid))


def _values(activations: dict[str, Any], n_batch: int, n_pos: int, row: int, batched: bool) -> dict[str, "Tensor"]:
    """One text's values by hook point (batch first). Raises InteropError for shapes that do not fit the tokens."""
    values = {}
    for tl_name, x in activations.items():
        name = _hook_name(tl_name)
        if hooks.point_of(name) not in hooks.POINTS:
            continue
        axes = hooks.axes(name)
        if name.endswith(FLAT):
            x = x.reshape(n_batch, -1, x.shape[-1])[row][None]
        else:
            x = x[row][None] if batched and x.ndim == len(axes) + 1 else x[None]
        sizes = dict(zip(axes, x.shape[1:], strict=False))
        if x.ndim != len(axes) + 1 or any(sizes.get(axis, n_pos) != n_pos for axis in ("pos", "query", "key")):
            raise InteropError(
                f"{tl_name!r} has shape {tuple(activations[tl_name].shape)}, which does not fit {n_batch} x {n_pos} "
                f"tokens: cache whole sequences, without pos_slice, and pass the tokens of that same run"
            )
        values[name] = x
    return values


class _Emitter:
    """One pass: TransformerLens's values in workbench's shapes, with the sinks that TransformerLens does not expose."""

    def __init__(self, source: ForeignSource, tap: Tap):
        self.source, self.tap = source, tap
        self.sink: Tensor | None = None  # of the current layer
        self.sink_is_recorded = False  # whether the cache itself holds it

    def emit(self, name: str, x: "Tensor") -> None:
        import torch

        x = x.detach()
        if hooks.point_of(name) in self.source.unreliable_hooks:
            return
        prefix = name.rpartition(".")[0] + "."
        if name.endswith(FLAT) and x.ndim == 2:
            x = x[None]
        if name.endswith("hook_attn_scores"):
            x = x.masked_fill(x <= torch.finfo(x.dtype).min / 2, -torch.inf)
            self.sink = self._sink_share(name, x)
        if name.endswith("hook_sink"):
            self.sink, self.sink_is_recorded = x, True
        if name.endswith("hook_pattern"):
            self._pattern(prefix, x)
        self.tap(name, x)

    def _sink_share(self, name: str, scores: "Tensor") -> "Tensor | None":
        """The sinks' share of the softmax (batch head query)."""
        import torch

        sinks, layer = self.source.sinks, hooks.layer_of(name)
        if sinks is None or layer is None:
            return None
        wide = torch.promote_types(scores.dtype, torch.float32)
        sink = torch.from_numpy(sinks[layer]).to(scores.device, wide).view(1, -1, 1, 1)
        return torch.cat((scores.to(wide), sink.expand(*scores.shape[:3], 1)), -1).softmax(-1)[..., -1]

    def _pattern(self, prefix: str, pattern: "Tensor") -> None:
        """Taps the sink that belongs to a pattern; raises InteropError unless pattern and sink sum to 1."""
        import torch

        row_sums = pattern.to(torch.float64).sum(-1)
        has_sinks = self.source.sinks is not None or self.source.config.get("sinks") is not False
        sink = self.sink
        if sink is None and has_sinks:
            sink = (1 - row_sums).to(torch.promote_types(pattern.dtype, torch.float32))
        tolerance = verification.TOLERANCE[self.source.dtype]
        max_error = float((row_sums + (0 if sink is None else sink) - 1).abs().max())
        no_sink_mass = has_sinks and self.source.sinks is not None and float((row_sums - 1).abs().max()) < 1e-6
        if max_error > tolerance or no_sink_mass or float(row_sums.max()) > 1 + tolerance:
            raise InteropError(
                f"the rows of {prefix}hook_pattern and the model's sinks sum to {1 + max_error:.4f} at worst, not to "
                f"1: these are not this model's patterns. Cache them from a bridge without processed weights, and "
                f"before any hook renormalizes them."
            )
        if sink is not None and not self.sink_is_recorded:
            self.source.derived.add(prefix + "hook_sink")
            self.tap(prefix + "hook_sink", sink)
        if add_pattern := self.tap.pattern_rows(prefix):
            add_pattern(pattern, 0, 0)
        self.sink, self.sink_is_recorded = None, False
