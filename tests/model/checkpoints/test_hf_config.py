"""config.json: which keys may be absent, which may not, and which values are not gpt-oss's."""

from dataclasses import replace

import pytest

from tests.checkpoints import CONFIG, Random
from workbench.errors import CheckpointError
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.checkpoints.original import parse_original_config
from workbench.model.checkpoints.validate import RANGES, check_config
from workbench.model.config import Config

RAW = Random().hf_config()
ROPE = RAW["rope_scaling"]


def parse(**changes):
    return parse_hf_config({k: v for k, v in (RAW | changes).items() if v != "absent"}, "config.json")


def rope(**changes):
    return {k: v for k, v in (ROPE | changes).items() if v != "absent"}


def test_both_forms_of_rope_give_the_same_config():
    assert parse() == CONFIG
    assert parse(rope_scaling="absent", rope_theta="absent", rope_parameters=ROPE | {"rope_theta": 150000}) == CONFIG
    assert parse(rope_parameters=ROPE | {"rope_theta": 150000.0}) == CONFIG  # both, with equal values
    assert parse(rope_parameters=ROPE, rope_scaling=None) == CONFIG


def test_every_number_of_config_json_is_in_the_config():
    changes = {"factor": 8, "beta_fast": 16, "beta_slow": 2, "original_max_position_embeddings": 512, "truncate": True}
    config = parse(rope_scaling=rope(**changes), rope_theta=1e6, rms_norm_eps=1e-6, swiglu_limit=5.0, swiglu_alpha=2)
    assert (config.rope_factor, config.rope_beta_fast, config.rope_beta_slow) == (8, 16, 2)
    assert (config.rope_original, config.rope_truncate, config.rope_theta) == (512, True, 1e6)
    assert (config.eps, config.swiglu_limit, config.swiglu_alpha) == (1e-6, 5.0, 2.0)


def test_a_key_may_be_absent_where_all_versions_agree_on_its_value():
    keys = ("layer_types", "rms_norm_eps", "swiglu_limit", "hidden_act", "attention_bias", "tie_word_embeddings")
    assert parse(**dict.fromkeys(keys, "absent")) == CONFIG
    assert parse(rope_scaling="absent") == CONFIG
    assert parse(num_local_experts="absent", num_experts=8, num_experts_per_tok="absent") == CONFIG


NULLABLE = ("layer_types", "rms_norm_eps", "swiglu_limit", "swiglu_alpha", "hidden_act", "attention_bias",
            "tie_word_embeddings", "rope_theta", "quantization_config", "num_experts", "rope_parameters")  # fmt: skip
NULLABLE_ROPE = ("attention_factor", "beta_fast", "beta_slow", "rope_theta", "partial_rotary_factor", "mscale", "type")


@pytest.mark.parametrize("key", [*NULLABLE, *NULLABLE_ROPE])
def test_a_null_key_counts_as_absent(key):
    if key in NULLABLE:
        assert parse(**{key: None}) == parse(**{key: "absent"}) == CONFIG
    else:
        assert parse(rope_scaling=rope(**{key: None})) == parse(rope_scaling=rope(**{key: "absent"})) == CONFIG


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "sliding_window", "head_dim"])
def test_null_and_absent_are_refused_alike_where_no_value_is_known(key):
    texts = []
    for value in (None, "absent"):
        with pytest.raises(CheckpointError) as caught:
            parse(**{key: value})
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and f"no {key}" in texts[0]


def test_null_in_one_of_two_rope_configs_is_not_a_contradiction():
    assert parse(rope_parameters=ROPE | {"beta_fast": None, "rope_theta": None}) == CONFIG


@pytest.mark.parametrize("value", [None, "absent"])
def test_the_error_for_yarn_without_original_length_says_what_to_add(value):
    """Some versions of transformers save such a config: their own default has no such key."""
    with pytest.raises(CheckpointError) as caught:
        parse(rope_scaling=rope(original_max_position_embeddings=value))
    for words in ('Add "original_max_position_embeddings": 4096 if', "or 131072 if it was trained by transformers"):
        assert words in str(caught.value)


def test_a_null_key_in_the_config_of_original_counts_as_absent():
    raw = Random().original_config()
    assert parse_original_config(raw | {"swiglu_limit": None}, "x") == parse_original_config(raw, "x")


