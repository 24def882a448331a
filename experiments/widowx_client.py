"""Drives a WidowX behind BridgeData's robot service by a policy, and keeps a film and a log of each episode.

    python experiments/widowx_client.py --server 192.168.0.7:8000 --robot 192.168.0.5:5556 --output_path runs/widowx \
        --i_am_watching

The policy is one of a policy server, for which nothing of jax is loaded, or one of a --checkpoint. One that looks at
goals gets --goal_image, or the picture of a scene that a person arranges; others get the --instruction, or ask for it.
With --simulate the robot is a simulated one at a tabletop, whose service answers the same messages.

Nothing moves without --i_am_watching: somebody stands beside the robot, a hand at its power switch. Ctrl-C ends an
episode: nothing more is sent, the arm holds its last pose, and the gripper keeps what it holds.
"""

import contextlib
import pathlib
import sys
import time

from absl import flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.envs.film import check_films
from jaxvla.errors import ConfigError, RobotError
from jaxvla.robots.bounds import WORKSPACE, Bounds
from jaxvla.robots.driving import Driver, PolicyDriver, Server, ServerDriver, check_driver
from jaxvla.robots.episode import POSITION, Robot, Setup, frequency_of, load_goal, side_of
from jaxvla.robots.person import AtKeyboard, Person, Simulated
from jaxvla.robots.recording import Recording
from jaxvla.robots.service import Service
from jaxvla.robots.simulated import SimulatedWidowX
from jaxvla.robots.widowx import WidowX, connect

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run folder, one of its checkpoints, an export, or a LeRobot policy.")
flags.DEFINE_string(
    "server", None, "HOST:PORT of a policy server, in place of a checkpoint; HOST:PORT/NAME of several."
)
flags.DEFINE_string("token_file", "", "A file that holds the token of the policy server.")
flags.DEFINE_string(
    "tls_certificate", "", "PEM file of whom the policy server's certificate is to be from, for wss://."
)
flags.DEFINE_bool("asynchronous", False, "Whether the robot goes on while the policy server decides.")
flags.DEFINE_string("robot", "localhost:5556", "HOST:PORT of the robot's service.")
flags.DEFINE_bool("simulate", False, "A simulated robot at a tabletop takes the place of the robot.")
flags.DEFINE_string("level", "one", "Of the tabletop of a simulated robot: one, few, full.")
flags.DEFINE_integer("seed", 0, "Of the scene of a simulated robot; each episode has the next one.", lower_bound=0)
flags.DEFINE_bool("i_am_watching", False, "Somebody stands beside the robot, a hand at its power switch.")
flags.DEFINE_list("cameras", ["images0=/blue/image_raw"], "CAMERA=TOPIC of each camera: of the policy, of the robot.")
flags.DEFINE_integer("image_size", None, "Pixels a side of the robot's pictures; those of training, or else 256.")
flags.DEFINE_string("instruction", "", "What is to be done; asked for before each episode where it is not given.")
flags.DEFINE_string("goal_image", "", "A picture of the scene as it is to become; captured where it is not given.")
flags.DEFINE_list("goal_eep", [*POSITION], "Where the gripper is while a goal is captured: x,y,z in m.")
flags.DEFINE_list("initial_eep", [*POSITION], "Where the gripper is when an episode begins: x,y,z in m.")
flags.DEFINE_list("low", [*WORKSPACE[0]], "Bounds of the gripper: x,y,z in m, yaw in rad.")
flags.DEFINE_list("high", [*WORKSPACE[1]], "Bounds of the gripper: x,y,z in m, yaw in rad.")
flags.DEFINE_integer("episodes", 1, "To play, one after the other.", lower_bound=1)
flags.DEFINE_integer("num_timesteps", 120, "Steps of an episode.", lower_bound=1)
flags.DEFINE_bool("blocking", False, "Whether each step waits until the arm has arrived.")
flags.DEFINE_integer("sticky_gripper_num_steps", 1, "Decisions in a row that move the gripper.", lower_bound=1)
flags.DEFINE_string("output_path", None, "A folder for films and logs.", required=True)


