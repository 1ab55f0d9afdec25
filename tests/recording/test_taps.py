"""Hook points: recording changes nothing, edits change the selected values, and edited runs choose experts anew."""

import functools

import numpy as np
import pytest
import torch

import workbench as wb
from tests.model import textbook
from tests.model.models import some_tokens, tiny
from workbench import hooks
from workbench.edits.edit import Edit
from workbench.edits.fingerprint import fingerprint
from workbench.errors import EditError, HookNameError, NotRecorded, SelectionError
from workbench.model.gpt_oss import forward, forward_from
from workbench.recording.taps import Recorder
from workbench.taps import Chain, Tap

TOKENS = some_tokens(70)
POINTS = list(hooks.all_points(4))


@pytest.fixture(scope="module")
def model():
    return tiny()


def logits(model, tap: Tap | None = None, tokens=TOKENS):
    with torch.no_grad():
        return forward(model.config, model.weights, torch.tensor([tokens]), tap)


@pytest.fixture(scope="module")
def plain(model):
    """The logits of a run without a tap."""
    return logits(model)


@pytest.fixture(scope="module")
def everything(model):
    """A trace of that run with every hook point."""
    return model.trace(TOKENS, record=[*POINTS, "logits"])


def test_recording_everything_changes_no_bit_of_the_logits(model, plain):
    recorder = Recorder(POINTS)
    assert torch.equal(plain, logits(model, recorder)) and torch.equal(plain, logits(model))
    assert sorted(recorder.seen) == sorted(POINTS)


def test_recorded_shapes_have_the_axes_of_the_table(model):
    from workbench.recording.budget import shape

    recorder = Recorder(POINTS)
    logits(model, recorder)
    for name in POINTS:
        assert tuple(recorder[name].shape[1:]) == shape(model.config, name, len(TOKENS), 0), name


@pytest.mark.parametrize("name", POINTS)
def test_an_identity_edit_changes_no_bit(model, plain, name):
    for fn in (lambda x: x, lambda x: x.clone()):
        edit = Edit(name, fn, [name], model.config)
        assert torch.equal(plain, logits(model, edit))
        assert edit.tally.n_calls and not edit.tally.n_changed_calls


@pytest.mark.parametrize("name", [p for p in POINTS if p.startswith("blocks.1") or "." not in p])
def test_an_edit_has_an_effect_and_earlier_positions_keep_every_bit(model, plain, name):
    def change(x):
        return x.roll(1, -1) if x.dtype == torch.int64 else x * 1.25

    def reverse_experts(x):
        return model.config.n_experts - 1 - x

    fn = reverse_experts if name.endswith("indices") else change
    edit = Edit(name, fn, [name], model.config, positions=slice(40, None))
    after = logits(model, edit)
    assert torch.equal(plain[:, :40], after[:, :40])
    assert not torch.equal(plain[:, 40:], after[:, 40:])
    assert edit.tally.n_changed_calls and edit.tally.positions == 30


def test_a_changed_token_leaves_every_earlier_position_bit_identical(model):
    recorder, other = Recorder(POINTS), Recorder(POINTS)
    changed = [*TOKENS[:33], (TOKENS[33] + 1) % 170, *TOKENS[34:]]
    logits(model, recorder)
    logits(model, other, changed)
    for name in POINTS:
        axis = 1 + hooks.axes(name).index("query" if "query" in hooks.axes(name) else "pos")
        a, b = recorder[name].narrow(axis, 0, 33), other[name].narrow(axis, 0, 33)
        assert torch.equal(a, b), name


def test_one_row_of_a_batch_is_bit_identical_to_the_row_alone(model):
    rows = torch.tensor([some_tokens(70, seed) for seed in range(4)])
    with torch.no_grad():
        together = forward(model.config, model.weights, rows)
        alone = [forward(model.config, model.weights, row[None]) for row in rows]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", POINTS)
def test_patching_a_run_with_itself_changes_nothing(model, everything, name):
    with model.patch(name, everything):
        patched = model.trace(TOKENS, record="logits")
    assert np.array_equal(everything["logits"], patched["logits"])
    assert patched.edits[0]["n_calls"] > 0 and patched.edits[0]["n_changed_calls"] == 0


@pytest.fixture(scope="module")
def source(model):
    """Another text."""
    return model.trace(some_tokens(70, 5), record="residuals logits")


