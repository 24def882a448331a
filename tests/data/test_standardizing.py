"""Standardizations by their names in a configuration: datasets of the registry, and functions of one's own."""

import multiprocessing
import sys

import numpy as np
import pytest
from data.rlds_episodes import STEPS, episode, opened, write_dataset

from jaxvla.data import standardizing
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import ConfigError, DataError

OWN = """
import dataclasses
import numpy as np

@dataclasses.dataclass
class Scale:
    by: "float"

def standardize(episode):
    state = episode["observation"]["state"]
    return {
        "actions": Scale(SCALE).by * (state[1:, :2] - state[:-1, :2]),
        "proprio": state[:, :3],
        "instruction": [text.decode() for text in episode["language_instruction"]],
    }
"""


def own(path, scale=1, text=OWN):
    path.write_text(text.replace("SCALE", str(scale)))
    return f"{path}:standardize"


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "set" / "1.0.0", {"train": [[episode(0)], [episode(1)]]}, STEPS)


def moved(number, scale=1):
    return scale * np.diff(episode(number)["steps/observation/state"][:, :2], axis=0)


def test_a_function_of_a_file_makes_the_trajectories(folder, tmp_path):
    dataset = opened(folder, standardization=own(tmp_path / "mine.py", 2))
    np.testing.assert_allclose(dataset.source.table(1).actions, moved(1, 2), rtol=1e-6)
    assert (dataset.source.proprio.shape, dataset.source.language) == ((12, 3), (("go",),) * 2)
    assert dataset.convention.gripper == ()


def test_its_indices_follow_its_source(folder, tmp_path):
    """One that changed is another function, in the process that knows it, too; of the old one nothing is left."""
    path = tmp_path / "mine.py"
    for scale in (1, 3):
        source = opened(folder, standardization=own(path, scale)).source
        np.testing.assert_allclose(source.table(0).actions, moved(0, scale), rtol=1e-6)
    (kept, _) = sorted(folder.glob("*.index"))
    before = kept.stat().st_mtime_ns
    opened(folder, standardization=own(path, 3))
    assert kept.stat().st_mtime_ns == before


def test_a_function_of_a_module(folder, tmp_path, monkeypatch):
    own(tmp_path / "my_module_of_the_test.py", 2)
    monkeypatch.syspath_prepend(tmp_path)
    source = opened(folder, standardization="my_module_of_the_test:standardize").source
    np.testing.assert_allclose(source.table(0).actions, moved(0, 2), rtol=1e-6)
    sys.modules.pop("my_module_of_the_test")


def call(standardize, values):
    return standardize(values)


def test_new_processes_find_it(tmp_path):
    """As the workers that index files do: by spawning, with nothing but what is pickled."""
    functions = [standardizing.find(name).function for name in (own(tmp_path / "mine.py", 5), "bridge_orig")]
    state = np.arange(21.0).reshape(3, 7)
    values = {"action": state, "observation": {"state": state}}
    values["language_instruction"] = np.array([b"a"] * 3, object)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.starmap(call, [(function, values) for function in functions])
    for made, function in zip(there, functions):
        np.testing.assert_array_equal(made["actions"], function(values)["actions"])


FAULTY = "def standardize(episode):\n    return episode['observation']['stat']\n"


@pytest.mark.parametrize(
    ("text", "name", "error", "message"),
    [
        (OWN, "standardise", ConfigError, r"no function 'standardise', .*mine\.py has standardize$"),
        ("import nothing_of_this_name", "standardize", ConfigError, r"cannot be imported \(ModuleNotFoundError: No m"),
        ("def standardize(:", "standardize", ConfigError, r"mine\.py cannot be imported \(SyntaxError: invalid syntax"),
        (FAULTY, "standardize", DataError,
         r"record 0: standardization '.*mine\.py:standardize' raised KeyError: 'stat' \(.*mine\.py, line 2\); the "
         r"steps have action, language_instruction, observation/state$"),
        ("def standardize(episode):\n    return 5\n", "standardize", DataError, "gives int; it must give a dict"),
        ("def standardize(episode):\n    return {'actions': []}\n", "standardize", DataError,
         "gives no proprio, instruction; it must"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_one_line(text, name, error, message, folder, tmp_path):
    own(tmp_path / "mine.py", text=text)
    with pytest.raises(error, match=message) as caught:
        opened(folder, standardization=f"{tmp_path / 'mine.py'}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"standardization": "bridge_origin"}, r"'bridge_origin': did you mean bridge_orig or .*is file\.py:function"),
        ({"standardization": "none.py:f"}, "standardization='none.py:f': no file /"),
        ({"standardization": "nomodule:f"}, r"nomodule cannot be imported \(ModuleNotFoundError"),
        ({"standardization": "viola", "variant": "rtx"}, "variant must be one of openvla, octo, not 'rtx'"),
        ({"standardization": "viola", "action_key": "x"}, "action_key has no effect with standardization 'viola'"),
        ({"standardization": "a:b", "variant": "octo"}, "variant has no effect with standardization 'a:b', which is"),
        ({"variant": "octo"}, "variant has no effect with standardization '', which is no dataset"),
        ({"standardization": "viola", "views": ("top",)}, r"views must be of primary, secondary, wrist, not \('top'"),
        ({"standardization": "droid_wrist", "views": ()}, "views must be of primary"),
        ({"standardization": "toto", "views": ("wrist",)}, r"toto has none of bridgedata_config.views=\('wrist',\)"),
        ({"format": "bridge_tfrecord", "include": (("**",),), "standardization": "viola"},
         "standardization has no effect with format 'bridge_tfrecord'"),
        ({"cameras": {}}, "cameras is empty, and the steps of .* have observation/image_0: name at least one"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(changes, message, folder):
    config = {"format": "rlds", "data_path": str(folder), "cameras": {"images0": "image_0"}} | changes
    if "standardization" in changes:
        config["cameras"] = {}
    with pytest.raises(ConfigError, match=message) as caught:
        open_dataset(SourceConfig(**config), DataConfig(), "train")
    assert "\n" not in str(caught.value)


def test_another_dataset_than_the_named_one_is_told(folder):
    with pytest.raises(DataError, match=r"record 0: viola: no step feature 'action/world_vector', there are action, "):
        opened(folder, standardization="viola")
