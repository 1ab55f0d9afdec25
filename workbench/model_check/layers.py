"""Compares one layer of workbench with transformers: its weights, each of its steps, and the layer as a whole.

Each step of transformers' layer gets the value that workbench recorded before that step. So a fault shows at the step
that has it, and nowhere later. Only the last line runs the whole layer from its input.
"""

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.model.checkpoints.tensors import Block, Weights
from workbench.model.config import Config
from workbench.model.kernels.lora import plain
from workbench.model.kernels.packed import dense
from workbench.model_check.line import NOT_CHECKED, Line, compared
from workbench.model_check.own_layer import attention_out, run_layer
from workbench.model_check.raw_tensors import DOWN, GATE_UP, RawTensors
from workbench.model_check.reference_layer import Chosen, OneExpertAtATime, Surroundings, reference_layer

if TYPE_CHECKING:
    from transformers import GptOssConfig

# Relative to the largest value of a row. Sums of thousands of float32 terms in another order differ by up to 2e-5.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
# Field of Block -> transformers' name. Not the loader's own table (hf.BLOCK): a wrong name there must show here.
TENSORS = {
    "ln1": "input_layernorm.weight",
    "w_q": "self_attn.q_proj.weight",
    "b_q": "self_attn.q_proj.bias",
    "w_k": "self_attn.k_proj.weight",
    "b_k": "self_attn.k_proj.bias",
    "w_v": "self_attn.v_proj.weight",
    "b_v": "self_attn.v_proj.bias",
    "sinks": "self_attn.sinks",
    "w_o": "self_attn.o_proj.weight",
    "b_o": "self_attn.o_proj.bias",
    "ln2": "post_attention_layernorm.weight",
    "w_router": "mlp.router.weight",
    "b_router": "mlp.router.bias",
}


