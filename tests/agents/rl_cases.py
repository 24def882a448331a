"""What the tests of the methods with target networks share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvla.data.schema import BatchSpec
from jaxvla.models.module import bind
from jaxvla.models.resnet import Architecture
from jaxvla.parallel.feed import to_global
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state, create_state, state_shardings
from jaxvla.training.step import make_train_step

SPEC = BatchSpec(("images0",), (8, 8), 5, 3, obs_horizon=2, action_horizon=2)
SMALL = Architecture((1,), num_filters=8)


def random_params(agent, seed=0):
    """Random parameters, none of them zero; followers differ from what they follow."""
    rng = np.random.default_rng(seed)

    def fill(path, shape):
        noise = rng.standard_normal(shape.shape, dtype=np.float32)
        if path[-1].key == "kernel":
            fan_in = shape.shape[-2] if path[0].key.endswith("critic") else np.prod(shape.shape[:-1])
            return jnp.asarray(noise / np.sqrt(fan_in, dtype=np.float32))
        return jnp.asarray((path[-1].key == "scale") + noise / 10)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(agent.init, jax.random.key(0)))


def make_batch(agent, batch_size=6, seed=0):
    """A random batch with rewards and masks of both kinds, and a slot behind the end of a trajectory."""
    rng = np.random.default_rng(seed)
    batch = agent.spec.fake_batch(batch_size, agent.batch_keys, rng)
    batch["action_pad_mask"][1:2, 1] = False
    if "rewards" in batch:
        batch["rewards"][::3], batch["masks"][1::3] = 0, 0
    return batch


def roll(views):
    """The views of the next example, that of the first for the last."""
    return {name: np.roll(x, -1, axis=0) for name, x in views.items()}


def bind_both(agent, params):
    """The networks, and those in which every follower stands in for what it follows."""
    own = {name: part for name, part in params.items() if not name.startswith("target_")}
    slow = own | {name: params[f"target_{name}"] for name in own if f"target_{name}" in params}
    return bind(agent.graphdef, own), bind(agent.graphdef, slow)


def make_jacobian(agent, names):
    """Jitted (params, batch, rng) -> gradients of the loss and of these metrics, along a new first axis."""

    def values(params, batch, rng):
        loss, metrics = agent.loss(params, batch, rng)
        return jnp.stack([loss, *(metrics[name] for name in names)])

    return jax.jit(jax.jacrev(values))


def modules_reached(gradients, row):
    """The top-level modules of which any parameter has a gradient in this row."""
    return {name for name, part in gradients.items() if any(np.any(x[row]) for x in jax.tree.leaves(part))}


def adam_steps(agent, jacobian, params, batches, num_losses):
    """The parameters after a step per batch: of one Adam on the loss, and of one Adam per metric, updates summed."""
    optimizer = make_optimizer(OptimizerConfig(1e-2), agent.frozen_modules)
    adam = optax.adam(1e-2)

    @jax.jit
    def apply(one, many, gradients):
        trained, frozen = optimizer.split(one[0])
        updates, state = optimizer.transform.update(optimizer.split(row(gradients, 0))[0], one[1], trained)
        one = optax.apply_updates(trained, updates) | frozen, state
        steps = [adam.update(row(gradients, i + 1), many[1][i]) for i in range(num_losses)]
        total = jax.tree.map(lambda *x: sum(x), *(update for update, _ in steps))
        return one, (optax.apply_updates(many[0], total), [state for _, state in steps])

    def row(gradients, i):
        return jax.tree.map(lambda x: x[i], gradients)

    one = params, optimizer.transform.init(optimizer.split(params)[0])
    many = params, [adam.init(params)] * num_losses
    for i, batch in enumerate(batches):
        one, many = apply(one, many, jacobian(one[0], batch, jax.random.key(i)))
    return one[0], many[0]


def assert_targets_follow(agent, rate):
    """Three training steps on one device, against numpy; gradients and optimizer state are made for no follower."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer, sharding = make_optimizer(OptimizerConfig(1e-2), agent.frozen_modules), batch_sharding(mesh)
    state = create_state(agent, optimizer, 0, mesh)
    shardings = state_shardings(abstract_state(agent, optimizer, mesh))
    step = make_train_step(agent, optimizer, None, shardings, sharding)
    assert not set(optax.tree.get(state.opt_state, "mu")) & set(agent.frozen_modules)
    for follower, name in agent.targets.following:
        jax.tree.map(np.testing.assert_array_equal, state.params[follower], state.params[name])
    state = dataclasses.replace(state, params=jax.device_put(random_params(agent), shardings.params))
    slow = jax.device_get(state.params)
    for i in range(3):
        state, metrics = step(state, to_global(make_batch(agent, seed=i), sharding))
        assert np.isfinite(float(metrics["loss"]))
        assert not any(f"grad_norm/{name}" in metrics for name in agent.frozen_modules)
        params = jax.device_get(state.params)
        for follower, name in agent.targets.following:
            slow[follower] = jax.tree.map(lambda new, old: rate * new + (1 - rate) * old, params[name], slow[follower])
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), params[follower], slow[follower]
            )
