"""SAEs: an exact one is lossless, splicing with the error term changes no bit, files load as their libraries do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.interop import saelens
from tests.model.models import some_tokens, tiny
from workbench.edits.library import steer
from workbench.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    EditError,
    HookNameError,
    ModelNotFound,
    NotRecorded,
    SelectionError,
    WorkbenchError,
)
from workbench.experiments.sae import SAE, features, identity, reconstruction, site_of, splice_cost
from workbench.interop.sae_formats import load_sae

SITE = "blocks.2.hook_resid_post"
D, F = 96, 160
GOLDEN = json.loads((Path(__file__).parent / "saelens.json").read_text("utf-8"))


def random_sae(site: str = SITE, **kind) -> SAE:
    rng = torch.Generator().manual_seed(3)
    rows = torch.randn(F, D, generator=rng)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    bias = torch.randn(F, generator=rng) / 4
    return SAE(site, rows.T.clone(), bias, W_dec=rows, b_dec=torch.randn(D, generator=rng) / 8, **kind)


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(60), record="residuals writes")


@pytest.fixture(scope="module")
def x(trace):
    return torch.tensor(trace[SITE])


# Encoding and decoding.


@pytest.mark.parametrize("case", list(saelens.CASES))
def test_encode_and_decode_match_saelens(case, tmp_path):
    expected = GOLDEN[case]
    (tmp_path / "cfg.json").write_text(json.dumps(expected["cfg"]))
    save_file(saelens.weights(case), tmp_path / "sae_weights.safetensors")
    sae = load_sae(tmp_path)
    assert sae.site == SITE
    active = sae.encode(saelens.x())
    assert torch.allclose(active, torch.tensor(expected["features"]), rtol=1e-5, atol=1e-5)
    assert ((active != 0) == (torch.tensor(expected["features"]) != 0)).all() and (active != 0).any()
    assert torch.allclose(
        sae.decode(active, saelens.x()), torch.tensor(expected["reconstruction"]), rtol=1e-5, atol=1e-5
    )


def test_an_sae_that_keeps_every_number_reconstructs_bit_for_bit(trace, x):
    sae = identity(SITE, D)
    assert torch.equal(sae.decode(sae.encode(x)), x)
    measured = reconstruction(trace, sae)
    assert measured.attrs["fvu"] == 0 and float(measured["error"].max()) == 0
    assert np.allclose(measured["cosine"], 1) and (measured["l0"] == (x != 0).sum(-1).numpy()).all()


def test_topk_activates_k_features_or_fewer_if_fewer_are_positive(trace, x):
    measured = reconstruction(trace, random_sae(k=7))
    assert (measured["l0"] == 7).all()
    low = random_sae(k=F)
    assert (reconstruction(trace, low)["l0"] == (low.encode(x) > 0).sum(-1).numpy()).all()


def test_a_feature_is_zero_up_to_its_threshold_and_unchanged_above_it(x):
    plain, cut = random_sae().encode(x), random_sae(threshold=1.5).encode(x)
    assert torch.equal(cut, torch.where(plain > 1.5, plain, 0.0)) and 0 < (cut > 0).sum() < (plain > 0).sum()


def test_decoder_row_lengths_can_be_folded_into_the_features(x):
    """A rescaled SAE with rows of any length equals the one with rows of length 1: same features, same sum."""
    unit = random_sae(k=9)
    lengths = torch.linspace(0.2, 3, F)
    common = {"b_dec": unit.b_dec, "k": 9, "rescaled": True}
    scaled = SAE(SITE, unit.W_enc / lengths, unit.b_enc / lengths, W_dec=unit.W_dec * lengths[:, None], **common)
    assert torch.allclose(scaled.encode(x), unit.encode(x), rtol=1e-4, atol=1e-5)
    assert torch.allclose(scaled.decode(scaled.encode(x)), unit.decode(unit.encode(x)), rtol=1e-4, atol=1e-4)
    assert np.allclose(scaled.direction(5), unit.direction(5), atol=1e-6)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_normalized_sae_does_not_depend_on_the_length_of_its_input(norm, x):
    sae = random_sae(norm=norm)
    assert torch.allclose(sae.encode(5 * x), sae.encode(x), rtol=1e-3, atol=1e-4)
    assert torch.allclose(sae.decode(sae.encode(5 * x), 5 * x), 5 * sae.decode(sae.encode(x), x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="decode needs it too"):
        sae.decode(sae.encode(x))


def test_decoding_by_single_rows_equals_the_product_with_all_rows(x):
    sae = random_sae(k=5)
    active = sae.encode(x)
    assert 0 < (active != 0).sum() * 16 <= active.numel()  # sparse enough to be decoded row by row
    assert torch.allclose(sae.decode_linear(active), active @ sae.W_dec, rtol=1e-5, atol=1e-5)
    assert torch.equal(sae.decode_linear(torch.zeros(3, 2, F)), torch.zeros(3, 2, D))


# Features of a trace.


def test_features_are_the_nonzero_dense_ones(trace, x):
    sae = random_sae(threshold=1.0)
    sparse = features(trace, sae)
    dense = np.zeros((60, F), np.float32)
    dense[sparse["pos"], sparse["feature"]] = sparse.values
    assert np.array_equal(dense, sae.encode(x).numpy()) and (sparse != 0).all()
    order = list(zip(sparse["pos"].values, -sparse.values, strict=True))
    assert order == sorted(order) and sparse.attrs["site"] == SITE


def test_reconstruction_follows_its_definition_for_every_token(trace, x):
    sae = random_sae()
    measured = reconstruction(trace, sae)
    y, x64 = sae.decode(sae.encode(x)).double(), x.double()
    error, spread = (x64 - y).square().sum(-1), (x64 - x64.mean(0)).square().sum(-1)
    assert np.allclose(measured["fvu"], error / spread) and np.allclose(measured["error"] ** 2, error)
    assert measured.attrs["fvu"] == pytest.approx(float(error.sum() / spread.sum()))
    assert np.allclose(measured["cosine"], torch.cosine_similarity(x64, y))


def test_small_chunks_of_rows_give_the_same_as_all_rows_at_once(trace, monkeypatch):
    sae = random_sae()
    whole, expected = features(trace, sae), reconstruction(trace, sae)
    monkeypatch.setattr("workbench.experiments.sae.MAX_ELEMENTS_PER_PASS", 7 * F)
    chunked = features(trace, sae)
    assert (chunked["pos"] == whole["pos"]).all() and np.allclose(chunked, whole, rtol=1e-5, atol=1e-5)
    assert np.allclose(reconstruction(trace, sae)["fvu"], expected["fvu"], rtol=1e-5)


def test_a_trace_without_the_site_or_of_another_width_is_refused_with_the_reason(trace):
    with pytest.raises(NotRecorded, match="record='resid_post'"):
        features(tiny().trace(some_tokens(20), record="writes"), random_sae())
    with pytest.raises(SelectionError, match=r"layer must be between 0 and .*, got 23"):
        reconstruction(trace, random_sae("resid_post_layer_23_trainer_1"))
    with pytest.raises(CheckpointError, match=r"needs 128 values .* has 96"):
        features(trace, identity(SITE, 128))


# Edits of a model.


def logits(n: int = 60) -> torch.Tensor:
    with torch.inference_mode():
        return tiny().forward(torch.tensor([some_tokens(n)]))


KINDS = [{}, {"k": 7}, {"threshold": 1.0}, {"norm": "layer_norm"}, {"norm": "constant_norm_rescale", "k": 5}]


@pytest.mark.parametrize("kind", KINDS)
def test_splicing_with_the_error_term_changes_no_bit_of_the_run(kind):
    model, plain = tiny(), logits()
    with model.edit(SITE, random_sae(**kind).splice(error=True)) as editing:
        assert editing is model and torch.equal(logits(), plain)
    with model.edit(SITE, random_sae(**kind).splice()):
        assert not torch.allclose(logits(), plain, atol=1e-2)


def test_splicing_writes_the_reconstruction_at_the_selected_positions_only(trace, x):
    sae = random_sae(k=7)
    with tiny().edit(SITE, sae.splice(), positions=slice(40, None)):
        edited = tiny().trace(trace, record="residuals")
    spliced = torch.tensor(edited[SITE])
    assert torch.equal(spliced[:40], x[:40])
    assert torch.allclose(spliced[40:], sae.decode(sae.encode(x))[40:], rtol=1e-5, atol=1e-5)
    assert edited.id != trace.id and edited.edits[0]["n_positions"] == 20


def test_ablating_a_feature_removes_its_contribution_and_nothing_else(trace, x):
    sae = random_sae(threshold=0.5)
    active = sae.encode(x)
    [feature] = (active > 0).sum(0).topk(1).indices.tolist()
    with tiny().edit(SITE, sae.ablate(feature)):
        ablated = torch.tensor(tiny().trace(trace, record="residuals")[SITE])
    expected = x - active[:, [feature]] * sae.W_dec[feature]
    assert torch.allclose(ablated, expected, rtol=1e-4, atol=1e-4)
    inactive = active[:, feature] == 0
    assert inactive.any() and not inactive.all() and torch.equal(ablated[inactive], x[inactive])


def test_ablating_a_feature_that_never_activates_changes_nothing(x):
    sae = random_sae(threshold=0.5)
    [silent] = (sae.encode(x) > 0).sum(0).topk(1, largest=False).indices.tolist()
    cut = random_sae(threshold=torch.full((F,), 0.5).index_fill(0, torch.tensor([silent]), 1e6))
    plain = logits()
    with tiny().edit(SITE, cut.ablate(silent)):
        assert torch.equal(logits(), plain)


def test_steering_sets_a_feature_and_adding_its_direction_adds_to_it(trace, x):
    sae = random_sae()
    feature, value = 11, 4.0
    with tiny().edit(SITE, sae.steer(feature, value)):
        clamped = torch.tensor(tiny().trace(trace, record="residuals")[SITE])
    expected = x + (value - sae.encode(x)[:, [feature]]) * sae.W_dec[feature]
    assert torch.allclose(clamped, expected, rtol=1e-4, atol=1e-4)
    with tiny().edit(SITE, steer(sae.direction(feature), value)):
        added = torch.tensor(tiny().trace(trace, record="residuals")[SITE])
    assert torch.allclose(added, x + value * sae.W_dec[feature], rtol=1e-5, atol=1e-5)


def test_the_cost_of_a_splice_is_the_kl_between_two_complete_runs(trace):
    sae = random_sae(k=20)
    cost = splice_cost(tiny(), trace, sae)
    plain = logits().double().log_softmax(-1)[0]
    for name, fn in (("kl", sae.splice()), ("kl_zero", torch.zeros_like)):
        with tiny().edit(SITE, fn):
            other = logits().double().log_softmax(-1)[0]
        expected = (plain.exp() * (plain - other)).sum(-1)
        assert np.allclose(cost[name], expected, rtol=1e-3, atol=1e-6) and float(cost[name].mean()) > 1e-3
    assert (splice_cost(tiny(), trace, identity(SITE, D))["kl"] == 0).all()


def test_edits_have_different_identities_if_any_of_their_inputs_differ():
    identities = [
        model_edit.tap.describe()["identity"]
        for sae in (random_sae(), random_sae(k=3), random_sae(threshold=0.0), identity(SITE, D))
        for model_edit in (
            tiny().edit(SITE, sae.splice()),
            tiny().edit(SITE, sae.splice(error=True)),
            tiny().edit(SITE, sae.ablate(3)),
            tiny().edit(SITE, sae.ablate(4)),
            tiny().edit(SITE, sae.steer(3, 2.0)),
        )
    ]
    assert len(set(identities)) == len(identities)
    repeated = tiny().edit(SITE, random_sae().splice()).tap.describe()["identity"]
    assert repeated == identities[0]


def test_edits_that_do_not_fit_are_refused_with_the_reason():
    model, sae = tiny(), random_sae()
    with (
        pytest.raises(EditError, match=r"used at 'blocks.1.hook_resid_post'.*sae.at\("),
        model.edit("blocks.1.hook_resid_post", sae.splice()),
    ):
        logits()
    with model.edit("blocks.1.hook_resid_post", sae.at("blocks.1.hook_resid_post").splice(error=True)):
        logits()
    with (
        pytest.raises(EditError, match="96 values per position; the SAE needs 128"),
        model.edit(SITE, identity(SITE, 128).splice()),
    ):
        logits()
    for feature in (F, -1, [3, F]):
        with pytest.raises(SelectionError, match="feature must be between 0 and 159, got"):
            sae.ablate(feature)
    with pytest.raises(ArgumentTypeError, match=r"feature must be a whole number, got 1\.5"):
        sae.ablate(1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="features must have at least 1 entry"):
        sae.ablate([])
    with pytest.raises(ArgumentError, match="finite"):
        sae.steer(3, float("nan"))


# Names and files.


@pytest.mark.parametrize(
    ("published", "site"),
    [
        ("blocks.3.hook_resid_post", "blocks.3.hook_resid_post"),
        ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_mid"),
        ("blocks.5.hook_mlp_out", "blocks.5.hook_mlp_out"),
        ("model.layers.12", "blocks.12.hook_resid_post"),
        ("layers.4.mlp", "blocks.4.hook_mlp_out"),
        ("model.layers.4.self_attn", "blocks.4.hook_attn_out"),
        ("model.layers.4.post_attention_layernorm", "blocks.4.ln2.hook_normalized"),
        ("resid_post_layer_23/trainer_1", "blocks.23.hook_resid_post"),
        ("resid_post_layer_3_trainer_0", "blocks.3.hook_resid_post"),
        ("19-resid-post-aa", "blocks.19.hook_resid_post"),
        ("hook_embed", "hook_embed"),
    ],
)
def test_site_of_understands_the_names_of_other_libraries(published, site):
    assert site_of(published) == site


@pytest.mark.parametrize(
    "name", ["blocks.3.attn.hook_z", "blocks.*.hook_resid_post", "post_mlp_residual", "logprob", ""]
)
def test_a_name_that_is_not_a_site_is_refused(name):
    with pytest.raises(HookNameError):
        site_of(name)


def test_the_module_of_transformers_gives_the_numbers_of_the_site(trace):
    """The table of names is checked: outputs of the modules that it names are the hook points."""
    model = tiny()
    from tests.checkpoints import Random

    hf_model = Random(seed=0).transformers()
    names = ["model.layers.1", "model.layers.1.mlp", "model.layers.1.self_attn"]
    names += ["model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm"]
    seen = {}
    modules = dict(hf_model.named_modules())
    hooks = [
        modules[name].register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out[0] if isinstance(out, tuple) else out})
        )
        for name in names
    ]
    with torch.inference_mode():
        hf_model(torch.tensor([some_tokens(60)]))
    for hook in hooks:
        hook.remove()
    recorded = model.trace(some_tokens(60), record="residuals writes ln1_normalized ln2_normalized")
    for name in names:
        expected = torch.tensor(recorded[site_of(name)])
        assert torch.allclose(seen[name].reshape(expected.shape), expected, rtol=1e-4, atol=1e-4), name


def learned(folder: Path, kind: str, **changes) -> Path:
    """A folder in the layout of dictionary_learning: ae.pt and config.json."""
    sae = random_sae()
    linear = {"encoder.weight": sae.W_enc.T.contiguous(), "encoder.bias": sae.b_enc.clone()}
    linear |= {"decoder.weight": sae.W_dec.T.contiguous()}
    plain = {"W_enc": sae.W_enc, "b_enc": sae.b_enc.clone(), "W_dec": sae.W_dec, "b_dec": sae.b_dec.clone()}
    state = {
        "AutoEncoder": linear | {"bias": sae.b_dec.clone()},
        "AutoEncoderTopK": linear | {"b_dec": sae.b_dec.clone(), "k": torch.tensor(7), "threshold": torch.tensor(9.0)},
        "BatchTopKSAE": linear | {"b_dec": sae.b_dec.clone(), "k": torch.tensor(7), "threshold": torch.tensor(1.5)},
        "MatryoshkaBatchTopKSAE": plain | {"k": torch.tensor(7), "threshold": torch.tensor(1.5)},
        "JumpReluAutoEncoder": plain | {"threshold": torch.full((F,), 1.5)},
    }[kind]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state | changes, folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "activation_dim": D,
        "dict_size": F,
        "layer": 2,
        "k": 7,
        "lm_name": "openai/gpt-oss-20b",
    }
    config = {"trainer": trainer | {"submodule_name": "resid_post_layer_2"}, "buffer": {"io": "out", "ctx_len": 1024}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("AutoEncoder", {}),
        ("AutoEncoderTopK", {"k": 7}),  # its stored threshold is not used: it chooses k for each token
        ("BatchTopKSAE", {"threshold": 1.5}),
        ("MatryoshkaBatchTopKSAE", {"threshold": 1.5}),
        ("JumpReluAutoEncoder", {"threshold": 1.5, "subtracts": False}),
    ],
)
def test_each_class_of_dictionary_learning_loads_as_the_sae_it_defines(kind, expected, tmp_path, x):
    sae, same = load_sae(learned(tmp_path, kind)), random_sae(**expected)
    assert sae.site == SITE and torch.equal(sae.encode(x), same.encode(x))
    assert torch.equal(sae.decode(sae.encode(x)), same.decode(same.encode(x)))


def test_published_saes_are_found_in_the_hugging_face_cache_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"hf download andyrdt/saes-gpt-oss-20b --include"):
        load_sae("gpt-oss-20b-andyrdt/resid_post_layer_11_trainer_0")
    repo = tmp_path / "models--andyrdt--saes-gpt-oss-20b"
    learned(repo / "snapshots" / "abc" / "resid_post_layer_11" / "trainer_1", "BatchTopKSAE")
    sae = load_sae("gpt-oss-20b-andyrdt/resid_post_layer_11_trainer_1")
    assert (sae.d_model, sae.d_sae) == (D, F)
    with pytest.raises(ModelNotFound, match=r"not resid_post_layer_11/trainer_0"):
        load_sae("gpt-oss-20b-andyrdt/resid_post_layer_11_trainer_0")
    with pytest.raises(ModelNotFound, match="named like"):
        load_sae("gpt-oss-20b-andyrdt/layer_11")
    with pytest.raises(ModelNotFound, match="Give its folder"):
        load_sae(tmp_path / "nothing")


def saved(folder: Path, weights: dict | None = None, **cfg) -> Path:
    sae = random_sae()
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc.clone(), "W_dec": sae.W_dec, "b_dec": sae.b_dec.clone()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in (tensors | (weights or {})).items()}, folder / "sae_weights.safetensors")
    settings = {"architecture": "standard", "d_in": D, "d_sae": F, "metadata": {"hook_name": SITE}}
    (folder / "cfg.json").write_text(json.dumps(settings | cfg))
    return folder


def test_configs_from_before_saelens_6_keep_their_meaning(tmp_path, x):
    old = {"metadata": None, "hook_point": SITE, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}
    assert torch.equal(load_sae(saved(tmp_path, **old)).encode(x), random_sae(k=7).encode(x))


def test_a_batchtopk_saved_during_training_loads_as_the_jumprelu_it_becomes(tmp_path, x):
    folder = saved(tmp_path, {"topk_threshold": torch.tensor(1.5)}, architecture="batchtopk", k=7.5)
    assert torch.equal(load_sae(folder).encode(x), random_sae(threshold=1.5).encode(x))


REFUSED = [
    ({"architecture": "gated"}, {}, "architecture is 'gated'.*standard, jumprelu, topk"),
    ({"normalize_activations": "expected_average_only_in"}, {}, "whose factor is not in its files"),
    ({"activation_fn": "tanh-relu"}, {}, "activation is 'tanh-relu'"),
    ({"reshape_activations": "hook_z"}, {}, "input is heads"),
    ({"architecture": "jumprelu"}, {}, "lacks threshold"),
    ({"architecture": "topk", "k": "many"}, {}, "k must be a whole number, got 'many'"),
    ({"architecture": "topk", "k": 2.7}, {}, r"k must be a whole number, got 2\.7"),
    ({}, {"W_enc": torch.ones(D, F, dtype=torch.complex64)}, "W_enc .*holds complex64; it must be a dense tensor"),
    ({"apply_b_dec_to_input": "false"}, {}, "apply_b_dec_to_input must be true or false"),
    ({"architecture": "topk", "k": F + 1}, {}, "k must be a whole number between 1 and 160, got 161"),
    ({"metadata": {}}, {}, "names no hook point"),
    ({}, {"W_dec": torch.zeros(F, D + 1)}, r"W_dec must be \[160, 96\], got \[160, 97\]"),
    ({}, {"b_enc": torch.zeros(F - 1)}, r"b_enc must have the shape \[160\] with these matrices, got \[159\]"),
    ({}, {"b_dec": torch.full((D,), torch.nan)}, "b_dec contains NaN"),
    ({}, {"scaling_factor": torch.full((F,), 2.0)}, "scaling_factor is not folded in"),
]


@pytest.mark.parametrize(("cfg", "weights", "message"), REFUSED, ids=[message[:20] for _, _, message in REFUSED])
def test_an_unsupported_sae_is_refused_with_the_reason(cfg, weights, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        load_sae(saved(tmp_path, weights, **cfg))


def test_an_unknown_site_can_be_replaced_and_an_unknown_class_is_refused(tmp_path):
    folder = saved(tmp_path / "a", metadata={"hook_name": "transformer.h.3"})
    with pytest.raises(HookNameError, match=r"give load_sae\(…, site=…\)"):
        load_sae(folder)
    assert load_sae(folder, site="blocks.1.hook_resid_mid").site == "blocks.1.hook_resid_mid"
    with pytest.raises(HookNameError, match="of a layer that no model has; layers are 0 to 999"):
        load_sae(saved(tmp_path / "a", metadata={"hook_name": f"blocks.{10**30}.hook_resid_post"}))
    with pytest.raises(CheckpointError, match="never set"):
        load_sae(learned(tmp_path / "b", "BatchTopKSAE", threshold=torch.tensor(-1.0)))
    folder = learned(tmp_path / "c", "AutoEncoder")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": ["x"], "layer": 2}}))
    with pytest.raises(CheckpointError, match=r"AutoEncoder, AutoEncoderTopK"):
        load_sae(folder)
    with pytest.raises(CheckpointError, match="holds neither"):
        load_sae(tmp_path)


class MakesAFolder:
    """Makes a folder when an unrestricted reader unpickles it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path):
    folder = learned(tmp_path / "sae", "AutoEncoder", evil=MakesAFolder(tmp_path / "opened"))
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_sae(folder)
    assert not (tmp_path / "opened").exists()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_a_workbench_error_or_loads_unharmed(data, tmp_path_factory):
    """Truncated or with a byte changed, in either layout: never another exception, never a NaN."""
    folder = tmp_path_factory.mktemp("sae")
    kind = data.draw(st.sampled_from(["saelens", "BatchTopKSAE"]))
    saved(folder) if kind == "saelens" else learned(folder, kind)
    damaged = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(damaged.read_bytes())
    at = data.draw(st.integers(0, min(len(content), 2000) - 1))
    if data.draw(st.booleans()):
        damaged.write_bytes(content[:at])
    else:
        content[at] ^= data.draw(st.integers(1, 255))
        damaged.write_bytes(content)
    try:
        sae = load_sae(folder)
    except WorkbenchError:
        return
    assert all(bool(t.isfinite().all()) for t in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
