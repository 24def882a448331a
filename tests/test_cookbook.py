"""Every block of docs/cookbook.md, data.md and lerobot.md does what it says, on little data in folders of their names.

Commands get flags behind theirs that make them small. What a recipe trains is trained where others need it, and
rehearsed elsewhere: everything but the steps happens.
"""

import pathlib
import pickle
import re
import shlex
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data import lerobot_files, rlds_episodes
from data.bridge_files import trajectory, write
from data.oxe import demonstrations
from data.raw_files import make_session
from interchange.act_policies import save_run

from jaxvla.data.schema import BatchSpec
from jaxvla.serving.export import export_lerobot

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "cookbook.md").read_text()
PAGES = (TEXT, *((ROOT / "docs" / name).read_text() for name in ("data.md", "lerobot.md")))
RECIPES = {
    title: re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
    for page in PAGES
    for title, text in re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
}
FIRST = "My own data, recorded as BridgeData is"
RUN = "kitchen_20261121_210152"
# By what a command holds: flags that make it small.
SMALLER = {
    "raw_to_numpy": ["--num_workers=1"],
    "--im_size 128": ["--im_size=16"],
    "numpy_to_tfrecord": ["--num_workers=1"],
    ":gc_bc": ["--config.agent_kwargs.encoder.name=resnetv1-tiny", "--config.data.image_size=()"],
    ":lc_bc": ["--config.agent_kwargs.encoder.name=resnetv1-tiny-film", "--config.data.image_size=()"],
    ":ecot": [
        "--config.backbone.preset=tiny",
        "--config.backbone.path=",
        "--config.agent_kwargs.action_head.size=dit_tiny",
        "--config.data.image_size=(32,32)",
        "--bridgedata_config.reasoning_path=",
    ],
    "train_config.py": [
        *("--config.batch_size=8", "--config.optimizer.warmup_steps=2"),
        *("--config.num_steps=4", "--config.log_interval=1", "--config.eval_interval=2", "--config.save_interval=2"),
    ],
    "eval.py": ["--episodes=2", "--max_steps=3", "--videos=1"],
}
# But these stay as a recipe says.
KEPT = ("--config.data.image_size", "--config.num_steps")
# A policy of the LeRobotDataset.
GRASP = BatchSpec(("top",), lerobot_files.SIZE, 3, 2, action_horizon=5)
# What commands and blocks print, where ending well does not show that they did what they are for.
PRINTED = {
    "My own data in any other form": ["training     6 trajectories, 30 transitions", "actions (8, 1, 14)"],
    "An RLDS dataset of another robot": ["instruction (8, 64)"],
    "A dataset of Open X-Embodiment": [
        "7: 6 as stored, gripper 6 (1 open, 0 closed)",
        "observations/images2 (8, 1, 8, 8, 3)",
    ],
    "Data that is like one of these": ["observations/proprio (8, 1, 8)", "gripper (1 open)"],
    "Data in a structure of its own": ["actions (8, 1, 3)", "instruction (8, 64)", "gripper 2 (1 open, 0 closed)"],
    "A mixture of Open X-Embodiment": [
        "bridge_orig           7 trajectories, 28 transitions, 3",
        "fractal20220817_data  7 trajectories, 35 transitions, 2",
        "mine                  7 trajectories, 28 transitions, 3",
    ],
    "Reasoning in a mixture": [
        "7 of 7 trajectories, 28 of 28 transitions (100.0%), ",
        "bridge_dataset/1.0.0/reasoning.sqlite\n",
    ],
    "Statistics as OpenVLA has them": ["(True, True, True, True, True, True, False) 32"],
    "A LeRobotDataset": ["camera -> 16 x 24 encoded -> ", "instruction (8, 64)"],
    "Frames that are decoded once": [
        "observation.images.top-64x64-lanczos.frames: 48 frames, 0.001 GB",
        "frames       observation.images.top from ",
    ],
    "To LeRobot, and from one of its versions to another": [
        "grasp_v30, LeRobotDataset v3.0\nepisodes     8 of 8: 8 train",
        "bdv2_v21, LeRobotDataset v2.1\n",
        " at 5 Hz, 1 tasks",
        "my_v30, LeRobotDataset v3.0\n",
    ],
    "Several datasets at once": [
        "mixture      arm      ",
        "kitchen  ",
        "66.7% of the samples",
        "actions (8, 1, 7)",
    ],
    "Images of another size": ["camera -> 96 x 96 stored -> 96 x 96", "observations/images0 (8, 1, 96, 96, 3)"],
    "Look at the data": ["page         ", "film         ", "wrote "],
    "Two cameras, or another one": ["observations/images1 (8", "images0      camera -> "],
    "Other names of cameras": ["observations/front (8", "observations/side (8", "6 reached movements"],
    "Two arms, 14 actions": ["12 as stored, gripper 6 (0.08 open, 0 closed), gripper 13 (0.08 open, 0 closed)"],
    "No gripper": ["6: 6 reached movements"],
    "Longer chunks of actions, a history of observations": ["actions (8, 8, 7)", "observations/proprio (8, 2, 7)"],
    "Go on with a policy of LeRobot": [
        "act from ",
        "is not used: a constant",
        "data.action_horizon 100 -> 5",
        "cameras images0=images0 -> top=observation.images.top",
        "observations/top (8, 1, 16, 24, 3)",
    ],
    "Hand it back": ["config.json, model.safetensors, policy_postprocessor.json"],
    "Keep any policy in one file": ["wrote README.md, assets.json, model.safetensors", "4 of 5 actions a decision"],
    "A receding horizon, temporal ensembling": [
        "plays        4 of 8 actions",
        "1 of 8 actions a decision (ensemble 0.01)",
    ],
    "Freeze a part": ["trained      action_head\n", "trained      policy\n"],
    "Go on after a stop, train longer": [f"/runs/{RUN}\n"],
    "Go on elsewhere": ["/runs_b/gc_bc_"],
    "Several devices": ["devices      8 (cpu): data 2, fsdp 4"],
    "Read the metrics": [" 4 "],
    "What a checkpoint holds": ["gc_bc BatchSpec(cameras=('images0',)", "gripper=(6,)", "{'images0': (16, 16)}"],
    "Play a checkpoint otherwise": ["1 of 1 actions a decision at 5 Hz"],
    "Evaluate in closed loop": ["0/2", "report.json"],
}

