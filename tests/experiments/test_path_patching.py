"""Path patching: all paths together equal the sender, an unchanged sender has no effect, and linear effects add up."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import EditError, PromptError, SelectionError
from workbench.experiments.activation_patching import LogitDiff, activation_patching
from workbench.experiments.path_patching import path_patching, readers
from workbench.model.gpt_oss import rms_norm
from workbench.model.model import Model
from workbench.recording.taps import Recorder

GAP = LogitDiff(3, 8)
SENDERS = [("head", 1, 4), ("attn", 0), ("mlp", 1), ("expert", 0, 2)]


def pair(n: int = 150) -> tuple[list[int], list[int]]:
    corrupted = some_tokens(n)
    clean = list(corrupted)
    clean[136], clean[144] = (corrupted[136] + 5) % 170, (corrupted[144] + 9) % 170
    return clean, corrupted


def share(effects, logits: torch.Tensor) -> float:
    """The metric, normalized like `effects`."""
    return (float(GAP(logits[:, -1])) - effects.attrs["clean"]) / (effects.attrs["corrupted"] - effects.attrs["clean"])


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("routing", ["frozen", "recomputed"])
def test_all_receiverstogether_equal_the_senders_total_effect(sender, routing):
    model, (clean, corrupted) = tiny(), pair()
    receivers = readers(model.config, sender, routing=routing)
    effects = path_patching(model, clean, corrupted, GAP, sender, [receivers], routing=routing)
    assert abs(effects.attrs["total"]) > 1e-3
    assert float(effects[0]) == pytest.approx(effects.attrs["total"], abs=1e-4)


def test_all_paths_of_a_head_equal_a_full_run_with_it_patched():
    model, (clean, corrupted) = tiny(), pair()
    receivers = readers(model.config, ("head", 1, 4), routing="recomputed")
    effects = path_patching(model, clean, corrupted, GAP, ("head", 1, 4), [receivers], routing="recomputed")
    corrupted_run = torch.tensor(model.trace(corrupted, record="z")["z", 1])

    def put(x):
        x[:, :, 4] = corrupted_run[:, 4]
        return x

    with model.edit("blocks.1.attn.hook_z", put):
        expected = share(effects, model.forward(torch.tensor([clean])))
    assert float(effects[0]) == pytest.approx(expected, abs=1e-4)
    assert effects.attrs["total"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sender", SENDERS)
def test_an_unchanged_sender_has_exactly_zero_effect(sender):
    """The runs differ only in the last token, so earlier positions are equal."""
    model, (clean, _) = tiny(), pair()
    other = [*clean[:-1], (clean[-1] + 1) % 170]
    effects = path_patching(model, clean, other, GAP, sender, routing="recomputed", positions=range(149))
    assert (
        (effects == 0).all()
        and effects.attrs["total"] == 0
        and effects.size == len(readers(model.config, sender, routing="recomputed"))
    )
    frozen = path_patching(model, clean, other, GAP, sender, positions=range(149))
    assert (frozen == 0).all() and frozen.attrs["total"] == 0


def linear_model() -> Model:
    """Norms divide by a constant and gates are saturated: with frozen patterns and routing, the model is linear."""
    model = Model(Random(seed=0).transformers(torch.float64))
    model.config = replace(model.config, eps=1e8)
    for block in model.weights.blocks:
        up = block.experts.up
        assert isinstance(up, torch.Tensor)
        up[:, ::2] = 0
        block.experts.up_bias[:, ::2] = 100
        block.experts.up_bias[:, 1::2] = 0
        for matrix in (block.w_v, block.w_o, block.experts.up, block.experts.down):
            matrix *= 20  # so that indirect effects are not negligible
    return model


@pytest.mark.parametrize("sender", [*SENDERS[:3], ("expert", 0, 1)])
def test_in_a_linear_network_the_paths_sum_to_the_total(sender):
    model, (clean, corrupted) = linear_model(), pair()
    points = wb.hooks.match("blocks.*.attn.hook_pattern", 4)
    plain = Recorder(points)
    model.forward(torch.tensor([clean]), plain)

    def frozen(x, hook):
        return plain[hook.name][:, :, hook.positions.start : hook.positions.stop, : x.shape[-1]].expand_as(x).clone()

    with model.edit("blocks.*.attn.hook_pattern", frozen):
        effects = path_patching(model, clean, corrupted, GAP, sender)
    assert abs(effects.attrs["total"]) > 1e-3
    assert float(effects.sum()) == pytest.approx(effects.attrs["total"], rel=1e-6)
    by_kind = {
        kind: float(abs(effects[[str(r).startswith(kind) for r in effects["receiver"].values]]).sum())
        for kind in "qkvml"
    }
    assert by_kind["q"] == by_kind["k"] == 0 < min(by_kind["v"], by_kind["m"], by_kind["l"])


@pytest.mark.parametrize("receiver", [("q", 2, 7), ("k", 3, 1), ("v", 2, 0), ("mlp", 1), ("router", 2), ("logits",)])
def test_one_path_equals_a_full_run_with_that_input_replaced(receiver):
    """The receiver's input is computed here from the clean stream and the change of the sender's output."""
    model, (clean, corrupted) = tiny(), pair()
    effects = path_patching(model, clean, corrupted, GAP, ("attn", 1), [receiver], routing="recomputed")
    clean_run, corrupted_run = (model.trace(tokens, record="residuals writes") for tokens in (clean, corrupted))
    change = torch.tensor(corrupted_run["attn_out", 1] - clean_run["attn_out", 1])
    kind, *numbers = receiver
    layer = numbers[0] if numbers else 3
    stream = {"mlp": "resid_mid", "router": "resid_mid", "logits": "resid_post"}.get(kind, "resid_pre")
    x = torch.tensor(clean_run[stream, layer]) + change
    w = model.weights.blocks[layer]
    norm = w.ln2 if stream == "resid_mid" else w.ln1
    normed = rms_norm(x, norm, model.config.eps)
    plain = rms_norm(x - change, norm, model.config.eps)
    with ExitStack() as edits:
        if kind in "qkv":
            projection = (normed @ getattr(w, f"w_{kind}").T + getattr(w, f"b_{kind}")).view(150, -1, 16)

            def put(x):
                x[0, :, numbers[1]] = projection[:, numbers[1]]
                return x

            edits.enter_context(model.edit(f"blocks.{layer}.attn.hook_{kind}", put))
        elif kind == "logits":
            edits.enter_context(model.edit("blocks.3.hook_resid_post", lambda x: x + change))
        else:
            router_input = normed if kind == "router" else plain
            assert isinstance(w.w_router, torch.Tensor)
            logits = router_input @ w.w_router.T + w.b_router
            edits.enter_context(model.edit(f"blocks.{layer}.mlp.router.hook_out", lambda x: x * 0 + logits))
            if kind == "mlp":
                edits.enter_context(model.edit(f"blocks.{layer}.ln2.hook_normalized", lambda x: x * 0 + normed))
        expected = share(effects, model.forward(torch.tensor([clean])))
    assert float(effects[0]) == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 1e-4


def test_only_the_given_positions_are_patched(monkeypatch):
    model, (clean, corrupted) = tiny(), pair()
    sender, receivers = ("mlp", 0), [("v", 1, 0), ("v", 1, 1), ("mlp", 2), ("logits",)]
    whole = path_patching(model, clean, corrupted, GAP, sender, receivers)
    restricted = path_patching(model, clean, corrupted, GAP, sender, receivers, positions=range(136, 150))
    assert np.allclose(whole, restricted, atol=1e-6)
    early = path_patching(model, clean, corrupted, GAP, sender, receivers, positions=[136])
    assert float(early.sel(receiver="logits")) == 0 and abs(float(early.sel(receiver="v 1 0"))) > 0
    monkeypatch.setattr("workbench.experiments.path_patching.MAX_ROWS", 1)
    assert np.allclose(path_patching(model, clean, corrupted, GAP, sender, receivers), whole, atol=1e-6)


def test_the_induction_head_reads_keys_and_values_of_the_heads_before_it():
    """The previous-token head acts through the induction head's keys, and the latter on the logits only."""
    model = constructed()
    clean, corrupted = ([V - 1, 5, before, 8, *range(20, 40), 6] for before in (6, 7))
    effects = path_patching(model, clean, corrupted, LogitDiff(8, 9), ("head", 0, 0))
    assert float(effects.sel(receiver="k 1 0")) == pytest.approx(1, abs=1e-3)
    others = effects.where(effects["receiver"] != "k 1 0", 0)
    assert float(abs(others).max()) < 1e-3
    out = path_patching(model, clean, corrupted, LogitDiff(8, 9), ("head", 1, 0))
    assert float(out.sel(receiver="logits")) == pytest.approx(1, abs=1e-3)
    heads = activation_patching(model, corrupted, clean, LogitDiff(8, 9), site="z", by_head=True)
    assert float(heads.sel(layer=0, head=0)) == pytest.approx(effects.attrs["total"], abs=1e-3)


