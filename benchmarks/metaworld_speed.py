"""How fast Meta-World is: steps a second by size of pictures and number of worlds, and episodes a minute of a policy.

    python benchmarks/metaworld_speed.py
    python benchmarks/metaworld_speed.py --checkpoint runs/metaworld_lc_bc_20260101_120000

Prints Markdown tables. One world in this process is timed by the processor's time, which others on the machine take
little of. Several are processes, as in evaluations; each row also says how many times as fast as the first it is. With
--checkpoint the same episodes are played one at a time and side by side.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import flags

from jaxvla import cli
from jaxvla.envs.evaluation import Tally, evaluate
from jaxvla.envs.metaworld.protocols import PROTOCOLS, SUITES
from jaxvla.envs.metaworld.world import ACTION_DIM, MetaWorld
from jaxvla.envs.rollout import Pace
from jaxvla.envs.worlds import Scenario

FLAGS = flags.FLAGS
flags.DEFINE_list("image_sizes", ["64", "128", "224", "480"], "Pixels a side.")
flags.DEFINE_list("worlds", ["1", "2", "4", "8"], "Worlds that step side by side.")
flags.DEFINE_enum("protocol", "starvla", list(PROTOCOLS), "What the camera sees.")
flags.DEFINE_integer("repeats", 3, "Measurements, of which the median is printed.", lower_bound=1)
flags.DEFINE_float("seconds", 2.0, "Of one measurement.", lower_bound=0.1)
flags.DEFINE_string("checkpoint", "", "A policy to time evaluations of.")
flags.DEFINE_integer("episodes", 20, "Of such an evaluation.", lower_bound=1)


def rate(act: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """How often a second of the clock something can be done."""
    count, start = 0, clock()
    while (spent := clock() - start) < seconds or not count:
        act()
        count += 1
    return count / spent


def stepping(side: int, render: bool) -> Callable[[], object]:
    """Steps a world in this process; it begins anew where an episode ends."""
    world = MetaWorld(PROTOCOLS[FLAGS.protocol], side, render=render)
    world.reset(seed=0, task="push-v3")

    def step() -> None:
        _, _, success, truncated, _ = world.step(np.zeros(ACTION_DIM))
        if success or truncated:
            world.reset(seed=0, task="push-v3")

    return step


def together(count: int, side: int, seconds: float) -> float:
    """Steps a second of so many worlds in all, each in a process of its own, as evaluations play them."""
    scenario = Scenario("metaworld", FLAGS.protocol, ("push-v3",), side, 10**9)
    worlds = [scenario.make() for _ in range(count)]
    with contextlib.ExitStack() as stack:
        for world in worlds:
            stack.callback(world.close)
        threads = stack.enter_context(ThreadPoolExecutor(count))
        list(threads.map(lambda pair: pair[1].reset(seed=pair[0], task="push-v3"), enumerate(worlds)))
        act = np.zeros(ACTION_DIM)
        return count * rate(lambda: list(threads.map(lambda world: world.step(act), worlds)), seconds)


def episodes_a_minute(robots: int) -> tuple[float, Tally]:
    """Of the policy, so many side by side, compilation left out; and what they came to."""
    from jaxvla.serving.policy import load_policy

    policy = load_policy(FLAGS.checkpoint, robots=robots)
    policy.warm_up()
    (side,) = {side for camera in policy.contract.cameras.values() for side in camera.stored_size or camera.policy_size}
    scenario = Scenario("metaworld", FLAGS.protocol, SUITES["mt10"], side)
    start = time.perf_counter()
    results = list(evaluate(policy, scenario, range(FLAGS.episodes), PROTOCOLS[FLAGS.protocol].seed, Pace()))
    return 60 * len(results) / (time.perf_counter() - start), Tally.of(results)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def main(_: list[str]) -> None:
    sizes, counts = ([int(word) for word in FLAGS[name].value] for name in ("image_sizes", "worlds"))

    def median(measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(FLAGS.repeats))

    print(f"{os.cpu_count()} cores, protocol {FLAGS.protocol}; medians of {FLAGS.repeats}\n")
    clock = time.process_time
    blind = median(lambda: rate(stepping(64, render=False), FLAGS.seconds, clock))
    rows = [["none", f"{blind:.0f}", ""]]
    for side in sizes:
        step = stepping(side, render=True)
        seen = median(lambda step=step: rate(step, FLAGS.seconds, clock))
        rows.append([f"{side} px", f"{seen:.0f}", f"{1000 / seen - 1000 / blind:.1f}"])
    print(table(["pictures", "steps a second of the processor", "ms a picture"], rows), flush=True)
    rates = {count: median(lambda count=count: together(count, sizes[0], FLAGS.seconds)) for count in counts}
    first = rates[counts[0]]
    rows = [[str(count), f"{each:.0f}", f"{each / first:.2f}"] for count, each in rates.items()]
    print(table([f"worlds, {sizes[0]} px", "steps a second", f"of {counts[0]}"], rows), flush=True)
    if FLAGS.checkpoint:
        played = {count: episodes_a_minute(count) for count in dict.fromkeys((1, counts[-1]))}
        first = played[1][0]
        rows = [
            [str(count), f"{each:.1f}", f"{each / first:.2f}", str(tally)] for count, (each, tally) in played.items()
        ]
        print(table(["side by side", "episodes a minute", "of 1", "successes"], rows))


if __name__ == "__main__":
    cli.run(main)