@pytest.mark.parametrize("layer", range(4))
def test_patching_all_positions_at_a_layer_gives_the_source_run(model, source, layer):
    with model.patch(f"blocks.{layer}.hook_resid_post", source):
        patched = model.trace(TOKENS, record="logits")
    assert np.array_equal(source["logits"], patched["logits"])


def test_all_weight_on_one_expert_runs_that_expert_only(model):
    def only_five(weight):
        weight.zero_()
        weight[..., 5] = 1
        return weight

    with model.edit("blocks.1.mlp.hook_expert_weights", only_five):
        trace = model.trace(TOKENS, record="experts writes ln2_normalized blocks.*.ln2.hook_normalized")
    w = model.weights.blocks[1]
    x, e = trace["ln2_normalized", 1].astype(np.float64), w.experts
    up, up_bias, down, down_bias = (t[5].detach().double().numpy() for t in (e.up, e.up_bias, e.down, e.down_bias))
    alone = np.stack([textbook.expert(row, up, up_bias, down, down_bias, model.config) for row in x])
    assert np.abs(trace["mlp_out", 1] - alone).max() < 1e-5 * np.abs(alone).max()
    # the outputs by choice are those of the experts that ran: number 5 first, then zeros
    assert np.abs(trace["expert_out", 1][:, 0] - alone).max() < 1e-5 * np.abs(alone).max()
    assert not trace["expert_out", 1][:, 1:].any()


class Fixed(Tap):
    """Replaces the values at hook points; unlike an edit, it may choose an expert twice."""

    def __init__(self, values):
        self.values = values

    def wants(self, name):
        return name in self.values

    def __call__(self, name, x, offset=0):
        return self.values.get(name, x)


def test_an_expert_that_a_tap_chooses_twice_counts_once(model):
    """Only the weight of each expert matters, whether the choice or the weights were changed."""
    here, tokens = "blocks.1.mlp.", torch.tensor([TOKENS])
    twice = torch.full((1, len(TOKENS), model.config.n_active), 3)
    named, weighed = (Recorder([f"{here}hook_expert_weights", "blocks.1.hook_mlp_out"]) for _ in range(2))
    with torch.no_grad():
        model.forward(tokens, Chain(Fixed({f"{here}hook_expert_indices": twice}), named))
        weight = named[f"{here}hook_expert_weights"]
        assert ((weight != 0).sum(-1) == 1).all()
        model.forward(tokens, Chain(Fixed({f"{here}hook_expert_weights": weight}), weighed))
    assert torch.equal(named["blocks.1.hook_mlp_out"], weighed["blocks.1.hook_mlp_out"])


def test_a_banned_expert_is_never_chosen_and_a_forced_one_always(model):
    with model.edit("blocks.*.mlp.router.hook_out", wb.ban(expert=[2, 7])):
        banned = model.trace(TOKENS)
    assert not np.isin(banned["expert_indices"], [2, 7]).any()
    with model.edit("blocks.*.mlp.router.hook_out", wb.force(expert=3)):
        forced = model.trace(TOKENS)
    assert (forced["expert_indices"] == 3).any(-1).all()
    assert banned.edits[0]["n_calls"] == 4 and banned.edits[0]["function"].startswith("Ban(")


def test_an_ablated_head_writes_nothing_and_an_ablated_expert_is_dropped(model):
    with model.edit("blocks.1.attn.hook_z", wb.ablate(head=3)):
        trace = model.trace(TOKENS, record="result")
    assert not trace["result", 1][:, 3].any() and trace["result", 1][:, 2].any()
    with model.edit("blocks.1.mlp.hook_expert_weights", wb.ablate(expert=4)):
        trace = model.trace(TOKENS)
    assert not trace["expert_weights", 1][:, 4].any()


def test_masking_every_key_leaves_the_output_bias_exactly(model):
    with model.edit("blocks.1.attn.hook_attn_scores", lambda s: torch.full_like(s, -torch.inf)):
        trace = model.trace(TOKENS, record="writes patterns")
    bias = model.weights.blocks[1].b_o.detach().numpy()
    assert np.array_equal(trace["attn_out", 1], np.broadcast_to(bias, trace["attn_out", 1].shape))
    assert (trace["sink", 1] == 1).all() and not trace["pattern", 1].any()


def test_an_edit_that_is_entered_twice_is_in_force_once(model):
    editing = model.edit("hook_embed", lambda x: x)
    for _ in range(3):
        with editing:
            assert len(model.active_edits()) == 1
            assert model.trace(TOKENS, record="").edits[0]["n_calls"] == 1
    assert model.active_edits() == []


