"""A world for the linear agent: it is to make, at once, the movement that its state calls for."""

import jax
import numpy as np
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC, make_assets

from jaxvla.envs.evaluation import Course
from jaxvla.envs.rollout import WorldSpec
from jaxvla.envs.worlds import WORLDS, Kind, Scenario
from jaxvla.serving.policy import Policy

# How far off the movement may be, in deviations of the actions.
TOLERANCE = 0.3


class Reach:
    """One action an episode; the right one is that of `positional_batches.global_batch`."""

    spec = WorldSpec(("images0",), SPEC.proprio_dim, SPEC.action_dim)

    def __init__(self, level):
        self.task, self.assets = level, make_assets()

    def reset(self, *, seed, task=None):
        self.proprio = np.random.default_rng(seed).normal(size=SPEC.proprio_dim).astype(np.float32)
        return self._observation(), self._info()

    def step(self, action):
        normalized = self.assets.proprio_normalizer().forward(self.proprio)
        right = normalized @ np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2) + 0.5
        made = self.assets.action_normalizer().forward(action.astype(np.float32))
        success = bool(abs(made[0] - right[0]) < TOLERANCE)
        return self._observation(), float(success), success, not success, self._info()

    def _observation(self):
        return {**gray(), "proprio": self.proprio}

    def _info(self):
        return {"task": self.task, "instruction": "reach"}


def gray():
    return {"images0": np.full((8, 8, 3), 127, np.uint8)}


WORLDS["reach"] = Kind(lambda size, steps, level: Reach(level), lambda *_: gray())


def make_play(config, interrupt=lambda step, played: None):
    """For `loop.train`; `interrupt` is called after every episode."""
    agent, course = LinearAgent(SPEC), Course(Scenario("reach"))
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    policy = Policy(agent, shapes, make_assets(), robots=config.rollout.parallel)

    def play(params, step, report):
        policy.params = params

        def heard(successes, played, of):
            interrupt(step, played)
            return report(successes, played, of)

        last = step == config.num_steps
        tally = course.play(policy, config.rollout.last_episodes if last else config.rollout.episodes, heard)
        policy.params = shapes
        return tally

    return play