ROBOT = '''
"""A robot with two arms of one joint space, its cameras, and its demonstrations."""

import numpy as np

def episodes():
    for number in range(8):
        rng = np.random.default_rng(number)
        images = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        actions = rng.normal(0, 0.1, (5, 14)).astype(np.float32)
        actions[:, [6, 13]] = np.array([0.08, 0.08, 0.04, 0, 0])[:, None]
        yield images, rng.normal(size=(6, 14)).astype(np.float32), actions, "fold the towel"

class Robot:
    def __init__(self):
        self.moves = []

    def observe(self):
        return {"images0": np.full((48, 64, 3), len(self.moves), np.uint8), "proprio": np.zeros(7)}

    goal = observe

    def move(self, action):
        assert action.shape == (7,) and np.isfinite(action).all()
        self.moves.append(action)
'''


def make_raw(root):
    """Two cameras and instructions; grippers are open or closed."""
    make_session(root / "put_pot", count=5, cameras=("images0", "images1"), lang=b"put the pot on the stove\n")
    for path in root.rglob("policy_out.pkl"):
        steps = pickle.loads(path.read_bytes())
        for t, step in enumerate(steps):
            step["actions"][6] = t < 2
        path.write_bytes(pickle.dumps(steps))


def make_arm(root):
    """An arm without a gripper, whose actions are its movements."""
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        features = [trajectory(number, 6, size=16) for number in numbers]
        for own in features:
            for part in ("observations/state", "next_observations/state"):
                own[part] = own[part][:, :6]
            own["actions"] = own["next_observations/state"] - own["observations/state"]
        write(root / "reach" / split / "out.tfrecord", features)


