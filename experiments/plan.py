"""What a run will need, before it is paid for: memory, collectives, FLOPs and time on devices that are not there.

    python experiments/plan.py --config train_config.py:ecot --config.backbone.preset=qwen3_vl_2b --mesh data=32,fsdp=8

Needs no accelerator, no data and no weights: a preset has the sizes of a published model, and a folder that
--config.backbone.path names needs config.json and tokenizer alone. The real step is lowered and compiled for simulated
devices, as many as --mesh has. What data would tell is assumed: --cameras, --dims, and --columns, which training prints
of every stage. docs/performance.md says which figures are exact and which are those of XLA's CPU backend.
"""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxvla import cli

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
UNITS = {"": 1, "GB": 10**9, "GiB": 2**30}

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET, such as train_config.py:ecot.")
config_flags.DEFINE_config_file("bridgedata_config", None, "Optional: its cameras are counted.")
flags.DEFINE_string("mesh", "", "Sizes of the axes, such as data=32,fsdp=8; config.mesh where it is empty.")
flags.DEFINE_integer("devices", 0, "How many; the product of the mesh's sizes where it is 0.", lower_bound=0)
flags.DEFINE_string("device", "h100", "Which: a100, h100, h200, v5e, v5p or v6e.")
flags.DEFINE_string("device_memory", "", "Such as 80GiB or 16GB; the device's own where it is empty.")
flags.DEFINE_float("efficiency", 0.6, "Share of the peak that products reach.", lower_bound=0.01, upper_bound=1.0)
flags.DEFINE_integer("cameras", 0, "Of the robot; those of --bridgedata_config, or 1, where it is 0.", lower_bound=0)
flags.DEFINE_integer("dims", 7, "Values of state and action.", lower_bound=1)
flags.DEFINE_list("stored_size", ["256", "256"], "Height and width of pictures that the preset leaves as they are.")
flags.DEFINE_list("columns", ["192", "8", "128"], "Tokens before the slots, slots, tokens behind them.")
flags.DEFINE_string("output_path", "", "A JSON file for all of it, which benchmarks/train_step.py reads.")


def main(_: list[str]) -> None:
    from jaxvla.errors import ConfigError
    from jaxvla.parallel.mesh import AXES

    if FLAGS.config is None:
        raise ConfigError("give a config: --config train_config.py:ecot --config.backbone.preset=qwen3_vl_2b")
    settings = FLAGS.config.to_dict()
    path = cli.output_path(FLAGS.output_path) if FLAGS.output_path else None
    if FLAGS.mesh:
        settings["mesh"] = dict.fromkeys(AXES, 1) | read_mesh(FLAGS.mesh)
    sizes = settings["mesh"]
    if -1 in sizes.values() and not FLAGS.devices:
        raise ConfigError("config.mesh takes the devices that there are: give --mesh, or --devices")
    count = FLAGS.devices or sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    # Before jax looks for devices.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    plan(settings, path)


def read_mesh(text: str) -> dict[str, int]:
    """Sizes by axis.

    Raises:
        ConfigError: not AXIS=SIZE, joined by commas.
    """
    from jaxvla.errors import ConfigError
    from jaxvla.parallel.mesh import AXES

    parts = [re.fullmatch(rf"({'|'.join(AXES)})=(-1|[1-9]\d*)", part) for part in text.split(",")]
    if None in parts:
        raise ConfigError(f"--mesh must be like data=32,fsdp=8 with axes {', '.join(AXES)}, not {text}")
    return {part[1]: int(part[2]) for part in parts}


def read_memory(text: str) -> float:
    """Bytes.

    Raises:
        ConfigError: no number of GiB, GB or bytes.
    """
    from jaxvla.errors import ConfigError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)(GiB|GB|)", text)
    if match is None or not float(match[1]):
        raise ConfigError(f"--device_memory must be like 80GiB or 16GB, not {text}")
    return float(match[1]) * UNITS[match[2]]


def robot() -> Any:
    """What is assumed of the data."""
    from jaxvla.training.sketch import Robot

    cameras = FLAGS.cameras
    if not cameras:
        cameras = 1 if FLAGS.bridgedata_config is None else max(1, len(FLAGS.bridgedata_config.cameras))
    size = cli.image_size(FLAGS.stored_size, "--stored_size")
    columns = tuple(int(number) for number in cli.numbers(FLAGS.columns, 3, "--columns"))
    return Robot(cameras, FLAGS.dims, size, columns)


def plan(settings: dict[str, Any], path: pathlib.Path | None) -> None:
    """Plans the run of plain settings, and prints it."""
    from jaxvla.parallel import devices
    from jaxvla.parallel.mesh import make_mesh
    from jaxvla.training import fitting, plan_report
    from jaxvla.training.plan import make_plan
    from jaxvla.training.sketch import sketch

    device, assumed = devices.named(FLAGS.device), robot()
    limit = read_memory(FLAGS.device_memory) if FLAGS.device_memory else float(device.memory)
    run = sketch(settings, assumed)
    mesh = make_mesh(run.config.mesh)
    made, steps = make_plan(run, mesh, device.domain), run.config.num_steps
    print("\n".join(plan_report.lines(made, device, limit, FLAGS.efficiency, steps)))
    found = []
    if made.compiled.total > limit:
        found = fitting.changes(settings, assumed, made, limit)
        print("\n" + "\n".join(plan_report.mends(found, limit)))
    if path is not None:
        values = plan_report.to_json(made, device, FLAGS.efficiency, steps)
        values |= {"settings": settings, "robot": dataclasses.asdict(assumed), "limit": limit}
        values["changes"] = [dataclasses.asdict(change) for change in found]
        path.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    cli.run(main, ("config", "bridgedata_config"), str(CONFIGS))
