"""A LeRobotDataset, from the files to a policy, through experiments/train.py itself."""

import pathlib
import shutil

import numpy as np
import pytest
from experiments.mains import load, train_main

from jaxvla.checkpoint import saved_steps
from jaxvla.models.resnet import ARCHITECTURES, Architecture
from jaxvla.serving.policy import load_policy

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("method", "version"), [("gc_bc", "v21"), ("lc_bc", "v30")])
def test_policies_are_trained_on_real_data(samples, tmp_path, monkeypatch, method, version):
    monkeypatch.setitem(ARCHITECTURES, "small", Architecture((1,), num_filters=4, film=method == "lc_bc"))
    data = tmp_path / "grasp_dataset"
    shutil.copytree(samples / f"lerobot_{version}", data, copy_function=shutil.copyfile)
    source = load(ROOT / "configs" / "data_config.py").get_config("lerobot").to_dict() | {"data_path": str(data)}
    config = load(ROOT / "configs" / "train_config.py").get_config(f"{method}_tiny").to_dict()
    config |= {"batch_size": 8, "num_steps": 2, "log_interval": 1, "eval_interval": 2, "save_interval": 2}
    config |= {"save_dir": str(tmp_path / "runs"), "eval_batches": 1}
    config["rollout"]["world"] = ""
    config["agent_kwargs"] |= {"encoder": {"name": "small"}, "hidden_dims": (8,)}
    train_main().train(config, source)
    (run,) = (tmp_path / "runs").iterdir()
    assert saved_steps(run) == [2]
    policy = load_policy(run)
    frame = np.zeros((480, 640, 3), np.uint8)
    task = {"language": "Pick up the yellow bottle on the table."} if method == "lc_bc" else {"images0": frame}
    actions = policy.act({"images0": frame, "proprio": np.zeros(26, np.float32)}, task)
    assert actions.shape[-1] == 26
    assert np.isfinite(actions).all()
    assert policy.contract.cameras["images0"].stored_size == (480, 640)