def test_an_edited_sink_gates_the_head(model):
    plain = model.trace(TOKENS, record="patterns values")
    with model.edit("blocks.1.attn.hook_sink", lambda s: 0 * s):
        opened = model.trace(TOKENS, record="patterns values")
    with model.edit("blocks.1.attn.hook_sink", lambda s: 0 * s):
        streamed = model.trace(TOKENS, record="values")
    expected = plain["pattern", 1] / (1 - plain["sink", 1])[..., None]
    assert np.abs(opened["pattern", 1] - expected).max() < 1e-6
    assert np.allclose(opened["pattern", 1].sum(-1), 1, atol=1e-6)
    assert np.array_equal(opened["z", 1], streamed["z", 1])


def test_an_edit_may_unmask_a_key_outside_the_window(model):
    def attend_to_the_first(scores):
        scores[..., 0] = 50.0
        return scores

    assert model.config.is_sliding(2)
    with model.edit("blocks.2.attn.hook_attn_scores", attend_to_the_first):
        trace = model.trace(TOKENS, record="patterns")
    assert (trace["pattern", 2][:, :, 0] > 0.99).all()


def test_steering_adds_exactly_the_vector_and_scale_zero_is_no_edit(model):
    vector = np.linspace(-1, 1, model.config.d_model, dtype=np.float32)
    plain = model.trace(TOKENS, record="residuals logits")
    with model.edit("blocks.2.hook_resid_post", wb.steer(vector, 2.0)):
        steered = model.trace(TOKENS, record="residuals")
    assert np.array_equal(steered["resid_post", 2], plain["resid_post", 2] + 2 * vector)
    with model.edit("blocks.2.hook_resid_post", wb.steer(vector, 0.0)):
        assert np.array_equal(model.trace(TOKENS, record="logits")["logits"], plain["logits"])


def test_edits_nest_in_the_order_of_entry_and_are_undone(model):
    plain = model.trace(TOKENS, record="logits")
    with model.edit("hook_embed", lambda x: x + 1), model.edit("hook_embed", lambda x: x * 2):
        both = model.trace(TOKENS, record="residuals")
        assert [e["glob"] for e in both.edits] == ["hook_embed"] * 2
    embed = model.weights.embed.detach().numpy()[TOKENS]
    assert np.allclose(both["embed"], (embed + 1) * 2)
    assert np.array_equal(model.trace(TOKENS, record="logits")["logits"], plain["logits"])
    assert model.active_edits() == []


def test_the_manifest_has_the_calls_and_the_relative_change_of_an_edit(model):
    with model.edit("blocks.*.hook_mlp_out", lambda x: 0.5 * x):
        trace = model.trace(TOKENS)
    (edit,) = trace.edits
    assert (edit["n_calls"], edit["n_changed_calls"], edit["n_positions"]) == (4, 4, 280)
    assert edit["relative_change"] == pytest.approx(0.5)


def test_an_edit_that_never_fires_is_an_error(model):
    with pytest.raises(EditError, match="never fired"), model.edit("hook_embed", lambda x: x):
        pass
    with (
        pytest.raises(EditError, match="positions 500:"),
        model.edit("hook_embed", lambda x: 0 * x, positions=slice(500, None)),
    ):
        model.trace(TOKENS, record="")


def test_an_edit_that_matches_nothing_is_an_error_that_names_the_nearest(model):
    with pytest.raises(HookNameError, match="hook_resid_post"):
        model.edit("blocks.1.hook_resid_pots", lambda x: x)


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda x: None, "forget to return"),
        (lambda x: x[:, :3], r"must return a tensor of shape \(1, 70, 96\), got shape \(1, 3, 96\)"),
        (lambda x: 3, "got a int"),
        (lambda x: x / 0 * 0, "NaN"),
    ],
)
def test_an_edit_that_does_not_return_a_valid_tensor_is_an_error(model, fn, says):
    with pytest.raises(EditError, match=says), model.edit("hook_embed", fn):
        model.trace(TOKENS, record="")
    assert model.active_edits() == []


