"""The jitted steps, as pure factories: they know agents, optimizers and shardings, but no loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Key

from jaxvla.agents.agent import Agent
from jaxvla.data.schema import Batch
from jaxvla.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch, Bool[Array, " b"], Key[Array, ""]], dict[str, Float[Array, " b"]]]


def make_train_step(
    agent: Agent,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    augment: Callable[[Batch, Key[Array, ""]], Batch] | None,
    state_shardings: TrainState,
    batch_sharding: NamedSharding,
) -> TrainStep:
    """One gradient step, jitted: (state, batch) -> (state, metrics). The state that goes in is given up (donated).

    Random numbers depend on the state's key and step alone, so a resumed run draws the same ones.

    Args:
        agent: its `loss` is minimised.
        optimizer: from `make_optimizer`.
        schedule: from `make_optimizer`; only reported.
        augment: (batch, rng) -> batch on device; None for none.
        state_shardings: a `TrainState` of shardings.
        batch_sharding: of every array of the batch.

    Returns:
        A function whose metrics are the agent's, and loss, grad_norm, param_norm, update_norm and learning_rate;
        float32 scalars on device.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        augment_key, loss_key = jax.random.split(step_key)
        if augment is not None:
            batch = augment(batch, augment_key)
        (loss, metrics), grads = jax.value_and_grad(agent.loss, has_aux=True)(state.params, batch, loss_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": schedule(state.step),
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    scalar = NamedSharding(batch_sharding.mesh, jax.sharding.PartitionSpec())
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, scalar),
        donate_argnums=0,
    )


def make_eval_step(agent: Agent, mean_action: Float[np.ndarray, " d"]) -> EvalStep:
    """Per-example metrics on one batch, jitted: (params, batch, valid, rng) -> {name: [b]}, 0 where not valid.

    Args:
        agent: its `evaluate` gives the metrics.
        mean_action: the normalized action of a policy that ignores what it sees. Its error joins the metrics as
            mse_mean_action: squared error summed over dimensions, averaged over the slots inside the trajectory.
    """

    def eval_step(
        params: Any, batch: Batch, valid: Bool[Array, " b"], rng: Key[Array, ""]
    ) -> dict[str, Float[Array, " b"]]:
        error = jnp.sum((batch["actions"] - mean_action) ** 2, axis=-1)
        inside = batch["action_pad_mask"]
        baseline = jnp.sum(error * inside, axis=-1) / jnp.maximum(jnp.sum(inside, axis=-1), 1)
        metrics = agent.evaluate(params, batch, rng) | {"mse_mean_action": baseline}
        return {name: jnp.where(valid, value, 0) for name, value in metrics.items()}

    return jax.jit(eval_step)
