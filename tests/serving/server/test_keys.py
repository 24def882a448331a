"""What clients call things, of every client in the table."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from serving.policies import gray

from jaxvla.contract import CameraContract, Contract
from jaxvla.errors import PolicyError
from jaxvla.serving.server.keys import CLIENT_KEYS, Needs, fit, flatten
from jaxvla.serving.server.request import Options

CONTRACT = Contract(5.0, 2, 2, None, 1, {"images0": CameraContract(None, (8, 8))}, 4, 2, None)
NEEDS = Needs(("images0",), (), True, True, CONTRACT)

# A message of each client: images are gray of the value that the test expects at a camera; the state is 0, 1, 2, ...
MESSAGES = {
    "jaxvla": {"images0": gray(1), "wrist": gray(2), "proprio": np.arange(4.0), "language": "go"},
    "libero": {
        "observation/image": gray(1),
        "observation/wrist_image": gray(2),
        "observation/state": np.arange(4.0),
        "prompt": "go",
    },
    "droid": {
        "observation/exterior_image_1_left": gray(1),
        "observation/wrist_image_left": gray(2),
        "observation/joint_position": np.arange(3.0),
        "observation/gripper_position": np.array([3.0]),
        "prompt": "go",
    },
    "aloha": {
        "state": np.arange(4.0),
        "images": {
            "cam_high": gray(1).transpose(2, 0, 1),
            "cam_low": gray(9).transpose(2, 0, 1),
            "cam_left_wrist": gray(2).transpose(2, 0, 1),
            "cam_right_wrist": gray(9).transpose(2, 0, 1),
        },
        "prompt": "go",
    },
    "bridge": {
        "observation": {"image_0": gray(1), "image_1": gray(2), "state": [0, 1, 2.0, 3]},
        "language_instruction": b"go",
    },
    "lerobot": {
        "observation.images.front": gray(1),
        "observation.images.wrist": gray(2),
        "observation.state": np.arange(4, dtype=np.int32),
        "task": np.array("go"),
    },
    "vla-eval": {
        "images": {"agentview": gray(1), "wrist": gray(2)},
        "states": np.arange(4.0),
        "task_description": "go",
    },
    "starvla": {"image": {"0": gray(1), "1": gray(2)}, "state": np.arange(4.0), "lang": "go"},
}


@pytest.mark.parametrize("name", CLIENT_KEYS)
@pytest.mark.parametrize("cameras", [("images0",), ("images0", "wrist"), ("wrist", "images0")])
def test_every_client_is_known_by_its_keys(name, cameras):
    flat = flatten(MESSAGES[name])
    needs = dataclasses.replace(NEEDS, cameras=cameras)
    if name in ("bridge", "starvla") and cameras[0] == "wrist":
        cameras = ("images0", "wrist")  # their order is all that they say
        needs = dataclasses.replace(needs, cameras=cameras)
    reading = fit("", needs, flat)
    assert reading.name == name
    observation, task = reading.read(flat)
    assert [observation[camera][0, 0, 0] for camera in cameras] == [1 + (camera == "wrist") for camera in cameras]
    assert all(observation[camera].shape == (8, 8, 3) for camera in cameras)
    np.testing.assert_array_equal(observation["proprio"], [0, 1, 2, 3])
    assert task == {"language": "go"}


def test_a_camera_of_the_same_name_comes_first():
    needs = dataclasses.replace(NEEDS, cameras=("top", "front"), told=False, proprio=False)
    flat = flatten({"images": {"front": gray(1), "top": gray(2)}})
    assert fit("", needs, flat).cameras == {"top": "images/top", "front": "images/front"}
    by_hand = dataclasses.replace(needs, overrides={"top": "images/front"})
    assert fit("", by_hand, flat).cameras == {"top": "images/front", "front": "images/front"}
    assert "top from 'images/top'" in str(fit("", needs, flat))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/state": None}, r"'observation/state' is NoneType; expected numbers in robot units"),
        ({"observation/state": np.zeros((2, 2))}, r"'observation/state' is float64\[2, 2\]; expected numbers"),
        ({"observation/state": ["a"]}, "'observation/state' holds something that is no number"),
        ({"observation/state": np.array(["a"])}, "'observation/state' is <U1"),
        ({"prompt": 3}, "'prompt' is a int; expected text of up to 4096"),
        ({"prompt": b"\xff"}, "'prompt' is a bytes; expected text"),
        ({"prompt": "x" * 5000}, "'prompt' is a str of 5000 characters; expected text of up to 4096"),
        ({"observation/image": np.zeros((0, 8, 3), np.uint8)}, r"'observation/image' is uint8\[0, 8, 3\]; expected"),
        ({"observation/image": np.zeros((8, 8, 4), np.uint8)}, r"'observation/image' is uint8\[8, 8, 4\]; expected"),
        ({"observation/image": np.zeros((4097, 4097, 3), np.uint8)}, "is of 4097 x 4097 pixels, more than"),
    ],
)
def test_values_that_are_not_what_they_must_be(change, message):
    flat = flatten(MESSAGES["libero"])
    reading = fit("", NEEDS, flat)
    with pytest.raises(PolicyError, match=message):
        reading.read(flat | change)


def test_what_is_missing_is_listed_beside_what_came():
    flat = flatten(MESSAGES["libero"])
    reading = fit("", NEEDS, flat)
    del flat["prompt"]
    expected = (
        "lacks 'prompt'; what came holds 'observation/image', 'observation/wrist_image', 'observation/state', and "
    )
    with pytest.raises(PolicyError, match=expected):
        reading.read(flat)
    wrists = dataclasses.replace(NEEDS, cameras=("left_wrist", "right_wrist"))
    with pytest.raises(PolicyError, match="needs an image at the wrist, its 'right_wrist', of 'left_wrist', 'right_"):
        fit("", wrists, flat)
    with pytest.raises(PolicyError, match=r"keys of no client that is known .* own are 'images0', 'proprio', 'lang"):
        fit("", NEEDS, flatten({"a": 1, "b": {"c": 2}}))
    many = {f"key{i}": i for i in range(100)}
    with pytest.raises(PolicyError, match="and 70 more"):
        fit("", NEEDS, many)


def test_the_table_of_the_docs_is_the_table():
    text = (pathlib.Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    rows = re.findall(
        r"^\| `([\w-]+)` \|.* \|.* \|.* \|$", text.partition("| `--keys` |")[2].partition("\n\n")[0], re.M
    )
    assert rows == list(CLIENT_KEYS)
    assert {field.name for field in dataclasses.fields(Options)} <= {*re.findall(r"`(\w+)`", text)}


def test_paths_of_nested_keys():
    assert flatten({"a": {"b": {"c": 1}}, "d/e": 2}) == {"a/b/c": 1, "d/e": 2}
    with pytest.raises(PolicyError, match="two values at 'a/b'"):
        flatten({"a/b": 1, "a": {"b": 2}})
    with pytest.raises(PolicyError, match="a key that is no text: b'a'"):
        flatten({b"a": 1})
