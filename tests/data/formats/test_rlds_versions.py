"""RLDS datasets by their names and versions below a root."""

import dataclasses

import pytest
from data.rlds_episodes import FOUR, one_line, opened, write_dataset

from jaxvla.data.formats.rlds_versions import find_version
from jaxvla.data.opening import find_root, store_path
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    for name in (
        "bridge_orig/1.9.0",
        "bridge_orig/1.10.0",
        "bridge_oxe/0.1.0",
        "aloha/one_arm/1.0.0",
        "aloha/two/1.0.0",
    ):
        write_dataset(tmp_path / name, {})
    (tmp_path / "bridge_orig" / "2.0.0.incompleteABC").mkdir()
    (tmp_path / "bridge_orig" / "3.0.0").mkdir()  # without features.json: a download that was interrupted
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("bridge_orig", "bridge_orig/1.10.0"),
        ("bridge_orig/1.9.0", "bridge_orig/1.9.0"),
        ("bridge_orig:1.9.0", "bridge_orig/1.9.0"),
        ("aloha/two", "aloha/two/1.0.0"),
        ("aloha/two:1.0.0", "aloha/two/1.0.0"),
    ],
)
def test_the_newest_version_or_a_given_one(root, name, folder):
    assert find_version(root, name) == root / folder


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("bridge_orig:3.0.0", DataError, r"bridge_orig: no version 3\.0\.0, there are 1\.9\.0, 1\.10\.0$"),
        ("bridge_org", DataError, r"no dataset 'bridge_org', did you mean bridge_orig or bridge_oxe\?"),
        (
            "zebra",
            DataError,
            r"no dataset 'zebra', it holds aloha/one_arm, aloha/two, bridge_orig, bridge_oxe: correct",
        ),
        ("aloha", DataError, r"no dataset 'aloha', but its configurations aloha/one_arm, aloha/two: set"),
        ("a b", ConfigError, r"tfds_name='a b' is no dataset: write bridge_orig, or bridge_orig:1\.0\.0"),
        ("/etc", ConfigError, r"is no dataset"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(root, name, error, match):
    with pytest.raises(error, match=match):
        find_version(root, name)


def test_roots_that_are_none(root):
    one_line(root / "nowhere", "no data folder .*set the data path to the folder that holds bridge", tfds_name="bridge")
    version = root / "bridge_orig" / "1.9.0"
    one_line(
        version, r"1\.9\.0 is a version folder itself: set bridgedata_config\.tfds_name to ''", tfds_name="bridge_orig"
    )


def test_a_dataset_is_opened_by_its_name(tmp_path):
    write_dataset(tmp_path / "b" / "1.0.0", {"train": [FOUR[:2]]})
    write_dataset(tmp_path / "b" / "1.0.1", {"train": [FOUR]}, info={"train": [4]})
    dataset = opened(tmp_path, tfds_name="b")
    assert len(dataset.source) == 4
    assert dataset.report[0] == f"dataset      {tmp_path}/b/1.0.1"
    assert len(opened(tmp_path, tfds_name="b:1.0.0").source) == 2
    assert list((tmp_path / "b" / "1.0.1").glob("dataset_statistics-*")), "what is derived lies with the version"
    assert opened(tmp_path / "b" / "1.0.1").report == dataset.report[1:]


def test_annotations_lie_in_the_version_folder(root):
    config = SourceConfig("rlds", str(root), tfds_name="bridge_orig")
    assert store_path(config) == str(find_root(config) / "reasoning.sqlite")
    assert store_path(dataclasses.replace(config, reasoning_path="/a/b.sqlite")) == "/a/b.sqlite"
    assert store_path(dataclasses.replace(config, reasoning_path="")) == ""
