import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models.random_params import random_params

from jaxvla.models.mlp import MLP
from jaxvla.models.module import bind, graph_of, params_of


def swish(x):
    return x / (1 + np.exp(-x))


def test_layers_in_the_order_of_bridge_data():
    mlp = MLP(3, (5, 4), layer_norm=True, activate_final=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    params = jax.tree.map(np.asarray, params_of(mlp))
    y = x
    for layer in ("layer0", "layer1"):
        y = y @ params["dense"][layer]["kernel"] + params["dense"][layer]["bias"]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        y = swish(y * params["norm"][layer]["scale"] + params["norm"][layer]["bias"])
    np.testing.assert_allclose(mlp(jnp.asarray(x)), y, rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_linear_unless_activated():
    mlp = MLP(3, (5, 2), dropout_rate=0.9, dtype=jnp.float32, rngs=nnx.Rngs(0))
    params = params_of(mlp)
    x = jnp.ones((4, 3))
    hidden = swish(np.asarray(x @ params["dense"]["layer0"]["kernel"]))
    np.testing.assert_allclose(mlp(x), hidden @ params["dense"]["layer1"]["kernel"], rtol=1e-5)
    assert "norm" not in params
    assert mlp.out_dim == 2


def test_dropout_needs_a_key():
    mlp = MLP(3, (64, 64), activate_final=True, dropout_rate=0.5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.ones((8, 3))
    assert (mlp(x) == mlp(x)).all()
    dropped = [np.asarray(mlp(x, jax.random.key(seed))) for seed in (0, 0, 1)]
    assert (dropped[0] == dropped[1]).all()
    assert (dropped[0] != dropped[2]).any()
    assert 0.4 < (dropped[0] == 0).mean() < 0.6


def test_no_layers_is_the_identity():
    mlp = MLP(3, (), dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert (mlp(jnp.ones((2, 3)), jax.random.key(0)) == 1).all()
    assert mlp.out_dim == 3


def test_more_than_ten_layers_keep_their_order():
    def make(rngs):
        return MLP(2, (2,) * 12, dtype=jnp.float32, rngs=rngs)

    params = random_params(make)
    y = np.ones((1, 2), np.float32)
    for i in range(12):
        layer = params["dense"][f"layer{i}"]
        y = y @ layer["kernel"] + layer["bias"]
        y = swish(y) if i < 11 else y
    np.testing.assert_allclose(bind(graph_of(make), params)(jnp.ones((1, 2))), y, rtol=1e-4)
