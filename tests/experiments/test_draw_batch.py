"""The contact sheet shows the very pixels of a training step."""

import pathlib

import jax
import numpy as np
import pytest
from data.bridge_files import write_dataset
from experiments.mains import load
from PIL import Image
from training.linear_agent import LinearAgent

from jaxvla.config import from_mapping
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.envs.film import LINE, MARGIN
from jaxvla.ops.augmentation import AugmentConfig, augment_batch
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state, create_state, state_shardings
from jaxvla.training.step import make_train_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
TILE = 160


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), {"sweep": [6, 9], "lift": [5]})


@pytest.fixture(scope="module")
def sheet(data, warm, tmp_path_factory):
    """Three examples of batch 1 of the stream."""
    path = tmp_path_factory.mktemp("sheets") / "new" / "batch.png"
    command = [ROOT / "experiments" / "draw_batch.py", "--config=train_config.py:gc_bc"]
    options = [
        "--config.batch_size=4",
        "--config.data.image_size=()",
        "--batch=1",
        "--examples=3",
        f"--output_path={path}",
    ]
    source = ["--bridgedata_config=data_config.py:bdv2_local", f"--config.data_path={data}"]
    done = warm.start([*command, *source, *options], ROOT)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(path))


def tile(sheet, row, column):
    """The uint8 [8, 8, 3] image at a place of the sheet, whose every pixel is a square of 20."""
    top = 2 * LINE + MARGIN + row * (TILE + 2 * MARGIN + LINE)
    left = MARGIN + column * (TILE + MARGIN)
    blocks = sheet[top : top + TILE, left : left + TILE].reshape(8, 20, 8, 20, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0]


def test_views_before_and_after_augmentation_are_those_of_the_training_step(data, sheet):
    settings = load(ROOT / "configs" / "train_config.py").get_config("gc_bc").to_dict()
    dataset = open_dataset(SourceConfig("bridge_tfrecord", str(data), (("**",),)), DataConfig(), "train")
    batches = training_batches(Mixture.of(dataset), 4, settings["seed"], LinearAgent.batch_keys)
    config = from_mapping(AugmentConfig, settings["augment"])
    agent, mesh, seen = LinearAgent(dataset.spec), make_mesh(MeshConfig(), jax.devices()[:1]), []

    def augment(batch, rng):
        augmented = augment_batch(batch, rng, config)
        views = {view: augmented[view]["images0"] for view in ("observations", "goals")}
        jax.debug.callback(seen.append, views)
        return augmented

    optimizer = make_optimizer(OptimizerConfig(1e-3))
    shardings = state_shardings(abstract_state(agent, optimizer, mesh))
    step = make_train_step(agent, optimizer, augment, shardings, batch_sharding(mesh))
    state, _ = step(create_state(agent, optimizer, settings["seed"], mesh), next(batches))
    second = next(batches)
    jax.block_until_ready(step(state, second))
    jax.effects_barrier()
    for row in range(3):
        for column, view in ((0, "observations"), (2, "goals")):
            plain = second[view]["images0"].reshape(4, 8, 8, 3)[row]
            np.testing.assert_array_equal(tile(sheet, row, column), plain)
            augmented = np.asarray(seen[1][view]).reshape(4, 8, 8, 3)[row]
            # Two compilations may round a pixel differently.
            np.testing.assert_allclose(tile(sheet, row, column + 1).astype(int), augmented, atol=1)
            assert np.abs(augmented - plain).max() > 3


def test_goals_lie_after_observations_of_the_same_trajectory(sheet):
    for row in range(3):
        observed, goal = tile(sheet, row, 0)[0, 0].astype(int), tile(sheet, row, 2)[0, 0].astype(int)
        assert observed[0] == goal[0]
        assert observed[1] < goal[1]
