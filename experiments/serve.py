"""Serves trained policies to robots, simulators and benchmark harnesses, in the protocols that they speak.

    python experiments/serve.py --checkpoint runs/ecot_20260101_120000 --port 8000
    python experiments/serve.py --checkpoint a=runs/act_20260101_120000 --checkpoint b=exports/ecot --robots 16

Clients of openpi, of vla-eval and of starVLA connect to the one port; docs/serving.md says what each must send. A
client of several checkpoints names its own in the address, ws://127.0.0.1:8000/a. The port opens when all are compiled.
"""

import dataclasses
import pathlib
import re
from typing import TYPE_CHECKING

from absl import flags

from jaxvla import cli
from jaxvla.errors import ConfigError

if TYPE_CHECKING:
    from jaxvla.serving.server.hosted import Hosted, Hosting

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "checkpoint", None, "PATH or NAME=PATH of a run, checkpoint, export or LeRobot policy; repeatable.", required=True
)
flags.DEFINE_integer("step", None, "Which checkpoint of run folders; the latest where it is not given.")
flags.DEFINE_string("dataset", None, "In whose units to act; needed where a policy was trained on several datasets.")
flags.DEFINE_string("mode", None, "How to reason: implicit, explicit, none; the checkpoint's where it is not given.")
flags.DEFINE_float("temperature", 0.0, "Of the actions that are drawn; 0 for the most likely ones.", lower_bound=0)
flags.DEFINE_bool("simulator", False, "Clients send what a benchmark's simulator gives, and get what it takes.")
flags.DEFINE_enum("quantize", "", ["", "int8", "int4"], "Bits to hold kernels in; as they are where it is empty.")
flags.DEFINE_bool("whole_chunks", False, "Whether decisions are whole chunks, of which clients play what they like.")
flags.DEFINE_integer("port", 8000, "To listen at; 0 for one that is free.", lower_bound=0, upper_bound=65535)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen at. Others than this machine's own need a token.")
flags.DEFINE_string("token", "", "That clients must give.")
flags.DEFINE_string("token_file", "", "A file that holds the token, which is not seen in the list of processes then.")
flags.DEFINE_bool("allow_anonymous", False, "Whether anybody who reaches --host may use the policies.")
flags.DEFINE_string("tls_certificate", "", "PEM file of the certificate, for wss://.")
flags.DEFINE_string("tls_key", "", "PEM file of its key.")
flags.DEFINE_enum("dialect", "auto", ["auto", "openpi", "vla-eval", "starvla"], "The protocol of all clients.")
flags.DEFINE_string("keys", "", "What clients call things, one of docs/serving.md; found out where it is not given.")
flags.DEFINE_multi_string("camera", [], "CAMERA=PATH: a camera of the policy is that of clients; repeatable.")
flags.DEFINE_bool("any_image_size", False, "Whether to take images that are smaller than the frames of training.")
flags.DEFINE_list("gripper", [], "CLOSED,OPEN: what clients take for a gripper, such as 1,-1; as trained by default.")
flags.DEFINE_integer("robots", 8, "Robots that may act at once, of each policy.", lower_bound=1)
flags.DEFINE_float("window_ms", 3.0, "How long a request waits for those of other robots.", lower_bound=0)
flags.DEFINE_integer("queue", 64, "Requests that may wait, of each policy.", lower_bound=1)
flags.DEFINE_float("message_mb", 32.0, "What a message may be at most, MiB.", lower_bound=0.001)
flags.DEFINE_integer("connections", 64, "That may be open at once.", lower_bound=1)
flags.DEFINE_float("idle_s", 1800.0, "Seconds after which a silent connection is closed.", lower_bound=0.1)
flags.DEFINE_float("grace_s", 30.0, "Seconds that the end waits for requests that are in flight.", lower_bound=0)


