"""A Trace of gpt-oss from an nnsight session, and workbench's runner as a model that nnsight can trace.

nnsight has no hook point names of its own: a value is addressed by the place in transformers' code that computes it.
`PATHS` maps each hook point to this place, in the order of execution, which is the order in which nnsight requires
values to be requested; `record` evaluates exactly these expressions. All values are the run's own except an expert's
output, which no module holds, and the heads' results. Sinks and scores are in the source of the eager attention
function, so the model must use eager attention.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench import hooks
from workbench.errors import HookNameError, InteropError
from workbench.interop import adapter
from workbench.interop.readers import ids_of
from workbench.interop.transformers import _check_ids, _expert_outputs, _masked_keys, _output_projection, source_of
from workbench.interop.versions import check_release
from workbench.taps import Tap
from workbench.traces import Trace

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.model.model import Model

ATTENTION = "model.layers[{layer}].self_attn.source.attention_interface_1"
# hook point -> its place under an nnsight model, for nnsight 0.8 and transformers 5
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
    """The expression by which nnsight reaches a hook point of gpt-oss in transformers' model.

    Values have transformers' shapes: after RoPE heads come before positions, at the router the positions of a batch are
    on one axis, and only the weights of the chosen experts are there.

    >>> path("blocks.3.hook_mlp_out")
    'model.layers[3].mlp.output[0]'

    Raises HookNameError for a hook point that nnsight cannot reach in transformers' model.
    """
    point, layer = hooks.point_of(name), hooks.layer_of(name)
    if point not in PATHS or (layer is None and "*" in point):
        if point in hooks.POINTS:
            raise HookNameError(f"{name!r} has no path: no module or function of transformers' gpt-oss holds its value")
        raise hooks.unknown_name(name, PATHS)
    return PATHS[point].format(layer=layer)


def record(
    model: Any, prompt: Any, *, record: str | Sequence[str] = "auto", tokenizer: Any = None, budget: float | None = None
) -> Trace:
    """A Trace of one text that gpt-oss runs in a single nnsight session.

    Args:
        model: a `LanguageModel` or an `NNsight` around gpt-oss
        prompt, record, budget: as in `wb.interop.transformers.record`
        tokenizer: a folder or a tokenizer of transformers; the model's own by default

    Returns:
        A Trace.

    Raises:
        InteropError: for another model than gpt-oss, fused experts, or another attention than eager
        NotRecorded, HookNameError, PromptError, BudgetError, MissingDependency

    >>> model = nnsight.LanguageModel("openai/gpt-oss-20b")  # doctest: +SKIP
    >>> wb.interop.nnsight.record(model, "What is 2+2?", record="attention")  # doctest: +SKIP
    <Trace openai/gpt-oss-20b: 76 tokens, 24 layers; verified (9 identities); rot_q, rot_k, sink, router_logits, …>
    """
    check_release("transformers", "nnsight")
    module = getattr(model, "_module", None)
    if module is None or not hasattr(model, "trace"):
        raise InteropError(
            f"a {type(model).__name__} is not a model of nnsight; give an nnsight.NNsight or nnsight.LanguageModel"
        )
    if getattr(getattr(module, "config", None), "model_type", None) != "gpt_oss":
        raise InteropError(
            f"only gpt-oss can be recorded through nnsight, and this is a {type(module).__name__}; "
            f"wb.interop.transformers.record(model._module, …) records it without a session"
        )
    if (attention := module.config._attn_implementation) != "eager":
        raise InteropError(
            f"the model runs {attention} attention, which does not expose sinks; "
            f"call model._module.set_attn_implementation('eager')"
        )
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    source = source_of(module, tokenizer)
    if "blocks.*.mlp.hook_expert_out" in source.reasons:
        raise InteropError(f"nnsight cannot record this model: {source.reasons['blocks.*.mlp.hook_expert_out']}")
    source.format, source.libraries = "nnsight", ("nnsight", "transformers")
    source.notes.clear()  # its note on hooks counts nnsight's own
    source.forward = lambda tokens, tap: _run(model, module, source.n_layers, tokens, tap, source.derived)
    tokens, notes = ids_of(prompt, source.reader, getattr(tokenizer, "chat_template", None), True)
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
            layer.self_attn.source  # noqa: B018  # a function shows its source only if it is requested before the run
        logits: dict[str, Tensor] = {}

        def visit() -> None:
            for name in hooks.all_points(n_layers):
                if hooks.point_of(name) in PATHS and _is_needed(tap, name):
                    x = eval(f"model.{path(name)}", {"model": model})
                    if name == "hook_logits":
                        logits[name] = x  # tapped after the session: a lens calls modules, which would wait for it
                    else:
                        _emit(tap, name, x, model, module, tokens, derived)

        with model.trace(tokens, use_cache=False):
            visit()
        tap("hook_logits", logits["hook_logits"])
        return logits["hook_logits"]


def _is_needed(tap: Tap, name: str) -> bool:
    """Scores are large and rarely recorded, so they are read only on request; the rest exists anyway."""
    return not name.endswith("hook_attn_scores") or tap.wants(name)


def _emit(tap: Tap, name: str, x: "Tensor", model: Any, module: Any, tokens: "Tensor", derived: set[str]) -> None:
    """Taps one value in workbench's shape, and the values derived from it."""
    layer, point, n = hooks.layer_of(name), hooks.point_of(name), tokens.shape[1]
    prefix = name.rpartition(".")[0] + "."
    attn: Any = None if layer is None else module.model.layers[layer].self_attn
    if point.endswith((".hook_q", ".hook_k", "attn.hook_v")):
        x = x.unflatten(-1, (-1, attn.head_dim))
    elif point.endswith(("hook_rot_q", "hook_rot_k")):
        x = x.transpose(1, 2)
    elif point.endswith("hook_attn_scores"):
        x = x.masked_fill(_masked_keys(None, slice(0, n), n, attn.sliding_window, x.device), float("-inf"))
    elif ".mlp.hook_expert" in point or point.endswith("router.hook_out"):
        x = x.view(*tokens.shape, -1)
    if point.endswith("hook_expert_weights"):
        import torch

        mlp = module.model.layers[layer].mlp
        (hidden, chosen, weights), _ = eval(f"model.model.layers[{layer}].mlp.experts.inputs", {"model": model})
        expert_weights = torch.zeros(len(hidden), mlp.experts.num_experts, dtype=weights.dtype, device=weights.device)
        x = expert_weights.scatter(-1, chosen, weights)[None]
        tap(name, x)
        if tap.wants(prefix + "hook_expert_out"):
            derived.add(prefix + "hook_expert_out")
            experts_forward = partial(type(mlp.experts).forward, mlp.experts)  # not nnsight's, which would deadlock
            tap(prefix + "hook_expert_out", _expert_outputs(experts_forward, hidden, chosen)[None])
        return
    if point.endswith("hook_pattern") and (add_pattern := tap.pattern_rows(prefix)):
        add_pattern(x, 0, 0)
    tap(name, x)
    project = _output_projection(attn) if point.endswith("hook_z") else None
    if project is not None and tap.wants(prefix + "hook_result"):
        import torch

        derived.add(prefix + "hook_result")
        w = project.weight.view(-1, *x.shape[-2:])
        tap(prefix + "hook_result", torch.einsum("bphd,mhd->bphm", x, w))


