"""Runs a trained policy in closed loop in the embedded tabletop, and counts successes.

    python experiments/eval.py --checkpoint runs/ecot_20260101_120000 --modes implicit,explicit,none

A policy that is conditioned on language gets the instruction; one conditioned on goals gets the last frame of the
scripted expert's demonstration of the same episode. The episodes depend on --seed alone, so that policies can be
compared on the same ones.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.envs.expert import demonstrate
from jaxvla.envs.tabletop import TabletopEnv
from jaxvla.envs.tasks import TASKS
from jaxvla.errors import ConfigError

if TYPE_CHECKING:
    from jaxvla.serving.policy import Policy

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run folder, or the folder of one of its checkpoints.", required=True)
flags.DEFINE_integer("step", None, "Which checkpoint of a run folder; the latest where it is not given.")
flags.DEFINE_list("modes", [], "How to reason: implicit, explicit, none; the configuration's where it is not given.")
flags.DEFINE_integer("episodes", 50, "Episodes for each mode.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "What the episodes are drawn from; other numbers than those of demonstrations.")
flags.DEFINE_integer("execute_steps", 0, "Actions of a chunk to play before the next decision; 0 for all.")
flags.DEFINE_integer("image_size", 128, "Pixels a side of what the cameras see.", lower_bound=16)
flags.DEFINE_integer("max_steps", 60, "Steps after which an episode has failed.", lower_bound=1)
flags.DEFINE_string("output_path", "", "A JSON file for the results of every episode.")

# Keeps these episodes apart from those of make_sample_bridgedata.py, whose seeds have three parts, too.
_STREAM = 1 << 31
_Z = 1.96


def main(_: list[str]) -> None:
    from jaxvla.serving.policy import load_policy

    results = {}
    for mode in FLAGS.modes or [None]:
        policy = load_policy(FLAGS.checkpoint, FLAGS.step, mode)
        if not 0 <= FLAGS.execute_steps <= policy.spec.action_horizon:
            raise ConfigError(f"--execute_steps must be 0 to {policy.spec.action_horizon}, not {FLAGS.execute_steps}")
        print(f"{mode or 'policy'}: compiled in {policy.warm_up():.1f} s", flush=True)
        numbers = tqdm.trange(FLAGS.episodes, desc=mode or "policy", unit="episode", leave=False)
        results[mode or "policy"] = [run_episode(policy, episode_seed(FLAGS.seed, i)) for i in numbers]
    print(table(results))
    if FLAGS.output_path:
        report = {"checkpoint": str(FLAGS.checkpoint), "seed": FLAGS.seed, "episodes": results}
        pathlib.Path(FLAGS.output_path).write_text(json.dumps(report, indent=1))


def episode_seed(seed: int, number: int) -> int:
    """The tabletop's seed of one episode."""
    return int(np.random.SeedSequence([seed, number, _STREAM]).generate_state(1)[0])


def run_episode(policy: "Policy", seed: int) -> dict[str, Any]:
    """Acts until the task is done or time is up; gives task, success, steps, milliseconds per decision, and words."""
    env = TabletopEnv(FLAGS.image_size, max_steps=FLAGS.max_steps)
    goal = _last_frame(seed) if policy.needed.get("goals") else {}
    observation, info = env.reset(seed=seed)
    task = {"goals": goal, "language": info["instruction"]}
    policy.reset()
    milliseconds, words, done = [], "", False
    while not done:
        start = time.perf_counter()
        chunk = policy.act(observation, task)[: FLAGS.execute_steps or None]
        milliseconds.append(1000 * (time.perf_counter() - start))
        words = words or policy.words
        for i, action in enumerate(chunk):
            if i:
                policy.observe(observation)
            # BridgeData's robots open and close the gripper all the way.
            observation, _, success, truncated, info = env.step(np.append(action[:-1], action[-1] > 0.5))
            done = success or truncated
            if done:
                break
    return {
        "seed": seed,
        "task": info["task"],
        "instruction": info["instruction"],
        "success": bool(info["success"]),
        "decisions": len(milliseconds),
        "milliseconds": float(np.median(milliseconds)),
        "first_words": words,
    }


def _last_frame(seed: int) -> Mapping[str, np.ndarray]:
    env = TabletopEnv(FLAGS.image_size, max_steps=FLAGS.max_steps)
    *_, (observation, _) = demonstrate(env, seed)
    return observation


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % score interval of a success rate (Wilson, 1927)."""
    rate, n = successes / episodes, episodes
    centre = rate + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n * n))
    return (centre - spread) / (1 + _Z**2 / n), (centre + spread) / (1 + _Z**2 / n)


def table(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """One row per mode: success with its interval, over all tasks and each, and the time of a decision."""
    lines = [f"{'mode':<10}{'success':>9}{'95 % interval':>17}{'ms/decision':>13}" + _columns(str, TASKS)]
    for mode, episodes in results.items():
        wins = sum(episode["success"] for episode in episodes)
        low, high = wilson(wins, len(episodes))
        speed = np.median([episode["milliseconds"] for episode in episodes])
        row = f"{mode:<10}{wins:>5}/{len(episodes):<3}{f'{low:.0%} to {high:.0%}':>17}{speed:>13.1f}"
        lines.append(row + _columns(lambda task, own=episodes: _share(own, task), TASKS))
    return "\n".join(lines)


def _columns(show: Callable[[str], str], names: tuple[str, ...]) -> str:
    return "".join(f"{show(name):>18}" for name in names)


def _share(episodes: list[dict[str, Any]], task: str) -> str:
    own = [episode["success"] for episode in episodes if episode["task"] == task]
    return f"{sum(own)}/{len(own)}"


if __name__ == "__main__":
    cli.run(main)
