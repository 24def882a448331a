"""Trains a policy.

    python experiments/train.py --config train_config.py:gc_bc --bridgedata_config data_config.py:bdv2_local

Config files are found by path, or by bare name in configs/. Any value is overridden by its path, as in
--config.batch_size=128 or --bridgedata_config.data_path=/data/bridge. The run folder gets the metrics, plots and
checkpoints; --config.resume_path=RUN_FOLDER goes on where a run stopped.
"""

import dataclasses
import json
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from jaxvla import cli

# jax, flax, grain and orbax take seconds to import: main does it, so that --help and mistakes answer at once.
if TYPE_CHECKING:
    from jaxvla.assets import Assets
    from jaxvla.envs.evaluation import Tally
    from jaxvla.envs.worlds import Scenario
    from jaxvla.training.config import RolloutConfig
    from jaxvla.training.job import Job
    from jaxvla.training.loop import Summary

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
DEBUG = {"num_steps": 4, "log_interval": 1, "eval_interval": 2, "eval_batches": 1, "save_interval": 4}
DEBUG_ROLLOUT = {"episodes": 2, "last_episodes": 2, "interval": 4, "parallel": 2}
# Films of the last rollout's first episodes.
FILMS = 4

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET, such as train_config.py:gc_bc.")
config_flags.DEFINE_config_file(
    "bridgedata_config", None, "What to train on: FILE:PRESET, such as data_config.py:sample."
)
flags.DEFINE_string("name", "", "The run folder is SAVE_DIR/NAME_DATE_TIME; the agent's name where this is empty.")
flags.DEFINE_bool(
    "debug", False, "A rehearsal: 4 steps, one validation batch, one checkpoint, an error at the first NaN."
)
flags.DEFINE_string("coordinator", "", "For several processes: HOST:PORT of process 0, or 'auto' under a launcher.")
flags.DEFINE_integer("num_processes", None, "How many processes the job has, with --coordinator=HOST:PORT.")
flags.DEFINE_integer(
    "heartbeat_seconds", 100, "Of several processes, one that was not heard of for so long counts as dead: all end."
)
flags.DEFINE_integer("start_seconds", 300, "How long several processes wait for each other when they start.")
flags.DEFINE_bool(
    "resume",
    False,
    "The run folder is SAVE_DIR/NAME: go on from its latest checkpoint, or begin where there is none. For launchers "
    "that start the same command again.",
)
flags.DEFINE_integer(
    "interrupted_code",
    0,
    "The exit code of a run that a signal stopped, with a checkpoint; such as 75 for launchers that start it again.",
)
flags.DEFINE_bool("hide_latency", False, "XLA's flags for GPUs that overlap communication with computation.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, with --coordinator=HOST:PORT.")


def main(_: list[str]) -> None:
    settings, source_settings = cli.read_configs("gc_bc", "bdv2_local")
    if FLAGS.debug:
        rollout = {**settings.get("rollout", {}), **DEBUG_ROLLOUT}
        settings |= DEBUG | {"rollout": rollout, "wandb": {**settings["wandb"], "enabled": False}}
    from jaxvla.parallel import compilation, distributed

    if FLAGS.hide_latency:
        compilation.hide_latency()
    compilation.make_room()
    compilation.keep_programs()
    seconds = FLAGS.heartbeat_seconds, FLAGS.start_seconds
    distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, *seconds)
    with distributed.together(FLAGS.heartbeat_seconds):
        interrupted = train(settings, source_settings)
    if interrupted and FLAGS.interrupted_code:
        sys.exit(FLAGS.interrupted_code)


