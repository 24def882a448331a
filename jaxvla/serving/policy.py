"""A trained agent as a robot sees it: raw observation in, action in robot units out."""

import collections
import pathlib
import time
from collections.abc import Mapping
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

_PROPRIO = "proprio"


def load_policy(folder: str | pathlib.Path, step: int | None = None) -> "Policy":
    """Loads a policy from a run folder or the folder of one checkpoint; nothing else is needed.

    Args:
        folder: what training wrote.
        step: which checkpoint of a run folder; None for the latest.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    path = find_checkpoint(folder, step, items=("params", "assets"))
    assets = read_assets(path)
    agent = make_agent(assets.agent, assets.agent_kwargs, assets.spec)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    return Policy(agent, restore(path, {"params": abstract})["params"], assets)


class Policy:
    """Acts for one robot. Holds the last `spec.obs_horizon` observations; call `reset` between episodes.

    Args:
        agent: what was trained.
        params: its parameters, on the device that is to compute.
        assets: of its checkpoint.

    Attributes:
        spec: cameras, image size (height, width), horizons and dimensions.
        needed: the names that an observation and a goal must hold, by "observation" and "goals": those that the agent's
            computation reads.
    """

    def __init__(self, agent: Agent, params: Params, assets: Assets) -> None:
        self.spec = assets.spec
        self._params = params
        self._actions = assets.action_normalizer()
        self._proprio = assets.proprio_normalizer()
        self._history: collections.deque[dict[str, np.ndarray]] = collections.deque(maxlen=self.spec.obs_horizon)
        blank = self.spec.fake_batch(1, ("observations", "goals"), np.random.default_rng(0))
        self._blank = {"observation": {k: x[0, 0] for k, x in blank["observations"].items()}}
        if "goals" in agent.batch_keys:
            self._blank["goals"] = {k: x[0] for k, x in blank["goals"].items()}
        self.needed = _inputs_read(agent, params, blank)
        self._act = jax.jit(lambda params, inputs: agent.act(params, *inputs))

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
        """The most likely action chunk, soonest first, in robot units.

        Args:
            observation: {camera: uint8 [H, W, 3] of any size, "proprio": [p] in robot units}, at least those that are
                `needed`; others are not looked at.
            task: {"goals": {camera: uint8 [H, W, 3], ...}}, or that inner mapping itself.

        Raises:
            PolicyError: a value is missing, or not of the dtype or shape expected.
        """
        goals = self._prepare("goals", task.get("goals", task)) if "goals" in self._blank else None
        self.observe(observation)
        normalized = self._act(self._params, self._inputs(list(self._history), goals))
        return self._actions.inverse(np.asarray(normalized)[0])

    def warm_up(self) -> float:
        """Compiles, so that the first `act` is as fast as the others; returns the seconds that it took."""
        start = time.perf_counter()
        inputs = self._inputs([self._blank["observation"]], self._blank.get("goals"))
        jax.block_until_ready(self._act(self._params, inputs))
        return time.perf_counter() - start

    def _inputs(self, history: list[dict[str, np.ndarray]], goals: dict[str, np.ndarray] | None) -> tuple[Any, Any]:
        """Batches of one; the oldest observation is repeated where the history is short, as in training."""
        history = history[:1] * (self.spec.obs_horizon - len(history)) + history
        observations = {name: np.stack([step[name] for step in history])[None] for name in history[0]}
        return observations, {} if goals is None else {"goals": {name: x[None] for name, x in goals.items()}}

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


def _inputs_read(agent: Agent, params: Params, blank: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Which observations and goals the computation of an action reads, by name."""
    task = {"goals": blank["goals"]} if "goals" in agent.batch_keys else {}

    def act(inputs: tuple[Any, Any]) -> Any:
        return agent.act(params, *inputs)

    inputs = (blank["observations"], task)
    jaxpr = jax.make_jaxpr(act)(inputs).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(inputs)]
    used = [path for path, variable in zip(paths, jaxpr.invars) if id(variable) in read]
    observations = tuple(path[-1].key for path in used if len(path) == 2)
    return {"observation": observations, "goals": tuple(path[-1].key for path in used if len(path) == 3)}


def _is_image(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3 and value.size > 0