def main(_: list[str]) -> None:
    from jaxvla.serving.server.access import Access

    folders = named(FLAGS.checkpoint)
    access = Access(FLAGS.host, _token(), FLAGS.allow_anonymous, FLAGS.tls_certificate, FLAGS.tls_key)
    access.tls()
    from jaxvla.serving.server.server import Limits, bind, run

    limits = Limits(int(FLAGS.message_mb * 2**20), FLAGS.connections, FLAGS.idle_s, grace_s=FLAGS.grace_s)
    how = hosting()
    own = bind(FLAGS.host, FLAGS.port)
    policies = [load(name, folder, how) for name, folder in folders.items()]
    for hosted in policies:
        print(f"{hosted.name}: compiled in {hosted.policy.warm_up():.1f} s; {hosted.contract}", flush=True)
    dialect = "" if FLAGS.dialect == "auto" else FLAGS.dialect
    run(policies, own, access, limits, dialect, lambda address: print(f"serving at {address}", flush=True))
    print("ended")


def named(values: list[str]) -> dict[str, pathlib.Path]:
    """The folders of --checkpoint by name."""
    found: dict[str, pathlib.Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or "/" in name:
            path, name = value, pathlib.Path(value).resolve().name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in ("healthz", "health", "metrics"):
            raise ConfigError(f"--checkpoint {value}: {name!r} cannot be a name in an address; give NAME={path}")
        if name in found:
            raise ConfigError(
                f"two of --checkpoint are named {name!r}, {found[name]} and {path}: name them, --checkpoint NAME=PATH"
            )
        found[name] = pathlib.Path(path)
    return found


def hosting() -> "Hosting":
    """What the flags say of how policies are served."""
    from jaxvla.serving.server.hosted import Hosting
    from jaxvla.serving.server.keys import CLIENT_KEYS

    if FLAGS.keys and FLAGS.keys not in CLIENT_KEYS:
        raise ConfigError(f"--keys must be one of {', '.join(CLIENT_KEYS)}, not {FLAGS.keys!r}")
    cameras = dict(value.partition("=")[::2] for value in FLAGS.camera)
    if not all(cameras.values()) or len(cameras) < len(FLAGS.camera):
        raise ConfigError(f"--camera must be CAMERA=PATH, once for each camera, not {' '.join(FLAGS.camera)}")
    try:
        ends = tuple(float(word) for word in FLAGS.gripper)
    except ValueError:
        ends = (0.0,)
    if len(ends) not in (0, 2) or len(set(ends)) < len(ends):
        raise ConfigError(f"--gripper must be CLOSED,OPEN, two numbers, not {','.join(FLAGS.gripper)}")
    return Hosting(FLAGS.keys, cameras, FLAGS.any_image_size, ends or None, FLAGS.window_ms, FLAGS.queue)


def load(name: str, folder: pathlib.Path, how: "Hosting") -> "Hosted":
    """A checkpoint, ready to be compiled: for one robot, for a few, and for all."""
    from jaxvla.serving.policy import load_policy
    from jaxvla.serving.server.hosted import Hosted
    from jaxvla.serving.stored import open_stored

    assets = open_stored(folder, FLAGS.step, FLAGS.dataset).assets.of(FLAGS.dataset)
    whole = dataclasses.replace(assets.execution, execute_steps=0, ensemble=None) if FLAGS.whole_chunks else None
    rows = [rows for rows in (1, 4, 16, 64) if rows < FLAGS.robots]
    options = (FLAGS.mode, FLAGS.robots, FLAGS.temperature, whole, FLAGS.dataset, rows, FLAGS.quantize, FLAGS.simulator)
    policy = load_policy(folder, FLAGS.step, *options)
    return Hosted(name, policy, assets.names, how)


def _token() -> str:
    if FLAGS.token and FLAGS.token_file:
        raise ConfigError("give --token or --token_file, not both")
    if not FLAGS.token_file:
        return FLAGS.token
    try:
        token = pathlib.Path(FLAGS.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token_file: {FLAGS.token_file} cannot be read: {error}") from error
    if not token:
        raise ConfigError(f"--token_file: {FLAGS.token_file} is empty")
    return token


if __name__ == "__main__":
    cli.run(main)
