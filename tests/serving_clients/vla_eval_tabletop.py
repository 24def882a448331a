"""In the environment of vla-eval: its own orchestrator, runner and connection play the tabletop. See test_clients.py.

python vla_eval_tabletop.py ADDRESS EPISODES SIZE STEPS RESULTS.json
"""

import json
import sys

import anyio
import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.orchestrator import Orchestrator
from vla_eval.specs import GRIPPER_01, IMAGE_RGB, LANGUAGE

from jaxvla.envs.evaluation import episodes
from jaxvla.envs.worlds import Scenario

STATES = {}


class Tabletop(StepBenchmark):
    """The episodes of experiments/eval.py, one task of the harness for each."""

    render_backends = frozenset({"cpu", "gpu"})

    @classmethod
    def configure_render(cls, mode):
        return {}

    def __init__(self, count, size, steps, seed=0):
        super().__init__()
        self._scenario = Scenario("tabletop", "full", (), size, steps)
        self._episodes = {
            str(episode.number): episode for episode in episodes(self._scenario, range(count), True, seed)
        }
        self._world = self._scenario.make()

    def get_tasks(self):
        return [{"name": name} for name in self._episodes]

    def reset(self, task):
        episode = self._episodes[task["name"]]
        self._goals = episode.goals
        observation, self._info = self._world.reset(seed=episode.seed, task=episode.task)
        self._states = STATES.setdefault(task["name"], [])
        self._states.append(observation["proprio"].tolist())
        return observation

    def step(self, action):
        action_d = np.asarray(action["actions"])
        whole = np.append(action_d[:-1], action_d[-1] > 0.5)
        observation, reward, success, truncated, self._info = self._world.step(whole)
        self._success = bool(success)
        self._states.append(observation["proprio"].tolist())
        return StepResult(observation, reward, bool(success or truncated), {})

    def make_obs(self, raw_obs, task):
        images = {name: value for name, value in raw_obs.items() if name != "proprio"}
        own = {"images": images, "states": raw_obs["proprio"], "task_description": self._info["instruction"]}
        return {**own, "goals": dict(self._goals)}

    def get_step_result(self, step_result):
        return {"success": self._success}

    def get_metadata(self):
        return {"max_steps": 10_000}

    def get_action_spec(self):
        return {"gripper": GRIPPER_01}

    def get_observation_spec(self):
        return {"images0": IMAGE_RGB, "language": LANGUAGE}


def main(address, count, size, steps, path):
    benchmark = {
        "benchmark": f"{__spec__.name if __spec__ else 'vla_eval_tabletop'}:Tabletop",
        "params": {"count": int(count), "size": int(size), "steps": int(steps), "seed": 0},
        "episodes_per_task": 1,
    }
    sys.modules["vla_eval_tabletop"] = sys.modules[__name__]
    config = {"server": {"url": address}, "render": "cpu", "benchmarks": [benchmark], "output_dir": f"{path}_results"}
    (result,) = anyio.run(Orchestrator(config, no_save=True).run)
    with open(path, "w") as file:
        json.dump({"result": result, "states": STATES}, file, default=str)


if __name__ == "__main__":
    main(*sys.argv[1:])