def main(_: list[str]) -> None:
    if not FLAGS.i_am_watching:
        raise ConfigError(
            "nothing moves without --i_am_watching: stand beside the robot, a hand at its power switch, and give it"
        )
    folder = local_path(FLAGS.output_path, "--output_path")
    check_films(folder)
    with contextlib.ExitStack() as stack:
        driver = open_driver(stack)
        setup = make_setup(driver)
        check_driver(driver, tuple(setup.cameras))
        for number in range(FLAGS.episodes):
            service, person = open_robot(setup, FLAGS.seed + number)
            play(Robot(service, setup), driver, person, folder, f"{time.strftime('%Y%m%d_%H%M%S')}_{number:03d}")


def open_driver(stack: contextlib.ExitStack) -> Driver:
    """The policy that the flags name."""
    if bool(FLAGS.server) == bool(FLAGS.checkpoint):
        raise ConfigError("give --server or --checkpoint, one of them: where the policy is")
    if FLAGS.server:
        server = Server(FLAGS.server, FLAGS.token_file, FLAGS.tls_certificate)
        return stack.enter_context(ServerDriver(server.connect(), FLAGS.asynchronous))
    if FLAGS.asynchronous:
        raise ConfigError("--asynchronous needs a --server: a policy of this process decides while the robot waits")
    from jaxvla.serving.policy import load_policy

    policy = load_policy(FLAGS.checkpoint)
    policy.warm_up()
    return PolicyDriver(policy)


def make_setup(driver: Driver) -> Setup:
    """What the flags, and the policy's contract, say of the episodes."""
    cameras = dict(word.partition("=")[::2] for word in FLAGS.cameras)
    if not all(cameras.values()) or len(cameras) < len(FLAGS.cameras):
        raise ConfigError(f"--cameras must be CAMERA=TOPIC, once for each, not {','.join(FLAGS.cameras)}")
    return Setup(
        cameras=cameras,
        image_size=FLAGS.image_size or side_of(driver.contract),
        steps=FLAGS.num_timesteps,
        period=1 / frequency_of(driver.contract),
        blocking=FLAGS.blocking,
        initial=cli.numbers(FLAGS.initial_eep, 3, "--initial_eep"),
        goal=cli.numbers(FLAGS.goal_eep, 3, "--goal_eep"),
        bounds=Bounds(cli.numbers(FLAGS.low, 4, "--low"), cli.numbers(FLAGS.high, 4, "--high")),
        sticky_steps=FLAGS.sticky_gripper_num_steps,
        rest=0.0 if FLAGS.simulate else Setup.rest,
    )


def open_robot(setup: Setup, seed: int) -> tuple[Service, Person]:
    """The robot, and who stands beside it."""
    if FLAGS.simulate:
        robot = SimulatedWidowX(seed, FLAGS.level)
        return WidowX(robot.answer, len(setup.cameras)), Simulated(robot, FLAGS.instruction)
    return connect(FLAGS.robot, len(setup.cameras)), AtKeyboard(FLAGS.instruction)


def play(robot: Robot, driver: Driver, person: Person, folder: pathlib.Path, name: str) -> None:
    """One episode, and what is kept of it."""
    robot.start()
    goals = {}
    if driver.needed["goals"]:
        goals = load_goal(FLAGS.goal_image, driver.needed["goals"]) if FLAGS.goal_image else robot.capture_goal(person)
    words = person.instruct() if FLAGS.instruction or not goals else "as the goal shows"
    robot.begin()
    recording = Recording(words, {camera: goals[camera] for camera in driver.needed["goals"]})
    ending = robot.play(driver, {"goals": goals} if goals else {"language": words}, recording)
    print(ending)
    success = None if ending.stopped else person.judge()
    facts = {"task": words, **ending.to_json(), "contract": driver.contract, "flags": FLAGS.flag_values_dict()}
    for path in recording.save(folder, name, facts, success, robot.frequency):
        print(f"wrote        {path}")
    if ending.by_keyboard:
        sys.exit(130)
    if ending.stopped:
        raise RobotError(ending.stopped)


if __name__ == "__main__":
    cli.run(main)
