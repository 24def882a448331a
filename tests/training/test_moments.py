"""Moments in fewer bytes: what they take, how near they are to Adam's, and that runs resume with them bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from training.linear_run import RULES, metrics_of, train_linear

from jaxvla.errors import ConfigError
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import path_string, tree_shardings
from jaxvla.training import moments
from jaxvla.training.config import MOMENTS, OptimizerConfig
from jaxvla.training.moments import decode, encode, scale_by, uniform
from jaxvla.training.optimizer import make_optimizer

CODES = {"first": moments._FIRST, "second": moments._SECOND}


@pytest.mark.parametrize("name", CODES)
def test_codes_are_right_on_average_and_within_a_step(name):
    code = CODES[name]
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log(1e-5), 0, (4, 700))).astype(np.float32)
    x = x * rng.choice([-1, 1], x.shape).astype(np.float32) if name == "first" else x

    @jax.jit
    def through(count):
        return decode(*encode(jnp.asarray(x), code, uniform(x.shape, count, "a")), code)

    found = np.stack([through(jnp.int32(count)) for count in range(400)])
    inside = np.abs(x) > 2.0 ** ((2 - code.top) / code.octave)
    step = 2 ** (1 / code.octave) - 1
    assert (np.abs(found - x) <= 1.001 * step * np.abs(x))[:, inside].all()
    mean_error = np.abs(found.mean(0) - x)[inside] / np.abs(x)[inside]
    assert mean_error.max() < step / 4
    assert mean_error.mean() < step / 40
    np.testing.assert_allclose(np.abs(found).max(), np.abs(x).max(), rtol=1e-6)
    assert (found[:, x > 0] > 0).all() or name == "first"


def test_zeros_and_blocks():
    x = jnp.zeros((2, 300)).at[0, 0].set(1.0).at[1, 299].set(-1e-20)
    codes, scales = encode(x, moments._FIRST, jnp.full(x.shape, 0.5))
    assert scales.shape == (2, 2)
    np.testing.assert_allclose(decode(codes, scales, moments._FIRST), x, rtol=1e-6)


def test_random_numbers_are_even_and_follow_from_count_and_name():
    one = np.asarray(uniform((64, 64), jnp.int32(1), "a"))
    assert 0 <= one.min() < 0.01 < 0.99 < one.max() < 1
    assert abs(one.mean() - 0.5) < 0.02
    others = [uniform((64, 64), jnp.int32(2), "a"), uniform((64, 64), jnp.int32(1), "b"), one.T, np.roll(one, 1, 0)]
    assert all(abs(np.corrcoef(one.ravel(), np.ravel(other))[0, 1]) < 0.06 for other in others)
    np.testing.assert_array_equal(one, uniform((64, 64), jnp.int32(1), "a"))


@pytest.mark.parametrize(
    ("name", "bytes_each"), [("float32", 8), ("bfloat16", 6), ("int8", 2 + 8 / 256), ("factored", 2)]
)
def test_what_they_take(name, bytes_each):
    params = {"a": {"kernel": jnp.zeros((512, 1024))}}
    state = jax.eval_shape(scale_by(name, 0.999).init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    rows = 4 * (512 + 1024) if name == "factored" else 0
    assert size == pytest.approx(512 * 1024 * bytes_each + rows, abs=32)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_least_squares_fit_comes_as_far_as_with_adam(name):
    rng = np.random.default_rng(1)
    x, true = rng.normal(size=(512, 64)).astype(np.float32), rng.normal(size=(64, 128)).astype(np.float32)
    y, transform = x @ true, optax.chain(scale_by(name, 0.99), optax.scale(-0.02))

    def loss(params):
        return ((x @ params["kernel"] + params["bias"] - y) ** 2).mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)}
    state = transform.init(params)
    for _ in range(300):
        params, state, value = step(params, state)
    assert loss({"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)}) > 60
    assert value < 0.05


@pytest.mark.parametrize("name", MOMENTS)
def test_rules_for_parameters_hold_for_their_moments_alone(name):
    params = {"a": {"kernel": jnp.zeros((1024, 512)), "bias": jnp.zeros(512)}}
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    transform = make_optimizer(OptimizerConfig(1e-3, moments=name)).transform
    shapes = jax.eval_shape(transform.init, params)
    shardings = tree_shardings(shapes, mesh, (("a/kernel$", PartitionSpec(None, "fsdp")),))
    found = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, s: (x.shape, s.spec), shapes, shardings))
    split = {path_string(path[:-1]) for path, leaf in found if leaf == PartitionSpec(None, "fsdp")}
    assert len(split) == (1 if name == "factored" else 2)
    assert all(path.endswith("a/kernel") for path in split)


@pytest.mark.parametrize("name", MOMENTS[1:])
def test_runs_resume_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "SMALL", 0)
    own = {"log_interval": 1, "num_steps": 8, "save_interval": 4, "eval_interval": 8, "rules": RULES}
    own["optimizer"] = {"learning_rate": 3e-2, "moments": name}
    train_linear(tmp_path / "whole", **own)
    train_linear(tmp_path / "half", **own | {"num_steps": 4})
    train_linear(tmp_path / "half", **own, resume_path=str(tmp_path / "half"))
    losses = metrics_of(tmp_path / "whole", "training/loss")
    assert metrics_of(tmp_path / "half", "training/loss") == losses
    found, expected = (metrics_of(tmp_path / run, "validation/mse")[8] for run in ("half", "whole"))
    assert found == expected
    assert losses[8] < losses[1]


def test_others_are_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.moments must be one of float32, bfloat16, int8, factored, not"):
        OptimizerConfig(1e-3, moments="int4")