def train(settings: dict[str, Any], source_settings: dict[str, Any]) -> bool:
    """One run from plain settings; see the modules that it wires together. Returns whether a signal stopped it."""
    import jax

    from jaxvla.parallel.feed import process_rows
    from jaxvla.parallel.mesh import make_mesh
    from jaxvla.parallel.sharding import batch_sharding
    from jaxvla.training import folders, loop
    from jaxvla.training.job import open_job, read_train_config

    if FLAGS.resume:
        path, step = folders.begun(settings["save_dir"], FLAGS.name, settings["num_steps"])
        settings |= {"resume_path": path}
        if step >= settings["num_steps"]:
            print(f"{path} is complete, at step {step}")
            return False
    jax.config.update("jax_debug_nans", FLAGS.debug)
    config = read_train_config(settings)
    folders.check_paths(config)
    scenario = open_scenario(config.rollout)
    job = open_job(settings, source_settings)
    closed_loop = None if scenario is None else ClosedLoop(job, scenario)
    mesh = make_mesh(job.config.mesh)
    rows = process_rows(batch_sharding(mesh), job.config.batch_size)
    run = folders.run_folder(job.config, FLAGS.name, FLAGS.resume)
    if jax.process_index() == 0:
        introduce(run, job, mesh)
    batches = job.training_batches(rows)
    summary = loop.train(
        job.config,
        job.agent,
        mesh,
        batches,
        lambda step: job.validation_batches(step, rows),
        job.assets,
        run,
        pretrained=job.pretrained,
        play=None if closed_loop is None else closed_loop.play,
        drawn=job.drawn,
        stages=job.stages(),
    )
    batches.close()
    if jax.process_index() == 0:
        conclude(summary, run, job)
        if summary.rollout is not None:
            films = closed_loop.save_films(run / "videos", f"step{closed_loop.played_at}")
            print("films        " + f"\n{'':<13}".join(map(str, films)))
    return summary.interrupted


def open_scenario(config: "RolloutConfig") -> "Scenario | None":
    """What rollouts play; None where there are none.

    Raises:
        ConfigError: there is no such world, level or task.
    """
    from jaxvla.envs.worlds import Scenario
    from jaxvla.errors import ConfigError

    try:
        return Scenario(config.world, config.level, config.tasks) if config.world else None
    except ConfigError as error:
        raise ConfigError(f"config.rollout: {error}") from error


class ClosedLoop:
    """Plays the rollouts of a run, see `loop.train`.

    Raises:
        ConfigError: the policy does not fit the world, or it cannot be said what the cameras of the world see.
    """

    def __init__(self, job: "Job", scenario: "Scenario") -> None:
        from jaxvla.envs.evaluation import Course
        from jaxvla.envs.rollout import check_fit
        from jaxvla.serving.live import LivePolicy

        self._config, self._num_steps = job.config.rollout, job.config.num_steps
        most = max(self._config.episodes, self._config.last_episodes)
        assets = of_rollouts(job)
        self._live = LivePolicy(assets, min(self._config.parallel, most))
        policy = self._live.policy
        own = policy.needed, policy.spec.proprio_dim, policy.spec.action_dim
        check_fit(scenario.world, scenario.make().spec, *own)
        size = self._config.camera_size or stored_side(assets)
        self._course = Course(dataclasses.replace(scenario, image_size=size), FILMS)
        self.played_at = 0

    def play(self, params: Any, step: int, report: Any) -> "Tally | None":
        """One rollout; more episodes after the last step."""
        count = self._config.last_episodes if step == self._num_steps else self._config.episodes
        with self._live.at(step, params) as policy:
            tally = self._course.play(policy, count, report)
        self.played_at = self.played_at if tally is None else step
        return tally

    def save_films(self, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
        """Films of the last rollout that came to its end."""
        return self._course.save_films(folder, name)


def of_rollouts(job: "Job") -> "Assets":
    """The assets of the dataset in whose units rollouts act.

    Raises:
        ConfigError: there are several, and config.rollout.dataset names none of them.
    """
    from jaxvla.errors import ConfigError

    try:
        return job.assets.of(job.config.rollout.dataset or None)
    except ConfigError as error:
        raise ConfigError(f"config.rollout.dataset: {error}") from error


def stored_side(assets: "Assets") -> int:
    """Pixels a side of the stored frames, which a world shows as they are.

    Raises:
        ConfigError: they are not squares of one size.
    """
    from jaxvla.errors import ConfigError

    sizes = {assets.stored_sizes.get(camera, ()) for camera in assets.robot_spec.cameras}
    sides = {side for size in sizes for side in size}
    if len(sizes) == len(sides) == 1:
        return sides.pop()
    shown = ", ".join(" x ".join(map(str, size)) or "several sizes" for size in sorted(sizes))
    raise ConfigError(
        f"config.rollout.camera_size is 0, but the frames are stored as {shown}, not as squares of one size: set it to "
        "the pixels a side that the world's cameras see"
    )


def introduce(run: pathlib.Path, job: "Job", mesh: Any) -> None:
    """Says what is about to happen, and writes config.json and dataset_statistics.json to a new run folder."""
    import jax

    assets = job.assets.to_json()
    configs = {"config": assets["train_config"], "bridgedata_config": assets["data_config"]}
    if not (run / "config.json").exists():
        configs["command"] = shlex.join(["python", *sys.argv])
        (run / "config.json").write_text(json.dumps(configs, indent=1))
        of_each = {name: dataset["statistics"] for name, dataset in assets["datasets"].items()}
        (run / "dataset_statistics.json").write_text(json.dumps(of_each or assets["statistics"], indent=1))
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"run folder   {run}")
    for name, mixture in (("training", job.training), ("validation", job.validation)):
        counts = f"{mixture.num_trajectories} trajectories, {mixture.num_transitions} transitions"
        print(f"{name:<12} {counts}, {len(mixture.paths)} files")
    if shares := job.training.describe():
        print("mixture      " + f"\n{'':<13}".join(shares))
    print("actions      " + f"\n{'':<13}".join(job.training.describe_actions()))
    if job.training.config.action_horizon > 1:
        share = f"{job.training.padded_share:.1%} of their slots carry no loss: behind an end, or not taught"
        print(f"             chunks of {job.training.config.action_horizon}; {share}")
    contracts = [(name, job.assets.of(name).contract()) for name in job.assets.names]
    plays = (f"{contract}  [{name}]" if len(contracts) > 1 else f"{contract}" for name, contract in contracts)
    print("plays        " + f"\n{'':<13}".join(plays))
    lines = dict.fromkeys((*job.training.report, *job.validation.report))  # both may be parts of the same files
    print("".join(f"{line}\n" for line in lines), end="")
    if job.texts is not None:
        print("\n".join(job.texts.report))
        for first, stage in job.texts.wording.curriculum.config.schedule:
            spec = job.texts.wording.specs[stage]
            columns = f"{spec.prefix_length} + {spec.num_slots} slots + {spec.suffix_length}"
            print(f"stage {stage:<6} from step {first}: {columns} columns")
    if job.weights:
        print("weights      " + f"\n{'':<13}".join(job.weights))
    if parameters := job.parameters():
        print("parameters   " + f"\n{'':<13}".join(parameters))
    print("memory       " + f"\n{'':<13}".join(job.held(mesh)))
    if adapters := job.adapters():
        print(f"adapters     {adapters}")
    if programs := jax.config.jax_compilation_cache_dir:
        print(f"programs     are kept in {programs}")
    print(f"devices      {mesh.devices.size} ({mesh.devices.flat[0].device_kind}): {sizes}", flush=True)


