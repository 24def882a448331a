"""The optimizer, its learning-rate schedule, and which parameters it trains at what rate."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Int

from jaxvla.errors import ConfigError
from jaxvla.models.module import Params
from jaxvla.parallel.sharding import path_string
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.moments import scale_by


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Made by `make_optimizer`.

    Attributes:
        transform: of the gradients of the trained parameters.
        schedule: the learning rate after so many updates, of parameters without one of their own.
        rate_of: the peak learning rate of the parameter with this path; 0 for a frozen one.
    """

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    rate_of: Callable[[str], float]

    def rate(self, opt_state: optax.OptState) -> Float[Array, ""]:
        """The learning rate of the next update, which steps that changed nothing have not brought nearer."""
        return self.schedule(opt_state[-1].count)

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
        frozen: path prefixes that are frozen besides, whatever rates there are for them.
    """
    rates = config.learning_rates
    peak = config.learning_rate
    decayed, undecayed = _schedules(config)

    def rate_of(path: str) -> float:
        if any(_is_within(path, prefix) for prefix in frozen):
            return 0.0
        prefixes = [prefix for prefix in rates if _is_within(path, prefix)]
        return rates[max(prefixes, key=len)] if prefixes else peak

    def rates_at(count: Int[Array, ""]) -> Callable[[str], Float[Array, ""]]:
        now, kept = decayed(count), undecayed(count)

        def rate(path: str) -> Float[Array, ""]:
            stays = any(_is_within(path, prefix) for prefix in config.undecayed)
            return (kept if stays else now) * (rate_of(path) / peak)

        return rate

    stages = [
        *([optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []),
        scale_by(config.moments, config.b2),
        *([optax.add_decayed_weights(config.weight_decay, mask=_kernels)] if config.weight_decay else []),
        _descend(rates_at),
    ]
    return Optimizer(optax.chain(*stages), decayed, rate_of)


def check_learning_rates(config: OptimizerConfig, params: Params, frozen: Sequence[str] = ()) -> None:
    """Raises ConfigError if a prefix of `config.learning_rates` or `config.undecayed` names no parameter.

    So does a rate for a part of what is frozen. One for a whole module is not refused: presets give it, and a training
    mode, or LoRA, then freezes the module.

    Args:
        config: gives the prefixes.
        params: of the agent, or their shapes.
        frozen: as in `make_optimizer`.
    """
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    for name in ("learning_rates", "undecayed"):
        for prefix in getattr(config, name):
            if not any(_is_within(path, prefix) for path in paths):
                raise ConfigError(
                    f"config.optimizer.{name} names {prefix!r}, but parameters begin with {', '.join(params)}"
                )
    for prefix, rate in config.learning_rates.items():
        if rate and "/" in prefix and any(_is_within(prefix, module) for module in frozen):
            raise ConfigError(
                f"config.optimizer.learning_rates gives {prefix!r} {rate}, but it is frozen here: remove that rate, or "
                "what freezes it (LoRA, or a setting of the agent)"
            )


def _schedules(config: OptimizerConfig) -> tuple[optax.Schedule, optax.Schedule]:
    """The learning rate after so many updates: one that decays, where the configuration says so, and one that stays."""
    peak, warmup, from_start = config.learning_rate, config.warmup_steps, config.cosine == "start"
    level = cosine = optax.constant_schedule(peak)
    if config.decay_steps:
        length, share = config.decay_steps - (0 if from_start else warmup), config.final_learning_rate / peak
        whole = optax.cosine_decay_schedule(peak, length, alpha=share)
        # A schedule that is joined counts from where it is joined.
        cosine = (lambda count: whole(count + warmup)) if from_start else whole
    rise = optax.linear_schedule(peak / (warmup + 1) if from_start else 0.0, peak, max(warmup, 1))
    decayed, undecayed = (optax.join_schedules([rise, after], [warmup]) for after in (cosine, level))
    return decayed, undecayed


def _descend(rates_at: Callable[[Int[Array, ""]], Callable[[str], Float[Array, ""]]]) -> optax.GradientTransformation:
    """Multiplies each update by its negative learning rate: `rates_at` maps updates so far to (path -> rate)."""

    def init(_: Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, _: Any = None) -> tuple[Any, Any]:
        rate = rates_at(state.count)
        scaled = jax.tree_util.tree_map_with_path(lambda path, x: -rate(path_string(path)) * x, updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _is_within(path: str, prefix: str) -> bool:
    """Whether a parameter's path is `prefix` or lies below it."""
    return f"{path}/".startswith(f"{prefix}/")


def _kernels(params: Any) -> Any:
    """True at kernels and at the two factors of their adapters."""
    names = ("kernel", "lora_a", "lora_b")
    return jax.tree_util.tree_map_with_path(lambda path, _: path_string(path).endswith(names), params)
