"""Checkpoints in one file, their cards, and what plays them."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving import two_datasets
from serving.policies import GC_BC, gray, save
from training.positional_batches import SPEC

from jaxvla.errors import CheckpointError, WeightsError
from jaxvla.interchange.card import LICENCE, Records, model_card
from jaxvla.interchange.native import write_native
from jaxvla.models.safetensors_io import open_checkpoint
from jaxvla.serving.export import export_native
from jaxvla.serving.policy import load_policy
from jaxvla.serving.stored import open_stored

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVENTS = [
    {"step": 1, "training/loss": 2.0, "validation/mse": 0.5},
    {"step": 3, "validation/mse": 0.25, "rollout/success": 0.75, "rollout/success_low": 0.5, "validation/none": None},
    {"step": 4, "validation/mse": 9.0},
]
OBSERVATION, TASK = {"images0": gray(40), "proprio": np.full(4, 0.1, np.float32)}, {"goals": {"images0": gray(90)}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("native")
    config = {"optimizer": {"learning_rate": 0.5}, "batch_size": 8}
    params, _ = save(root / "run", "gc_bc", GC_BC, SPEC, train_config=config)
    events = "".join(json.dumps(event) + "\n" for event in EVENTS)
    (root / "run" / "metrics.jsonl").write_text(events + '{"step": 5, "valid')  # cut off by a kill
    (root / "run" / "config.json").write_text(json.dumps({"command": "python experiments/train.py --config a | b"}))
    export_native(root / "run", root / "policy")
    return root / "run", params, root / "policy"


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported[2], tmp_path / "policy")


def test_it_is_played_as_the_checkpoint(exported):
    run, params, folder = exported
    assert {path.name for path in folder.iterdir()} == {"README.md", "assets.json", "model.safetensors"}
    stored = open_stored(folder)
    assert stored.step == 3
    jax.tree.map(np.testing.assert_array_equal, stored.read(), params)
    found, expected = (load_policy(path).act(OBSERVATION, TASK) for path in (folder, run))
    np.testing.assert_array_equal(found, expected)
    assert stored.assets.to_json() == open_stored(run).assets.to_json()


def test_it_is_exported_again(exported, tmp_path):
    export_native(exported[2], tmp_path / "again")
    for name in ("assets.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (exported[2] / name).read_bytes()
    assert "Unknown: no records lie beside the checkpoint." in (tmp_path / "again" / "README.md").read_text()


def test_the_card_says_where_it_is_from(exported):
    card = (exported[2] / "README.md").read_text()
    assert card.startswith("# gc_bc, trained on data\n")
    assert "5 trajectories, 50 transitions to train on" in card
    assert "```bash\npython experiments/train.py --config a | b\n```" in card
    assert "| `optimizer.learning_rate` | `0.5` |" in card
    assert "| validation/mse | 3 | 0.25 |" in card
    assert "| rollout/success | 3 | 0.75 |" in card
    assert "validation/none" not in card
    assert "training/loss" not in card
    assert "The data: unknown." in card
    assert f'license="{LICENCE}"' in (ROOT / "setup.py").read_text()


def test_parameters_of_every_shape_and_dtype_are_written(exported, tmp_path):
    params = {"scalar": np.float32(3), "narrow": jnp.ones((2, 3), "bfloat16"), "deep": {"none": np.zeros((0, 4), "f4")}}
    write_native(tmp_path / "odd", params, open_stored(exported[0]).assets, 3, "")
    with open_checkpoint(tmp_path / "odd") as stored:
        found = {name: (tensor.shape, str(tensor.dtype)) for name, tensor in stored.items()}
    expected = {"scalar": ((), "float32"), "narrow": ((2, 3), "bfloat16"), "deep/none": ((0, 4), "float32")}
    assert found == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "assets.json").write_text("{"), CheckpointError, "assets.json is not JSON"),
        (lambda f: (f / "assets.json").write_text("{}"), CheckpointError, "names no step: export it again"),
        (lambda f: edit(f, agent=None), CheckpointError, "assets.json cannot be read .*: export it again"),
        (
            lambda f: edit(f, version="0.0.1", spec=None),
            CheckpointError,
            "was written by jaxvla 0.0.1 and does not fit",
        ),
        (lambda f: edit(f, agent_kwargs=GC_BC | {"hidden_dims": [9]}), WeightsError, "does not fit the agent: policy/"),
        (
            lambda f: edit(f, agent_kwargs=GC_BC | {"hidden_dims": [8, 8]}),
            WeightsError,
            "missing .*policy/.*keep assets",
        ),
        (lambda f: cut(f / "model.safetensors"), WeightsError, "model.safetensors is truncated"),
        (lambda f: (f / "model.safetensors").unlink(), WeightsError, "holds no weights"),
    ],
)
def test_damage_is_told(folder, change, error, message):
    change(folder)
    with pytest.raises(error, match=message):
        load_policy(folder)


def edit(folder, **values):
    path = folder / "assets.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def test_records_that_are_damaged(exported, tmp_path):
    run = shutil.copytree(exported[0], tmp_path / "run")
    (run / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl cannot be read .*: remove it, or get it again"):
        export_native(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_of_several_datasets():
    card = model_card(two_datasets.assets(), 3, Records(), "CC0")
    assert card.startswith("# linear, trained on arm, base\n")
    assert "**base** (`unknown`, unknown): 1 trajectories, 2 transitions to train on" in card
    assert "at 5 Hz, cameras images0 8 x 8; or " in card
    assert "The data: CC0." in card
