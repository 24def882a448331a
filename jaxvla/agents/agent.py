"""What every method offers. Training, evaluation and serving know agents by this alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Key

from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.models.module import Params


@dataclasses.dataclass(frozen=True)
class Targets:
    """Modules that follow others slowly, such as the target networks that values are bootstrapped from.

    Attributes:
        following: pairs of top-level modules of the parameters, the follower and the one that it follows. Followers
            are among the agent's `frozen_modules`: gradients do not move them.
        rate: the share of the followed parameters that enters after each step, in (0, 1].
    """

    following: tuple[tuple[str, str], ...]
    rate: float

    def follow(self, params: Params) -> Params:
        """The parameters with every follower moved: rate * followed + (1 - rate) * follower."""
        moved = {
            follower: jax.tree.map(
                lambda new, old: self.rate * new + (1 - self.rate) * old, params[name], params[follower]
            )
            for follower, name in self.following
        }
        return params | moved


class Start(NamedTuple):
    """Some of an agent's parameters, which training reads from files instead of drawing them.

    Attributes:
        load: from the shardings of all parameters to these.
        report: lines for people: which tensors are read, and which are not and why.
    """

    load: Callable[[Params], Params]
    report: tuple[str, ...]


class PartialMetric(NamedTuple):
    """A validation metric that is averaged over the examples which have a value of it; other entries say nothing."""

    value_b: Float[Array, " b"]
    known_b: Bool[Array, " b"]


ExampleMetrics = Mapping[str, Float[Array, " b"] | PartialMetric]


@runtime_checkable
class Agent(Protocol):
    """Pure functions of pytrees. An agent owns no state and is hashable, so it can be a static argument of `jax.jit`.

    Axis letters as in `jaxvla.data.schema`. Observations, goals and actions are normalized, images uint8.
    """

    @property
    def spec(self) -> BatchSpec:
        """The sizes of the batches that it takes."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """The top-level keys of a batch that it needs; the loader makes no others."""

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """The modules of its parameters that training leaves as they are, such as "backbone" or "backbone/visual"."""

    @property
    def targets(self) -> Targets | None:
        """Which of the frozen modules follow others after each step; None where none do."""

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters: a nested dict with str keys. Works under jit and eval_shape.

        Leaves are float32; frozen ones may be narrower.
        """

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss to minimise and metrics to log, in training mode: `rng` draws dropout and noise."""

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> ExampleMetrics:
        """Validation metrics of each example, without dropout; at least "mse", of the action that a robot would get.

        mse is the squared error of `executed` actions, summed over d and averaged over the slots inside the
        trajectory, see `jaxvla.agents.executed`. What stands in slots behind its end changes nothing.
        """

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks for observations [b, o, ...], as the networks give them, all of whose slots count.

        The normalizer's inverse, which every action passes on its way to the robot, holds them within the limits.

        Args:
            params: from `init` or training.
            observations: as in a batch.
            task: the batch keys that the agent is conditioned on, such as {"goals": ...}.
            rng: draws an action; None for the most likely one.
            temperature: multiplies the standard deviation of the draw.
        """
