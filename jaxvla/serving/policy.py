"""A trained agent as robots see it: raw observations in, actions in robot units out.

Axis letters as in `jaxvla.data.schema`, but a for the actions until the next decision, and n for the robots of a call,
in the order in which they are given.
"""

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jaxvla.agents import check_takes_guide, make_agent, quantized
from jaxvla.agents.agent import Agent
from jaxvla.agents.backbone import merge_adapters
from jaxvla.assets import Assets
from jaxvla.contract import Execution, RealTime
from jaxvla.data.schema import PROPRIO
from jaxvla.errors import ConfigError, PolicyError
from jaxvla.models.flow_matching import Guide, guide_weights
from jaxvla.models.module import Params
from jaxvla.serving.draws import Draw, Draws, key_of
from jaxvla.serving.execution import Before, Memory, Schedule, check_timings
from jaxvla.serving.inputs import fill, inputs_read, stack
from jaxvla.serving.instructions import Instructions
from jaxvla.serving.prompts import Prompts
from jaxvla.serving.simulator import simulator_of
from jaxvla.serving.stored import open_stored
from jaxvla.serving.views import Views
from jaxvla_client.chunks import Timing

# What agents that are told something in words read. Each has
#   of(agent, assets, step)   itself for a checkpoint, or None where the agent reads no such thing
#   task(tasks)               the tasks of n robots to the batch keys [n, ...] that the agent reads
#   blank(count)              the same shapes, where it does not matter what they say
LANGUAGE_INPUTS = (Prompts, Instructions)


class Decisions(NamedTuple):
    """What n robots do next.

    Attributes:
        actions_nad: all that they play before the next decision, in robot units, soonest first.
        words: what the policy said before the actions of each robot; empty where it said nothing.
    """

    actions_nad: Float32[np.ndarray, "n a d"]
    words: tuple[str, ...]


def load_policy(
    folder: str | pathlib.Path,
    step: int | None = None,
    inference: str | None = None,
    robots: int = 1,
    temperature: float = 0.0,
    execution: Execution | None = None,
    dataset: str | None = None,
    rows: Sequence[int] = (),
    quantize: str = "",
    simulator: bool = False,
) -> "Policy":
    """Loads a policy from a folder; nothing else is needed.

    Args:
        folder: of a run or one of its checkpoints; of an export of one; or of a policy of LeRobot, whose cameras have
            the names of its features, without "observation.images.".
        step: which checkpoint of a run folder; None for the latest.
        inference: for policies that reason: "implicit" (in latent slots), "explicit" (in words) or "none"; None for
            what the configuration says.
        robots: how many it drives.
        temperature: of the actions that are drawn; 0 for the most likely ones.
        execution: what is played of the chunks; None for what the checkpoint says, `Execution()` for all of them.
        dataset: of the training, whose robot it drives: in its units, with its cameras; None for the only one. Of a
            policy of LeRobot, whose statistics are called "<dataset>.buffer.action", that one.
        rows, simulator: of `Policy`.
        quantize: "int8" or "int4" to hold the kernels of language model and towers in as many bits, see
            `jaxvla.models.quantization`; empty to hold them as they are stored.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        WeightsError: weights of LeRobot, or exported ones, are damaged or do not fit.
        ConfigError: the policy does not reason in that way, its chunks do not have as many actions or cannot be made in
            real time, it cannot be quantized so, or it was not trained on such a dataset, or on several and none is
            named.
        PolicyError: no robots, or a negative temperature.
    """
    stored = open_stored(folder, step, dataset)
    assets = stored.assets.of(dataset)
    if inference is not None and assets.text is None:
        raise ConfigError(
            f"{assets.agent} does not reason: no mode of inference can be chosen, leave {inference!r} out"
        )
    own, execution = {} if inference is None else {"inference": inference}, execution or assets.execution
    # Says what is wrong before anything is read.
    execution.steps(assets.spec.action_horizon)
    agent = make_agent(assets.agent, {**assets.agent_kwargs, **own}, assets.spec)
    if execution.realtime.enabled:
        check_takes_guide(assets.agent, agent, execution.realtime.by)
    kwargs, params = merge_adapters(assets.agent_kwargs, stored.read())
    agent = make_agent(assets.agent, {**kwargs, **own}, assets.spec)
    params = quantized(assets.agent, params, quantize)
    return Policy(agent, params, assets, stored.step, robots, temperature, execution, rows, simulator)


