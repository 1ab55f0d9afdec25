"""The error for a token that cannot be sampled has the place of the first NaN; tiny temperatures are greedy."""

import pytest
import torch

import workbench as wb
from tests.checkpoints import Random, write_hf
from tests.model.models import some_tokens, tiny
from workbench.errors import NotFinite, VerificationWarning, WorkbenchError
from workbench.experiments.sampling import rollouts
from workbench.model.kernels.noise import gumbel
from workbench.model.sampling import choose

MODEL = Random(seed=3)
PROMPT = some_tokens(20)
TINY = [5e-324, 1e-310, 1e-308, 1e-200, 1e-45]
LOGITS = [[1.0, 3.0, 2.0], [-5.0, -3.0, -4.0], [0.0, -2.0, -1.0], [0.0, -torch.inf, 2.0], [-torch.inf, -9.0, -8.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TINY)
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature, dtype):
    rows = torch.tensor(LOGITS, dtype=dtype)
    for row in rows:
        drawn = {choose(row, temperature, top_p, 7, n) for n in range(5) for top_p in (1.0, 0.5)}
        assert drawn == {int(row.argmax())}


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0, 1e300])
def test_other_temperatures_divide_the_logits(temperature):
    row = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for position in range(20):
        expected = int((row / temperature + gumbel(7, position, 50)).argmax())
        assert choose(row, temperature, 1.0, 7, position) == expected


@pytest.mark.parametrize("temperature", TINY)
def test_a_run_at_a_tiny_temperature_is_the_greedy_one(temperature):
    greedy = tiny().generate(PROMPT, max_tokens=8, record="")
    assert tiny().generate(PROMPT, max_tokens=8, record="", temperature=temperature).tokens == greedy.tokens
    written = rollouts(tiny(), PROMPT, 2, max_tokens=8, temperature=temperature)
    assert written == [list(greedy.tokens[len(PROMPT) :])] * 2


def damaged(folder, name, value=float("nan"), row=0):
    """A model with one weight that is not finite."""
    tensors = MODEL.hf_tensors(mxfp4=False)
    tensors[name].view(-1, tensors[name].shape[-1])[row, 0] = value
    config = {k: v for k, v in MODEL.hf_config().items() if k != "quantization_config"}
    return wb.Model(write_hf(folder, tensors, config))


def failure(model) -> str:
    with pytest.raises(NotFinite) as caught, pytest.warns(VerificationWarning):
        model.generate(PROMPT, max_tokens=3, record="", temperature=1.0)
    assert isinstance(caught.value, WorkbenchError)
    return str(caught.value)


AT = {  # weight -> the first hook point that is not finite
    "self_attn.q_proj.weight": "attn.hook_q",
    "self_attn.v_proj.weight": "attn.hook_v",
    "self_attn.o_proj.weight": "hook_attn_out",
    "mlp.router.weight": "mlp.router.hook_out",
    "mlp.experts.down_proj": "mlp.hook_expert_out",
}


@pytest.mark.parametrize("weight", AT)
def test_the_first_nan_is_named_by_layer_hook_point_and_weight(tmp_path, weight):
    name = f"model.layers.2.{weight}"
    row = 0
    if weight == "mlp.experts.down_proj":  # of an expert that the first position chooses
        sound = wb.Model(MODEL.transformers()).trace(PROMPT, record="")
        row = int(sound["blocks.2.mlp.hook_expert_indices"][0, 0]) * MODEL.config.d_mlp
    text = failure(damaged(tmp_path, name, row=row))
    assert f"the first NaN is at blocks.2.{AT[weight]} (layer 2), position 0." in text
    assert f"The weight {name} contains NaN or infinity" in text and "Fetch or export" in text


def test_the_position_is_that_of_the_token_that_brings_it(tmp_path):
    text = failure(damaged(tmp_path, "model.embed_tokens.weight", row=PROMPT[13]))
    first = PROMPT.index(PROMPT[13])
    assert f"the first NaN is at hook_embed, position {first}. The weight model.embed_tokens.weight" in text


def test_infinity_in_the_unembedding_is_named(tmp_path):
    text = failure(damaged(tmp_path, "lm_head.weight", value=float("inf"), row=5))
    assert "infinity is at hook_logits, position 19. The weight lm_head.weight" in text


def test_an_edit_that_gives_infinity_is_named_and_the_tokens_are_kept():
    model = tiny()
    with (
        model.edit("blocks.1.hook_mlp_out", lambda x: x + float("inf"), positions=22),
        pytest.raises(NotFinite) as caught,
        pytest.warns(VerificationWarning),
    ):
        model.generate(PROMPT, max_tokens=9, record="", temperature=1.0)
    assert "blocks.1.hook_mlp_out (layer 1), position 22" in str(caught.value)
    assert "The weights there are finite; check the edits in force: blocks.1.hook_mlp_out" in str(caught.value)
    assert model.partial is not None and len(model.partial) == 23
    model.partial = None


def test_the_minus_infinity_of_a_banned_expert_is_not_reported(tmp_path):
    model = damaged(tmp_path, "model.layers.2.self_attn.o_proj.weight")

    def without_expert_0(x):
        x[..., 0] = -torch.inf
        return x

    with model.edit("blocks.0.mlp.router.hook_out", without_expert_0):
        assert "the first NaN is at blocks.2.hook_attn_out (layer 2), position 0" in failure(model)


def test_overflow_and_weights_with_nan_have_different_errors(tmp_path):
    tensors = {k: v.clone() for k, v in MODEL.hf_tensors(mxfp4=False).items()}
    tensors["lm_head.weight"] *= 1e38
    tensors["lm_head.weight"] *= 5
    config = {k: v for k, v in MODEL.hf_config().items() if k != "quantization_config"}
    text = failure(wb.Model(write_hf(tmp_path, tensors, config), dtype="bfloat16"))
    assert "is at hook_logits, position 19. The weights there are finite" in text
    assert "too large for bfloat16" in text and "dtype=torch.float32" in text


def test_a_greedy_trace_with_nan_does_not_verify(tmp_path):
    model = damaged(tmp_path, "model.layers.2.self_attn.q_proj.weight")
    with pytest.warns(VerificationWarning, match="logits are finite"):
        assert not model.generate(PROMPT, max_tokens=2, record="").verified


def test_rollouts_raise_the_same_error(tmp_path):
    model = damaged(tmp_path, "model.layers.2.self_attn.q_proj.weight")
    with pytest.raises(NotFinite, match=r"blocks\.2\.attn\.hook_q \(layer 2\), position 0"):
        rollouts(model, PROMPT, 3, max_tokens=3)