def gap(computed: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value of its row of `expected`; inf where one is not finite.

    >>> gap(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    0.5
    """
    if computed.shape != expected.shape:
        return math.inf
    if not computed.numel():
        return 0.0
    scale = expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    worst = ((computed.to(expected.dtype) - expected).abs() / scale).max()
    return float(worst) if bool(worst.isfinite()) else math.inf


def difference(loaded: Tensor, stored: Tensor) -> float:
    """The largest difference of two tensors of weights; NaN and infinity count as equal only to themselves."""
    if loaded.shape != stored.shape:
        return math.inf
    same = (loaded == stored) | (loaded.isnan() & stored.isnan())
    if bool(same.all()):
        return 0.0
    worst = (loaded.double() - stored.double()).abs()[~same].max()
    return float(worst) if bool(worst.isfinite()) else math.inf


def worst_row(computed: Tensor, expected: Tensor) -> list[int]:
    """The indices of the row with the largest `gap`, without the last axis; [] where the shapes differ.

    >>> worst_row(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    [1]
    """
    if computed.shape != expected.shape or not computed.numel():
        return []
    scale = expected.abs().amax(-1).clamp_min(1e-30)
    rows = ((computed.to(expected.dtype) - expected).abs().amax(-1) / scale).nan_to_num(torch.inf)
    return [int(i) for i in torch.unravel_index(rows.argmax(), rows.shape)]


class LayerCheck:
    """Collects the lines of one layer; each line has the seconds since the one before."""

    def __init__(self, layer: int):
        self.layer = layer
        self.lines: list[Line] = []
        self.last = time.perf_counter()

    def add(self, part: str, tensor: str, worst: float, tolerance: float, note: str = "") -> None:
        now = time.perf_counter()
        self.lines.append(compared(part, self.layer, tensor, worst, tolerance, now - self.last, note))
        self.last = now

    def step(
        self, tensor: str, computed: Tensor, expected: Tensor, tolerance: float, axes: str = "batch pos", note: str = ""
    ) -> None:
        """A line about a step of the layer, with the place of the largest difference; `axes` are all but the last."""
        worst, at = gap(computed, expected), worst_row(computed, expected)
        names = [f"{axis} {i}" for axis, i in zip(axes.split(), at, strict=bool(at)) if axis != "batch"]
        place = [f"worst at {', '.join(names)}"] if names and worst > 0 else []
        self.add("layers", tensor, worst, tolerance, "; ".join([*place, *([note] if note else [])]))


def check_layer(
    c: Config,
    weights: Weights,
    resid: Tensor,
    layer: int,
    config: "GptOssConfig",
    raw: RawTensors,
    around: Surroundings,
) -> tuple[list[Line], Tensor]:
    """The lines of one layer for its input `resid` (batch pos d_model), and its output by workbench.

    Args:
        c: the config, as workbench read it.
        weights: `widened` weights, as workbench read them.
        resid: the residual stream before the layer.
        layer: its number.
        config: the config, as transformers read it.
        raw: the tensors in the files.
        around: of the same number of positions as `resid`.
    """
    dtype = resid.dtype
    check, block = LayerCheck(layer), weights.blocks[layer]
    reference = reference_layer(config, raw, layer, dtype)
    values = run_layer(c, weights, resid, layer)
    _check_dense_weights(check, block, reference)
    _check_attention(check, c, weights, values, reference, around)
    _check_router(check, c, values, reference)
    _check_experts(check, block, values, reference, around, TOLERANCE[dtype])
    return check.lines, values["hook_resid_post"]


def _check_dense_weights(check: LayerCheck, block: Block, reference: Any) -> None:
    stored = reference.state_dict()
    for field, name in TENSORS.items():
        check.add("weights", name, difference(block.whole(field), stored[name].to(block.ln1.dtype)), 0.0)
    experts = reference.mlp.experts
    for values, expected, name in (
        (block.experts.up_bias, experts.up_bias, "gate_up_proj_bias"),
        (block.experts.down_bias, experts.down_bias, "down_proj_bias"),
    ):
        check.add("weights", f"mlp.experts.{name}", difference(values, expected), 0.0)


def _check_attention(
    check: LayerCheck, c: Config, weights: Weights, values: dict[str, Tensor], layer: Any, around: Surroundings
) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import (
        apply_rotary_pos_emb,
        eager_attention_forward,
        repeat_kv,
    )

    attention, tolerance = layer.self_attn, TOLERANCE[values["hook_resid_pre"].dtype]
    normalized = values["ln1.hook_normalized"]
    check.step("input_layernorm", normalized, layer.input_layernorm(values["hook_resid_pre"]), tolerance)
    for name in ("q", "k", "v"):
        expected = getattr(attention, f"{name}_proj")(normalized)
        _check_product(check, f"self_attn.{name}_proj", values[f"attn.hook_{name}"].flatten(2), expected, tolerance)
    q, k, v = (values[f"attn.hook_{name}"].transpose(1, 2) for name in ("q", "k", "v"))  # batch head pos d_head
    rotated = apply_rotary_pos_emb(q, k, *around.positions)
    for name, expected in zip(("rot_q", "rot_k"), rotated, strict=True):
        rotated_here = values[f"attn.hook_{name}"]
        check.step(
            f"self_attn.rotary_emb ({name[-1]})", rotated_here, expected.transpose(1, 2), tolerance, "batch pos head"
        )
    q, k = (values[f"attn.hook_{name}"].transpose(1, 2) for name in ("rot_q", "rot_k"))
    mask = around.masks[attention.layer_type]
    _, pattern = eager_attention_forward(attention, q, k, v, mask, attention.scaling)
    _check_pattern(check, values["attn.hook_pattern"], values["attn.hook_sink"], pattern, attention, tolerance)
    mixed = (values["attn.hook_pattern"] @ repeat_kv(v, attention.num_key_value_groups)).transpose(1, 2)
    check.step("self_attn (pattern times values)", values["attn.hook_z"], mixed, tolerance, "batch pos head")
    out = attention.o_proj(values["attn.hook_z"].flatten(2))
    _check_product(check, "self_attn.o_proj", values["hook_attn_out"], out, tolerance)
    unrecorded = attention_out(c, weights, normalized[0], check.layer)
    check.step("self_attn (no pattern recorded)", unrecorded, values["hook_attn_out"][0], tolerance, "pos")
    _check_reach(check, c, weights, normalized[0], attention)
    total = values["hook_resid_pre"] + values["hook_attn_out"]
    check.step("residual after attention", values["hook_resid_mid"], total, tolerance)


def _check_pattern(
    check: LayerCheck, pattern: Tensor, sink: Tensor, reference: Tensor, attention: Any, tolerance: float
) -> None:
    """The pattern without the sink's share, and that share: a wrong mask changes the first, a wrong sink the second."""

    def shares(rows: Tensor) -> Tensor:
        return rows / rows.sum(-1, keepdim=True).clamp_min(1e-30)

    window = f"window {attention.sliding_window}" if attention.sliding_window else "all positions"
    on_keys = reference.double().sum(-1)
    judged = on_keys > 1e-3  # elsewhere the sink has all, and the shares are of numbers that float32 rounds away
    n_left_out = int((~judged).sum())
    note = f"{n_left_out} of {judged.numel()} rows are all on the sink" if n_left_out else ""
    keep = judged[..., None]
    computed, expected = shares(pattern) * keep, shares(reference) * keep
    check.step(f"self_attn.pattern ({window})", computed, expected, tolerance, "batch head query", note)
    # the sink's ratio to the key with the most mass: a wrong mask changes both in proportion
    key = reference.argmax(-1, keepdim=True)
    top, expected_top = pattern.double().gather(-1, key)[..., 0], reference.double().gather(-1, key)[..., 0]
    expected = torch.where(judged, top * (1 - on_keys) / expected_top.clamp_min(1e-30), 1 - on_keys)
    worst = float((sink.double() - expected).abs().max())  # probabilities: absolute
    check.add("layers", "self_attn.sinks", worst if math.isfinite(worst) else math.inf, tolerance)


def _check_reach(check: LayerCheck, c: Config, weights: Weights, normalized: Tensor, attention: Any) -> None:
    """Changes the first position: a sliding layer must not see that past its window, a full one must."""
    n_pos, window = len(normalized), attention.sliding_window
    changed = normalized.clone()
    changed[0] = -changed[0]
    before, after = (attention_out(c, weights, x, check.layer) for x in (normalized, changed))
    moved = (before != after).any(-1)
    past = window or c.window  # positions from here on cannot see position 0 through the window
    if n_pos <= past:
        note = "the text is too short"
        check.lines.append(Line("identities", check.layer, "reach of the attention", NOT_CHECKED, note=note))
        return
    right = not bool(moved[past:].any()) and bool(moved[past - 1]) if window else bool(moved[past:].any())
    note = f"position 0 changes positions up to {int(moved.nonzero().max()) if bool(moved.any()) else 0} of {n_pos - 1}"
    kind = "sliding" if window else "full"
    check.add("identities", f"reach of the attention ({kind})", 0.0 if right else math.inf, 0.0, note)


def _check_product(check: LayerCheck, name: str, computed: Tensor, expected: Tensor, tolerance: float) -> None:
    """A product with a matrix and a bias. A difference that is the same at every position is the bias's."""
    worst = gap(computed, expected)
    tensor, note = name, ""
    if worst > tolerance and computed.shape == expected.shape:
        rest = (computed - expected).flatten(0, -2)
        constant = float((rest - rest.mean(0)).abs().max()) <= 0.01 * float(rest.abs().max())
        tensor, note = (f"{name}.bias", "the same difference at every position") if constant else (f"{name}.weight", "")
    check.step(tensor, computed, expected, tolerance, note=note)


def _check_router(check: LayerCheck, c: Config, values: dict[str, Tensor], layer: Any) -> None:
    normalized = values["ln2.hook_normalized"]
    tolerance = TOLERANCE[normalized.dtype]
    expected = layer.post_attention_layernorm(values["hook_resid_mid"])
    check.step("post_attention_layernorm", normalized, expected, tolerance)
    logits, _, _ = layer.mlp.router(normalized[0])
    _check_product(check, "mlp.router", values["mlp.router.hook_out"], logits[None], tolerance)
    # the choice and the weights by transformers, from the logits that workbench recorded
    top, indices = values["mlp.router.hook_out"][0].topk(layer.mlp.router.top_k, -1)
    same = (values["mlp.hook_expert_indices"][0].sort(-1).values == indices.sort(-1).values).all(-1)
    ties = _ties(values["mlp.router.hook_out"][0], layer.mlp.router.top_k)
    wrong = int((~same & ~ties).sum())
    check.add("layers", "mlp.router (choice)", float(wrong), 0.0, f"{wrong} positions" if wrong else "")
    dense_weights = torch.zeros_like(logits).scatter(-1, indices, torch.softmax(top, -1))
    worst = gap(values["mlp.hook_expert_weights"][0][~ties], dense_weights[~ties])
    check.add("layers", "mlp.router (weights)", worst, tolerance)


def _ties(logits: Tensor, k: int) -> Tensor:
    """The positions (bool) whose last chosen and first rejected expert have the same logit."""
    if logits.shape[-1] == k:
        return torch.zeros(len(logits), dtype=torch.bool)
    top = logits.topk(k + 1, -1).values
    return top[:, -1] == top[:, -2]


def _check_experts(
    check: LayerCheck, block: Block, values: dict[str, Tensor], layer: Any, around: Surroundings, tolerance: float
) -> None:
    experts: OneExpertAtATime = layer.mlp.experts
    indices = values["mlp.hook_expert_indices"][0]
    experts.others = [Chosen(values["ln2.hook_normalized"][0], indices)]
    unequal: dict[str, tuple[float, list[int]]] = {GATE_UP: (0.0, []), DOWN: (0.0, [])}

    def compare(expert: int, up: Tensor, down: Tensor) -> None:
        for name, matrices, stored in ((GATE_UP, block.experts.up, up), (DOWN, block.experts.down, down)):
            computed = dense(plain(matrices), expert, torch.float32)
            worst = difference(computed, _rounded(stored, matrices))
            if worst != 0:
                unequal[name] = max(worst, unequal[name][0]), [*unequal[name][1], expert]

    experts.on_expert = compare
    whole = layer(
        values["hook_resid_pre"], around.masks[layer.self_attn.layer_type], position_embeddings=around.positions
    )
    for name, (worst, wrong) in unequal.items():
        note = f"experts {', '.join(map(str, wrong[:8]))}{' …' if len(wrong) > 8 else ''}" if wrong else ""
        check.add("weights", f"mlp.experts.{name}", worst, 0.0, note)
    expected, computed = experts.out_of_others[0], values["mlp.hook_expert_out"][0]
    for expert in indices.unique().tolist():
        here = indices == expert
        check.add("layers", f"mlp.experts.{expert}", gap(computed[here], expected[here]), tolerance)
    weight = values["mlp.hook_expert_weights"][0].gather(-1, indices)
    check.step("mlp (weighted sum)", values["hook_mlp_out"][0], (computed * weight[..., None]).sum(1), tolerance, "pos")
    total = values["hook_resid_mid"] + values["hook_mlp_out"]
    check.step("residual after the experts", values["hook_resid_post"], total, tolerance)
    same_routes = _same_routes(layer, values)
    note = "" if bool(same_routes.all()) else f"{int((~same_routes).sum())} positions with a tie of the router left out"
    worst = gap(values["hook_resid_post"][0][same_routes], whole[0][same_routes])
    check.add("layers", "whole layer", worst, tolerance, note)


def _rounded(stored: Tensor, matrices: Any) -> Tensor:
    """The stored values, as a matrix of the model's dtype holds them."""
    return stored.to(matrices.dtype).float() if isinstance(matrices, Tensor) else stored


def _same_routes(layer: Any, values: dict[str, Tensor]) -> Tensor:
    """The positions at which transformers' layer chose workbench's experts; rounding can change a near tie."""
    logits = values["mlp.router.hook_out"][0]
    top = logits.topk(min(layer.mlp.router.top_k + 1, logits.shape[-1]), -1).values
    if top.shape[-1] <= layer.mlp.router.top_k:
        return torch.ones(len(logits), dtype=torch.bool)
    margin = top[:, -2] - top[:, -1]
    return margin > 1e-4 * logits.abs().amax(-1)
