"""What a run needs before its first step: the state to go on from, the jitted steps, and that the settings fit."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxvla.agents.agent import Agent
from jaxvla.assets import Assets
from jaxvla.checkpoint import damaged, first_line
from jaxvla.data.schema import Batch
from jaxvla.errors import ConfigError
from jaxvla.parallel.feed import BatchIterator
from jaxvla.parallel.sharding import Rules
from jaxvla.training.checkpointer import resume
from jaxvla.training.config import SUCCESS, TrainConfig
from jaxvla.training.optimizer import check_learning_rates, make_optimizer
from jaxvla.training.resuming import whole_checkpoint
from jaxvla.training.state import Pretrained, TrainState, abstract_state, create_state
from jaxvla.training.step import TrainStep, make_eval_step, step_of
from jaxvla.training.validation import evaluate


def prepare(
    config: TrainConfig,
    agent: Agent,
    mesh: Mesh,
    batches: BatchIterator,
    assets: Assets,
    rules: Rules,
    pretrained: Pretrained | None,
) -> tuple[TrainState, TrainStep, TrainState]:
    """The state to go on from, the step, and the shapes and shardings of states; `batches` are at their place."""
    optimizer, ema = make_optimizer(config.optimizer, agent.frozen_modules), config.ema_decay > 0
    abstract = abstract_state(agent, optimizer, mesh, rules, ema=ema)
    train_step = step_of(config, agent, optimizer, abstract, mesh)
    check_learning_rates(config.optimizer, abstract.params, agent.frozen_modules)
    check_best_metric(config, agent, abstract.params)
    if config.resume_path:
        state = _resume(config, batches, assets, abstract)
    else:
        state = create_state(agent, optimizer, config.seed, mesh, rules, ema=ema, pretrained=pretrained)
    return state, train_step, abstract


def _resume(config: TrainConfig, batches: BatchIterator, assets: Assets, abstract: TrainState) -> TrainState:
    """The state of the checkpoint at `config.resume_path`; `batches` go to their place in it."""
    folder = whole_checkpoint(config.resume_path)
    state, position = resume(folder, assets, abstract)
    if int(state.step) >= config.num_steps:
        raise ConfigError(
            f"{config.resume_path} is at step {int(state.step)} of {config.num_steps}: raise config.num_steps"
        )
    try:
        batches.set_state(position)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(folder, "data/data.json", f"no position of this data: {first_line(error)}") from error
    return state


def validator(
    config: TrainConfig,
    agent: Agent,
    sharding: NamedSharding,
    validation: Callable[[int], Iterator[Batch]],
    assets: Assets,
) -> Callable[[Any, int], dict[str, float]]:
    """Maps parameters and their step to validation metrics; the baseline is the mean action of the training data."""
    eval_step = make_eval_step(agent, assets.mean_action(), sharding)
    size, seed = config.batch_size, config.seed
    return lambda params, step: evaluate(eval_step, params, validation(step), size, sharding, seed)


def check_best_metric(config: TrainConfig, agent: Agent, params: Any) -> None:
    """Fails now, not at the first validation or rollout, if there is no such metric."""
    best = config.checkpoint.best_metric
    if best == SUCCESS:
        if not config.rollout.world:
            raise ConfigError(f"config.checkpoint.best_metric {best!r} is of rollouts: set config.rollout.world")
        return
    batch = agent.spec.fake_batch(1, agent.batch_keys, np.random.default_rng(0))
    metrics = jax.eval_shape(agent.evaluate, params, batch, jax.random.key(0))
    if best not in metrics:
        raise ConfigError(
            f"config.checkpoint.best_metric {best!r} is no validation metric of {config.agent}; there are "
            f"{', '.join(sorted(metrics))}, and {SUCCESS} with config.rollout"
        )
