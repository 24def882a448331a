"""How often Meta-World's experts succeed in our world, by task.

    python benchmarks/metaworld_experts.py
    python benchmarks/metaworld_experts.py --push_rate 0.02 --error_rate 0.01

Prints a Markdown table of 50 tasks: successes, and steps to them. Nothing is drawn.
"""

import statistics

from absl import flags

from jaxvla import cli
from jaxvla.envs.evaluation import wilson
from jaxvla.envs.metaworld.expert import demonstrate
from jaxvla.envs.metaworld.protocols import PROTOCOLS
from jaxvla.envs.metaworld.tasks import TASKS
from jaxvla.envs.metaworld.world import MetaWorld

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 5, "Episodes of each task.", lower_bound=1)
flags.DEFINE_integer("max_steps", 250, "Steps after which one has failed.", lower_bound=1)
flags.DEFINE_float("push_rate", 0.0, "See data_processing/make_metaworld_demos.py.", lower_bound=0, upper_bound=1)
flags.DEFINE_float("error_rate", 0.0, "See data_processing/make_metaworld_demos.py.", lower_bound=0, upper_bound=1)


def main(_: list[str]) -> None:
    world = MetaWorld(PROTOCOLS["lerobot"], 64, FLAGS.max_steps, render=False)
    rates = {"push_rate": FLAGS.push_rate, "error_rate": FLAGS.error_rate}
    won = 0
    print("| task | successes | steps, median |\n| --- | --- | --- |")
    for task in TASKS:
        steps = []
        for seed in range(FLAGS.seeds):
            count = sum(1 for _ in demonstrate(world, seed, task, **rates)) - 1
            steps += [count] if world.done else []
        won += len(steps)
        print(
            f"| {task} | {len(steps)} of {FLAGS.seeds} | {statistics.median(steps) if steps else 'none'} |", flush=True
        )
    total = len(TASKS) * FLAGS.seeds
    low, high = wilson(won, total)
    print(f"| all | {won} of {total}, {won / total:.1%} ({low:.1%} to {high:.1%}) | |")


if __name__ == "__main__":
    cli.run(main)
