"""How fast the embedded tabletop is: pictures drawn, and steps of demonstrations with and without pictures.

    python benchmarks/tabletop.py --image_size 64

Prints one row for each level: pictures per second of rendering alone, on one core and with a process on each core, and
steps per second of the scripted expert's demonstrations on one core.
"""

import concurrent.futures
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from jaxvla import cli
from jaxvla.envs.expert import demonstrate
from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.scene import LEVELS
from jaxvla.envs.tabletop import TabletopEnv

FLAGS = flags.FLAGS
flags.DEFINE_integer("image_size", 64, "Pixels a side.", lower_bound=16)
flags.DEFINE_integer("repeats", 5, "Measurements, of which the median is printed.", lower_bound=1)
flags.DEFINE_float("seconds", 1.0, "Of one measurement.", lower_bound=0.1)


def pictures_per_second(level: str, image_size: int, seconds: float) -> float:
    """Of rendering alone, over several scenes, in this process."""
    envs = [TabletopEnv(image_size, level=level) for _ in range(8)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for env in envs:
            env.observation()
        count += len(envs) * len(CAMERAS)
    return count / (time.perf_counter() - start)


def steps_per_second(level: str, image_size: int, seconds: float, render: bool) -> float:
    """Of demonstrations, scenes and expert included."""
    env = TabletopEnv(image_size, render=render, level=level)
    steps, seed, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        steps += sum(1 for _ in demonstrate(env, seed))
        seed += 1
    return steps / (time.perf_counter() - start)


def main(_: list[str]) -> None:
    size, seconds, cores = FLAGS.image_size, FLAGS.seconds, os.cpu_count()

    def median(measure: Callable[..., float], *args: Any) -> float:
        return statistics.median(measure(*args) for _ in range(FLAGS.repeats))

    print(f"{size} px, {cores} cores; medians of {FLAGS.repeats}")
    print(f"{'level':<8}{'pictures/s':>12}{f'on {cores} cores':>14}{'steps/s':>10}{'without pictures':>18}")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as pool:

        def together(level: str) -> float:
            return sum(pool.map(pictures_per_second, [level] * cores, [size] * cores, [seconds] * cores))

        together("one")  # the processes start
        for level in LEVELS:
            alone = median(pictures_per_second, level, size, seconds)
            drawn, plain = (median(steps_per_second, level, size, seconds, render) for render in (True, False))
            print(f"{level:<8}{alone:>12.0f}{median(together, level):>14.0f}{drawn:>10.0f}{plain:>18.0f}")


if __name__ == "__main__":
    cli.run(main)
