"""A trained agent as a robot sees it: raw observation in, action in robot units out."""

import collections
import functools
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from jaxvla.agents import make_agent
from jaxvla.agents.agent import Agent
from jaxvla.checkpoint import Assets, find_checkpoint, read_assets, restore
from jaxvla.data.images import resize
from jaxvla.errors import PolicyError
from jaxvla.models.module import Params
from jaxvla.serving.prompts import BLANK_INSTRUCTION, Prompts

_PROPRIO = "proprio"


def load_policy(folder: str | pathlib.Path, step: int | None = None, inference: str | None = None) -> "Policy":
    """Loads a policy from a run folder or the folder of one checkpoint; nothing else is needed.

    Args:
        folder: what training wrote.
        step: which checkpoint of a run folder; None for the latest.
        inference: for policies that reason: "implicit" (in latent slots), "explicit" (in words) or "none"; None for
            what the configuration says.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: the policy does not reason in that way.
    """
    path = find_checkpoint(folder, step, items=("params", "assets"))
    assets = read_assets(path)
    own = {} if inference is None else {"inference": inference}
    agent = make_agent(assets.agent, {**assets.agent_kwargs, **own}, assets.spec)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    return Policy(agent, restore(path, {"params": abstract})["params"], assets, int(path.name))


class Policy:
    """Acts for one robot. Holds the last `spec.obs_horizon` observations; call `reset` between episodes.

    Args:
        agent: what was trained.
        params: its parameters, on the device that is to compute.
        assets: of its checkpoint.
        step: of its checkpoint, which says at what stage of a curriculum it is.

    Attributes:
        spec: cameras, image size (height, width), horizons and dimensions.
        needed: the names that an observation and a goal must hold, by "observation" and "goals": those that the agent's
            computation reads.
        words: what the policy said before its last action; empty where it said nothing.
    """

    def __init__(self, agent: Agent, params: Params, assets: Assets, step: int = 0) -> None:
        self.spec = assets.spec
        self.words = ""
        self._params = params
        self._actions = assets.action_normalizer()
        self._proprio = assets.proprio_normalizer()
        self._history: collections.deque[dict[str, np.ndarray]] = collections.deque(maxlen=self.spec.obs_horizon)
        blank = self.spec.fake_batch(1, ("observations", "goals"), np.random.default_rng(0))
        self._blank = {"observation": {k: x[0, 0] for k, x in blank["observations"].items()}}
        if "goals" in agent.batch_keys:
            self._blank["goals"] = {k: x[0] for k, x in blank["goals"].items()}
        self._prompts = Prompts.of(agent, assets, step)
        self.needed = _inputs_read(agent, params, (blank["observations"], self._blank_task()))
        self._act = jax.jit(functools.partial(_act, agent))

    def reset(self) -> None:
        """Forgets the observations so far."""
        self._history.clear()

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Adds one time step to the history, without acting: for the steps that play a chunk of earlier actions.

        Args:
            observation: as for `act`.
        """
        self._history.append(self._prepare("observation", observation))

    def act(self, observation: Mapping[str, Any], task: Mapping[str, Any]) -> Float32[np.ndarray, "a d"]:
        """The most likely action chunk, soonest first, in robot units; what was said before it is in `words`.

        Args:
            observation: {camera: uint8 [H, W, 3] of any size, "proprio": [p] in robot units}, at least those that are
                `needed`; others are not looked at.
            task: {"language": an instruction}, or {"goals": {camera: uint8 [H, W, 3], ...}} or that inner mapping
                itself, whichever the agent is conditioned on.

        Raises:
            PolicyError: a value is missing, or not of the dtype or shape expected.
            DataError: an instruction is empty, too long, or holds a control sign.
        """
        prepared = self._task(task)
        self.observe(observation)
        normalized, tokens = jax.device_get(self._act(self._params, (self._observations(self._history), prepared)))
        if self._prompts is not None:
            self.words = self._prompts.words(None if tokens is None else tokens[0])
        return self._actions.inverse(normalized[0])

    def warm_up(self) -> float:
        """Compiles, so that the first `act` is as fast as the others; returns the seconds that it took."""
        start = time.perf_counter()
        inputs = self._observations([self._blank["observation"]]), self._blank_task()
        jax.block_until_ready(self._act(self._params, inputs))
        return time.perf_counter() - start

    def _observations(self, history: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """A batch of one; the oldest observation is repeated where the history is short, as in training."""
        history = list(history)
        history = history[:1] * (self.spec.obs_horizon - len(history)) + history
        return {name: np.stack([step[name] for step in history])[None] for name in history[0]}

    def _task(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of one task, under the batch key that the agent reads."""
        if self._prompts is not None:
            return self._prompts.task(self._prompts.instruction(task))
        if "goals" not in self._blank:
            return {}
        goals = self._prepare("goals", task.get("goals", task))
        return {"goals": {name: x[None] for name, x in goals.items()}}

    def _blank_task(self) -> dict[str, Any]:
        if self._prompts is not None:
            return self._prompts.task(BLANK_INSTRUCTION)
        return {"goals": {name: x[None] for name, x in self._blank["goals"].items()}} if "goals" in self._blank else {}

    def _prepare(self, what: str, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Resizes images and normalizes proprio; what the agent does not read and nobody gives is blank."""
        missing = [name for name in self.needed[what] if name not in given]
        if missing:
            held = ", ".join(map(repr, given)) or "nothing"
            raise PolicyError(f"{what} lacks {missing[0]!r}; it holds {held}, and needs {self._expected(what)}")
        prepared = {name: np.zeros_like(blank) for name, blank in self._blank[what].items()}
        for name in [name for name in prepared if name in given]:
            value = np.asarray(given[name])
            fits = self._is_proprio(value) if name == _PROPRIO else _is_image(value)
            if not fits:
                found = f"{value.dtype}{list(value.shape)}"
                raise PolicyError(f"{what}[{name!r}] is {found}; expected {self._kind(name)}")
            if name == _PROPRIO and not np.isfinite(value).all():
                raise PolicyError(f"{what}[{name!r}] holds a value that is not finite: {value.tolist()}")
            prepared[name] = (
                self._proprio.forward(value) if name == _PROPRIO else resize(value[None], self.spec.image_size)[0]
            )
        return prepared

    def _is_proprio(self, value: np.ndarray) -> bool:
        return value.shape == (self.spec.proprio_dim,) and np.issubdtype(value.dtype, np.number)

    def _expected(self, what: str) -> str:
        return ", ".join(f"{name} {self._kind(name)}" for name in self.needed[what])

    def _kind(self, name: str) -> str:
        return f"float32[{self.spec.proprio_dim}] in robot units" if name == _PROPRIO else "uint8[height, width, 3]"


def _act(agent: Agent, params: Params, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
    """Normalized actions, and the tokens that were said before them, or None."""
    if "text" in agent.batch_keys:
        return tuple(agent.sample_actions(params, *inputs))
    return agent.act(params, *inputs), None


def _inputs_read(agent: Agent, params: Params, inputs: tuple[Any, Any]) -> dict[str, tuple[str, ...]]:
    """Which observations and goals the computation of an action reads, by name."""
    jaxpr = jax.make_jaxpr(functools.partial(_act, agent, params))(inputs).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(inputs)]
    used = [path for path, variable in zip(paths, jaxpr.invars) if id(variable) in read]
    observations = tuple(path[-1].key for path in used if len(path) == 2)
    return {"observation": observations, "goals": tuple(path[-1].key for path in used if path[1].key == "goals")}


def _is_image(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3 and value.size > 0