# -- workbench's runner as a model of nnsight -------------------------------------------------------------------------


def wrap(model: "Model") -> Any:
    """workbench's runner as an `NNsight` whose modules are the hook points: get and set `.output` in a trace.

    Its input is token ids (batch pos), its output the logits (batch pos d_vocab). Every hook point runs, also patterns
    and experts' outputs, so a text needs as much memory as `record="everything"`. Edits in force on `model` act before
    nnsight's.
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
        """One hook point: the output is the input, unless nnsight sets it."""

        def forward(self, x):
            return x

    class Runner(torch.nn.Module):
        def forward(self, tokens):
            ids = torch.as_tensor(tokens, device=model.device)
            return points["hook_logits"](model.forward(ids[None] if ids.ndim == 1 else ids, PointsTap()))

    class PointsTap(Tap):
        def wants(self, name: str) -> bool:
            return name != "hook_logits"  # the tap gets logits in chunks; Runner.forward passes them whole

        def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
            return x if name == "hook_logits" else points[name](x)

    root, points = Runner(), {}
    root.add_module("blocks", torch.nn.ModuleList(torch.nn.Module() for _ in range(model.config.n_layers)))
    for name in hooks.all_points(model.config.n_layers):
        points[name] = Point()
        *parents, last = name.split(".")
        parent: Any = root
        for part in parents:
            if not part.isdigit() and not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
        parent.add_module(last, points[name])
    return root.eval()