def test_with_frozen_routing_a_router_is_not_a_receiver():
    model, (clean, corrupted) = tiny(), pair()
    frozen = path_patching(model, clean, corrupted, GAP, ("mlp", 1), [("router", 2), ("router", 3)])
    recomputed = path_patching(
        model, clean, corrupted, GAP, ("mlp", 1), [("router", 2), ("router", 3)], routing="recomputed"
    )
    assert (frozen == 0).all() and (abs(recomputed) > 0).all()
    names = path_patching(model, clean, corrupted, GAP, ("mlp", 2))["receiver"].values.tolist()
    assert names == [*(f"q 3 {h}" for h in range(10)), "k 3 0", "k 3 1", "v 3 0", "v 3 1", "mlp 3", "logits"]


def test_invalid_paths_are_refused():
    model, (clean, corrupted) = tiny(), pair()
    with pytest.raises(ValueError, match="routing must be 'frozen' or 'recomputed', got 'thawed'"):
        path_patching(model, clean, corrupted, GAP, ("mlp", 1), routing="thawed")
    with pytest.raises(
        EditError, match="the first item of a sender must be one of head, expert, attn, mlp, got 'logits'"
    ):
        path_patching(model, clean, corrupted, GAP, ("logits",))
    with pytest.raises(EditError, match=r"sender 'head' must be \('head', layer, its number\), got \('head', 1\)"):
        path_patching(model, clean, corrupted, GAP, ("head", 1))
    with pytest.raises(SelectionError, match="head must be between 0 and 9, got 10"):
        path_patching(model, clean, corrupted, GAP, ("head", 1, 10))
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 4"):
        path_patching(model, clean, corrupted, GAP, ("mlp", 4))
    with pytest.raises(SelectionError, match="kv head must be between 0 and 1, got 2"):
        path_patching(model, clean, corrupted, GAP, ("mlp", 1), [("v", 2, 2)])
    with pytest.raises(EditError, match="'q 1 0' is computed before sender 'mlp 1'"):
        path_patching(model, clean, corrupted, GAP, ("mlp", 1), [("q", 1, 0)])
    with pytest.raises(PromptError, match="the two prompts are the same"):
        path_patching(model, clean, clean, GAP, ("mlp", 1))
    with model.edit("blocks.2.attn.hook_q", lambda x: 2 * x):
        model.forward(torch.tensor([clean]))
        with pytest.raises(EditError, match="cannot run under edits at"):
            path_patching(model, clean, corrupted, GAP, ("mlp", 1))
