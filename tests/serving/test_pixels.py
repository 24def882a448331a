"""One path for pixels: what a policy makes of a camera's frame is what training made of it, to the last bit."""

import dataclasses
import io
import logging
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
from data.raw_files import DATE, make_trajectory, to_numpy, to_tfrecord
from PIL import Image
from serving.policies import GC_BC, save
from training.positional_batches import make_assets

from jaxvla.assets import Assets
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms import images
from jaxvla.envs.recording import encode, recorded
from jaxvla.envs.tabletop import CAMERA_SIZE, TabletopEnv
from jaxvla.serving.policy import load_policy
from jaxvla.serving.views import Views
from jaxvla.training.job import demonstration, open_job

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = runpy.run_path(str(ROOT / "configs" / "train_config.py"))
TFRECORD = runpy.run_path(str(ROOT / "configs" / "data_config.py"))["get_config"]("tfrecord").to_dict()
# Others see the stored size, or learn from demonstrations of Meta-World, which are made at theirs.
SIZED = [
    name for name in TRAIN["PRESETS"] if TRAIN["get_config"](name).data.image_size and not name.startswith("metaworld")
]
DEFAULT = 224  # of bridgedata_raw_to_numpy.py's --im_size


def size_of(preset):
    return tuple(TRAIN["get_config"](preset).data.image_size)


def advised():
    """The --im_size that README.md gives for each preset."""
    rows = re.findall(r"^\| (`.*`) \| (\d+) x \2 \| `--im_size (\d+)` \|$", (ROOT / "README.md").read_text(), re.M)
    return {name: (int(side), int(stored)) for names, side, stored in rows for name in re.findall(r"`(\w+)`", names)}


def photograph(number, height=300, width=400):
    """A JPEG of edges and noise."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    data = io.BytesIO()
    Image.fromarray(blocks + rng.integers(0, 30, blocks.shape, dtype=np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def collect(root, frames):
    """A raw trajectory with these files as its frames, for training and for validation; gives the task's root."""
    for number in range(2):
        folder = root / "raw" / "task" / DATE / "raw" / "traj_group0" / f"traj{number}"
        make_trajectory(folder, seed=number, steps=len(frames) - 1, lang=b"go\n")
        for t, content in enumerate(frames):
            (folder / "images0" / f"im_{t}.jpg").write_bytes(content)
    return root


def convert(root, stored):
    """The data path of the raw tree, stored at so many pixels a side; made once."""
    path = root / f"tfrecord{stored}"
    if not path.exists():
        to_numpy(root / "raw", root / f"numpy{stored}", im_size=stored)
        to_tfrecord(root / f"numpy{stored}", path)
    return path


def dataset_of(root, stored, size, **data):
    source = SourceConfig("bridge_tfrecord", str(convert(root, stored)), (("**",),))
    return open_dataset(source, DataConfig(relabel_actions=False, image_size=size, **data), "train")


def served(dataset, frames):
    """The images0 that a policy of this dataset makes of camera frames."""
    way = dataset.source.stored_sizes, dataset.config.resize
    views = Views(dataset.spec, dataset.spec, dataset.proprio_normalizer, ("images0",), *way)
    return np.stack([views.prepare({"images0": pixels}, "observation")["images0"] for pixels in frames])


FILES = [photograph(number) for number in range(4)]
CAMERA = [images.decode(content, "frame") for content in FILES]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return collect(tmp_path_factory.mktemp("world"), FILES)


def test_the_readme_names_a_size_for_every_preset_that_enlarges_nothing():
    table = advised()
    assert table.keys() == {*SIZED}
    for preset, (side, stored) in table.items():
        assert size_of(preset) == (side, side)
        assert stored >= side
    assert max(size_of("ecot")) <= DEFAULT


@pytest.mark.parametrize("preset", SIZED)
def test_a_policy_sees_what_training_saw(world, preset):
    for stored in {advised()[preset][1], DEFAULT}:
        dataset = dataset_of(world, stored, size_of(preset))
        policy = served(dataset, CAMERA)
        assert policy.shape[1:3] == size_of(preset)
        np.testing.assert_array_equal(dataset.source.frames(0, range(4), "images0"), policy)
        batch = next(training_batches(Mixture.of(dataset), 8, 0, ("observations", "next_observations", "goals")))
        for key in batch:
            rows = batch[key]["images0"].reshape(8, *policy.shape[1:])
            assert all(any((row == view).all() for view in policy) for row in rows)


def test_a_policy_resizes_by_the_filter_of_training(world):
    dataset = dataset_of(world, 128, (64, 64), resize="area")
    seen = dataset.source.frames(0, range(4), "images0")
    np.testing.assert_array_equal(served(dataset, CAMERA), seen)
    assert (seen != dataset_of(world, 128, (64, 64)).source.frames(0, range(4), "images0")).any()
    assets = dataclasses.replace(make_assets(), train_config={"data": {"resize": "area"}})
    assert (assets.resize, assets.contract().pixels.endswith("the policy's by area")) == ("area", True)
    assert (make_assets().resize, make_assets().contract().pixels.endswith("the policy's")) == ("lanczos", True)