@pytest.fixture(scope="module")
def place(tmp_path_factory, warm):
    """Where the page's commands are typed: the repository's mains, data, and the run that the first recipe leaves."""
    root = tmp_path_factory.mktemp("cookbook")
    for folder in ("experiments", "data_processing", "configs"):
        (root / folder).symlink_to(ROOT / folder)
    (root / "my_robot.py").write_text(ROBOT)
    make_raw(root / "data" / "raw")
    make_arm(root / "data" / "my_arm")
    episodes = [rlds_episodes.episode(number) for number in range(8)]
    rlds_episodes.write_dataset(root / "data" / "my_rlds" / "1.0.0", {"train": [episodes]})
    demonstrations.make(root / "data")
    lerobot_files.write(root / "data" / "grasp_dataset", lengths=(6,) * 8)
    save_run(root / "runs" / "act_kitchen", GRASP)
    export_lerobot(root / "runs" / "act_kitchen", root / "models" / "act_grasp")
    for kind, block in RECIPES[FIRST]:
        check(kind, block, root, warm, rehearse=False)
    (run,) = (root / "runs").glob("kitchen_*")
    run.rename(root / "runs" / RUN)
    copies = root / "copies"
    shutil.copytree(root / "runs" / RUN, copies / "kitchen")
    (copies / "kitchen" / "checkpoints" / "2").rename(copies / "kitchen" / "checkpoints" / "5000")
    shutil.copytree(root / "data" / "bdv2", copies / "bdv2", ignore=shutil.ignore_patterns("*.index", "*.json"))
    return root


def commands(block):
    """(environment, words) of each command of a bash block."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        first = words.index("python")
        yield dict(word.split("=", 1) for word in words[:first]), words[first + 1 :]


def smaller(words):
    """The words, and flags that make the command small."""
    command = " ".join(words)
    own = [flag for part, flags in SMALLER.items() if part in command for flag in flags]
    given = [name for name in KEPT if name in words]
    return [*words, *(flag for flag in own if flag.partition("=")[0] not in given)]


def check(kind, block, place, warm, rehearse=True):
    """Runs one block, finds that it ends well, and returns what it printed."""
    named = re.match(r"# (\w+\.py)\n", block)
    if kind == "python" and named:
        (place / named[1]).write_text(block)
        return ""
    if kind == "python":
        (place / "block.py").write_text(block)
        found = [warm.run(["block.py"], place)]
    else:
        found = [warm.run(smaller(words), place, env, rehearse) for env, words in commands(block)]
    assert not any(code for code, _ in found), "\n".join(printed for _, printed in found)
    return "\n".join(printed for _, printed in found)


@pytest.mark.parametrize("title", [title for title in RECIPES if title != FIRST])
def test_recipe(title, place, warm):
    printed = "".join([check(kind, block, place, warm) for kind, block in RECIPES[title]])
    for text in PRINTED.get(title, ()):
        assert text in printed


def test_all_expectations_are_of_recipes():
    assert PRINTED.keys() < RECIPES.keys()
    assert len(RECIPES) >= 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--config.data.action_horizont=8", "did you mean action_horizon"),
        ("--config.optimizer.learning_rates.encoders=0", "encoders"),
        ("--bridgedata_config.cameras.images0=images7", "no camera 'images7'"),
        ("--config.resume_path=runs/elsewhere", "is no checkpoint"),
    ],
)
def test_a_slip_in_a_recipe_shows(wrong, message, place, warm):
    ((_, words),) = commands(RECIPES["The same run again, or another one"][0][1])
    code, printed = warm.run(smaller([*words, wrong]), place, rehearse=True)
    assert code == 1
    assert message in printed


def test_the_metric_is_the_error_of_the_last_dimension(monkeypatch):
    """The function of the page, and its line in the module that the page names."""
    ((_, block),) = RECIPES["Another metric"]
    path, line = re.search(r"`(jaxvla/\S+\.py)`, `(.*?)` adds", TEXT).groups()
    first = '"mse": action_mse(actions, batch, spec, 1),'
    source = (ROOT / path).read_text()
    assert source.count(first) == 1
    module = types.ModuleType("with_the_metric")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(block + source.replace(first, f"{first} {line},"), module.__dict__)
    spec = BatchSpec(("images0",), (8, 8), 3, 3, action_horizon=2, action_limits=((-1.0, 1.0),) * 3)
    batch = spec.fake_batch(4, ("actions", "action_pad_mask"), np.random.default_rng(0))
    batch["action_pad_mask"][1, 1] = False
    mean = 2 * jnp.ones((4, 2, 3))
    arrays = jax.tree.map(jnp.asarray, batch)
    found = module.actor_metrics(mean, jnp.zeros_like(mean), arrays, spec, tanh=False)["last_error"]
    error = abs(1 - batch["actions"][..., -1])
    np.testing.assert_allclose(found, [error[i, : 1 if i == 1 else 2].mean() for i in range(4)], rtol=1e-6)