def conclude(summary: "Summary", run: pathlib.Path, job: "Job") -> None:
    """Draws the actions of the saved policy on a validation trajectory and prints where everything is."""
    plots = [summary.plot]
    if not (summary.interrupted and FLAGS.interrupted_code):  # there is little time, and the run goes on
        plots.append(run / "actions.png")
        draw_actions(summary.checkpoint, job, plots[-1])
    print(f"\nstep         {summary.step}{' (interrupted)' if summary.interrupted else ''}")
    print(f"train loss   {summary.train_loss:.4f}")
    for name, value in summary.validation.items():
        print(f"validation   {name} {value:.4f}")
    if summary.mse_ratio is not None:
        print(f"             mse is {summary.mse_ratio:.2f} of that of always predicting the mean action")
    if summary.rollout is not None:
        print("success      " + f"\n{'':<13}".join(summary.rollout.lines()))
    print(f"checkpoint   {summary.checkpoint}")
    print("plots        " + f"\n{'':<13}".join(map(str, plots)))
    if summary.interrupted:
        print(f"resume with  --config.resume_path={run}")


def draw_actions(checkpoint: pathlib.Path, job: "Job", path: pathlib.Path) -> None:
    """Predicted against demonstrated actions along a validation trajectory, in robot units; its last frame is the goal.

    A policy that reasons does so as configured, or not at all where it has not come to slots yet.
    """
    import numpy as np

    from jaxvla.contract import Execution
    from jaxvla.serving.live import inference_at
    from jaxvla.serving.policy import load_policy
    from jaxvla.training.job import demonstration
    from jaxvla.training.plots import plot_actions

    example = job.example()
    views, true = demonstration(example.dataset, example.trajectory)
    tasks = [{"goals": views[-1], "language": told} for told in example.told]
    inference = inference_at(job.assets, int(checkpoint.name))
    # Each prediction as it is.
    policy = load_policy(checkpoint, inference=inference, execution=Execution(), dataset=example.name)
    predicted = np.stack([policy.act(view, task)[0] for view, task in zip(views, tasks)])
    plot_actions(predicted, true, example.dataset.convention.labels(true.shape[1]), path)


if __name__ == "__main__":
    cli.run(main, ("config", "bridgedata_config"), str(CONFIGS))
