"""The optimizer and its learning-rate schedule."""

from typing import Any

import jax
import optax

from jaxvla.parallel.sharding import path_string
from jaxvla.training.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Adam, or AdamW where there is weight decay, after clipping by global norm where that is on.

    bridge_data_v2 trains with plain Adam, 2000 warmup steps and a cosine to 0; Octo decays kernels only, as here.

    Returns:
        The transformation, and the learning rate as a function of the number of updates made so far.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay_steps:
        after = optax.cosine_decay_schedule(peak, config.decay_steps - warmup)
    else:
        after = optax.constant_schedule(peak)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])
    if config.weight_decay:
        update = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_kernels)
    else:
        update = optax.adam(schedule)
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update, schedule


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path_string(path).endswith("kernel"), params)