def test_ready_made_edits_refuse_other_places_and_missing_experts(model):
    for where, edit, says in [
        ("hook_embed", wb.ban(expert=1), "router.hook_out"),
        ("blocks.0.hook_attn_out", wb.ablate(head=0), "hook_z"),
        ("hook_embed", wb.steer(np.zeros(5)), r"must have \d+ entries, the width of that hook point, got 5"),
        ("blocks.0.mlp.hook_expert_indices", lambda x: x + 100, "outside"),
    ]:
        with pytest.raises(EditError, match=says), model.edit(where, edit):
            model.trace(TOKENS, record="")
    missing = pytest.raises(SelectionError, match=r"^expert must be between 0 and 7, got 99\.$")
    with missing, model.edit("blocks.0.mlp.router.hook_out", wb.ban(expert=99)):
        model.trace(TOKENS, record="")
    with pytest.raises(EditError, match="heads or experts"):
        wb.ablate()
    with pytest.raises(EditError, match=r"wb\.ablate\(head=3\) or wb\.ablate\(expert=3\)"):
        wb.ablate(3)  # pyright: ignore[reportArgumentType]


def test_a_layer_that_the_model_does_not_have_is_named(model):
    with pytest.raises(SelectionError, match=r"^layer must be between 0 and 3, got 9\.$"):
        model.edit("blocks.9.attn.hook_z", lambda x: x)


def test_suggested_names_have_the_layer_and_the_last_part_of_the_wrong_one(model):
    with pytest.raises(HookNameError, match=r"Did you mean 'blocks\.3\.attn\.hook_z'\?") as caught:
        model.edit("blocks.3.hook_z", lambda x: x)
    assert "Presets" not in str(caught.value)
    with pytest.raises(HookNameError, match=r"'residuals'.* Presets: residuals, "):
        model.trace(TOKENS, record="residual")


def test_the_relative_change_of_a_ban_is_zero(model):
    """It leaves out the entries that the ban sets to -inf; the calls are counted."""
    with model.edit("blocks.0.mlp.router.hook_out", wb.ban(expert=1)):
        entry = model.trace(TOKENS, record="").edits[0]
    assert entry["relative_change"] == 0.0 and entry["n_changed_calls"] == entry["n_calls"] > 0


def test_an_edit_may_write_into_its_copy_without_changing_recorded_values(model):
    def wipe(x):
        x.zero_()
        return x

    with model.edit("blocks.1.hook_resid_pre", wipe):
        trace = model.trace(TOKENS, record="residuals")
    assert trace["resid_post", 0].any() and not trace["resid_pre", 1].any()


def test_the_fingerprint_of_an_edit_covers_its_code_and_captured_values():
    def make(by):
        return lambda x: by * x

    class By:
        def __init__(self, by):
            self.by = by

        def __call__(self, x):
            return self.by * x

        def times(self, x):
            return self.by * x

    def linear(seed):
        torch.manual_seed(seed)
        return torch.nn.Linear(3, 3)

    for kind in (
        make,
        By,
        lambda by: By(by).times,
        lambda by: functools.partial(torch.mul, by),
        lambda by: make(torch.full((3,), by)),
        lambda by: make(np.full(3, by)),
        lambda by: make(make(by)),
        lambda by: make([{"by": by}]),
        linear,
        lambda by: wb.ban(expert=int(by)),
        lambda by: wb.steer([by, by]),
    ):
        assert fingerprint(kind(2)) == fingerprint(kind(2)) != fingerprint(kind(3))
    numpys = wb.ban(expert=np.int64(1))  # pyright: ignore[reportArgumentType]  as numpy's code gives it
    assert fingerprint(wb.ban(expert=1)) == fingerprint(wb.ban(expert=[1])) == fingerprint(numpys)


def test_a_function_that_reads_a_changed_global_has_another_fingerprint():
    scope = {}
    exec("def helper(x): return 2 * x\ndef edit(x): return helper(x)", scope)
    before = fingerprint(scope["edit"])
    exec("def helper(x): return 3 * x", scope)
    assert fingerprint(scope["edit"]) != before


def test_the_pattern_of_an_edited_layer_is_not_recomputed_as_if_it_were_not(model):
    with model.edit("blocks.1.attn.hook_pattern", lambda p: 0 * p):
        trace = model.trace(TOKENS, record="attention")
    with pytest.raises(NotRecorded, match="was edited"):
        wb.attention.pattern(trace, layer=1)
    assert wb.attention.pattern(trace, layer=2, head=0).shape == (70, 70)


