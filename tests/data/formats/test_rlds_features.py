"""Features of every kind that TFDS writes, as whole trajectories and as pictures."""

import io
import zlib

import numpy as np
import pytest
from data.rlds_episodes import FOUR, STEPS, episode, one_line, opened, picture, write_dataset
from PIL import Image

from jaxvla.data.formats import rlds
from jaxvla.data.formats.rlds_files import find_files
from jaxvla.data.transforms import images
from jaxvla.errors import DataError


def tensor(dtype, *shape, encoding="none"):
    return {"dtype": dtype, "encoding": encoding, "shape": {"dimensions": [str(side) for side in shape]}}


def sequence(node, length=-1):
    return {"sequence": {"feature": node, "length": str(length)}}


RNG = np.random.default_rng(0)
DOUBLES = RNG.normal(size=(6, 2, 2))
PIXELS = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
PIXELS[0] //= 2  # all below 128, which are stored as they are


def trajectories(folder):
    reader = rlds.RLDSFormat.of(folder, rlds.StepKeys())
    (path,) = find_files(folder, "train")
    return [reader.trajectory(one) for one, _ in reader.episodes(path)]


def test_a_trajectory_has_the_groups_names_and_types_of_its_dataset(tmp_path):
    steps = STEPS | {
        "action": tensor("float32", 7),
        "observation/state": tensor("float64", 7),
        "observation/present|xyz": tensor("float32", 3),
        "observation/matrix": tensor("float32", 2, 2),
        "observation/gripper": tensor("float32"),
        "observation/zipped": tensor("float64", 2, 2, encoding="zlib"),
        "observation/raw": tensor("float64", 2, 2, encoding="bytes"),
        "observation/codes": tensor("int32", 2),
        "observation/words": tensor("string", 2),
        "observation/serialized": tensor("string"),
        "observation/depth": tensor("float32", 64, 64),
        "label": {"classLabel": {"numClasses": "4"}},
        "box": {"boundingBox": {"shape": {"dimensions": ["4"]}, "dtype": "float32"}},
        "is_first": tensor("bool"),
    }
    numbers = np.arange(24, dtype=np.float32)
    changes = {
        "observation__present__xyz": numbers[:18],
        "observation__matrix": numbers,
        "observation__gripper": numbers[:6],
        "observation__zipped": [zlib.compress(one.tobytes()) for one in DOUBLES],
        "observation__raw": [one.tobytes() for one in DOUBLES],
        "observation__codes": np.arange(-6, 6),
        "observation__words": ["a", "ö"] * 6,
        "observation__serialized": [b"\xff\0", b""] * 3,
        "observation__depth": np.zeros(6 * 64 * 64),
        "label": np.arange(6) % 4,
        "box": numbers,
    }
    one = episode(3, **changes)
    (found,) = trajectories(write_dataset(tmp_path, {"train": [[one]]}, steps))
    observation = found["observation"]
    np.testing.assert_array_equal(found["action"], one["steps/action"])
    np.testing.assert_array_equal(observation["present/xyz"], numbers[:18].reshape(6, 3))
    np.testing.assert_array_equal(observation["matrix"], numbers.reshape(6, 2, 2))
    np.testing.assert_array_equal(observation["zipped"], DOUBLES)  # not a bit is lost, as float32 would
    np.testing.assert_array_equal(observation["raw"], DOUBLES)
    np.testing.assert_array_equal(observation["codes"], np.arange(-6, 6).reshape(6, 2))
    assert observation["words"].tolist() == [[b"a", "ö".encode()]] * 6
    assert observation["serialized"].tolist() == [b"\xff\0", b""] * 3
    assert found["language_instruction"].tolist() == [b"go"] * 6
    assert found["is_first"].tolist() == [True] + [False] * 5
    types = {"state": "f8", "gripper": "f4", "codes": "i4"}
    assert {name: observation[name].dtype.str[1:] for name in types} == types
    assert (observation["gripper"].shape, found["label"].dtype, found["box"].shape) == ((6,), np.int64, (6, 4))
    assert not {"image_0", "depth"} & {*observation}, "pixels are left out"


