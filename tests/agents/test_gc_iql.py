import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.rl_cases import (
    SMALL,
    SPEC,
    adam_steps,
    assert_targets_follow,
    bind_both,
    make_batch,
    make_jacobian,
    modules_reached,
    random_params,
    roll,
)

from jaxvla.agents import make_agent
from jaxvla.errors import ConfigError
from jaxvla.models.critics import with_actions
from jaxvla.models.resnet import ARCHITECTURES

LOSSES = ("td_loss", "value_loss", "actor_loss")
# So that weights of the actor's loss are clipped and others are not.
TEMPERATURE = 0.1


@pytest.fixture(autouse=True, scope="module")
def small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", SMALL)
        yield


def make(**changes):
    settings = {"encoder": {"name": "small"}, "hidden_dims": (8,), "dropout_rate": 0.0, "temperature": TEMPERATURE}
    return make_agent("gc_iql", settings | changes, SPEC)


@pytest.fixture(scope="module")
def separate():
    """An agent with an encoder per network, half of whose goals are negatives, and what goes into its losses."""
    agent = make(shared_encoder=False, negative_proportion=0.5, use_proprio=True)
    params = random_params(agent)
    params["value"]["value"]["bias"] -= 1.5  # so that there are advantages of both signs
    return agent, params, make_batch(agent), make_jacobian(agent, LOSSES)


@pytest.fixture(scope="module")
def outputs(separate):
    """What the networks make of the batch, with its goals and with those of the next examples."""
    agent, params, batch, _ = separate

    @jax.jit
    def compute(params, batch, goals):
        model, slow = bind_both(agent, params)
        mean, log_std = model.actor(model.actor_encoder(batch["observations"], goals))
        judged = model.critic_encoder(batch["observations"], goals)
        return {
            "q": model.critic(with_actions(judged, batch["actions"], batch["action_pad_mask"])),
            "v": model.value(model.value_encoder(batch["observations"], goals)),
            "next_v": slow.value(slow.value_encoder(batch["next_observations"], goals)),
            "mean": mean,
            "log_std": log_std,
        }

    goals = batch["goals"], roll(batch["goals"])
    return [jax.tree.map(np.asarray, compute(params, batch, x)) for x in goals]


def draws(rng, part):
    """Which goals the critic (part 0) or the value (1) takes from the next example."""
    key = jax.random.split(jax.random.split(rng, 3)[part], 3)[0]
    return np.asarray(jax.random.bernoulli(key, 0.5, (6,)))


def test_losses(separate, outputs):
    agent, params, batch, _ = separate
    rng = jax.random.key(2)
    loss, metrics = jax.jit(agent.loss)(params, batch, rng)
    own, other = outputs
    critic_negatives, value_negatives = draws(rng, 0), draws(rng, 1)
    assert 0 < critic_negatives.sum() < 6
    assert (critic_negatives != value_negatives).any()

    q, next_v = (np.where(critic_negatives, other[name], own[name]) for name in ("q", "next_v"))
    rewards = np.where(critic_negatives, -1, batch["rewards"])
    td_loss = ((q - (rewards + 0.98 * batch["masks"] * next_v)) ** 2).mean()

    error = np.where(value_negatives, other["q"] - other["v"], own["q"] - own["v"])
    value_loss = np.mean(np.where(error > 0, 0.7, 0.3) * error**2)

    advantage = batch["rewards"] + 0.98 * batch["masks"] * own["next_v"] - own["v"]
    weight = np.minimum(np.exp(advantage / TEMPERATURE), 100)
    assert 0 < (weight == 100).sum() < 6
    slot_error = batch["actions"] - own["mean"]
    log_prob = -(0.5 * slot_error**2 + 0.5 * math.log(2 * math.pi)).sum(-1)
    inside = batch["action_pad_mask"]
    actor_loss = -(weight[:, None] * log_prob)[inside].mean()
    expected = {
        "td_loss": td_loss,
        "q": q.mean(),
        "value_loss": value_loss,
        "uncentered_loss": (error**2).mean(),
        "v": np.where(value_negatives, other["v"], own["v"]).mean(),
        "actor_loss": actor_loss,
        "behavior_logprob": log_prob[inside].mean(),
        "behavior_mse": (slot_error**2).sum(-1)[inside].mean(),
        "adv_mean": advantage.mean(),
        "adv_max": advantage.max(),
        "adv_min": advantage.min(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, td_loss + value_loss + actor_loss, rtol=1e-4)


def test_evaluate_gives_each_example_its_own(separate, outputs):
    agent, params, batch, _ = separate
    metrics = jax.jit(agent.evaluate)(params, batch, jax.random.key(0))
    own, inside = outputs[0], batch["action_pad_mask"]
    target_q = batch["rewards"] + 0.98 * batch["masks"] * own["next_v"]
    error = ((batch["actions"] - own["mean"]) ** 2).sum(-1)
    expected = {
        "mse": (error * inside).sum(1) / inside.sum(1),
        "log_probs": -0.5 * (error * inside).sum(1) / inside.sum(1) - 1.5 * math.log(2 * math.pi),
        "pi_actions": (own["mean"].mean(-1) * inside).sum(1) / inside.sum(1),
        "online_v": own["v"],
        "online_q": own["q"],
        "target_q": target_q,
        "value_err": np.where(target_q > own["v"], 0.7, 0.3) * (target_q - own["v"]) ** 2,
        "td_err": (target_q - own["q"]) ** 2,
        "advantage": target_q - own["v"],
        "qf_advantage": own["q"] - own["v"],
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_each_loss_reaches_its_own_network(separate):
    agent, params, batch, jacobian = separate
    gradients = jax.device_get(jacobian(params, batch, jax.random.key(2)))
    networks = {"critic", "critic_encoder"}, {"value", "value_encoder"}, {"actor", "actor_encoder"}
    for row, modules in enumerate(networks, 1):
        assert modules_reached(gradients, row) == modules
    assert set(params) == set().union(*networks, {"target_value", "target_value_encoder"})
    assert agent.frozen_modules == ("target_value_encoder", "target_value")


def test_one_optimizer_steps_as_one_per_loss(separate):
    agent, params, _, jacobian = separate
    batches = [make_batch(agent, seed=seed) for seed in (0, 1)]
    one, many = adam_steps(agent, jacobian, params, batches, len(LOSSES))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), one, many)
    assert max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (one["critic"], params["critic"])))) > 0.01


