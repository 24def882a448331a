import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.random_params import random_params

from jaxvla.agents import make_agent
from jaxvla.agents.gc_bc import GoalConditionedPolicy
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.module import bind
from jaxvla.models.resnet import ARCHITECTURES, Architecture

SPEC = BatchSpec(("images0",), (16, 16), 5, 3, obs_horizon=2, action_horizon=2)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", Architecture((2,), num_filters=8))


def make(spec=SPEC, policy=None, **changes):
    settings = {"encoder": {"name": "small"}, "hidden_dims": (16,), "policy": policy or {}, **changes}
    return make_agent("gc_bc", settings, spec)


def make_params(agent):
    return random_params(lambda rngs: GoalConditionedPolicy(agent.config, agent.spec, rngs))


def make_batch(agent, batch_size=4, seed=0):
    batch = agent.spec.fake_batch(batch_size, agent.batch_keys, np.random.default_rng(seed))
    batch["action_pad_mask"][1, 1] = False
    return batch


def method(agent, name):
    return jax.jit(getattr(agent, name))


def test_needs_only_its_batch_keys():
    assert make().batch_keys == ("observations", "goals", "actions", "action_pad_mask")


def test_init_gives_a_plain_float32_tree():
    agent = make(use_proprio=True)
    params = jax.jit(agent.init)(jax.random.key(0))
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert all(isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str) for key in path)
        assert leaf.dtype == jnp.float32
    init = jax.jit(agent.init)
    kernels = [init(jax.random.key(seed))["policy"]["mean"]["kernel"] for seed in (0, 0, 1)]
    assert (kernels[0] == kernels[1]).all()
    assert (kernels[0] != kernels[2]).any()


def test_equal_settings_make_equal_hashable_agents():
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(dropout_rate=0.2)


def test_the_loss_at_the_mean_is_that_of_the_density():
    spec = BatchSpec(("images0",), (16, 16), 5, 7)
    agent = make(spec, dropout_rate=0.0)
    params, batch = make_params(agent), spec.fake_batch(2, agent.batch_keys, np.random.default_rng(0))
    mean = method(agent, "act")(params, batch["observations"], {"goals": batch["goals"]})
    loss = method(agent, "loss")
    at_mean, metrics = loss(params, {**batch, "actions": mean}, jax.random.key(0))
    np.testing.assert_allclose(at_mean, 6.4326, atol=1e-3)
    np.testing.assert_allclose(metrics["mse"], 0, atol=1e-6)
    away, metrics = loss(params, {**batch, "actions": mean + 2}, jax.random.key(0))
    np.testing.assert_allclose(away, 0.5 * 7 * 4 + 3.5 * math.log(2 * math.pi), rtol=1e-4)
    np.testing.assert_allclose(metrics["mse"], 28, rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "of_error"), [("l1", abs), ("huber", lambda e: np.where(abs(e) > 1, abs(e) - 0.5, e**2 / 2))]
)
def test_losses_of_the_modes_errors(loss, of_error):
    agent = make(dropout_rate=0.0, loss=loss, policy={"std": "fixed", "tanh": True})
    params, batch = make_params(agent), make_batch(agent)
    value, metrics = method(agent, "loss")(params, batch, jax.random.key(0))
    mode = np.asarray(method(agent, "act")(params, batch["observations"], {"goals": batch["goals"]}))
    error = batch["actions"] - mode
    assert (abs(error) > 1).any()
    assert (abs(error) < 1).any()
    np.testing.assert_allclose(value, of_error(error).sum(-1)[batch["action_pad_mask"]].mean(), rtol=1e-5)
    assert value == metrics["actor_loss"]
    with pytest.raises(ConfigError, match=f"loss {loss} teaches no deviation: policy.std must be fixed, not learned"):
        make(loss=loss, policy={"std": "learned"})


def test_an_unknown_loss():
    with pytest.raises(ConfigError, match="loss must be one of likelihood, l1, huber, not 'mse'"):
        make(loss="mse")


