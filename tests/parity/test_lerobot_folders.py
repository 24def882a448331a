"""Policies that are trained here, exported, and played by LeRobot; and those that LeRobot saved, played here."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from data import lerobot_files
from experiments.mains import load, train_main
from parity.environment import lerobot_command

from jaxvla.contract import Execution
from jaxvla.parallel import mesh
from jaxvla.serving.export import export_lerobot
from jaxvla.serving.policy import load_policy
from jaxvla.serving.stored import open_stored

pytestmark = pytest.mark.parity

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAMERA = lerobot_files.CAMERA
STEPS = 20


@pytest.fixture(scope="module")
def reference():
    why = lerobot_command("test_lerobot_folders.py")
    pytest.importorskip("lerobot.policies.act.modeling_act", reason=why, exc_type=ImportError)
    from parity import lerobot_torch

    return lerobot_torch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return lerobot_files.write(tmp_path_factory.mktemp("data") / "grasp", lengths=(8,) * 6)


def train(root, data, preset="act", **changes):
    """The folder of a run of `STEPS` steps."""
    config = load(ROOT / "configs" / "train_config.py").get_config(preset).to_dict()
    config |= {"batch_size": 4, "num_steps": STEPS, "log_interval": STEPS, "eval_interval": STEPS, "eval_batches": 1}
    config |= {"save_interval": STEPS, "save_dir": str(root)}
    if preset == "act":
        config["agent_kwargs"]["transformer"] |= {"width": 32, "num_heads": 2, "mlp_dim": 48, "dropout_rate": 0.1}
        config["optimizer"]["learning_rates"] = {"backbone": 1e-4}
    config["rollout"]["world"] = ""
    # LeRobot gets the pictures as they are, so the policy here is to see them so, too.
    config["data"] |= {"action_horizon": 6, "image_size": ()}
    config["optimizer"] |= {"learning_rate": 1e-3, "warmup_steps": 0, "decay_steps": 0}
    source = load(ROOT / "configs" / "data_config.py").get_config("lerobot").to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:1]))
        train_main().train(config | changes, source | {"data_path": str(data), "validation_share": 0.2})
    return max(root.iterdir(), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def act(data, tmp_path_factory):
    """A run, and its export."""
    root = tmp_path_factory.mktemp("act")
    run = train(root / "runs", data)
    export_lerobot(run, root / "policy")
    return run, root / "policy"


def observation():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*lerobot_files.SIZE, 3), dtype=np.uint8), rng.normal(size=3).astype(np.float32)


def test_act_is_played_by_lerobot_as_here(reference, act):
    run, folder = act
    pixels, state = observation()
    ours = load_policy(run, execution=Execution()).act({"images0": pixels, "proprio": state}, {})
    theirs = reference.play(reference.load(folder), {CAMERA: pixels}, state)
    assert theirs.shape == (6, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    back = load_policy(folder, execution=Execution()).act({"top": pixels, "proprio": state}, {})
    np.testing.assert_allclose(back, ours, atol=1e-5)


def test_what_lerobot_saves_of_it_is_read(reference, act, data, tmp_path):
    run, folder = act
    reference.save(tmp_path / "saved", *reference.load(folder))
    jax.tree.map(np.testing.assert_array_equal, open_stored(tmp_path / "saved").read(), open_stored(run).read())
    pixels, state = observation()
    played = [load_policy(path).act({"top": pixels, "proprio": state}, {}) for path in (folder, tmp_path / "saved")]
    np.testing.assert_array_equal(*played)
    more = train(tmp_path / "runs", data, policy={"path": str(tmp_path / "saved")}, num_steps=1)
    assert open_stored(more).assets.spec.cameras == ("top",)


def test_smolvla_is_played_by_lerobot_as_here(reference, data, tmp_path):
    run = train(tmp_path / "runs", data, "smolvla_tiny")
    folder, task = tmp_path / "policy", "open it"
    export_lerobot(run, folder)
    pixels, state = observation()
    ours = load_policy(run, execution=Execution()).act({"images0": pixels, "proprio": state}, {"language": task})
    loaded = reference.load(folder)
    noise = torch_zeros((1, 6, loaded[0].config.max_action_dim))
    theirs = reference.play(loaded, {CAMERA: pixels}, state, task, noise=noise)
    assert theirs.shape == (6, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    reference.save(tmp_path / "saved", *loaded)
    jax.tree.map(np.testing.assert_array_equal, open_stored(tmp_path / "saved").read(), open_stored(run).read())


def torch_zeros(shape):
    import torch

    return torch.zeros(shape)