def test_an_expert_with_negative_weight_counts(model):
    def less_five(weight):
        weight[..., 5] = -1
        return weight

    with model.edit("blocks.1.mlp.hook_expert_weights", less_five):
        trace = model.trace(TOKENS, record="experts writes blocks.1.ln2.hook_normalized")
    w, x = model.weights.blocks[1].experts, trace["ln2_normalized", 1].astype(np.float64)
    expected = np.zeros_like(x)
    for e in range(model.config.n_experts):
        up, up_bias, down, down_bias = (t[e].detach().double().numpy() for t in (w.up, w.up_bias, w.down, w.down_bias))
        outputs = np.stack([textbook.expert(row, up, up_bias, down, down_bias, model.config) for row in x])
        expected += trace["expert_weights", 1][:, e, None] * outputs
    assert np.abs(trace["mlp_out", 1] - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_streamed_run_in_which_more_experts_run_is_loaded_again(model, tmp_path):
    """An edit of the weights lets a fourth expert run, so that layer has more outputs than the model's config says."""

    def one_more(weight):
        weight[..., 5] = 0.5
        return weight

    with model.edit("blocks.1.mlp.hook_expert_weights", one_more):
        trace = model.trace(TOKENS, record="experts", to=tmp_path / "a.trace")
    outputs = [trace["expert_out", layer].shape[1] for layer in (0, 1)]
    assert outputs == [model.config.n_active, model.config.n_active + 1]
    assert not [line for line in wb.verify(wb.load(tmp_path / "a.trace")) if line["status"] == "fails"]


def test_an_expert_chosen_twice_is_refused(model):
    with (
        pytest.raises(EditError, match="twice"),
        model.edit("blocks.1.mlp.hook_expert_indices", lambda i: torch.zeros_like(i)),
    ):
        model.trace(TOKENS, record="")


def test_more_experts_than_can_be_banned_or_forced_are_refused(model):
    for edit in (wb.ban(expert=range(6)), wb.force(expert=range(4))):
        with pytest.raises(EditError, match=r"^cannot "), model.edit("blocks.1.mlp.router.hook_out", edit):
            model.trace(TOKENS, record="")


@pytest.mark.parametrize("positions", [np.int64(3), np.array([3, 5]), [3, 5], 3, slice(3, 6)])
def test_positions_may_be_numbers_of_numpy(model, positions):
    with model.edit("hook_embed", lambda x: 0 * x, positions=positions):
        trace = model.trace(TOKENS, record="embed")
    assert not trace["embed"][3].any() and trace["embed"][2].any()


def with_gradient(model, tap):
    """One logit of the last position, carried back to the embeddings."""
    embed = model.weights.embed.detach()[torch.tensor([TOKENS])].requires_grad_()
    forward_from(model.config, model.weights, embed, 0, tap)[0, -1, 5].backward()


def test_a_gradient_stopped_by_an_edit_stops_although_no_bit_changes(model):
    gradients = {}
    for name, fn in (("plain", lambda x: x), ("stopped", lambda x: x.detach())):
        recorder = Recorder(["blocks.0.hook_resid_post"], keep_grad=True)
        with_gradient(model, Chain(recorder, Edit("e", fn, ["blocks.3.hook_mlp_out"], model.config)))
        gradients[name] = recorder["blocks.0.hook_resid_post"].grad
    assert not torch.equal(gradients["plain"], gradients["stopped"])
    assert gradients["stopped"].any()


@pytest.mark.parametrize("name", [p for p in POINTS if p.startswith("blocks.1") and not p.endswith("indices")])
def test_a_recorder_with_keep_grad_has_a_gradient_at_every_point(model, name):
    recorder = Recorder([name], keep_grad=True)
    with_gradient(model, recorder)
    grad = recorder.seen[name][-1].grad
    assert grad is not None and grad.any()


def test_the_change_in_the_manifest_is_that_of_the_run(model):
    with model.edit("hook_embed", lambda x, hook: (0.5 if len(hook.positions) == 70 else 3.0) * x):
        model.trace(TOKENS[:20], record="")
        entry = model.trace(TOKENS, record="").edits[0]
    assert entry["n_calls"] == 1 and entry["relative_change"] == pytest.approx(0.5)


def test_an_edit_that_is_entered_again_must_be_called_again(model):
    editing = model.edit("hook_embed", lambda x: 0 * x)
    with editing:
        model.trace(TOKENS, record="")
    with pytest.raises(EditError, match="never fired"), editing:
        pass
