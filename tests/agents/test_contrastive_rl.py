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
from jaxvla.agents.contrastive_rl import compare_goals
from jaxvla.errors import ConfigError
from jaxvla.models.resnet import ARCHITECTURES

LOSSES = ("critic_loss", "actor_loss")
RNG = jax.random.key(5)


@pytest.fixture(autouse=True, scope="module")
def small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", SMALL)
        yield


def make(**changes):
    settings = {"encoder": {"name": "small"}, "hidden_dims": (8,), "dropout_rate": 0.0, "repr_dim": 4}
    return make_agent("contrastive_rl_td", settings | changes, SPEC)


def last_frame(views):
    return {name: x[:, -1] for name, x in views.items()}


@pytest.fixture(scope="module")
def bootstrapped():
    """An agent with an encoder per network that bootstraps, and what goes into its losses."""
    agent = make(policy={"std": "state_dependent"}, use_proprio=True)
    params = random_params(agent)
    params["target_critic"]["state_action"]["out"]["kernel"] *= 10  # so that there are odds above 20 and below
    return agent, params, make_batch(agent), make_jacobian(agent, LOSSES)


@pytest.fixture(scope="module")
def outputs(bootstrapped):
    """What the networks make of the batch: policies, drawn actions, and logits [critic, row, goal]."""
    agent, params, batch, _ = bootstrapped

    @jax.jit
    def compute(params, batch, next_goals, random_goals, noise):
        (model, slow), mask = bind_both(agent, params), batch["action_pad_mask"]
        mean, log_std = model.policy(batch["observations"], batch["goals"])
        next_mean, next_log_std = model.policy(batch["next_observations"], random_goals)
        actions = mean + jnp.exp(log_std) * noise[0]
        next_actions = next_mean + jnp.exp(next_log_std) * noise[1]
        states = model.encode_states(batch["observations"])
        return {
            "mean": mean,
            "log_std": log_std,
            "actions": actions,
            "learned": model.represent(states, batch["actions"], mask, next_goals),
            "online": model.represent(states, batch["actions"], mask, batch["goals"]),
            "target": slow.represent(slow.encode_states(batch["observations"]), batch["actions"], mask, batch["goals"]),
            "next": slow.represent(slow.encode_states(batch["next_observations"]), next_actions, mask, random_goals),
            "acted": model.represent(states, actions, mask, batch["goals"]),
        }

    critic_key, actor_key = jax.random.split(RNG)
    keys = jax.random.split(actor_key)[1], critic_key
    noise = [jax.random.normal(key, batch["actions"].shape) for key in keys]
    goals = last_frame(batch["next_observations"])
    found = jax.tree.map(np.asarray, compute(params, batch, goals, roll(goals), noise))
    for name in ("learned", "online", "target", "next", "acted"):
        rows, columns = found[name]
        found[name] = np.stack([rows[i] @ columns[i].T for i in range(2)])
    return found


def bce(logits, label):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -np.log(p if label else 1 - p)


def diagonal(logits):
    return np.stack([np.diag(x) for x in logits])


def comparison(logits):
    """pos, neg, binary and categorical accuracy per example, of the mean logits of the critics."""
    logits, size = logits.mean(0), logits.shape[-1]
    own = np.eye(size, dtype=bool)
    return {
        "logits_pos": np.diag(logits),
        "logits_neg": logits[~own].reshape(size, size - 1).mean(1),
        "binary_accuracy": ((logits > 0) == own).mean(1),
        "categorical_accuracy": logits.argmax(1) == np.arange(size),
    }


def densities(actions, found):
    """Log density of action chunks, per slot."""
    error = (actions - found["mean"]) / np.exp(found["log_std"])
    return (-0.5 * error**2 - found["log_std"] - 0.5 * math.log(2 * math.pi)).sum(-1)


