"""The jitted steps, as pure factories: they know agents, optimizers and shardings, but no loop."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Key

from jaxvla.agents.agent import Agent, PartialMetric
from jaxvla.agents.executed import action_mse
from jaxvla.data.schema import Batch
from jaxvla.models.module import Params
from jaxvla.models.partition import combine
from jaxvla.ops.augmentation import augment_batch
from jaxvla.ops.placement import activations_at
from jaxvla.parallel.sharding import batch_sharding as sharding_of_batches
from jaxvla.parallel.sharding import check_batch_size
from jaxvla.training.config import TrainConfig
from jaxvla.training.optimizer import Optimizer
from jaxvla.training.state import TrainState, changing
from jaxvla.training.state import state_shardings as shardings_of

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch, Bool[Array, " b"], Key[Array, ""]], dict[str, PartialMetric]]


def make_train_step(
    agent: Agent,
    optimizer: Optimizer,
    augment: Callable[[Batch, Key[Array, ""]], Batch] | None,
    state_shardings: TrainState,
    batch_sharding: NamedSharding,
    *,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    skip_bad: bool = False,
) -> TrainStep:
    """One gradient step, jitted: (state, batch) -> (state, metrics). The state that goes in is given up (donated).

    Random numbers depend on the state's key and step alone, so a resumed run draws the same ones.

    Args:
        agent: its `loss` is minimised over the parameters that the optimizer trains.
        optimizer: from `make_optimizer`.
        augment: (batch, rng) -> batch on device; None for none.
        state_shardings: a `TrainState` of shardings.
        batch_sharding: of every array of the batch.
        accumulate_steps: parts that a batch is cut into, see `TrainConfig`.
        ema_decay: of the average that the state keeps, if it keeps one.
        skip_bad: where the loss or the gradient is not finite, only the state's step changes.

    Returns:
        A function whose metrics are the agent's, and loss, grad_norm, grad_norm/MODULE for each top-level module that
        is trained, param_norm, update_norm and learning_rate; float32 scalars on device.
    """
    gradients = _make_gradients(agent, optimizer, batch_sharding, accumulate_steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        augment_key, loss_key = jax.random.split(step_key)
        if augment is not None:
            batch = augment(batch, augment_key)
        (loss, metrics), grads = gradients(state.params, batch, loss_key)
        trained, frozen = optimizer.split(state.params)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, trained)
        params = combine(optax.apply_updates(trained, updates), frozen)
        if agent.targets is not None:
            params = agent.targets.follow(params)
        ema = state.ema and optax.incremental_update(changing(agent, optimizer, params), state.ema, 1 - ema_decay)
        norms = _norms(grads)
        if skip_bad:
            before = state.params, state.opt_state, state.ema
            finite = jnp.isfinite(loss) & jnp.isfinite(norms["grad_norm"])
            params, opt_state, ema = _where(finite, (params, opt_state, ema), before)
        metrics = metrics | {
            "loss": loss,
            **norms,
            "param_norm": optax.tree.norm(_floats(params)),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": optimizer.rate(state.opt_state),
        }
        return TrainState(state.step + 1, params, opt_state, state.rng, ema), _scalars(metrics)

    scalar = NamedSharding(batch_sharding.mesh, PartitionSpec())
    inputs, outputs = (state_shardings, batch_sharding), (state_shardings, scalar)
    return jax.jit(train_step, in_shardings=inputs, out_shardings=outputs, donate_argnums=0)


def step_of(config: TrainConfig, agent: Agent, optimizer: Optimizer, abstract: TrainState, mesh: Mesh) -> TrainStep:
    """The training step of a run.

    Args:
        config: says how batches are cut and augmented, what is averaged, and what becomes of bad steps.
        agent, optimizer: see `make_train_step`.
        abstract: shapes and shardings of the state.
        mesh: on which the batches lie.

    Raises:
        ConfigError: the batch does not divide over the mesh.
    """
    check_batch_size(config.batch_size // config.accumulate_steps, mesh)
    return make_train_step(
        agent,
        optimizer,
        functools.partial(augment_batch, config=config.augment),
        shardings_of(abstract),
        sharding_of_batches(mesh),
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
        skip_bad=config.on_nan == "skip",
    )


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """One of two pytrees; what is the same array in both, such as frozen parameters, is not touched."""
    return jax.tree.map(lambda x, y: y if x is y else jnp.where(condition, x, y), new, old)


def _norms(grads: Params) -> Metrics:
    of_each = {f"grad_norm/{name}": optax.tree.norm(part) for name, part in grads.items()}
    return {"grad_norm": optax.tree.norm(grads)} | of_each


def _scalars(metrics: dict[str, Any]) -> Metrics:
    return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def _floats(params: Params) -> list[Array]:
    """The leaves but for the integers of quantized kernels, whose squares would overflow."""
    return [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]


def _make_gradients(
    agent: Agent, optimizer: Optimizer, batch_sharding: NamedSharding, accumulate_steps: int
) -> Callable[[Params, Batch, Key[Array, ""]], tuple[tuple, Params]]:
    """(params, batch, rng) -> ((loss, metrics), gradients of the trained parameters), averaged over parts."""
    by_parts = NamedSharding(batch_sharding.mesh, PartitionSpec(None, *batch_sharding.spec))

    def gradients(params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[tuple, Params]:
        trained, frozen = optimizer.split(params)

        def loss(part: Params, batch: Batch, rng: Key[Array, ""]) -> tuple:
            return agent.loss(combine(part, frozen), batch, rng)

        def differentiate(*args: Any) -> tuple[tuple, Params]:
            # Around the gradient, not in the loss: backward passes of our own trace models, too.
            with activations_at(batch_sharding):
                return jax.value_and_grad(loss, has_aux=True)(*args)

        if accumulate_steps == 1:
            return differentiate(trained, batch, rng)
        parts = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(_cut(x, accumulate_steps), by_parts), batch)
        keys = jax.random.split(rng, accumulate_steps)
        shapes = jax.eval_shape(differentiate, trained, jax.tree.map(lambda x: x[0], parts), rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total: Any, part: tuple[Batch, Key[Array, ""]]) -> tuple[Any, None]:
            values = differentiate(trained, *part)
            return jax.tree.map(lambda x, y: x + y / accumulate_steps, total, values), None

        return jax.lax.scan(add, zeros, (parts, keys))[0]

    return gradients


def _cut(x: Array, parts: int) -> Array:
    """[b, ...] as [parts, b / parts, ...]; every part takes rows from all over the batch, so that no row moves."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def make_eval_step(agent: Agent, mean_action: Float[np.ndarray, "*n d"], batch_sharding: NamedSharding) -> EvalStep:
    """Per-example metrics on one batch, jitted: (params, batch, valid, rng) -> {name: values, 0 where not known}.

    Args:
        agent: its `evaluate` gives the metrics.
        mean_action: the normalized action of a policy that ignores what it sees. Its error joins the metrics as
            mse_mean_action, measured as that of the agent is. [d], or of several datasets [n, d] by number, for batches
            with the key `dataset`.
        batch_sharding: of every array of the batch.
    """

    def eval_step(params: Any, batch: Batch, valid: Bool[Array, " b"], rng: Key[Array, ""]) -> dict[str, PartialMetric]:
        mean = mean_action if mean_action.ndim == 1 else jnp.asarray(mean_action)[batch["dataset"]][:, None]
        baseline = action_mse(jnp.broadcast_to(mean, batch["actions"].shape), batch, agent.spec, 1)
        with activations_at(batch_sharding):
            metrics = agent.evaluate(params, batch, rng) | {"mse_mean_action": baseline}
        parts = {n: m if isinstance(m, PartialMetric) else PartialMetric(m, valid) for n, m in metrics.items()}
        return {
            n: PartialMetric(jnp.where(m.known_b & valid, m.value_b, 0), m.known_b & valid) for n, m in parts.items()
        }

    return jax.jit(eval_step)
