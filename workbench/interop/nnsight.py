"""A Trace from an nnsight session of gpt-oss, and our runner as a model that nnsight traces.

nnsight has no names of its own: a value is where transformers' code computes it. `PATHS` says where each hook point is,
in the order in which the pass meets them, in which nnsight must ask for them; `record` evaluates these very texts. All
are the run's own values but an expert's output, which no module holds, and the heads' results. Sinks and scores are in
the source of the eager attention function, so the model must run that one.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import workbench.hooks as names
from workbench.errors import HookNameError, InteropError
from workbench.interop import adapter
from workbench.interop.readers import ids_of
from workbench.interop.transformers import _by_head, _check_ids, _hidden, _one_by_one, source_of
from workbench.interop.versions import check_release
from workbench.taps import Tap
from workbench.traces import Trace

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.model.model import Model

ATTENTION = "model.layers[{layer}].self_attn.source.attention_interface_1"
# hook point -> where it is under an nnsight model, for nnsight 0.8 and transformers 5
PATHS: dict[str, str] = {
    "hook_embed": "model.embed_tokens.output",
    "blocks.*.hook_resid_pre": "model.layers[{layer}].input",
    "blocks.*.ln1.hook_normalized": "model.layers[{layer}].input_layernorm.output",
    "blocks.*.attn.hook_q": "model.layers[{layer}].self_attn.q_proj.output",
    "blocks.*.attn.hook_k": "model.layers[{layer}].self_attn.k_proj.output",
    "blocks.*.attn.hook_v": "model.layers[{layer}].self_attn.v_proj.output",
    "blocks.*.attn.hook_rot_q": "model.layers[{layer}].self_attn.source.apply_rotary_pos_emb_0.output[0]",
    "blocks.*.attn.hook_rot_k": "model.layers[{layer}].self_attn.source.apply_rotary_pos_emb_0.output[1]",
    "blocks.*.attn.hook_attn_scores": ATTENTION + ".source.torch_cat_0.output[..., :-1]",
    "blocks.*.attn.hook_sink": ATTENTION + ".source.F_softmax_0.output[..., -1]",
    "blocks.*.attn.hook_pattern": ATTENTION + ".output[1]",
    "blocks.*.attn.hook_z": ATTENTION + ".output[0]",
    "blocks.*.hook_attn_out": "model.layers[{layer}].self_attn.output[0]",
    "blocks.*.hook_resid_mid": "model.layers[{layer}].post_attention_layernorm.input",
    "blocks.*.ln2.hook_normalized": "model.layers[{layer}].post_attention_layernorm.output",
    "blocks.*.mlp.router.hook_out": "model.layers[{layer}].mlp.router.output[0]",
    "blocks.*.mlp.hook_expert_indices": "model.layers[{layer}].mlp.router.output[2]",
    "blocks.*.mlp.hook_expert_weights": "model.layers[{layer}].mlp.router.output[1]",
    "blocks.*.hook_mlp_out": "model.layers[{layer}].mlp.output[0]",
    "blocks.*.hook_resid_post": "model.layers[{layer}].output",
    "ln_final.hook_normalized": "model.norm.output",
    "hook_logits": "lm_head.output",
}


def path(name: str) -> str:
    """Where nnsight finds a hook point of gpt-oss in transformers' model.

    Shapes are transformers': heads before positions after RoPE, positions of a batch in one axis at the router, and the
    weights of the chosen experts only.

    >>> path("blocks.3.hook_mlp_out")
    'model.layers[3].mlp.output[0]'

    Raises HookNameError for what nnsight cannot reach there.
    """
    point, layer = names.point_of(name), names.layer_of(name)
    if point not in PATHS or (layer is None and "*" in point):
        if point in names.POINTS:
            raise HookNameError(
                f"{name!r} is no value of any module or call of transformers, so nnsight has no path to it"
            )
        raise names.unknown_name(name, PATHS)
    return PATHS[point].format(layer=layer)


def record(
    model: Any, ask: Any, *, record: str | Sequence[str] = "auto", tokenizer: Any = None, budget: float | None = None
) -> Trace:
    """A Trace of a text that gpt-oss reads in one session of nnsight, a `LanguageModel` or an `NNsight`.

    `ask`, `record` and `budget` as in `wb.interop.transformers.record`.

    >>> model = nnsight.LanguageModel("openai/gpt-oss-20b")  # doctest: +SKIP
    >>> wb.interop.nnsight.record(model, "What is 2+2?", record="attention")  # doctest: +SKIP
    <Trace openai/gpt-oss-20b: 76 tokens, 24 layers; verified (9 identities); rot_q, rot_k, sink, router_logits, …>

    Raises InteropError for another model than gpt-oss, fused experts, or another attention than eager; NotRecorded,
    HookNameError, PromptError, BudgetError, MissingDependency.
    """
    check_release("transformers", "nnsight")
    module = getattr(model, "_module", None)
    if module is None or not hasattr(model, "trace"):
        raise InteropError(f"a {type(model).__name__} is no model of nnsight; give an NNsight or a LanguageModel")
    if getattr(getattr(module, "config", None), "model_type", None) != "gpt_oss":
        raise InteropError(
            f"PATHS are gpt-oss's, and this is a {type(module).__name__}: "
            f"wb.interop.transformers.record(model._module, …) records it without a session"
        )
    if (own := module.config._attn_implementation) != "eager":
        raise InteropError(
            f"the model runs {own} attention; model._module.set_attn_implementation('eager') shows sinks"
        )
    given = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    source = source_of(module, given)
    if "blocks.*.mlp.hook_expert_out" in source.reasons:
        raise InteropError(f"nnsight cannot record it: {source.reasons['blocks.*.mlp.hook_expert_out']}")
    source.format, source.libraries = "nnsight", ("nnsight", "transformers")
    source.notes.clear()  # the hooks that are counted there are nnsight's
    source.forward = lambda tokens, tap: _run(model, module, source.n_layers, tokens, tap, source.derived)
    tokens, notes = ids_of(ask, source.reader, getattr(given, "chat_template", None), True)
    _check_ids(tokens, module)
    return adapter.record(source, tokens, record, budget, notes)


def _run(model: Any, module: Any, n_layers: int, tokens: "Tensor", tap: Tap | None, derived: set[str]) -> "Tensor":
    import torch

    from workbench.interop.transformers import _evaluating

    tokens = tokens.to(module.get_input_embeddings().weight.device)
    with torch.no_grad(), _evaluating(module):
        if tap is None:
            return module(input_ids=tokens, use_cache=False).logits
        for layer in model.model.layers:
            layer.self_attn.source  # noqa: B018  # a function shows its source only if asked before it runs
        kept: dict[str, Tensor] = {}

        def visit() -> None:
            for name in names.all_points(n_layers):
                if names.point_of(name) in PATHS and _wanted(tap, name):
                    x = eval(f"model.{path(name)}", {"model": model})
                    if name == "hook_logits":
                        kept[name] = x  # emitted afterwards: a lens calls modules, which would wait for the session
                    else:
                        _emit(tap, name, x, model, module, tokens, derived)

        with model.trace(tokens, use_cache=False):
            visit()
        tap("hook_logits", kept["hook_logits"])
        return kept["hook_logits"]


def _wanted(tap: Tap, name: str) -> bool:
    """Scores are large and asked for by few; everything else is there anyway."""
    return not name.endswith("hook_attn_scores") or tap.wants(name)


def _emit(tap: Tap, name: str, x: "Tensor", model: Any, module: Any, tokens: "Tensor", derived: set[str]) -> None:
    """One value in our shape, and those that follow from it."""
    layer, point, n = names.layer_of(name), names.point_of(name), tokens.shape[1]
    here = name.rpartition(".")[0] + "."
    attn: Any = None if layer is None else module.model.layers[layer].self_attn
    if point.endswith((".hook_q", ".hook_k", "attn.hook_v")):
        x = x.unflatten(-1, (-1, attn.head_dim))
    elif point.endswith(("hook_rot_q", "hook_rot_k")):
        x = x.transpose(1, 2)
    elif point.endswith("hook_attn_scores"):
        x = x.masked_fill(_hidden(None, slice(0, n), n, attn.sliding_window, x.device), float("-inf"))
    elif ".mlp.hook_expert" in point or point.endswith("router.hook_out"):
        x = x.view(*tokens.shape, -1)
    if point.endswith("hook_expert_weights"):
        import torch

        mlp = module.model.layers[layer].mlp
        (hidden, chosen, share), _ = eval(f"model.model.layers[{layer}].mlp.experts.inputs", {"model": model})
        spread = torch.zeros(len(hidden), mlp.experts.num_experts, dtype=share.dtype, device=share.device)
        x = spread.scatter(-1, chosen, share)[None]
        tap(name, x)
        if tap.wants(here + "hook_expert_out"):
            derived.add(here + "hook_expert_out")
            bare = partial(type(mlp.experts).forward, mlp.experts)  # its own is nnsight's, and would wait for itself
            tap(here + "hook_expert_out", _one_by_one(bare, hidden, chosen)[None])
        return
    if point.endswith("hook_pattern") and (see := tap.pattern_rows(here)):
        see(x, 0, 0)
    tap(name, x)
    if point.endswith("hook_z") and tap.wants(here + "hook_result") and (project := _by_head(attn)) is not None:
        import torch

        derived.add(here + "hook_result")
        w = project.weight.view(-1, *x.shape[-2:])
        tap(here + "hook_result", torch.einsum("bphd,mhd->bphm", x, w))


# -- our runner as a model of nnsight ---------------------------------------------------------------------------------


def wrap(model: "Model") -> Any:
    """Our runner as an `NNsight` whose modules are the hook points: read and write `.output` in a trace.

    Its input is token ids (batch pos), its output the logits; every hook point runs, patterns and experts' outputs too,
    so a text takes what `record="everything"` would. Edits in force on `model` act before nnsight's.

    >>> import nnsight, torch  # doctest: +SKIP
    >>> runner = wb.interop.nnsight.wrap(wb.Model("pocket"))  # doctest: +SKIP
    >>> with runner.trace(torch.tensor([[5, 7, 9]])):  # doctest: +SKIP
    ...     runner.blocks[1].hook_mlp_out.output[:] = 0
    ...     sink = runner.blocks[2].attn.hook_sink.output.save()
    >>> sink.shape  # doctest: +SKIP
    torch.Size([1, 4, 3])

    Raises MissingDependency.
    """
    check_release("nnsight")
    import nnsight

    return nnsight.NNsight(_module(model))


def _module(model: "Model") -> Any:
    import torch

    class Point(torch.nn.Module):
        """One hook point: what goes in comes out, unless nnsight writes there."""

        def forward(self, x):
            return x

    class Runner(torch.nn.Module):
        def forward(self, tokens):
            ids = torch.as_tensor(tokens, device=model.device)
            return points["hook_logits"](model.forward(ids[None] if ids.ndim == 1 else ids, Through()))

    class Through(Tap):
        def wants(self, name: str) -> bool:
            return name != "hook_logits"  # those come in pieces; the whole passes at the end

        def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
            return x if name == "hook_logits" else points[name](x)

    root, points = Runner(), {}
    root.add_module("blocks", torch.nn.ModuleList(torch.nn.Module() for _ in range(model.config.n_layers)))
    for name in names.all_points(model.config.n_layers):
        points[name] = Point()
        *above, last = name.split(".")
        place: Any = root
        for step in above:
            if not step.isdigit() and not hasattr(place, step):
                place.add_module(step, torch.nn.Module())
            place = place[int(step)] if step.isdigit() else getattr(place, step)
        place.add_module(last, points[name])
    return root.eval()