def test_losses_with_bootstrapping(bootstrapped, outputs):
    agent, params, batch, _ = bootstrapped
    loss, metrics = jax.jit(agent.loss)(params, batch, RNG)
    logits, rows = outputs["learned"], np.arange(6)
    positive, negative = diagonal(logits), logits[:, rows, (rows + 1) % 6]
    p = 1 / (1 + np.exp(-diagonal(outputs["next"]).astype(np.float64).min(0)))
    weight = np.clip(p / (1 - p), 0, 20)
    assert 0 < (weight == 20).sum() < 6
    critic_loss = (0.02 * bce(positive, 1) + 0.98 * weight * bce(negative, 1) + bce(negative, 0)).mean()

    inside = batch["action_pad_mask"]
    q = diagonal(outputs["acted"]).min(0).mean()
    log_prob = densities(batch["actions"], outputs)[inside].mean()
    actor_loss = -0.8 * q - 0.2 * log_prob
    expected = {
        "critic_loss": critic_loss,
        "logits": logits.mean(),
        **{name: value.mean() for name, value in comparison(logits).items()},
        "actor_loss": actor_loss,
        "q_action_loss": -q,
        "gcbc_loss": -log_prob,
        "log_probs": log_prob,
        "sampled_log_probs": densities(outputs["actions"], outputs)[inside].mean(),
        "mse": ((outputs["mean"] - batch["actions"]) ** 2).sum(-1)[inside].mean(),
        "pi_std": np.exp(outputs["log_std"])[inside].mean(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, critic_loss + actor_loss, rtol=1e-4)


def test_evaluate_gives_each_example_its_own(bootstrapped, outputs):
    agent, params, batch, _ = bootstrapped
    evaluate = jax.jit(agent.evaluate)
    metrics = evaluate(params, batch, RNG)
    inside = batch["action_pad_mask"]

    def per_example(x_ba):
        return (x_ba * inside).sum(1) / inside.sum(1)

    target, learned = comparison(outputs["target"]), comparison(outputs["learned"])
    expected = {
        "mse": per_example(((outputs["mean"] - batch["actions"]) ** 2).sum(-1)),
        "log_probs": per_example(densities(batch["actions"], outputs)),
        "pi_actions": per_example(outputs["mean"].mean(-1)),
        "pi_std": per_example(np.exp(outputs["log_std"]).mean(-1)),
        **comparison(outputs["online"]),
        "target_logits_pos": target["logits_pos"],
        "target_logits_neg": target["logits_neg"],
        **{f"next_{name}": value for name, value in learned.items()},
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    filled = jax.tree.map(lambda x: np.concatenate([x[:4], np.zeros_like(x[4:])]), batch)
    found = evaluate(params, filled, RNG)
    for name, value in comparison(outputs["online"][:, :4, :4]).items():
        np.testing.assert_allclose(found[name][:4], value, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.isfinite(found[name]).all()


def test_each_loss_reaches_its_own_network(bootstrapped):
    agent, params, batch, jacobian = bootstrapped
    gradients = jax.device_get(jacobian(params, batch, RNG))
    networks = {"critic", "critic_encoder"}, {"actor", "actor_encoder"}
    for row, modules in enumerate(networks, 1):
        assert modules_reached(gradients, row) == modules
    assert set(params) == set().union(*networks, {"target_critic", "target_critic_encoder"})
    assert agent.frozen_modules == ("target_critic_encoder", "target_critic")


def test_one_optimizer_steps_as_one_per_loss(bootstrapped):
    agent, params, _, jacobian = bootstrapped
    batches = [make_batch(agent, seed=seed) for seed in (0, 1)]
    one, many = adam_steps(agent, jacobian, params, batches, len(LOSSES))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), one, many)
    assert max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (one["critic"], params["critic"])))) > 0.01


@pytest.fixture(scope="module")
def contrasted():
    """An agent with one encoder that learns from the goals of the batch, and what goes into its losses."""
    agent = make(shared_encoder=True, shared_goal_encoder=False, use_td=False, gcbc_coef=0.5)
    return agent, random_params(agent), make_batch(agent)


def test_losses_of_the_goals_of_the_batch(contrasted):
    agent, params, batch = contrasted
    assert "next_observations" not in agent.batch_keys

    @jax.jit
    def compute(params, batch):
        model, _ = bind_both(agent, params)
        chunk = batch["actions"], batch["action_pad_mask"]
        return model.represent(model.encode_states(batch["observations"]), *chunk, batch["goals"])

    rows, columns = map(np.asarray, compute(params, batch))
    logits = np.stack([rows[i] @ columns[i].T for i in range(2)])
    expected = np.where(np.eye(6), bce(logits, 1), bce(logits, 0)).mean()
    loss, metrics = jax.jit(agent.loss)(params, batch, RNG)
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)
    for name, value in comparison(logits).items():
        np.testing.assert_allclose(metrics[name], value.mean(), rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        metrics["actor_loss"], 0.5 * metrics["q_action_loss"] + 0.5 * metrics["gcbc_loss"], rtol=1e-5
    )
    np.testing.assert_allclose(loss, metrics["critic_loss"] + metrics["actor_loss"], rtol=1e-5)


def test_all_losses_reach_a_shared_encoder(contrasted):
    agent, params, _ = contrasted
    gradients = jax.device_get(make_jacobian(agent, LOSSES)(params, make_batch(agent, batch_size=1), RNG))
    for row, name in enumerate(("critic", "actor"), 1):
        assert modules_reached(gradients, row) == {name, "encoder"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_targets_follow_the_critics():
    agent = make(target_rate=0.1)
    assert agent.targets.following == (("target_critic_encoder", "critic_encoder"), ("target_critic", "critic"))
    assert_targets_follow(agent, 0.1)


def test_comparison_with_no_other_goal():
    found = compare_goals(jnp.array([[[2.0]], [[-1.0]]]), jnp.array([True]))
    expected = {"logits_pos": 0.5, "logits_neg": 0, "binary_accuracy": 1, "categorical_accuracy": 1}
    assert {name: float(value[0]) for name, value in found.items()} == expected


def test_act_draws_around_the_mode(bootstrapped, outputs):
    agent, params, batch, _ = bootstrapped
    act = jax.jit(agent.act)
    inputs = params, batch["observations"], {"goals": batch["goals"]}
    np.testing.assert_allclose(act(*inputs), outputs["mean"], rtol=1e-4, atol=1e-5)
    noise = (act(*inputs, jax.random.key(0), 2.0) - outputs["mean"]) / np.exp(outputs["log_std"])
    np.testing.assert_allclose(noise.std(), 2, atol=0.6)


def test_equal_settings_make_equal_hashable_agents():
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(discount=0.9)


@pytest.mark.parametrize(
    "changes",
    [
        {"discount": 1.0},
        {"gcbc_coef": 1.1},
        {"target_rate": 0.0},
        {"repr_dim": 0},
        {"dropout_rate": 1.0},
        {"hidden_dims": (8, 0)},
        {"early_goal_concat": False},
        {"policy": {"std": "fixd"}},
    ],
)
def test_bad_settings(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))) as error:
        make(**changes)
    assert "\n" not in str(error.value)
