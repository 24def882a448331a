import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models.random_params import random_params

from jaxvla.models.critics import ContrastiveCritic, ValueHead, all_logits, pair_logits, with_actions
from jaxvla.models.module import bind, graph_of, init_params

RNG = np.random.default_rng(0)
STATES, GOALS = (RNG.standard_normal((4, width), dtype=np.float32) for width in (5, 3))
ACTIONS = RNG.standard_normal((4, 2, 3), dtype=np.float32)
VISIBLE = np.array([[True, True], [True, False], [True, True], [False, False]])
SEEN = ACTIONS * VISIBLE[..., None]


def swish(x):
    return x / (1 + np.exp(-x))


def mlp(params, x):
    for name, dense in params["dense"].items():
        x = x @ dense["kernel"] + dense["bias"]
        if norm := params.get("norm", {}).get(name):
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x * norm["scale"] + norm["bias"]
        x = swish(x)
    return x


def make_value(rngs, dtype=jnp.float32):
    return ValueHead(11, hidden_dims=(8, 6), dropout_rate=0.5, dtype=dtype, rngs=rngs)


def make_critic(rngs, dtype=jnp.float32):
    return ContrastiveCritic(5, 6, 3, num_critics=2, hidden_dims=(8, 6), repr_dim=4, dtype=dtype, rngs=rngs)


def test_the_value_is_a_linear_layer_on_the_mlp():
    params = random_params(make_value)
    inputs = with_actions(jnp.asarray(STATES), jnp.asarray(ACTIONS), jnp.asarray(VISIBLE))
    plain = np.concatenate([STATES, SEEN[:, 0], SEEN[:, 1]], axis=1)
    np.testing.assert_array_equal(inputs, plain)
    host = jax.tree.map(np.asarray, params)
    expected = mlp(host["mlp"], plain) @ host["value"]["kernel"][:, 0] + host["value"]["bias"]
    head = jax.jit(bind(graph_of(make_value), params))
    np.testing.assert_allclose(head(inputs), expected, rtol=1e-4, atol=1e-5)
    dropped = [head(inputs, jax.random.key(seed)) for seed in (0, 0, 1)]
    assert (dropped[0] == dropped[1]).all()
    assert (dropped[0] != dropped[2]).any()


def test_each_critic_has_towers_of_its_own():
    params = random_params(make_critic)
    found = jax.jit(bind(graph_of(make_critic), params))(STATES, ACTIONS, VISIBLE, GOALS)
    inputs = np.concatenate([STATES, SEEN.reshape(4, 6)], axis=1), GOALS
    for tower, x, representations in zip(("state_action", "goal"), inputs, found):
        for i in range(2):
            own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), params[tower])
            expected = mlp(own["mlp"], x) @ own["out"]["kernel"] + own["out"]["bias"]
            np.testing.assert_allclose(representations[i], expected, rtol=1e-4, atol=1e-5)
        assert not np.allclose(representations[0], representations[1], atol=0.1)


def test_representations_start_next_to_zero():
    params = jax.jit(lambda key: init_params(make_critic, key))(jax.random.key(0))
    for tower in ("state_action", "goal"):
        kernel, bias = np.asarray(params[tower]["out"]["kernel"]), params[tower]["out"]["bias"]
        assert kernel.shape == (2, 6, 4)
        assert -1e-12 < kernel.min() < -5e-13
        assert -5e-13 < kernel.max() <= 0
        assert len(np.unique(kernel)) == kernel.size
        assert not bias.any()


def test_logits_are_inner_products():
    rows, goals = (RNG.standard_normal((2, 5, 3), dtype=np.float32) for _ in range(2))
    expected = np.stack([rows[i] @ goals[i].T for i in range(2)])
    np.testing.assert_allclose(all_logits(jnp.asarray(rows), jnp.asarray(goals)), expected, rtol=1e-5, atol=1e-6)
    pairs = pair_logits(jnp.asarray(rows), jnp.asarray(goals))
    np.testing.assert_allclose(pairs, expected[:, np.arange(5), np.arange(5)], rtol=1e-5, atol=1e-6)


def test_results_are_float32_for_bfloat16():
    def compute(key):
        chunk, critic = (jnp.asarray(ACTIONS), jnp.asarray(VISIBLE)), make_critic(nnx.Rngs(key), jnp.bfloat16)
        value = make_value(nnx.Rngs(key), jnp.bfloat16)(with_actions(jnp.asarray(STATES), *chunk))
        return value, *critic(jnp.asarray(STATES), *chunk, jnp.asarray(GOALS))

    assert {x.dtype for x in jax.eval_shape(compute, jax.random.key(0))} == {jnp.dtype("float32")}
