"""Meta-World's scripted experts, with what they are about at each step, and the demonstrations that they give."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxvla.envs.metaworld.graphics import choose_graphics
from jaxvla.envs.metaworld.tasks import TASKS
from jaxvla.envs.metaworld.world import ACTION_DIM, MetaWorld
from jaxvla.envs.rollout import Observation

# A push lasts some steps, in one direction of a length up to PUSH_LENGTH of an action's unit.
PUSH_STEPS, PUSH_LENGTH = (2, 6), 1.0

# While an expert errs it takes the hand for being this far from where it is (m), for so many steps.
ERROR_NEAR, ERROR_FAR, ERROR_STEPS = 0.02, 0.05, (4, 16)

# Exploration noise of the way: standard deviation in an action's unit, and its correlation with the step before.
NOISE, NOISE_MEMORY = 0.1, 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What an expert does at one step, and why.

    Attributes:
        phase: which of the ways in which it decides, a key of `tasks.PHASES`.
        waypoint: float64 [3], where the hand is heading, m.
        action: float32 [4], within [-1, 1], what the expert wants.
        played: likewise, what the world gets: `action` with noise, or a push in its place.
        taught: whether it is to be imitated; not where something pushes the hand, nor where the expert errs.
    """

    phase: str
    waypoint: np.ndarray
    action: np.ndarray
    played: np.ndarray
    taught: bool = True


class Expert:
    """Decides one step at a time; reads the truth from `world` and never changes it.

    Args:
        world: after `reset`.
        rng: of noise, pushes and errors.
        push_rate, error_rate: the probability with which a push, or an error, begins at a step.
    """

    def __init__(
        self, world: MetaWorld, rng: np.random.Generator, push_rate: float = 0.0, error_rate: float = 0.0
    ) -> None:
        self._world, self._rng = world, rng
        self._rates = {"push": push_rate, "error": error_rate}
        self._steps = dict.fromkeys(self._rates, 0)
        self._ways = {name: np.zeros(3) for name in self._rates}
        self._noise = np.zeros(3)
        self._policy, self._heading = _policy_of(world.task)

    def decide(self) -> Decision:
        """The decision for the state that the world is in."""
        erring = self._goes_on("error", ERROR_STEPS, ERROR_NEAR, ERROR_FAR)
        pushed = self._goes_on("push", PUSH_STEPS, PUSH_LENGTH / 2, PUSH_LENGTH)
        seen = self._world.facts.copy()
        if erring:
            seen[:3] += self._ways["error"]
        number, waypoint = self._heading(self._policy, seen.copy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that actions are clipped
            action = np.clip(np.asarray(self._policy.get_action(seen), np.float64), -1, 1)
        played = action.copy()
        if any(self._rates.values()):
            fresh = NOISE * self._rng.standard_normal(3)
            self._noise = NOISE_MEMORY * self._noise + np.sqrt(1 - NOISE_MEMORY**2) * fresh
            played[:3] = self._ways["push"] if pushed else np.clip(action[:3] + self._noise, -1, 1)
        phase = TASKS[self._world.task].phases[number]
        actions = action.astype(np.float32), played.astype(np.float32)
        return Decision(phase, waypoint, *actions, taught=not (pushed or erring))

    def _goes_on(self, name: str, steps: tuple[int, int], near: float, far: float) -> bool:
        """Whether a push or an error goes on, or begins, at this step; draws its way as it begins."""
        if self._steps[name]:
            self._steps[name] -= 1
        elif self._rates[name] and self._rng.random() < self._rates[name]:
            way = self._rng.standard_normal(3)
            self._ways[name] = way / np.linalg.norm(way) * self._rng.uniform(near, far)
            self._steps[name] = int(self._rng.integers(*steps))
        return self._steps[name] > 0


def demonstrate(
    world: MetaWorld, seed: int, task: str, *, push_rate: float = 0.0, error_rate: float = 0.0
) -> Iterator[tuple[Observation, Decision | None]]:
    """Runs one episode and yields each frame with the expert's decision for it; the last frame with None.

    Args:
        world: between two yields it holds the frame just yielded; `world.done` at the end says whether it succeeded.
        seed, task: of the episode.
        push_rate, error_rate: see `Expert`; they show how one recovers.
    """
    observation, _ = world.reset(seed=seed, task=task)
    expert = Expert(world, np.random.default_rng([seed, 1]), push_rate, error_rate)
    for _ in range(world.max_steps):
        decision = expert.decide()
        yield observation, decision
        observation, *_ = world.step(decision.played)
        if world.done:
            break
    yield observation, None


Heading = Callable[[Any, np.ndarray], tuple[int, np.ndarray]]  # of a policy and its observation


@functools.cache
def _policy_of(task: str) -> tuple[Any, Heading]:
    """The expert of a task, and what gives the number of the way in which it decides, and its waypoint [3]."""
    choose_graphics()
    import metaworld.policies

    policies = {name.lower(): getattr(metaworld.policies, name) for name in metaworld.policies.__all__}
    words = task.removesuffix("-v3").replace("-", "").replace("peginsert", "peginsertion")
    policy = policies[f"sawyer{words}v3policy"]()
    own = _WITHOUT.get(task) or _numbered(policy._desired_pos)

    def heading(policy: Any, seen: np.ndarray) -> tuple[int, np.ndarray]:
        number, waypoint = own(policy._parse_obs(seen))
        return number, np.broadcast_to(np.asarray(waypoint, np.float64), (ACTION_DIM - 1,)).copy()

    return policy, heading


def ways_of(task: str) -> int:
    """In how many ways the expert of a task decides: the returns of its code."""
    if task in _WITHOUT:
        return {"reach-v3": 1, "drawer-open-v3": 3}[task]
    return _returns(_policy_of(task)[0]._desired_pos)[1]


def _numbered(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], tuple[int, np.ndarray]]:
    """A function that gives, beside what `function` returns, by which of its returns, counted from 0.

    An expert is a chain of conditions, each of which ends in a waypoint, so that this names its phase.
    """
    tree, _ = _returns(function)
    names = dict(inspect.unwrap(function).__globals__)
    exec(compile(tree, inspect.getfile(function), "exec"), names)
    return names[function.__name__]


def _returns(function: Callable[..., Any]) -> tuple[ast.Module, int]:
    """The code of a function whose returns are numbered, and how many there are."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    found = [node for node in ast.walk(definition) if isinstance(node, ast.Return)]
    for number, node in enumerate(sorted(found, key=lambda node: node.lineno)):
        node.value = ast.Tuple([ast.Constant(number), node.value], ast.Load())
    return ast.fix_missing_locations(tree), len(found)


def _reach(seen: Mapping[str, np.ndarray]) -> tuple[int, np.ndarray]:
    return 0, seen["goal_pos"]


def _drawer_open(seen: Mapping[str, np.ndarray]) -> tuple[int, np.ndarray]:
    hand, drawer = seen["hand_pos"], seen["drwr_pos"] + np.array([0.0, 0.0, -0.02])
    if np.linalg.norm(hand[:2] - drawer[:2]) > 0.06:
        return 0, drawer + np.array([0.0, 0.0, 0.3])
    if abs(hand[2] - drawer[2]) > 0.04:
        return 1, drawer
    return 2, drawer + np.array([0.0, -0.06, 0.0])


# The two experts that decide within `get_action`.
_WITHOUT = {"reach-v3": _reach, "drawer-open-v3": _drawer_open}
