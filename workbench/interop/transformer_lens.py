"""A Trace from TransformerLens, of a bridge's run or of an ActivationCache, and a Trace as an ActivationCache.

Hook points have the same names; only its hook_normalized is before the norm's scale, and ours is its norm's hook_out:
what attention and router read. TransformerLens shows no sink: its share is computed from the scores and the learned
sink logits, and marked "derived"; a cache whose rows and sinks do not sum to 1 is refused.

Compatibility mode folds the bias of values into the bias of the output, as if every row of a pattern summed to 1. In a
model with sinks no row does, so such a run is another model's (measured on gpt-oss's shape: 58 % of the likeliest next
tokens are the same): it is refused. `bridge.enable_compatibility_mode(fold_value_biases=False)` folds the rest and is
right; ln1, ln2 and ln_final then have other values, and are left out.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

import workbench.hooks as names
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
    "its weights were processed with value biases folded into the output's bias. That is right only where the rows of "
    "a pattern sum to 1, and this model's sum to 1 - sink: it is not the same model any more. Boot a new bridge, and "
    "leave compatibility mode off, or enable_compatibility_mode(fold_value_biases=False)"
)
FLAT = ("mlp.router.hook_out", "mlp.hook_expert_weights", "mlp.hook_expert_indices")  # no batch axis there
RESULT = "blocks.*.attn.hook_result"
LOGITS = ("unembed.hook_out", "hook_unembed")
NORMED = ("ln1.hook_normalized", "ln2.hook_normalized", "ln_final.hook_normalized")


def record(
    bridge: Any, ask: Any, *, record: str | Sequence[str] = "auto", tokenizer: Any = None, budget: float | None = None
) -> Trace:
    """A Trace of a text that a `TransformerBridge` reads, under whatever hooks it has.

    `ask`, `record` and `budget` as in `wb.interop.transformers.record`.

    >>> from transformer_lens.model_bridge import TransformerBridge  # doctest: +SKIP
    >>> bridge = TransformerBridge.boot_transformers("openai/gpt-oss-20b")  # doctest: +SKIP
    >>> wb.interop.transformer_lens.record(bridge, "What is 2+2?", record="attention")  # doctest: +SKIP
    <Trace openai/gpt-oss-20b: 76 tokens, 24 layers; verified (9 identities); rot_q, rot_k, sink, router_logits, …>

    Raises InteropError for a bridge whose value biases were folded although the model has sinks, or whose rows and
    sinks do not sum to 1; NotRecorded, HookNameError, PromptError, BudgetError, MissingDependency.
    """
    check_release("transformers", "transformer-lens")
    source = _source(bridge, tokenizer)
    source.forward = lambda tokens, tap: _run(bridge, source, tokens, tap)
    template = getattr(bridge.tokenizer, "chat_template", None)
    tokens, notes = ids_of(ask, source.reader, template, source.is_gpt_oss)
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
    """The Trace of what an `ActivationCache` (or a dict of its names) holds, of one text.

    `tokens` are the ids that were read, `logits` what the run gave (by default what the cache has, or what the model
    makes of the last residual stream), `row` which text of a batch. The bridge is taken from the cache.

    >>> logits, cache = bridge.run_with_cache(tokens)  # doctest: +SKIP
    >>> wb.interop.transformer_lens.from_cache(cache, tokens, logits=logits).verified  # doctest: +SKIP
    True

    Raises InteropError where the cache is not that of those tokens, has no logits, or breaks what is said above.
    """
    check_release("transformers", "transformer-lens")
    held = dict(cache.items())
    bridge = getattr(cache, "model", None) if model is None else model
    ids = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    batch = ids if ids and isinstance(ids[0], list) else [ids]
    if len(batch) > 1 and row is None:
        raise InteropError(
            f"a trace is one text, and this is a batch of {len(batch)}: say row=0 … row={len(batch) - 1}"
        )
    row = row or 0
    if not 0 <= row < len(batch):
        raise InteropError(f"there is no row {row}; the batch has {len(batch)}")
    values = _values(held, len(batch), len(batch[0]), row, getattr(cache, "has_batch_dim", True))
    if logits is not None:
        values["hook_logits"] = logits if logits.ndim == 3 and len(logits) == 1 else logits[row][None]
    source = _source(bridge, tokenizer) if hasattr(bridge, "adapter") else _bare(values)
    if "hook_logits" not in values:
        last = f"blocks.{source.n_layers - 1}.hook_resid_post"
        if source.read_out is None or last not in values:
            raise InteropError(f"this cache holds no logits: give logits=…, or let the cache keep {LOGITS[0]!r}")
        values["hook_logits"] = source.read_out(values[last])
    source.forward = lambda given, tap: _play(values, source, given.shape[1], tap)
    source.replays = True
    source.unreliable_hooks.discard(RESULT)  # what a cache holds was computed
    source.notes.append("from an ActivationCache: the run itself was not watched")
    return adapter.record(source, batch[row], record, None)


def to_cache(trace: Trace, model: Any = None) -> Any:
    """The hook points of a trace as an `ActivationCache`, in TransformerLens's shapes: batch first, routes without.

    `model`: a bridge, for the cache's methods that need one. What TransformerLens has no name for (sink, expert_out)
    keeps workbench's.

    >>> cache = wb.interop.transformer_lens.to_cache(trace)
    >>> cache["blocks.1.attn.hook_sink"].shape == (1, trace.config["n_heads"], len(trace))
    True

    Raises MissingDependency.
    """
    check_release("transformer-lens")
    ActivationCache = require("transformer_lens", extra="interop").ActivationCache
    held = {}
    for name in trace.names():
        if names.point_of(name) not in names.POINTS:
            continue
        x = tensor(trace.raw(name))
        x = x.long() if name.endswith("hook_expert_indices") else x
        held[_theirs(name)] = x if name.endswith(FLAT) else x[None]
        if name == "hook_logits":
            held |= dict.fromkeys(LOGITS, x[None])
    return ActivationCache(held, model)


def _theirs(name: str) -> str:
    """TransformerLens's name of a hook point of ours."""
    return name.replace("hook_normalized", "hook_out") if name.endswith(NORMED) else name