class Policy:
    """Acts for one robot, or for several at once. Holds the last `spec.obs_horizon` observations of each.

    One robot: `reset` between episodes, then `act` again and again. Several: `act_batch` for all that wait for a
    decision, in one computation on `robots` rows; it is compiled once, and rows that nobody needs are filled. Where
    often only some of them wait, it is worth the time to compile it for fewer `rows` too.

    Args:
        agent: what was trained.
        params: its parameters, on the device that is to compute; or their shapes (`jax.ShapeDtypeStruct`), where they
            are set before anything is decided.
        assets: of its checkpoint, of one dataset.
        step: of its checkpoint, which says at what stage of a curriculum it is.
        robots: how many it drives; they are numbered from 0.
        temperature: of the actions that are drawn, see the agent's `act`; 0 for the most likely ones.
        execution: what is played of the chunks; None for what the assets say.
        rows: how many of a computation, beside `robots`: it is made on the least that hold those that wait. A decision
            on other rows may differ in the last bits.
        simulator: observations and actions are those of the simulator of the benchmark it was trained for, see
            `Contract.conventions`; else they are as in the data.

    Attributes:
        params: may be set to others of the same shapes; nothing is compiled again.
        spec: cameras, image size (height, width), horizons and dimensions, as the robot has them.
        contract: how the checkpoint is to be played.
        action_convention: what the numbers of an action are; None where the checkpoint is too old to say.
        robots: as given.
        needed: the names that an observation and a goal must hold, by "observation" and "goals": those that the agent's
            computation reads.
        words: what the policy said before the last action of `act`; empty where it said nothing.
        told: whether it reads an instruction in words.

    Raises:
        PolicyError: no robots, no number of rows, or a negative temperature.
        ConfigError: chunks do not have as many actions as are to be played, or cannot be made in real time; or there is
            no such simulator.
    """

    def __init__(
        self,
        agent: Agent,
        params: Params,
        assets: Assets,
        step: int = 0,
        robots: int = 1,
        temperature: float = 0.0,
        execution: Execution | None = None,
        rows: Sequence[int] = (),
        simulator: bool = False,
    ) -> None:
        if robots < 1:
            raise PolicyError(f"a policy drives at least 1 robot, not {robots}")
        if not 0 <= temperature < np.inf:
            raise PolicyError(f"the temperature of actions is 0 or positive, not {temperature}")
        if not all(1 <= count <= robots for count in rows):
            raise PolicyError(f"a computation for {robots} robots has 1 to {robots} rows, not {tuple(rows)}")
        self.spec, self._batch_spec = assets.robot_spec, assets.spec
        self._rows = sorted({*rows, robots})
        self.robots, self.words = robots, ""
        self.contract = assets.contract()
        self._simulator = simulator_of(self.contract) if simulator else None
        if self._simulator is not None:
            self.contract = dataclasses.replace(self.contract, actions=self._simulator.actions)
        self.action_convention = self.contract.actions
        self._agent, self.params = agent, params
        self._actions, proprio = assets.action_normalizer(), assets.proprio_normalizer()
        self._histories = [collections.deque(maxlen=self.spec.obs_horizon) for _ in range(robots)]
        self._draws = Draws(robots)
        execution = execution or assets.execution
        self._schedule = Schedule(execution, self.spec.action_horizon, robots)
        self._memory = None
        if execution.realtime.enabled:
            check_takes_guide(assets.agent, agent, execution.realtime.by)
            self._memory = Memory(robots, (self._batch_spec.action_horizon, self._batch_spec.action_dim))
        found = (language.of(agent, assets, step) for language in LANGUAGE_INPUTS)
        self._language = next((language for language in found if language is not None), None)
        self.told = self._language is not None
        given = (*self.spec.cameras, PROPRIO)
        read = inputs_read(functools.partial(_act, agent, 0.0, None), params, self._blank(1))
        self.needed = {what: tuple(name for name in names if name in given) for what, names in read.items()}
        self._views = {
            what: Views(
                self._batch_spec, self.spec, proprio, names, assets.stored_sizes, assets.resize, self._simulator
            )
            for what, names in self.needed.items()
        }
        own_d = np.arange(self._batch_spec.action_dim) < self.spec.action_dim
        guided = functools.partial(_guide, execution.realtime, own_d)
        self._act = jax.jit(functools.partial(_act, agent, temperature, guided))

    def act(
        self, observation: Mapping[str, Any], task: Mapping[str, Any], timing: Timing | None = None
    ) -> Float32[np.ndarray, "a d"]:
        """The actions until the next decision, soonest first, in robot units; what was said before is in `words`.

        These are a chunk, the first ones of it, or one average of the chunks so far, as `execution` says.

        Args:
            observation: {camera: uint8 [H, W, 3], RGB, upright, whole and of any size, "proprio": [p] in robot units},
                at least those that are `needed`; others are not looked at.
            task: {"language": an instruction}, or {"goals": {camera: uint8 [H, W, 3], ...}} or that inner mapping
                itself, whichever the agent is conditioned on.
            timing: when the decision begins and is expected; None where it is there at once, and all that was given out
                before has been played.

        Raises:
            PolicyError: a value is missing, or not of the dtype or shape expected.
            DataError: an instruction is empty, too long, or holds a control sign.
        """
        decisions = self.act_batch([observation], [task], timings=None if timing is None else [timing])
        self.words = decisions.words[0]
        return decisions.actions_nad[0]

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Adds one time step to the history, without acting: for the steps that play earlier actions.

        Args:
            observation: as for `act`.
        """
        self.observe_batch([observation])

    def act_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        tasks: Sequence[Mapping[str, Any]],
        robots: Sequence[int] | None = None,
        timings: Sequence[Timing] | None = None,
    ) -> Decisions:
        """`act` for n robots at once. What one does depends on nothing that is given for the others.

        Args:
            observations: of each, as for `act`.
            tasks: of each, as for `act`.
            robots: which robots these are, n different numbers below `self.robots`; None for 0 to n - 1.
            timings: of each, as for `act`.

        Raises:
            PolicyError: as `act` does; or the numbers of observations, tasks, robots and timings do not agree.
            DataError: as `act` does.
        """
        numbers = self._numbers(len(observations), robots)
        if len(tasks) != len(numbers):
            raise PolicyError(f"{len(numbers)} observations came with {len(tasks)} tasks; give one for each robot")
        count = len(numbers)
        if timings is not None:
            check_timings(timings, count)
        prepared = self._task(tasks)
        histories = self._observed(observations, numbers)
        timings = self._schedule.timings(numbers) if timings is None else timings
        before = None if self._memory is None else self._memory.before(numbers, timings)
        steps = [step for history in histories for step in self._whole(history)]
        inputs = stack(steps, count, self.spec.obs_horizon), prepared
        rows = next(rows for rows in self._rows if rows >= count)
        inputs, draw, before = fill((inputs, self._draws.next(numbers), before), count, rows)
        normalized_nad, tokens_nm = jax.device_get(self._act(self.params, inputs, draw, before))
        if self._memory is not None:
            self._memory.keep(numbers, normalized_nad[:count])
        words = ("",) * count if tokens_nm is None else self._language.words(tokens_nm[:count])
        own_nad = normalized_nad[:count, :, : self.spec.action_dim]
        played_nad = self._schedule.play(numbers, self._actions.inverse(own_nad), timings)
        return Decisions(played_nad if self._simulator is None else self._simulator.commands(played_nad), words)

    def observe_batch(self, observations: Sequence[Mapping[str, Any]], robots: Sequence[int] | None = None) -> None:
        """`observe` for n robots; arguments and errors as of `act_batch`."""
        numbers = self._numbers(len(observations), robots)
        self._observed(observations, numbers)
        self._schedule.skip(numbers)

    def reset(self, robots: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forgets the observations and decisions so far, of `robots` or of all.

        Args:
            robots: which; None for all.
            seeds: from which each of them draws its actions from now on; None to go on drawing as before.

        Raises:
            PolicyError: not one seed for each, or a seed outside of [0, 2**32).
        """
        numbers = list(range(self.robots) if robots is None else robots)
        if seeds is not None:
            self._draws.restart(numbers, seeds)
        self._schedule.forget(numbers)
        if self._memory is not None:
            self._memory.forget(numbers)
        for robot in numbers:
            self._histories[robot].clear()

    def warm_up(self) -> float:
        """Compiles, so that the first decision is as fast as the others; returns the seconds that it took."""
        start = time.perf_counter()
        for rows in self._rows:
            robots = range(rows)
            before = None if self._memory is None else self._memory.before(robots, self._schedule.timings(robots))
            jax.block_until_ready(self._act(self.params, self._blank(rows), Draws(rows).next(robots), before))
        return time.perf_counter() - start

    def _numbers(self, count: int, robots: Sequence[int] | None) -> list[int]:
        """The numbers of the robots that `count` observations came for."""
        numbers = list(range(count) if robots is None else robots)
        if not count or len(numbers) != count or len(set(numbers)) < count:
            raise PolicyError(f"{count} observations came for robots {numbers}; give one for each robot")
        if min(numbers) < 0 or max(numbers) >= self.robots:
            raise PolicyError(
                f"observations came for robots {numbers}, but this policy drives robots 0 to {self.robots - 1}: "
                "load it for more, load_policy(folder, robots=...)"
            )
        return numbers

    def _observed(
        self, observations: Sequence[Mapping[str, Any]], numbers: Sequence[int]
    ) -> list[Sequence[dict[str, np.ndarray]]]:
        """The histories of these robots, with what they observe now; where one is refused, none is added."""
        prepared = [self._prepare("observation", given, i) for i, given in enumerate(observations)]
        for robot, views in zip(numbers, prepared):
            self._histories[robot].append(views)
        return [self._histories[robot] for robot in numbers]

    def _task(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of n tasks, under the batch keys that the agent reads."""
        batch = {} if self._language is None else self._language.task(tasks)
        if "goals" in self._agent.batch_keys:
            goals = [self._prepare("goals", task.get("goals", task), i) for i, task in enumerate(tasks)]
            batch["goals"] = stack(goals)
        return batch | self._dimensions(len(tasks))

    def _dimensions(self, count: int) -> dict[str, np.ndarray]:
        """Which dimensions of the actions the robot has, for agents that ask."""
        if "action_dim_mask" not in self._agent.batch_keys:
            return {}
        present_d = np.arange(self._batch_spec.action_dim) < self.spec.action_dim
        return {"action_dim_mask": np.tile(present_d, (count, 1))}

    def _whole(self, history: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """All o steps; the oldest observation is repeated where the history is short, as in training."""
        return [history[0]] * (self.spec.obs_horizon - len(history)) + list(history)

    def _prepare(self, what: str, given: Mapping[str, Any], i: int) -> dict[str, np.ndarray]:
        return self._views[what].prepare(given, what if self.robots == 1 else f"{what} {i}")

    def _blank(self, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Observations and tasks that stand for any others of their shapes."""
        keys = tuple(key for key in ("observations", "goals") if key in self._agent.batch_keys)
        blank = self._batch_spec.fake_batch(count, keys, np.random.default_rng(0)) | self._dimensions(count)
        return blank.pop("observations"), blank | ({} if self._language is None else self._language.blank(count))


def _guide(realtime: RealTime, own_d: np.ndarray, before: Before) -> Guide:
    """What the actions of all rows are to be like, in the dimensions that the robot has."""
    actions_nad, delay_n, left_n = before
    delay_n = jnp.maximum(delay_n, realtime.least_delay)
    horizon, known_na, limit_n = actions_nad.shape[1], None, None
    if realtime.by != "guidance":
        known_na = jnp.arange(horizon) < jnp.minimum(delay_n, left_n)[:, None]
    if realtime.by != "prefix":
        limit_n = jnp.full(len(left_n), realtime.max_guidance_weight)
    weight_na = guide_weights(delay_n, left_n, horizon, realtime.schedule)
    return Guide(jnp.where(own_d, actions_nad, 0), weight_na[..., None] * own_d, limit_n, known_na)


def _act(
    agent: Agent,
    temperature: float,
    guided: Callable[[Before], Guide] | None,
    params: Params,
    inputs: tuple[Any, Any],
    draw: Draw | None,
    before: Before | None = None,
) -> tuple[Any, Any]:
    """Normalized actions, and the tokens that were said before them, or None. Each row makes its own draws."""

    def decide(inputs: tuple[Any, Any], own: dict[str, Guide], *drawing: Any) -> tuple[Any, Any]:
        if "text" in agent.batch_keys:
            return tuple(agent.sample_actions(params, *inputs, *drawing, **own))
        return agent.act(params, *inputs, *drawing, **own), None

    def decide_for_one(given: tuple[tuple[Any, Any], dict[str, Guide]], draw: Draw) -> tuple[Any, Any]:
        decided = decide(*jax.tree.map(lambda x: x[None], given), key_of(draw), temperature)
        return jax.tree.map(lambda x: x[0], decided)

    given = inputs, {} if before is None else {"guide": guided(before)}
    return jax.vmap(decide_for_one)(given, draw) if temperature else decide(*given)
