import dataclasses
import json

import jax
import pytest
from models.qwen3_vl.cases import CONFIG, TEXT, VISION

from jaxvla.data.text.tokenizer import IMAGE_PAD, TINY, VISION_END, VISION_START, load_tokenizer
from jaxvla.errors import ConfigError
from jaxvla.models.qwen3_vl.config import PRESETS, from_hf, preset, to_hf
from jaxvla.models.qwen3_vl.weight_table import param_shapes


def num_parameters(config):
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))


@pytest.mark.parametrize("name", PRESETS)
def test_hf_round_trip(name):
    assert from_hf(json.loads(json.dumps(to_hf(preset(name))))) == preset(name)


def test_the_published_4b_config(samples):
    values = json.loads((samples / "tok_qwen3_vl_4b_instruct" / "config.json").read_text())
    assert from_hf(values) == preset("qwen3_vl_4b")


def test_sizes_of_presets():
    # The published 4B has 36 x 100930816 in its layers, 415347712 in its tower, an embedding and a norm of 2560.
    assert num_parameters(preset("qwen3_vl_4b")) == 36 * 100_930_816 + 415_347_712 + 2560 * (151_936 + 1)
    assert num_parameters(preset("qwen3_vl_2b")) == 2_127_532_032
    assert num_parameters(preset("qwen3_vl_8b")) == 8_767_123_696


def test_tiny_fits_the_tokenizer_that_ships():
    config, tokenizer = preset("tiny"), load_tokenizer(TINY)
    assert tokenizer.vocab_size <= config.text.vocab_size
    assert config.image_token_id == tokenizer.id_of(IMAGE_PAD)
    assert config.vision_start_token_id == tokenizer.id_of(VISION_START)
    assert config.vision_end_token_id == tokenizer.id_of(VISION_END)


UNUSUAL = dataclasses.replace(
    CONFIG,
    text=dataclasses.replace(TEXT, rope_theta=1234.5, mrope_section=(3, 2, 3), max_position_embeddings=4096),
)


@pytest.mark.parametrize("unread", [("rope_scaling", "rope_theta"), ("rope_parameters",)])
def test_either_generation_of_transformers_finds_the_rope(unread):
    values = json.loads(json.dumps(to_hf(UNUSUAL)))
    for key in unread:
        del values["text_config"][key]
    assert from_hf(values) == UNUSUAL


def test_rope_is_written_as_published(samples):
    # transformers 4.57 checks the keys of rope_scaling, and takes its own default for what it does not find beside it.
    published = json.loads((samples / "tok_qwen3_vl_4b_instruct" / "config.json").read_text())["text_config"]
    written = to_hf(preset("qwen3_vl_4b"))["text_config"]
    for key in ("rope_scaling", "rope_theta", "max_position_embeddings"):
        assert written[key] == published[key]
    assert written["rope_parameters"] == published["rope_scaling"] | {"rope_theta": published["rope_theta"]}


def test_the_longest_sequence_is_kept():
    values = to_hf(CONFIG)
    values["text_config"]["max_position_embeddings"] = 128_000
    assert to_hf(from_hf(values))["text_config"]["max_position_embeddings"] == 128_000
    values["text_config"]["max_position_embeddings"] = "long"
    with pytest.raises(ConfigError, match=r"text_config\.max_position_embeddings must be int, not str 'long'"):
        from_hf(values)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "model_type", "qwen2_5_vl", "model_type is 'qwen2_5_vl'.*'qwen3_vl'"),
        (None, "text_config", None, "no section text_config"),
        ("text_config", "hidden_act", "gelu", "text_config.hidden_act is 'gelu'"),
        ("text_config", "attention_bias", True, "attention_bias is True"),
        ("vision_config", "hidden_act", "gelu", "vision_config.hidden_act is 'gelu'"),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}, "rope_type is 'yarn'"),
        ("text_config", "num_attention_heads", 3, "3 is not a multiple of num_key_value_heads 2"),
    ],
)
def test_other_models_are_refused(section, key, value, message):
    values = to_hf(CONFIG)
    (values if section is None else values[section])[key] = value
    with pytest.raises(ConfigError, match=message):
        from_hf(values, "folder/config.json")


def test_a_missing_size_is_named():
    values = to_hf(CONFIG)
    del values["vision_config"]["depth"]
    with pytest.raises(
        ConfigError, match=r"folder/config.json: vision_config.depth is missing: give it a value of type int"
    ):
        from_hf(values, "folder/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "no compute dtype named 'float16'"),
        ({"remat": "all"}, "no remat policy named 'all'"),
        ({"attention": "flash"}, "no attention named 'flash'"),
        ({"position_mode": "1d"}, "no position_mode named '1d'"),
        ({"image_token_id": 96}, "image_token_id 96 is no row of a vocabulary of 96"),
        ({"text": dataclasses.replace(TEXT, hidden_size=40)}, "out_hidden_size 32 must be text.hidden_size 40"),
        ({"text": dataclasses.replace(TEXT, num_hidden_layers=1)}, "2 DeepStack features need as many text layers"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (TEXT, {"mrope_section": (4, 2, 1)}, "must sum to head_dim / 2, which is 8"),
        (TEXT, {"vocab_size": 0}, "text.vocab_size must be positive"),
        (VISION, {"num_heads": 5}, "must be a multiple of 4"),
        (VISION, {"num_position_embeddings": 35}, "is no square"),
        (VISION, {"deepstack_visual_indexes": (2, 0)}, "must rise within 0..3"),
        (VISION, {"deepstack_visual_indexes": (4,)}, "must rise within 0..3"),
    ],
)
def test_impossible_sizes_are_refused(base, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(base, **changes)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match=r"no Qwen3-VL preset named '3b'; there are: tiny, qwen3_vl_2b"):
        preset("3b")