def _ours(name: str) -> str:
    """Our name of one of TransformerLens's; "" for what is something else here."""
    if name in LOGITS:
        return "hook_logits"
    if name.endswith(NORMED):
        return ""
    norm = name.replace("hook_out", "hook_normalized")
    return norm if norm.endswith(NORMED) else name


# -- what a bridge is -------------------------------------------------------------------------------------------------


def _source(bridge: Any, tokenizer: Any) -> ForeignSource:
    if not hasattr(bridge, "original_model") or not hasattr(bridge, "run_with_hooks"):
        raise InteropError(
            f"a {type(bridge).__name__} is no TransformerBridge; boot one, or give a cache to from_cache"
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
        forward=lambda tokens, tap: tokens,  # set by those who know how
        read_out=lambda resid: _read_out(bridge, resid),
        reader=reader_of(tokenizer or bridge.tokenizer, None, is_gpt_oss),
        attention_copies=4,
    )
    where = "model.layers.{}.self_attn."
    sinks = [weights.get(where.format(i) + "sinks") for i in range(source.n_layers)]
    biases = [weights.get(where.format(i) + "o_proj.bias") for i in range(source.n_layers)]
    source.by_layer = [
        {key: exact(x) for key, x in (("sinks", sink), ("b_o", bias)) if x is not None}
        for sink, bias in zip(sinks, biases, strict=True)
    ]
    if not cfg.use_attn_result:
        source.unreliable_hooks.add(RESULT)
        source.reasons[RESULT] = "the bridge computes it after bridge.set_use_attn_result(True)"
    processed = getattr(bridge, "_weights_processed", False) or _normed(weights, source.n_layers)
    if bridge.compatibility_mode and processed:
        values = [weights.get(where.format(i) + "v_proj.bias") for i in range(source.n_layers)]
        if source.sinks is not None and all(b is not None and not b.any() for b in values):
            raise InteropError(f"this bridge cannot be recorded: {FOLDED}.")
        source.notes.append("TransformerLens had processed the weights (compatibility mode)")
        for point in ("blocks.*.ln1.hook_normalized", "blocks.*.ln2.hook_normalized", "ln_final.hook_normalized"):
            source.reasons[point] = "compatibility mode has folded its scale into the weights that read it"
            source.unreliable_hooks.add(point)
    return source


def _normed(weights: dict[str, "Tensor"], n_layers: int) -> bool:
    """Whether the norms' scales are all 1: folded into what reads them."""
    scales = [weights.get(f"model.layers.{i}.input_layernorm.weight") for i in range(n_layers)]
    return all(scale is not None and bool((scale == 1).all()) for scale in scales)


def _weights(original: Any, is_gpt_oss: bool) -> dict[str, "Tensor"]:
    """The model's own tensors under its own names, without those by which a bridge calls them as well."""
    held, met = {}, set()
    for name, x in original.state_dict().items():
        if (x.data_ptr(), x.shape) not in met and not x.is_meta:
            met.add((x.data_ptr(), x.shape))
            held[name.replace("._original_component", "")] = x.detach()
    if is_gpt_oss and not held.get("lm_head.bias", np.zeros(1)).any():
        held.pop("lm_head.bias", None)  # a bridge adds one of zeros
    return held


def _gpt_oss(original: Any) -> dict[str, Any]:
    made = asdict(parse_hf_config(original.config.to_dict(), "the config of this bridge"))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}


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
        "shared_experts": True,  # it cannot be seen here whether there are some
    }


def _bare(values: dict[str, "Tensor"]) -> ForeignSource:
    """Of a cache without a model: all that is known is what it holds."""
    layers = [layer for name in values if (layer := names.layer_of(name)) is not None]
    if not layers:
        raise InteropError("this cache holds no hook point of a block, so there is nothing to make a trace of")
    pattern = next((x for name, x in values.items() if name.endswith("hook_pattern")), None)
    sums = None if pattern is None else pattern.double().sum(-1)
    some = next(iter(values.values()))
    n = next(x.shape[1] for name, x in values.items() if names.axes(name)[0] == "pos")
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
        there = bridge.hook_dict
        points = [name for name in names.all_points(source.n_layers) if _theirs(name) in there]
        points = [name for name in points if names.point_of(name) not in source.unreliable_hooks]
        hooks = [(_theirs(name), lambda x, hook, name=name: emitter.emit(name, x)) for name in points]
        logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False)
        tap("hook_logits", logits)
        return logits


