"""The optimizer, its learning-rate schedule, and which parameters it trains at what rate."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import traverse_util

from jaxvla.errors import ConfigError
from jaxvla.models.module import Params
from jaxvla.parallel.sharding import path_string
from jaxvla.training.config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Made by `make_optimizer`.

    Attributes:
        transform: of the gradients of the trained parameters.
        schedule: the learning rate after so many updates.
        rate_of: the peak learning rate of the parameter with this path; 0 for a frozen one.
    """

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    rate_of: Callable[[str], float]

    def split(self, params: Params) -> tuple[Params, Params]:
        """The trained parameters and the frozen ones, nested as in `params`; `models.partition.combine` joins them.

        Raises:
            ConfigError: nothing is trained.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        trained = {path: leaf for path, leaf in flat.items() if self.rate_of(path)}
        if not trained:
            raise ConfigError("config.optimizer.learning_rates freezes every parameter: leave some of them a rate")
        frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
        return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")


def make_optimizer(config: OptimizerConfig, frozen: Sequence[str] = ()) -> Optimizer:
    """Adam, or AdamW where there is weight decay, after clipping by global norm where that is on.

    bridge_data_v2 trains with plain Adam, 2000 warmup steps and a cosine to 0; Octo decays kernels only, as here.

    Args:
        config: see `OptimizerConfig`.
        frozen: path prefixes that are frozen besides.
    """
    rates = {**config.learning_rates, **dict.fromkeys(frozen, 0.0)}
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay_steps:
        share = config.final_learning_rate / peak
        after = optax.cosine_decay_schedule(peak, config.decay_steps - warmup, alpha=share)
    else:
        after = optax.constant_schedule(peak)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])
    if config.weight_decay:
        transform = optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=_kernels)
    else:
        transform = optax.adam(schedule, b2=config.b2)
    if config.clip_norm:
        transform = optax.chain(optax.clip_by_global_norm(config.clip_norm), transform)

    def rate_of(path: str) -> float:
        prefixes = [prefix for prefix in rates if f"{path}/".startswith(f"{prefix}/")]
        return rates[max(prefixes, key=len)] if prefixes else peak

    def to_own_rate(updates: Any, _: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, x: x * (rate_of(path_string(path)) / peak), updates)

    if rates:
        transform = optax.chain(transform, optax.stateless(to_own_rate))
    return Optimizer(transform, schedule, rate_of)


def check_learning_rates(config: OptimizerConfig, params: Params) -> None:
    """Raises ConfigError if a prefix of `config.learning_rates` names no parameter."""
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    for prefix in config.learning_rates:
        if not any(f"{path}/".startswith(f"{prefix}/") for path in paths):
            raise ConfigError(
                f"config.optimizer.learning_rates names {prefix!r}, but parameters begin with {', '.join(params)}"
            )


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path_string(path).endswith("kernel"), params)