def test_one_step_instead_of_two_would_be_another_picture(world):
    dataset = dataset_of(world, 128, (64, 64))
    assert np.abs(served(dataset, CAMERA) - images.resize(np.stack(CAMERA), (64, 64)).astype(int)).max() > 3


def test_a_real_frame_at_the_size_of_ecot(samples, tmp_path):
    content = (samples / "widowx_images" / "bridge_real_eval_1.png").read_bytes()
    camera = images.decode(content, "frame")
    assert camera.shape == (480, 640, 3)
    root = collect(tmp_path, [content] * 3)
    for stored in (224, 256):
        dataset = dataset_of(root, stored, size_of("ecot"))
        np.testing.assert_array_equal(dataset.source.frames(0, [1], "images0"), served(dataset, [camera]))


@pytest.mark.parametrize("preset", ["gc_bc_tiny", "ecot_tiny"])
def test_an_evaluation_shows_the_pixels_of_demonstrations(tmp_path, preset):
    env = TabletopEnv()
    drawn = [env.reset(seed=3)[0]] + [env.step(np.array([0.02, 0, 0, 0, 0, 0, 1]))[0] for _ in range(2)]
    root = collect(tmp_path, [encode(observation["images0"]) for observation in drawn])
    dataset = dataset_of(root, CAMERA_SIZE, size_of(preset))
    seen = [recorded(observation)["images0"] for observation in drawn]
    np.testing.assert_array_equal(dataset.source.frames(0, range(3), "images0"), served(dataset, seen))


def test_from_a_camera_to_actions_through_a_checkpoint(world, tmp_path):
    settings = TRAIN["get_config"]("gc_bc_tiny").to_dict()
    settings["agent_kwargs"] = GC_BC
    job = open_job(settings, TFRECORD | {"data_path": str(convert(world, 128))})
    assert job.assets.stored_sizes == {"images0": (128, 128)}
    assert Assets.from_json(job.assets.to_json()).stored_sizes == job.assets.stored_sizes
    others = {"statistics": job.assets.statistics, "stored_sizes": job.assets.stored_sizes}
    params, assets = save(tmp_path, "gc_bc", GC_BC, job.agent.spec, values=(-1, 1), **others)
    policy = load_policy(tmp_path)
    acted = policy.act({"images0": CAMERA[0]}, {"images0": CAMERA[3]})
    loaded = job.training.datasets[0].source.frames(0, [0, 3], "images0")
    observations, goals = {"images0": loaded[None, :1]}, {"images0": loaded[1:]}
    expected = jax.jit(job.agent.act)(params, observations, {"goals": goals})[0]
    np.testing.assert_allclose(acted, assets.action_normalizer().inverse(np.asarray(expected)), rtol=1e-4)
    views, _ = demonstration(job.training.datasets[0], 0)
    assert views[0]["images0"].shape == (128, 128, 3)
    np.testing.assert_array_equal(policy.act(views[0], {"goals": views[3]}), acted)


def prepared(stored_sizes, camera, size=(8, 8), camera_sizes=()):
    spec = BatchSpec(("images0", "images1"), size, proprio_dim=4, action_dim=2, camera_sizes=camera_sizes)
    views = Views(spec, spec, make_assets().proprio_normalizer(), (), stored_sizes)
    return lambda name="images0": views.prepare({name: camera}, "observation")[name]


def test_without_a_stored_size_frames_go_straight_to_the_policy():
    camera = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    look = prepared({"images1": (16, 20)}, camera)
    np.testing.assert_array_equal(look(), images.resize(camera[None], (8, 8))[0])
    np.testing.assert_array_equal(look("images1"), images.resize(images.as_stored(camera[None], (16, 20)), (8, 8))[0])


def test_a_camera_of_another_size_gets_there_likewise():
    camera = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    look = prepared({"images1": (16, 20)}, camera, camera_sizes=(("images1", (4, 6)),))
    assert look().shape == (8, 8, 3)
    np.testing.assert_array_equal(look("images1"), images.resize(images.as_stored(camera[None], (16, 20)), (4, 6))[0])


def test_a_camera_that_is_too_small_is_told_once(caplog):
    look = prepared({"images0": (16, 20)}, np.zeros((17, 19, 3), np.uint8))
    with caplog.at_level(logging.WARNING):
        look(), look(), look("images1")
    (record,) = caplog.records
    assert record.getMessage() == (
        "observation['images0'] is of 17 x 19 pixels, smaller than the frames of training, 16 x 20: enlarged, which "
        "blurs what the policy sees; set the camera to at least that size"
    )
