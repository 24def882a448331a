import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from jaxvla.errors import ConfigError
from jaxvla.models.instruction_encoder import InstructionEncoder, InstructionEncoderConfig
from jaxvla.models.module import bind, graph_of, init_params

CONFIG = InstructionEncoderConfig(width=8, num_layers=2, num_heads=2)
IDS = np.array([[3, 1, 4, 1, -1, -1], [5, -1, -1, -1, -1, -1], [2, 0, 2, 0, 2, 0]], np.int32)


def make(rngs, config=CONFIG, vocab_size=7, dtype=jnp.float32):
    return InstructionEncoder(config, vocab_size, 6, dtype=dtype, rngs=rngs)


@pytest.fixture(scope="module")
def params():
    return random_params(make)


@pytest.fixture(scope="module")
def encode():
    return jax.jit(lambda params, ids: bind(graph_of(make), params)(ids))


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def reference(params, ids):
    """The vector of one instruction without padding, one head after the other."""
    x = params["embedding"][ids] + params["positions"][: len(ids)]
    for i in range(2):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        q, k, v = np.split(linear(layer_norm(x, block["attention_norm"]), block["queries_keys_values"]), 3, axis=-1)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            logits = q[:, h] @ k[:, h].T / 2
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, h])
        x = x + linear(np.concatenate(heads, -1), block["out"])
        hidden = linear(layer_norm(x, block["mlp_norm"]), block["up"])
        hidden = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, block["down"])
    return layer_norm(x, params["norm"]).mean(0)


def test_against_numpy(params, encode):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = np.stack([reference(exact, row[row >= 0]) for row in IDS])
    np.testing.assert_allclose(encode(params, IDS), expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(params, encode):
    whole = encode(params, IDS)
    shorter = encode(params, IDS[:2, :4])
    np.testing.assert_allclose(shorter, whole[:2], rtol=1e-5, atol=1e-6)
    assert (encode(params, np.where(IDS < 0, -7, IDS)) == whole).all()


def test_order_matters(params, encode):
    backwards = np.array([[1, 4, 1, 3, -1, -1], [5, -1, -1, -1, -1, -1], [0, 2, 0, 2, 0, 2]], np.int32)
    difference = np.abs(encode(params, backwards) - encode(params, IDS)).max(1)
    assert difference[1] == 0
    assert difference[0] > 0.01
    assert difference[2] > 0.01


def test_no_tokens_give_zeros_and_finite_gradients(params, encode):
    empty = np.where(np.arange(3)[:, None] == 1, -1, IDS)
    vectors = encode(params, empty)
    assert (vectors[1] == 0).all()
    np.testing.assert_array_equal(vectors[::2], encode(params, IDS)[::2])
    gradients = jax.jit(jax.grad(lambda p, ids: (bind(graph_of(make), p)(ids) ** 2).sum()))(params, empty)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert jnp.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_the_default_has_about_a_million_parameters():
    shapes = jax.eval_shape(
        lambda: init_params(lambda rngs: make(rngs, InstructionEncoderConfig(), 1000), jax.random.key(0))
    )
    assert 0.8e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1.1e6


def test_bfloat16_gives_float32_near_by(params, encode):
    def make_rounded(rngs):
        return make(rngs, dtype=jnp.bfloat16)

    rounded = jax.jit(bind(graph_of(make_rounded), params))(IDS)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - encode(params, IDS)).max() < 0.1


@pytest.mark.parametrize("changes", [{"width": 9}, {"num_layers": 0}, {"num_heads": -1}])
def test_bad_sizes(changes):
    with pytest.raises(ConfigError, match="num_heads must divide width"):
        InstructionEncoderConfig(**{"width": 8, "num_layers": 2, "num_heads": 2} | changes)