def test_sequences_within_steps_are_parts_of_any_length(tmp_path):
    steps = STEPS | {
        "ragged": sequence({"tensor": tensor("float32", 2)}),
        "fixed": sequence({"tensor": tensor("int64")}, 3),
        "objects": sequence({"featuresDict": {"features": {"name": {"text": {}}}}}),
        "deeper": sequence(sequence({"text": {}})),
    }
    changes = {
        "ragged__ragged_flat_values": np.arange(8, dtype=np.float32),
        "ragged__ragged_row_lengths_0": np.array([1, 0, 2, 0, 0, 1]),
        "fixed__ragged_flat_values": np.arange(18),
        "fixed__ragged_row_lengths_0": np.full(6, 3),
        "objects__name__ragged_flat_values": ["cup", "pot"],
        "objects__name__ragged_row_lengths_0": np.array([0, 0, 2, 0, 0, 0]),
    }
    folder = write_dataset(tmp_path, {"train": [[episode(0, **changes)]]}, steps)
    (found,) = trajectories(folder)
    assert [part.tolist() for part in found["ragged"]] == [[[0, 1]], [], [[2, 3], [4, 5]], [], [], [[6, 7]]]
    np.testing.assert_array_equal(found["fixed"], np.arange(18).reshape(6, 3))
    assert [part.tolist() for part in found["objects"]["name"]] == [[], [], [b"cup", b"pot"], [], [], []]
    assert "deeper" not in found
    one_line(folder, r"steps have sequences in each step at 'ragged'; numbers are", action_key="ragged")
    one_line(folder, r"steps have something else at 'deeper'", action_key="deeper")


def test_values_that_are_no_whole_steps_leave_the_episode_out(tmp_path):
    steps = STEPS | {"observation/state": tensor("float64", 7, encoding="zlib")}
    whole = [zlib.compress(np.zeros(7).tobytes())] * 6
    good, short, cut, garbled = (
        episode(i, observation__state=state)
        for i, state in enumerate([whole, whole[:5], [*whole[:5], zlib.compress(b"x")], [*whole[:5], b"x"]])
    )
    folder = write_dataset(tmp_path, {"train": [[good, short, cut, garbled]]}, steps)
    message = one_line(folder, "3 of 4 train trajectories cannot be used")
    assert "2 'observation/state' cannot be decoded, such as" in message
    assert "1 lengths disagree, such as" in message
    assert opened(folder, max_skipped=0.9).source.keys == ("/raw/0#0",)


def test_numbers_with_an_encoding_are_actions_and_states(tmp_path):
    steps = STEPS | {"action": tensor("float64", 2, 2, encoding="zlib")}
    one = episode(0, action=[zlib.compress(step.tobytes()) for step in DOUBLES])
    dataset = opened(write_dataset(tmp_path, {"train": [[one]]}, steps))
    np.testing.assert_array_equal(dataset.source.actions, DOUBLES[:-1].reshape(5, 4).astype(np.float32))


# Pictures


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("encoding", ["none", "bytes"])
def test_raw_pictures_are_read_one_by_one(tmp_path, encoding, file_format):
    steps = STEPS | {"observation/image_0": tensor("uint8", 5, 4, 3, encoding=encoding)}
    stored = PIXELS.astype(np.int64) if encoding == "none" else [one.tobytes() for one in PIXELS]
    one = episode(0, observation__image_0=stored)
    folder = write_dataset(
        tmp_path, {"train": [[episode(1, observation__image_0=stored), one]]}, steps, None, file_format
    )
    dataset = opened(folder, image_size=())
    assert dataset.report == ("images0      camera -> 5 x 4 stored -> 5 x 4",)
    np.testing.assert_array_equal(dataset.source.frames(1, [5, 0, 2], "images0"), PIXELS[[5, 0, 2]])
    np.testing.assert_array_equal(dataset.source.stored_frames(0, [3], "images0")[0], PIXELS[3])
    resized = opened(folder, image_size=(10, 8)).source.frames(0, [4], "images0")
    np.testing.assert_array_equal(resized, images.resize(PIXELS[4:5], (10, 8)))


