"""Places for runs that would fail at their first checkpoint are refused before anything is read."""

import pathlib
import tempfile

import pytest
from training.linear_run import VALUES

from jaxvla.config import from_mapping
from jaxvla.errors import CheckpointError
from jaxvla.training.config import TrainConfig
from jaxvla.training.folders import check_paths


def config_of(save_dir):
    return from_mapping(TrainConfig, VALUES | {"save_dir": str(save_dir)})


def test_a_place_that_is_good_stays_as_it_was(tmp_path):
    check_paths(config_of(tmp_path / "runs" / "mine"))
    assert not list(tmp_path.iterdir())


def test_a_place_whose_folders_cannot_be_renamed(tmp_path, monkeypatch):
    def refuse(path, target):
        assert list(path.iterdir()), "some mounted buckets rename empty folders alone"
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    message = (
        rf"folders in {tmp_path} cannot be renamed \(Operation not supported\), and a checkpoint is complete by that"
    )
    with pytest.raises(CheckpointError, match=message):
        check_paths(config_of(tmp_path / "runs"))
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_full(tmp_path, monkeypatch):
    def refuse(prefix, dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(CheckpointError, match=rf"cannot make a folder in {tmp_path}: No space left on device"):
        check_paths(config_of(tmp_path / "runs"))