def test_metrics_are_averages_over_slots_inside_the_trajectory():
    agent = make(dropout_rate=0.0, policy={"std": "state_dependent"})
    params, batch = make_params(agent), make_batch(agent)
    loss, metrics = method(agent, "loss")(params, batch, jax.random.key(0))
    model = jax.jit(bind(agent.graphdef, params))
    mean, log_std = map(np.asarray, model(batch["observations"], batch["goals"]))
    error, valid = batch["actions"] - mean, batch["action_pad_mask"]
    log_prob = (-0.5 * (error / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    expected = {
        "actor_loss": -log_prob[valid].mean(),
        "log_probs": log_prob[valid].mean(),
        "mse": (error**2).sum(-1)[valid].mean(),
        "pi_actions": mean[valid].mean(),
        "mean_std": np.exp(log_std)[valid].mean(),
        "max_std": np.exp(log_std).mean(-1)[valid].max(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert loss == metrics["actor_loss"]
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


def test_evaluate_gives_each_example_its_own():
    agent = make(use_proprio=True)
    params, batch = make_params(agent), make_batch(agent)
    evaluate = method(agent, "evaluate")
    metrics = evaluate(params, batch, jax.random.key(0))
    assert set(metrics) == {"mse", "log_probs", "pi_actions"}
    mode = method(agent, "act")(params, batch["observations"], {"goals": batch["goals"]})
    error = ((batch["actions"] - np.asarray(mode)) ** 2).sum(-1)
    expected = [error[i, :1].mean() if i == 1 else error[i].mean() for i in range(4)]
    np.testing.assert_allclose(metrics["mse"], expected, rtol=1e-5)
    means = [np.mean(mode[i, :1] if i == 1 else mode[i]) for i in range(4)]
    np.testing.assert_allclose(metrics["pi_actions"], means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["log_probs"], -0.5 * metrics["mse"] - 1.5 * math.log(2 * math.pi), rtol=1e-5)
    again = evaluate(params, batch, jax.random.key(1))
    assert (again["mse"] == metrics["mse"]).all(), "no dropout"
    batch["observations"]["images0"][3] = 0
    changed = evaluate(params, batch, jax.random.key(0))["mse"]
    assert (changed != metrics["mse"]).tolist() == [False, False, False, True]


def test_rows_that_fill_up_a_batch_stay_finite():
    agent = make()
    params, batch = make_params(agent), make_batch(agent)
    filled = jax.tree.map(lambda x: np.concatenate([x[:3], np.zeros_like(x[3:])]), batch)
    metrics, expected = (method(agent, "evaluate")(params, b, jax.random.key(0)) for b in (filled, batch))
    for name in metrics:
        assert metrics[name][3] == 0
        np.testing.assert_allclose(metrics[name][:3], expected[name][:3], rtol=1e-5)


def test_dropout_is_on_in_training_and_follows_the_key():
    agent = make(dropout_rate=0.5)
    params, batch = make_params(agent), make_batch(agent)
    loss = method(agent, "loss")
    first, again, other = (loss(params, batch, jax.random.key(seed))[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("tanh", [False, True])
def test_act_draws_around_the_mode(tanh):
    agent = make(policy={"std": "fixed", "fixed_std": 0.25, "tanh": tanh})
    params, batch = make_params(agent), make_batch(agent, batch_size=512)
    act = method(agent, "act")
    inputs = params, batch["observations"], {"goals": batch["goals"]}
    mode, draw = act(*inputs), act(*inputs, jax.random.key(0), 2.0)
    assert mode.shape == draw.shape == (512, 2, 3)
    noise = np.arctanh(draw) - np.arctanh(mode) if tanh else draw - mode
    assert abs(noise.std() - 0.5) < 0.02
    assert abs(noise.mean()) < 0.03
    np.testing.assert_allclose(act(*inputs, jax.random.key(0), 0.0), mode, atol=1e-6)
    if tanh:
        assert abs(mode).max() < 1


@pytest.mark.parametrize(("std", "late"), [("learned", False), ("state_dependent", True)])
def test_every_parameter_gets_a_gradient(std, late):
    agent = make(
        policy={"std": std},
        use_proprio=True,
        early_goal_concat=not late,
        shared_goal_encoder=not late,
        dropout_rate=0.0,
    )
    params, batch = make_params(agent), make_batch(agent)
    gradients, _ = jax.jit(jax.grad(agent.loss, has_aux=True))(params, batch, jax.random.key(0))
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_overfits_one_batch(dtype):
    agent = make(dtype=dtype, hidden_dims=(64,))
    batch = make_batch(agent)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train_step(params, opt_state, rng):
        gradients, metrics = jax.grad(agent.loss, has_aux=True)(params, jax.tree.map(jnp.asarray, batch), rng)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics["mse"]

    params = make_params(agent)
    opt_state = optimizer.init(params)
    history = []
    for rng in jax.random.split(jax.random.key(1), 150):
        params, opt_state, mse = train_step(params, opt_state, rng)
        history.append(mse)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert history[0] > 2
    assert method(agent, "evaluate")(params, batch, jax.random.key(0))["mse"].max() < 0.1


def test_rounding_to_bfloat16_changes_little():
    agents = [make(dtype=dtype) for dtype in ("float32", "bfloat16")]
    params, batch = make_params(agents[0]), make_batch(agents[0])
    exact, rounded = (method(agent, "evaluate")(params, batch, jax.random.key(0))["mse"] for agent in agents)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("early", [True, False])
def test_what_a_missing_camera_would_show_changes_nothing(early):
    spec = dataclasses.replace(SPEC, cameras=("images0", "wrist"), several_camera_sets=True)
    agent = make(spec, early_goal_concat=early)
    params, batch = make_params(agent), make_batch(agent)
    has = np.array([[True, True], [True, False], [True, True], [False, True]])
    batch["observations"]["camera_mask"][:], batch["goals"]["camera_mask"][:] = has[:, None], has

    @jax.jit
    def both(params, batch):
        actions = agent.act(params, batch["observations"], {"goals": batch["goals"]})
        return actions, jax.grad(agent.loss, has_aux=True)(params, batch, jax.random.key(0))[0]

    def seen(images):
        views = {name: {**batch[name], **{k: x[name] for k, x in images.items()}} for name in ("observations", "goals")}
        return jax.tree.map(np.asarray, both(params, {**batch, **views}))

    def inverted(camera, rows):
        changed = {name: batch[name][camera].copy() for name in ("observations", "goals")}
        for pixels in changed.values():
            pixels[rows] = 255 - pixels[rows]
        return {camera: changed}

    actions, gradients = seen({})
    others, same = seen(inverted("wrist", [1]) | inverted("images0", [3]))
    np.testing.assert_array_equal(others, actions)
    jax.tree.map(np.testing.assert_array_equal, same, gradients)
    assert (seen(inverted("wrist", [0]))[0] != actions).any((1, 2)).tolist() == [True, False, False, False]
