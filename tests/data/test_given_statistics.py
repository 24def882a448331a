import dataclasses
import json
import re

import numpy as np
import pytest
from data.rlds_episodes import FOUR, opened, write_dataset

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.openvla_statistics import write_openvla
from jaxvla.errors import ConfigError, DataError

NAMES = ("mean", "std", "min", "max", "q01", "q99")


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "my_set", {"train": [FOUR], "val": [FOUR[:1]]})


@pytest.fixture
def published(samples):
    return samples / "bridge_statistics" / "openvla_bridge_orig_dataset_statistics.json"


def real(folder, split="train", normalization="bounds_q99", **changes):
    config = SourceConfig("rlds", str(folder), cameras={"images0": "image_0"}, **changes)
    return open_dataset(config, DataConfig(normalization=normalization), split)


def assert_equal_fields(found, expected):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_statistics_of_the_real_sample_are_those_of_numpy(bridge_rlds):
    dataset = real(bridge_rlds)
    tables = [dataset.source.table(i) for i in range(len(dataset.source))]
    fields = {"actions": [table.actions for table in tables], "proprio": [table.proprio[:-1] for table in tables]}
    assert (dataset.statistics.num_transitions, dataset.statistics.num_trajectories) == (225, 25)
    for name, parts in fields.items():
        values, found = np.concatenate(parts), getattr(dataset.statistics, name)
        assert values.shape == (225, 7)
        low, high = values.min(0), values.max(0)
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
        wanted = {"mean": values.mean(0, np.float64), "std": values.std(0, np.float64), "min": low, "max": high}
        for key, value in (wanted | {"q01": q01, "q99": q99}).items():
            np.testing.assert_array_equal(getattr(found, key), value.astype(np.float32), err_msg=f"{name} {key}")


def test_published_statistics_take_the_place_of_the_datas_own(bridge_rlds, published):
    dataset = real(bridge_rlds, statistics_path=str(published))
    given = json.loads(published.read_text())["bridge_orig"]["action"]
    low, high = np.array(given["q01"])[:6], np.array(given["q99"])[:6]
    raw = np.concatenate([dataset.source.table(i).actions for i in range(25)]).astype(np.float64)
    moved = np.clip(2 * (raw[:, :6] - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(dataset.actions[:][:, :6], moved, atol=2e-6)
    np.testing.assert_array_equal(dataset.actions[:][:, 6], raw[:, 6])  # which the file's mask leaves out
    middle = dataset.action_normalizer.inverse(np.zeros(7))
    np.testing.assert_allclose(middle, [*(low + high) / 2, 0], atol=1e-8)
    assert middle[0] == pytest.approx(-0.000208787, abs=1e-8)
    # Its states are zeros, by which nothing can be scaled.
    assert_equal_fields(dataset.statistics.proprio, real(bridge_rlds).statistics.proprio)
    line = (
        f"statistics   of {published} (bridge_orig), 2135463 transitions; those of the states, which it lacks, are own"
    )
    assert line in dataset.report
    own_mask = real(bridge_rlds, statistics_path=str(published), action_mask=(True,) * 7)
    assert own_mask.action_normalizer.mask == (True,) * 7


def test_what_is_taken_out_can_be_brought_back(folder, tmp_path):
    own = opened(folder)
    scaled = {name: getattr(own.statistics.actions, name) * 2 for name in NAMES}
    twice = dataclasses.replace(own.statistics, actions=dataclasses.replace(own.statistics.actions, **scaled))
    write_openvla(tmp_path / "openvla.json", {"a": own.statistics, "b": twice})
    (tmp_path / "run.json").write_text(twice.dumps())
    (tmp_path / "runs.json").write_text(json.dumps({"a": own.statistics.to_json(), "b": twice.to_json()}))
    for file, name in (("openvla.json", "b"), ("run.json", ""), ("runs.json", "b")):
        options = {"statistics_path": str(tmp_path / file), "statistics_name": name}
        found = opened(folder, **options)
        assert_equal_fields(found.statistics.actions, twice.actions)
        assert_equal_fields(found.statistics.proprio, own.statistics.proprio)
        np.testing.assert_allclose(
            found.actions * twice.actions.std, own.source.actions - twice.actions.mean, atol=1e-6
        )
    same = opened(folder, statistics_path=str(tmp_path / "openvla.json"), statistics_name="a")
    np.testing.assert_array_equal(same.actions, own.actions)
    np.testing.assert_array_equal(same.proprio, own.proprio)


def test_statistics_that_do_not_fit_are_one_line(folder, tmp_path, published):
    own = opened(folder).statistics
    path = tmp_path / "s.json"

    def said(error, match, name=""):
        with pytest.raises(error, match=match) as caught:
            opened(folder, statistics_path=str(path), statistics_name=name)
        assert "\n" not in str(caught.value)

    for field, word in (("actions", "actions"), ("proprio", "states")):
        narrow = dataclasses.replace(getattr(own, field), **{n: getattr(getattr(own, field), n)[:5] for n in NAMES})
        path.write_text(dataclasses.replace(own, **{field: narrow}).dumps())
        said(DataError, rf"^{re.escape(str(path))} has {word} of 5 dimensions, .*my_set of 7: the statistics are of an")
    write_openvla(path, {"a": own, "b": own})
    said(ConfigError, r"no dataset ''; it has a, b: set bridgedata_config.statistics_name$")
    said(ConfigError, r"no dataset 'c'; it has a, b: set bridgedata_config.statistics_name$", "c")
    path.write_text(own.dumps())
    said(ConfigError, r"is of one dataset without a name: set bridgedata_config.statistics_name to ''", "a")
    path.write_text(json.dumps(own.to_json() | {"proprio": {"mean": [1.0]}}))
    said(DataError, r"s\.json: is damaged \(KeyError: 'std'\): copy it from its run again")
    path.write_text("[1]")
    said(DataError, r"s\.json: has no names of datasets")
    path.unlink()
    said(DataError, r"s\.json: cannot be read: No such file or directory")
    with pytest.raises(ConfigError, match=r"statistics_name='a' has no effect without statistics_path"):
        opened(folder, statistics_name="a")
