import json

import jax
import numpy as np
import pytest
from models.qwen3_vl import hf_files

from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.qwen3_vl.config import from_hf
from jaxvla.models.qwen3_vl.tokens import add_tokens
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import tree_shardings

NEW = {"<|thinking|>": "copy:<<", "<img_next>": "copy:pick up", "<|end_of_thinking|>": "mean"}
USED = 66
VOCAB = {"<<": [7], "pick up": [3, 5, 5], "": [], "<|thinking|>": [66], "<img_next>": [67], "<|end_of_thinking|>": [68]}


def model(tied, dtype=np.float32):
    config = from_hf(hf_files.config(tied))
    rng = np.random.default_rng(0)
    shapes = param_shapes(config, dtype)
    return jax.tree.map(lambda leaf: jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype)), shapes), config


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [72, 67], ids=["spare rows", "a longer table"])
def test_rows_of_new_tokens(tied, rows):
    params, config = model(tied)
    values = hf_files.config(tied)
    values["text_config"]["vocab_size"] = rows
    config = from_hf(values)
    params["text"]["embed_tokens"]["embedding"] = params["text"]["embed_tokens"]["embedding"][:rows]
    if not tied:
        params["text"]["lm_head"]["kernel"] = params["text"]["lm_head"]["kernel"][:, :rows]
    before = jax.tree.map(np.array, params)
    after, grown, record = add_tokens(params, config, NEW, VOCAB.__getitem__, USED)
    assert grown.text.vocab_size == max(rows, 69)
    assert json.loads(json.dumps(record)) == {
        "used_rows": 66,
        "vocab_size": max(rows, 69),
        "tokens": {name: {"id": 66 + i, "init": init} for i, (name, init) in enumerate(NEW.items())},
    }
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda s: s.shape, param_shapes(grown))
    tables = [(before["text"]["embed_tokens"]["embedding"], after["text"]["embed_tokens"]["embedding"])]
    if not tied:
        tables.append((before["text"]["lm_head"]["kernel"].T, after["text"]["lm_head"]["kernel"].T))
    for old, new in tables:
        np.testing.assert_array_equal(new[:66], old[:66])
        np.testing.assert_array_equal(new[66], old[7])
        np.testing.assert_allclose(new[67], (old[3] + 2 * old[5]) / 3, rtol=1e-6)
        np.testing.assert_allclose(new[68], old[:66].mean(axis=0), atol=1e-6)
        np.testing.assert_array_equal(new[69:], old[69:])
    jax.tree.map(np.testing.assert_array_equal, params, before)
    jax.tree.map(np.testing.assert_array_equal, after["visual"], before["visual"])


def test_shards_and_dtype_stay():
    params, config = model(tied=False, dtype=jax.numpy.bfloat16)
    params = {"text": {name: params["text"][name] for name in ("embed_tokens", "lm_head")}}
    params = jax.device_put(params, tree_shardings(params, make_mesh(MeshConfig(fsdp=8, data=1)), min_bytes=64))
    after, _, _ = add_tokens(params, config, NEW, VOCAB.__getitem__, USED)
    for leaf, old in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True):
        assert (leaf.dtype, leaf.sharding) == (old.dtype, old.sharding)


def test_with_the_tokenizer_that_ships():
    tokenizer = load_tokenizer(TINY)
    values = hf_files.config()
    values["text_config"]["vocab_size"] = tokenizer.vocab_size + 2
    config = from_hf(values)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), param_shapes(config))
    longer = tokenizer.with_added_tokens(NEW)
    after, grown, record = add_tokens(jax.device_put(params), config, NEW, longer.encode, tokenizer.vocab_size)
    assert grown.text.vocab_size == longer.vocab_size
    assert {name: entry["id"] for name, entry in record["tokens"].items()} == {n: longer.id_of(n) for n in NEW}
    np.testing.assert_array_equal(after["text"]["embed_tokens"]["embedding"][-3:], 1)


def test_no_tokens_change_nothing():
    params, config = model(tied=True)
    after, same, record = add_tokens(params, config, {}, VOCAB.__getitem__, USED)
    assert same == config
    assert record["tokens"] == {}
    assert after["text"]["embed_tokens"]["embedding"] is params["text"]["embed_tokens"]["embedding"]


@pytest.mark.parametrize(
    ("tokens", "encode", "used", "error", "message"),
    [
        ({"<|thinking|>": "zeros"}, {}, USED, ConfigError, "no initialisation of a token named 'zeros'"),
        ({"<|thinking|>": "copy:"}, {}, USED, ConfigError, "no initialisation of a token named 'copy:'"),
        ({"<|thinking|>": "copy:<img_next>"}, {}, USED, ConfigError, "does not copy a token from before: its ids are"),
        ({"<|thinking|>": "mean"}, {"<|thinking|>": [3, 4]}, USED, WeightsError, "splits '<|thinking|>' into 2 tokens"),
        (
            {"<|thinking|>": "mean"},
            {"<|thinking|>": [12]},
            USED,
            WeightsError,
            r"have the ids \[12\], not those from 66",
        ),
        ({"<img_next>": "mean"}, {}, USED, WeightsError, r"have the ids \[67\], not those from 66 on"),
        ({"<|thinking|>": "mean"}, {}, 90, WeightsError, "the tokenizer has 90 tokens, but the embedding only 72 rows"),
    ],
)
def test_what_cannot_be_added(tokens, encode, used, error, message):
    params, config = model(tied=True)
    with pytest.raises(error, match=message.replace("|", r"\|")) as raised:
        add_tokens(params, config, tokens, (VOCAB | encode).__getitem__, used)
    assert "\n" not in str(raised.value)