@pytest.fixture(scope="module")
def shared():
    """An agent with one encoder and dropout, which encodes goals apart."""
    return make(early_goal_concat=False, shared_goal_encoder=False, dropout_rate=0.5)


def test_all_losses_reach_a_shared_encoder(shared):
    params, batch = random_params(shared), make_batch(shared, batch_size=1)
    gradients = jax.device_get(make_jacobian(shared, LOSSES)(params, batch, jax.random.key(0)))
    for row, name in enumerate(("critic", "value", "actor"), 1):
        assert modules_reached(gradients, row) == {name, "encoder"}
    for leaf in jax.tree.leaves({name: gradients[name] for name in ("encoder", "actor", "value", "critic")}):
        assert np.isfinite(leaf).all()
        np.testing.assert_allclose(leaf[0], leaf[1:].sum(0), rtol=1e-4, atol=1e-4)


def test_targets_follow_the_value():
    agent = make(target_rate=0.1)
    assert agent.targets.following == (("target_encoder", "encoder"), ("target_value", "value"))
    assert_targets_follow(agent, 0.1)


@pytest.mark.parametrize("drops", [True, False])
def test_dropout_of_networks_that_only_give_numbers(drops):
    agent = make(dropout_rate=0.5, dropout_target_networks=drops)
    params, batch = random_params(agent), make_batch(agent)
    advantage = jax.jit(lambda params, batch, rng: agent.loss(params, batch, rng)[1]["adv_mean"])
    first, second = (advantage(params, batch, jax.random.key(seed)) for seed in (0, 1))
    assert (first != second) == drops


def test_act_draws_around_the_mode(separate, outputs):
    agent, params, batch, _ = separate
    act = jax.jit(agent.act)
    inputs = params, batch["observations"], {"goals": batch["goals"]}
    np.testing.assert_allclose(act(*inputs), outputs[0]["mean"], rtol=1e-4, atol=1e-5)
    draw = act(*inputs, jax.random.key(0), 2.0)
    np.testing.assert_allclose(np.std(draw - outputs[0]["mean"]), 2, atol=0.6)
    np.testing.assert_allclose(act(*inputs, jax.random.key(0), 0.0), outputs[0]["mean"], rtol=1e-4, atol=1e-5)


def test_equal_settings_make_equal_hashable_agents():
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(expectile=0.8)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(make().init, jax.random.key(0)))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"discount": 1.0},
        {"expectile": 0.0},
        {"expectile": 1.0},
        {"temperature": 0.0},
        {"target_rate": 0.0},
        {"target_rate": 1.1},
        {"negative_proportion": 1.1},
        {"dropout_rate": 1.0},
        {"hidden_dims": (8, 0)},
        {"shared_goal_encoder": False},
        {"dtype": "float16"},
        {"expectil": 0.7},
    ],
)
def test_bad_settings(changes):
    with pytest.raises(ConfigError, match=next(iter(changes)) if "dtype" not in changes else "float16") as error:
        make(**changes)
    assert "\n" not in str(error.value)
