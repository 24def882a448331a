import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvla.errors import ConfigError
from jaxvla.models.module import bind, graph_of, params_of
from jaxvla.models.policy_head import GaussianPolicy, PolicyConfig

CHUNK = (2, 3)


def maker(dtype=jnp.float32, **config):
    def make(rngs):
        options = {"hidden_dims": (8,), "dropout_rate": 0.5, "config": PolicyConfig(**config)}
        return GaussianPolicy(4, CHUNK, dtype=dtype, rngs=rngs, **options)

    return make


FEATURES = jax.random.normal(jax.random.key(0), (5, 4))


def test_a_fixed_std_has_no_parameters():
    policy = maker(std="fixed", fixed_std=0.5)(nnx.Rngs(0))
    mean, log_std = policy(FEATURES)
    assert mean.shape == log_std.shape == (5, *CHUNK)
    np.testing.assert_allclose(np.exp(log_std), 0.5, rtol=1e-6)
    assert set(params_of(policy)) == {"mlp", "mean"}


def test_a_learned_std_starts_at_one_and_is_clipped():
    make = maker(std="learned")
    params = params_of(make(nnx.Rngs(0)))
    assert params["log_std"].shape == CHUNK
    assert (bind(graph_of(make), params)(FEATURES)[1] == 0).all()
    params["log_std"] = jnp.asarray([[1.0, 2, 3], [-19, -20, -21]])
    log_std = bind(graph_of(make), params)(FEATURES)[1]
    np.testing.assert_allclose(log_std[0], [[1, 2, 2], [-19, -20, -20]])


def test_a_state_dependent_std_follows_the_features():
    mean, log_std = maker(std="state_dependent")(nnx.Rngs(0))(FEATURES)
    assert len(np.unique(log_std)) == log_std.size
    assert (np.asarray(mean) != np.asarray(log_std)).all()


def test_the_mean_is_a_linear_layer_on_the_mlp():
    policy = maker()(nnx.Rngs(0))
    params = params_of(policy)
    hidden = np.asarray(policy.mlp(FEATURES))
    expected = hidden @ params["mean"]["kernel"] + params["mean"]["bias"]
    np.testing.assert_allclose(policy(FEATURES)[0], expected.reshape(5, *CHUNK), rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_key():
    policy = maker()(nnx.Rngs(0))
    assert (policy(FEATURES)[0] == policy(FEATURES)[0]).all()
    assert (policy(FEATURES, jax.random.key(0))[0] != policy(FEATURES)[0]).any()


def test_results_are_float32_for_bfloat16():
    assert {x.dtype for x in maker(jnp.bfloat16)(nnx.Rngs(0))(FEATURES)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("change", "named"), [({"std": "tanh"}, "tanh"), ({"fixed_std": 0.0}, "fixed_std"), ({"fixed_std": -1.0}, "-1")]
)
def test_bad_configurations(change, named):
    with pytest.raises(ConfigError, match=named):
        PolicyConfig(**change)
