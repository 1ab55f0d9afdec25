"""Tuned lenses: the logit lens for idle layers, better on held-out texts, bound to the weights of one model."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.checkpoints import Random
from tests.model.models import some_tokens, tiny
from workbench.errors import CheckpointError, EditError, NotRecorded, PromptError
from workbench.experiments.tuned_lens import TunedLens
from workbench.model.model import Model
from workbench.pocket.families import CHAINS, make
from workbench.pocket.rendering import render

FIGURES = ("logprob", "entropy", "kl")


def idle() -> Model:
    """A model in which each layer is the identity."""
    hf = Random(seed=0).transformers(torch.float32)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.zero_()
    return Model(hf)


def texts(n: int, seed: str) -> list[list[int]]:
    """Problems with chains of thought and answers, as pocket generates them."""
    rng = random.Random(seed)
    return [list(render(make(CHAINS[i % len(CHAINS)], rng, length=2, wording=None), "high").ids) for i in range(n)]


@pytest.fixture(scope="module")
def pocket():
    model = wb.Model("pocket")
    return model, wb.lens.train_tuned_lens(model, texts(40, "train"), epochs=2)


def untrained(model: Model) -> TunedLens:
    n, d = model.config.n_layers - 1, model.config.d_model
    return TunedLens(torch.zeros(n, d, d), torch.zeros(n, d), {"weights_digest": model.digest, "model": model.name})


def same(lens, reference, tolerance: float) -> bool:
    """Whether all values agree within the tolerance, and tokens agree unless two ranks are closer than that."""
    close = all(np.allclose(lens[name], reference[name], atol=tolerance) for name in FIGURES)
    separated = -np.diff(reference["logprob"].values) > 2 * tolerance  # of ranks 0 and 1, 1 and 2, …
    clear = separated & np.insert(separated[..., :-1], 0, True, -1)
    same_tokens = (lens["token"] == reference["token"]).values[..., :-1]
    return close and bool(same_tokens[clear].all()) and clear.mean() > 0.9


def test_an_untrained_lens_is_the_logit_lens():
    model = tiny()
    trace = model.trace(some_tokens(40), record="lens residuals")
    tuned, logit = wb.lens.tuned_lens(model, trace, untrained(model)), wb.lens.logit_lens(trace)
    assert same(tuned, logit, 1e-4)
    assert tuned.sizes == logit.sizes and set(tuned.data_vars) == set(logit.data_vars)
    assert tuned["text"].values[0, 0, 0] == f"<{int(tuned['token'][0, 0, 0])}>"


def test_for_idle_layers_the_trained_lens_is_the_logit_lens():
    model = idle()
    lens = wb.lens.train_tuned_lens(model, [some_tokens(40, seed) for seed in range(8)], epochs=3)
    trace = model.trace(some_tokens(40, seed=99), record="lens residuals")
    assert same(wb.lens.tuned_lens(model, trace, lens), wb.lens.logit_lens(trace), 1e-3)
    assert float(abs(wb.lens.tuned_lens(model, trace, lens)["kl"]).max()) < 1e-5


def test_the_lens_improves_every_layer_on_held_out_texts(pocket, measured):
    model, lens = pocket
    kl = wb.lens.lens_kl(model, lens, texts(15, "held out"))
    assert (kl["low"][:-1] > 0).all()
    assert float(abs(kl["tuned"][-1])) < 1e-5 and float(kl["gain"][-1]) == pytest.approx(0, abs=1e-6)
    assert np.allclose(kl["gain"], kl["logit"] - kl["tuned"])
    for name in ("logit", "tuned"):
        measured(f"{name} lens, KL(final || layer) by layer on held-out text: {kl[name].values.round(3).tolist()}")


def test_a_shift_between_a_layer_and_the_last_is_learned():
    """If the next layer adds a constant vector, the bias of the lens learns that vector."""
    hf = Random(seed=0, n_layers=2).transformers(torch.float32)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if "o_proj.weight" in name or "down_proj" in name:
                p.zero_()
        hf.model.layers[1].self_attn.o_proj.bias.copy_(torch.randn(96, generator=rng))
    model = Model(hf)
    lens = wb.lens.train_tuned_lens(model, [some_tokens(60, seed) for seed in range(10)], epochs=12, lr=0.02)
    kl = wb.lens.lens_kl(model, lens, [some_tokens(60, seed=99)])
    assert float(kl["tuned"][0]) < 0.1 * float(kl["logit"][0])
    shift = hf.model.layers[1].self_attn.o_proj.bias
    assert float(torch.cosine_similarity(lens.bias[0], shift, dim=0)) > 0.5


def test_a_saved_lens_is_loaded_bit_for_bit(pocket, tmp_path):
    model, lens = pocket
    path = lens.save(tmp_path / "pocket.safetensors")
    loaded = wb.lens.load_tuned_lens(path, model)
    assert (
        torch.equal(loaded.weight, lens.weight)
        and torch.equal(loaded.bias, lens.bias)
        and loaded.training == lens.training
    )
    assert lens.training["weights_digest"] == model.digest and lens.training["prompts"] == 40
    assert [p.name for p in tmp_path.iterdir()] == ["pocket.safetensors"]
    with pytest.raises(CheckpointError, match="exists already"):
        lens.save(path)


def test_the_same_seed_trains_the_same_lens():
    model = tiny()
    one, two, other = (
        wb.lens.train_tuned_lens(model, [some_tokens(30, seed) for seed in range(3)], epochs=1, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("model_dtype", ["float32", "bfloat16"])
def test_a_lens_is_trained_in_float32_whatever_the_dtype_of_its_model(tmp_path, model_dtype):
    model = Model(Random(seed=0).transformers(getattr(torch, model_dtype)), dtype=model_dtype)
    lens = wb.lens.train_tuned_lens(model, [some_tokens(30)], epochs=1)
    assert lens.weight.dtype == lens.bias.dtype == torch.float32
    assert (lens.training["dtype"], lens.training["model_dtype"]) == ("float32", model_dtype)
    assert wb.lens.load_tuned_lens(lens.save(tmp_path / "lens.safetensors"), model).training == lens.training


def test_a_lens_in_float64_is_the_one_in_float32_but_for_rounding():
    prompts = [some_tokens(30, seed) for seed in range(3)]
    single, double, by_name = (
        wb.lens.train_tuned_lens(tiny(), prompts, epochs=1, dtype=dtype)
        for dtype in ("float32", torch.float64, "float64")
    )
    assert double.training["dtype"] == "float64" and double.weight.dtype == torch.float64
    assert torch.equal(double.weight, by_name.weight)
    assert torch.allclose(single.weight.double(), double.weight, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "float"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(CheckpointError, match="dtype of a lens must be one of 'float32', 'float64', got '"):
        wb.lens.train_tuned_lens(tiny(), [some_tokens(9)], dtype=dtype)


def test_another_model_is_refused(pocket, tmp_path):
    _, lens = pocket
    path = lens.save(tmp_path / "lens.safetensors")
    other = tiny()
    with pytest.raises(CheckpointError, match="this lens was trained on pocket"):
        wb.lens.load_tuned_lens(path, other)
    with pytest.raises(CheckpointError, match="other weights"):
        wb.lens.lens_kl(other, lens, [some_tokens(9)])
    trace = tiny(seed=1).trace(some_tokens(9), record="residuals")
    with pytest.raises(CheckpointError, match="this trace was made by"):
        wb.lens.tuned_lens(other, trace, untrained(other))


def test_files_that_are_not_a_lens_are_refused(pocket, tmp_path):
    model, lens = pocket
    with pytest.raises(CheckpointError, match="absent cannot be opened: No such file"):
        wb.lens.load_tuned_lens(tmp_path / "absent", model)
    path = lens.save(tmp_path / "lens.safetensors")
    whole = path.read_bytes()
    for keep in (0, 5, 1000, len(whole) - 4):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="cannot be read as a tuned lens"):
            wb.lens.load_tuned_lens(path, model)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="is not a tuned lens"):
        wb.lens.load_tuned_lens(tmp_path / "bare.safetensors", model)
    wrong = TunedLens(lens.weight[:3], lens.bias, lens.training).save(tmp_path / "wrong.safetensors")
    nan = TunedLens(lens.weight, lens.bias * torch.nan, lens.training).save(tmp_path / "nan.safetensors")
    for damaged, says in ((wrong, "must hold tensors of the shapes"), (nan, "holds NaN or infinity")):
        with pytest.raises(CheckpointError, match=says):
            wb.lens.load_tuned_lens(damaged, model)


def test_a_changed_lens_is_refused_and_an_older_one_says_what_to_do(pocket, tmp_path):
    model, lens = pocket
    path = lens.save(tmp_path / "lens.safetensors")
    whole = path.read_bytes()
    for flipped in (whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b'\\"prompts\\": 40', b'\\"prompts\\": 41')):
        assert flipped != whole
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="content does not match its hash"):
            wb.lens.load_tuned_lens(path, model)
    metadata = {"format": "workbench tuned lens 2", "training": json.dumps(lens.training)}
    save_file({"weight": lens.weight, "bias": lens.bias}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"earlier version of workbench, without a hash.*Train the lens again"):
        wb.lens.load_tuned_lens(path, model)


def test_invalid_training_inputs_are_refused():
    model = tiny()
    with pytest.raises(PromptError, match="prompts to train on"):
        wb.lens.train_tuned_lens(model, [])
    with pytest.raises(PromptError, match="prompts to be measured on"):
        wb.lens.lens_kl(model, untrained(model), [])
    with model.edit("hook_embed", lambda x: x):
        model.forward(torch.tensor([some_tokens(9)]))
        with pytest.raises(EditError, match="trained on the unedited model"):
            wb.lens.train_tuned_lens(model, [some_tokens(9)])
    with pytest.raises(NotRecorded, match="resid_post"):
        wb.lens.tuned_lens(model, model.trace(some_tokens(9), record=""), untrained(model))
