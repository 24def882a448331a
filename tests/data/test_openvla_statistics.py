import copy
import dataclasses
import json
import re

import numpy as np
import pytest

from jaxvla.data.openvla_statistics import openvla_normalizer, read_openvla, write_openvla
from jaxvla.data.transforms.normalization import FieldStatistics, Normalizer, Statistics
from jaxvla.errors import ConfigError, DataError

KEYS = ("mean", "std", "max", "min", "q01", "q99")
ENTRY = {
    "action": {
        "mean": [0.5, 0.25, 0],
        "std": [0.5, 0.125, 0.0],
        "max": [4.0, 1.0, 0.5],
        "min": [-4.0, 0.0, -0.5],
        "q01": [-2.0, 0.0, 0.0],
        "q99": [3.0, 1.0, 0.0],
        "mask": [True, False, True],
    },
    "proprio": {key: [0.0, 0.0] for key in KEYS},
    "num_transitions": 2135463,
    "num_trajectories": 60064,
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"a_set": ENTRY, "other": ENTRY}))
    return path


@pytest.fixture
def published(samples):
    return samples / "bridge_statistics" / "openvla_bridge_orig_dataset_statistics.json"


def openvla_unnormalized(actions, field, mask):
    """The formula of OpenVLA, in float64."""
    low, high = (np.asarray(values, np.float64) for values in (field["q01"], field["q99"]))
    return np.where(mask, 0.5 * (actions + 1) * (high - low) + low, actions)


def test_a_file_by_hand(path):
    s = read_openvla(path, "a_set")
    assert (s.num_transitions, s.num_trajectories, s.action_mask) == (2135463, 60064, (True, False, True))
    assert [s.actions.q01.tolist(), s.actions.q99.tolist()] == [[-2, 0, 0], [3, 1, 0]]
    assert [s.actions.min.tolist(), s.actions.max.tolist()] == [[-4, 0, -0.5], [4, 1, 0.5]]
    assert [s.actions.mean.tolist(), s.actions.std.tolist()] == [[0.5, 0.25, 0], [0.5, 0.125, 0]]
    assert s.proprio.mean.shape == (2,)


def test_unnormalized_by_hand(path):
    actions = np.array([[-1, -1, -1], [0, 0.3, 0.3], [0.2, 7, 1], [1, 1, 0]])
    normalizer = openvla_normalizer(read_openvla(path, "a_set"))
    # -2 + 5 (a + 1) / 2; what the mask leaves out; and 0, which q01 and q99 both are, although that dimension moves.
    robot = [[-2, -1, 0], [0.5, 0.3, 0], [1, 7, 0], [3, 1, 0]]
    np.testing.assert_allclose(normalizer.inverse(actions), robot, rtol=1e-6)
    np.testing.assert_array_equal(normalizer.forward(np.array([-2, 0.3, 0]))[:2], np.float32([-1, 0.3]))
    np.testing.assert_array_equal(normalizer.forward(np.array([9, 9, 0]))[:2], [1, 9])


def test_published_bridge_statistics(published):
    s = read_openvla(published, "bridge_orig")
    assert (s.num_transitions, s.num_trajectories, s.action_mask) == (2135463, 60064, (True,) * 6 + (False,))
    assert s.actions.q01[0] == np.float32(-0.02872725307941437)
    assert s.actions.q99[5] == np.float32(0.20382574498653397)
    # Tokens 31872, 31999, 31744, 31936, 31808, 31872, 31745 are the centres 0, -254, 254, -128, 128, 0, 254 / 255.
    centres = np.array([0, -254, 254, -128, 128, 0, 254]) / 255
    robot = [-0.000208787, -0.041541620, 0.040031674, -0.040370317, 0.035392096, -0.001678509, 0.996078431]
    for normalizer in (openvla_normalizer(s), Normalizer("bounds_q99", s.actions, s.action_mask)):
        np.testing.assert_allclose(normalizer.inverse(centres), robot, rtol=0, atol=1e-9 + 6e-8)
        np.testing.assert_allclose(normalizer.forward(np.array(robot)), centres, atol=1e-6)
    grid = np.linspace(-1, 1, 256)[:, None].repeat(7, 1)
    given = json.loads(published.read_text())["bridge_orig"]["action"]
    expected = openvla_unnormalized(grid, given, given["mask"])
    np.testing.assert_allclose(openvla_normalizer(s).inverse(grid), expected, rtol=1e-6, atol=1e-8)


def test_what_is_written_is_what_openvla_writes(path, published, tmp_path):
    for name, given in (("a_set", path), ("bridge_orig", published)):
        copied = tmp_path / "new" / f"{name}.json"
        write_openvla(copied, {name: read_openvla(given, name)})
        written, wanted = (json.loads(file.read_text())[name] for file in (copied, given))
        assert [*written] == [*wanted]
        for field in ("action", "proprio"):
            assert [*written[field]] == [*wanted[field]]
            for key in KEYS:
                np.testing.assert_array_equal(np.float32(written[field][key]), np.float32(wanted[field][key]))
        assert written["action"]["mask"] == wanted["action"]["mask"]
        assert written["num_transitions"] == wanted["num_transitions"]