def test_plain_rope_has_factor_one():
    assert parse(rope_scaling={"rope_type": "default"}).rope_factor == 1.0


@pytest.mark.parametrize("rope_key", ["rope_scaling", "rope_parameters"])
def test_a_missing_truncate_is_refused_with_both_choices(rope_key):
    with pytest.raises(CheckpointError) as caught:
        parse(**{"rope_scaling": "absent", rope_key: rope(truncate="absent")})
    for word in (f"config.json: {rope_key}", "'truncate'", '"truncate": false', '"truncate": true'):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"model_type": "absent"}, "None"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False, as in gpt-oss, got True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, as in gpt-oss, got 0.5"),
        ({"attention_bias": False}, "attention_bias must be True, as in gpt-oss, got False"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"hidden_size": "absent"}, "no hidden_size"),
        ({"hidden_size": "96"}, "must be an integer"),
        ({"hidden_size": True}, "must be an integer"),
        ({"num_hidden_layers": 10**10, "layer_types": "absent"}, "must be at most 10,000, got 10,000,000,000"),
        ({"hidden_size": -1}, r"hidden_size \(d_model\) must be between 1 and 1,048,576, got -1"),
        ({"head_dim": "absent"}, "no head_dim"),
        ({"head_dim": 15}, "must be even"),
        ({"num_key_value_heads": 3}, "must be a multiple of n_kv_heads, got 10 and 3"),
        ({"num_experts_per_tok": 9}, "9 of 8 experts"),
        ({"rms_norm_eps": "1e-5"}, "must be a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, got nan"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 4 layers"),
        ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "'chunked_attention'"),
        ({"layer_types": "full_attention"}, "must be a list"),
        ({"sliding_window": None}, "no sliding_window"),
        ({"rope_scaling": None}, "transformers 4 reads as plain"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
        ({"rope_parameters": "yarn", "rope_scaling": None}, "rope_parameters is 'yarn'"),
        ({"rope_scaling": rope(rope_type="llama3")}, "got 'llama3'"),
        ({"rope_scaling": rope(rope_type="absent")}, "rope_type must be .* got None"),
        ({"rope_scaling": rope(factor="absent")}, "no factor"),
        ({"rope_scaling": rope(original_max_position_embeddings="absent")}, "no original_max_position_embeddings"),
        ({"rope_scaling": rope(mscale=0.7)}, "'mscale'"),
        ({"rope_scaling": rope(attention_factor=1.0)}, "attention_factor"),
        ({"rope_scaling": rope(partial_rotary_factor=0.5)}, "partial_rotary_factor"),
        ({"rope_scaling": {"sliding_attention": ROPE}}, "rope_type must be .* got None"),
        ({"rope_parameters": rope(factor=64.0)}, "contradict each other"),
    ],
)
def test_what_is_not_gpt_oss_is_refused(changes, word):
    with pytest.raises(CheckpointError, match=word):
        parse(**changes)


def test_the_published_config_gives_the_published_model():
    """The numbers of openai/gpt-oss-20b's config.json."""
    raw = RAW | {
        "num_hidden_layers": 24,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "vocab_size": 201088,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    }
    assert parse_hf_config(raw, "config.json") == Config()


@pytest.mark.parametrize("field", RANGES)
def test_both_ends_of_a_range_are_accepted_and_what_is_beyond_is_refused(field):
    keys = {"d_model": "hidden_size"}
    layers = {"layer_types": ("full_attention",)}
    free = {"n_layers": 1, "n_heads": 1 << 16, "n_kv_heads": 1, "n_experts": 1 << 16, "n_active": 1}
    free |= {"rope_beta_slow": 0.001, "rope_beta_fast": 10_000.0} | layers
    base = replace(CONFIG, **free)
    least, most = RANGES[field]
    for value in (least - 1, most * 2, -1, float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match=f"x: .*{field}.* must be between"):
            check_config(replace(base, **{field: value}), "x", keys)
    if field != "n_layers":  # needs as many layer types
        for value in (least, most):
            changed = replace(base, **{field: value})
            if field == "n_kv_heads":
                changed = replace(changed, n_heads=value)
            assert check_config(changed, "x", keys) is changed