def test_raw_gray_pictures_are_rgb(tmp_path):
    steps = STEPS | {"observation/image_0": tensor("uint8", 5, 4, 1)}
    one = episode(0, observation__image_0=PIXELS[..., 0].astype(np.int64))
    frames = opened(write_dataset(tmp_path, {"train": [[one]]}, steps), image_size=()).source.frames(
        0, range(6), "images0"
    )
    np.testing.assert_array_equal(frames, np.repeat(PIXELS[..., :1], 3, 3))


def test_raw_pictures_that_are_not_whole_leave_the_episode_out(tmp_path):
    steps = STEPS | {"observation/image_0": tensor("uint8", 5, 4, 3)}
    stored = PIXELS.astype(np.int64).ravel()
    bad = [episode(1, observation__image_0=stored[:-1]), episode(2, observation__image_0=stored[:-60])]
    folder = write_dataset(tmp_path, {"train": [[episode(0, observation__image_0=stored), *bad]]}, steps)
    message = one_line(folder, "2 of 3 train trajectories cannot be used")
    assert r"359 pixels, which are no pictures of [5, 4, 3]" in message
    wide = opened(folder, max_skipped=0.9).source
    assert wide.keys == ("/raw/0#0",)
    write_dataset(tmp_path, {"train": [[episode(0, observation__image_0=stored + 256)]]}, steps)
    with pytest.raises(DataError, match=r"images0 at byte \d+: no picture of \[5, 4, 3\]; the file changed"):
        opened(tmp_path, image_size=()).source.frames(0, [1], "images0")


def depth(values):
    file = io.BytesIO()
    if values.dtype == np.uint16:
        Image.fromarray(values).save(file, "PNG")
    else:  # as TFDS does it: the four bytes of each number are the channels
        Image.fromarray(values.view(np.uint8).reshape(*values.shape, 4), "RGBA").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_depth_is_no_camera_but_can_be_decoded(tmp_path, dtype):
    values = (RNG.random((6, 5, 4)) * 60000).astype(dtype)
    node = {"image": {"shape": {"dimensions": ["5", "4", "1"]}, "dtype": dtype, "encodingFormat": "png"}}
    steps = STEPS | {"observation/depth": node}
    one = episode(0, observation__depth=[depth(own) for own in values])
    folder = write_dataset(tmp_path, {"train": [[one]]}, steps)
    assert len(opened(folder).source) == 1
    one_line(
        folder,
        r"'depth' holds depth or other values of pixels, which is no camera, the steps have observation/image_0: set",
        cameras={"a": "depth"},
    )
    (path,) = find_files(folder, "train")
    frames = rlds.RLDSFormat.of(folder, rlds.StepKeys()).build_index(path).frames["observation/depth"]
    with open(path, "rb") as file:
        content = file.read()
    for offset, size, own in zip(frames.offsets, frames.sizes, values):
        decoded = images.decode_depth(content[offset : offset + size], "x")
        assert decoded.dtype == dtype
        np.testing.assert_array_equal(decoded, own)


def test_what_is_no_depth_is_refused():
    with pytest.raises(images.UnfitImageError, match=r"^x: no depth: a PNG of mode RGB, where depth has 16 bits"):
        images.decode_depth(picture(0, 0), "x")
    with pytest.raises(DataError, match=r"^x: not a whole image"):
        images.decode_depth(depth(np.zeros((9, 9), np.uint16))[:40], "x")


def test_four_episodes_have_what_they_were_written_with(tmp_path):
    found = trajectories(write_dataset(tmp_path, {"train": [FOUR]}))
    for one, trajectory in zip(FOUR, found):
        np.testing.assert_array_equal(trajectory["observation"]["state"], one["steps/observation/state"])