def test_a_round_trip_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    actions, proprio = (FieldStatistics.of(rng.normal(size=(50, d)).astype(np.float32)) for d in (3, 5))
    datasets = {
        "masked": Statistics(actions, proprio, 50, 4, (True, True, False)),
        "plain": Statistics(actions, proprio, 50, 4),
        "blind": Statistics(actions, FieldStatistics(*[np.empty(0, np.float32)] * 6), 50, 4),
    }
    write_openvla(tmp_path / "s.json", datasets)
    assert "proprio" not in json.loads((tmp_path / "s.json").read_text())["blind"]
    for name, s in datasets.items():
        back = read_openvla(tmp_path / "s.json", name)
        assert back.action_mask == (s.action_mask or (True,) * 3)
        for field in ("actions", "proprio"):
            for key in KEYS:
                np.testing.assert_array_equal(getattr(getattr(back, field), key), getattr(getattr(s, field), key))


def test_without_a_mask_all_dimensions_are_normalized(path):
    content = {"a_set": copy.deepcopy(ENTRY)}
    del content["a_set"]["action"]["mask"]
    path.write_text(json.dumps(content))
    s = read_openvla(path, "a_set")
    assert s.action_mask == ()
    np.testing.assert_array_equal(openvla_normalizer(s).inverse(np.ones(3)), [3, 1, 0])


def test_a_name_that_is_not_there(path):
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: no dataset 'bridge'; it has a_set, other$"):
        read_openvla(path, "bridge")


def test_the_config_of_a_policy_has_the_same(path, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "openvla", "norm_stats": json.loads(path.read_text())}))
    found, expected = (read_openvla(file, "a_set") for file in (config, path))
    assert found.to_json() == expected.to_json()
    with pytest.raises(ConfigError, match=r"config.json: no dataset 'bridge'; it has a_set, other$"):
        read_openvla(config, "bridge")


def changed(*keys, value):
    content = copy.deepcopy({"a_set": ENTRY})
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("a_set", "action", "q01", value=None), "a_set.action has no 'q01', only 'mean', "),
        (changed("a_set", "action", value=None), "a_set has no 'action', only 'proprio', "),
        (changed("a_set", "num_transitions", value=None), "a_set has no 'num_transitions', only "),
        (changed("a_set", "num_trajectories", value=2.5), "a_set.num_trajectories is 2.5, not a number of them"),
        (changed("a_set", "proprio", "std", value=[0]), "a_set.proprio.std has 1 entries, the mean has 2"),
        (changed("a_set", "action", "mask", value=[True]), "a_set.action.mask has 1 entries, the mean has 3"),
        (changed("a_set", "action", "mask", value=[1, 1, 1]), "a_set.action.mask is [1, 1, 1], not a list of booleans"),
        (changed("a_set", "action", "std", value=[0.1, float("nan"), 0]), "a_set.action.std is nan in dimension 1"),
        (changed("a_set", "action", "max", value=[4, 1, 1e39]), "a_set.action.max is 1e+39 in dimension 2"),
        (
            changed("a_set", "action", "q99", value=[0.1, "a", 0]),
            "a_set.action.q99 is [0.1, 'a', 0], not a list of num",
        ),
        (changed("a_set", "action", "q99", value=0.5), "a_set.action.q99 is 0.5, not a list of numbers"),
        (changed("a_set", "action", "q01", value=[9, 0, 0]), "a_set.action.q01 is 9.0 in dimension 0, above q99, 3.0"),
        (changed("a_set", "action", value=[1]), "a_set.action is [1], not a mapping with 'mean'"),
        (changed("a_set", value=5), "a_set is 5, not a mapping with 'action'"),
        (ENTRY, "has no names of datasets"),
        ([], "has no names of datasets"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(path, content, message):
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"^{re.escape(f'{path}: {message}')}"):
        read_openvla(path, "a_set")


def test_octos_statistics_are_no_openvla_file(samples):
    path = samples / "bridge_statistics" / "open_pi_zero_bridge_statistics.json"
    with pytest.raises(DataError, match=r"open_pi_zero_bridge_statistics.json: has no names of datasets"):
        read_openvla(path, "bridge_orig")


def test_files_that_cannot_be_read_or_written(path, tmp_path):
    path.write_text("{")
    with pytest.raises(DataError, match=r"dataset_statistics.json: is not JSON"):
        read_openvla(path, "a_set")
    with pytest.raises(DataError, match=r"none.json: cannot be read: No such file or directory"):
        read_openvla(tmp_path / "none.json", "a_set")
    with pytest.raises(DataError, match=r"cannot be written"):
        write_openvla(path / "below" / "s.json", {})
    bad = dataclasses.replace(FieldStatistics.of(np.ones((2, 1))), std=np.array([np.inf], np.float32))
    with pytest.raises(DataError, match=r"s.json: a_set.action.std is inf in dimension 0, not a finite number"):
        write_openvla(tmp_path / "s.json", {"a_set": Statistics(bad, bad, 2, 1)})
    assert not (tmp_path / "s.json").exists()