def _play(values: dict[str, "Tensor"], source: ForeignSource, n: int, tap: Tap | None) -> "Tensor":
    """A cache as if it ran again: the first `n` positions of every value, in the order of a forward pass."""
    cut = {}
    for name, x in values.items():
        at = tuple(slice(n) if axis in ("pos", "query", "key") else slice(None) for axis in names.axes(name))
        cut[name] = x[(slice(None), *at)]
    if tap is not None:
        emitter = _Emitter(source, tap)
        for name in names.all_points(source.n_layers):
            if name in cut and name != "hook_logits":
                emitter.emit(name, cut[name])
        tap("hook_logits", cut["hook_logits"])
    return cut["hook_logits"]


def _read_out(bridge: Any, resid: "Tensor") -> "Tensor":
    import torch

    with torch.no_grad():
        return bridge.unembed(bridge.ln_final(resid))


def _values(held: dict[str, Any], n_batch: int, n_pos: int, row: int, batched: bool) -> dict[str, "Tensor"]:
    """By our names, batch first, of one text. Raises InteropError for shapes that are not those of these tokens."""
    values = {}
    for name, x in held.items():
        ours = _ours(name)
        if names.point_of(ours) not in names.POINTS:
            continue
        axes = names.axes(ours)
        if ours.endswith(FLAT):
            x = x.reshape(n_batch, -1, x.shape[-1])[row][None]
        else:
            x = x[row][None] if batched and x.ndim == len(axes) + 1 else x[None]
        sizes = dict(zip(axes, x.shape[1:], strict=False))
        if x.ndim != len(axes) + 1 or any(sizes.get(axis, n_pos) != n_pos for axis in ("pos", "query", "key")):
            raise InteropError(
                f"{name!r} has the shape {tuple(held[name].shape)}, and {n_batch} x {n_pos} tokens were given: a trace "
                f"needs whole sequences, so cache without pos_slice, and give the tokens of that very run"
            )
        values[ours] = x
    return values


class _Emitter:
    """One pass: what TransformerLens says, in our shapes, with the sinks that it does not say."""

    def __init__(self, source: ForeignSource, tap: Tap):
        self.source, self.tap = source, tap
        self.sink: Tensor | None = None  # of the layer under way
        self.given = False  # whether the cache itself holds it

    def emit(self, name: str, x: "Tensor") -> None:
        import torch

        x = x.detach()
        if names.point_of(name) in self.source.unreliable_hooks:
            return
        here = name.rpartition(".")[0] + "."
        if name.endswith(FLAT) and x.ndim == 2:
            x = x[None]
        if name.endswith("hook_attn_scores"):
            x = x.masked_fill(x <= torch.finfo(x.dtype).min / 2, -torch.inf)
            self.sink = self._share(name, x)
        if name.endswith("hook_sink"):
            self.sink, self.given = x, True
        if name.endswith("hook_pattern"):
            self._pattern(here, x)
        self.tap(name, x)

    def _share(self, name: str, scores: "Tensor") -> "Tensor | None":
        """batch head query: the sinks' share of the softmax."""
        import torch

        sinks, layer = self.source.sinks, names.layer_of(name)
        if sinks is None or layer is None:
            return None
        wide = torch.promote_types(scores.dtype, torch.float32)
        sink = torch.from_numpy(sinks[layer]).to(scores.device, wide).view(1, -1, 1, 1)
        return torch.cat((scores.to(wide), sink.expand(*scores.shape[:3], 1)), -1).softmax(-1)[..., -1]

    def _pattern(self, here: str, pattern: "Tensor") -> None:
        """The sink that belongs to a pattern, and whether they sum to 1."""
        import torch

        total = pattern.to(torch.float64).sum(-1)
        has = self.source.sinks is not None or self.source.config.get("sinks") is not False
        sink = self.sink
        if sink is None and has:
            sink = (1 - total).to(torch.promote_types(pattern.dtype, torch.float32))
        tolerance = verification.TOLERANCE[self.source.dtype]
        off = float((total + (0 if sink is None else sink) - 1).abs().max())
        no_room = has and self.source.sinks is not None and float((total - 1).abs().max()) < 1e-6
        if off > tolerance or no_room or float(total.max()) > 1 + tolerance:
            raise InteropError(
                f"the rows of {here}hook_pattern and the model's sinks sum to {1 + off:.4f} at worst, not to 1: these "
                f"are not this model's patterns. Cache them from a bridge without processed weights, and before any "
                f"hook renormalises them."
            )
        if sink is not None and not self.given:
            self.source.derived.add(here + "hook_sink")
            self.tap(here + "hook_sink", sink)
        if see := self.tap.pattern_rows(here):
            see(pattern, 0, 0)
        self.sink, self.given = None, False
