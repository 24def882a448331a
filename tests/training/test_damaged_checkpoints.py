"""Every way in which a checkpoint can be broken is one line, which names the step to use instead."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import shutil
import time

import pytest
from training.positional_batches import make_assets
from training.two_checkpoints import ARRAYS, cut, new_state, remove, save, served, shapes, the_file

from jaxvla.checkpoint import find_checkpoint, read_assets
from jaxvla.errors import CheckpointError, ConfigError, JaxvlaError
from jaxvla.manifest import MANIFEST
from jaxvla.training.checkpointer import Checkpointer, resume
from jaxvla.training.config import CheckpointConfig


@pytest.fixture(scope="module")
def state():
    return new_state()


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    return save(state, tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def resumed(path):
    return resume(
        find_checkpoint(path),
        make_assets(),
        shapes(),
    )


def empty(path):
    path.write_bytes(b"")


def garble(path):
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        (f"params/{ARRAYS}", cut),
        (f"params/{ARRAYS}", empty),
        (f"params/{ARRAYS}", garble),
        (f"params/{ARRAYS}", remove),
        ("params/d/*", cut),
        ("params/manifest.ocdbt", garble),
        ("params/_METADATA", remove),
        ("params/_sharding", empty),
        ("params/array_metadatas/process_0", garble),
        ("train/manifest.ocdbt", remove),
        ("train/d/*", make_folder),
        ("assets/assets.json", cut),
        ("assets/assets.json", garble),
        ("assets/assets.json", make_folder),
        ("data/data.json", empty),
        ("data/data.json", remove),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_step_to_use(run, capfd, pattern, damage):
    damage(the_file(run / "checkpoints" / "20", pattern))
    item = pattern.split("/")[0]
    for read in (resumed, served) if item in ("params", "assets") else (resumed,):
        with pytest.raises(CheckpointError) as error:
            read(run)
        message = str(error.value)
        assert message.startswith(f"{run / 'checkpoints' / '20' / item}")
        assert message.endswith(f"; whole is step 10: use {run / 'checkpoints' / '10'}")
        assert len(message) < 700
        assert "\n" not in message
        del error
    gc.collect()
    time.sleep(0.05)  # reads that were under way end, and find nobody
    assert capfd.readouterr().err == ""
    assert int(resumed(run / "checkpoints" / "10")[0].step) == 10


@pytest.mark.parametrize("item", ["params", "train", "data", "assets"])
def test_steps_that_are_damaged_too_are_not_named(run, item):
    the_file(run / "checkpoints" / "20" / "params", ARRAYS).unlink()
    file = "_METADATA" if item in ("params", "train") else f"{item}.json"
    empty(run / "checkpoints" / "10" / item / file)
    with pytest.raises(CheckpointError, match=r"checkpoints has no other step that is whole: copy it again"):
        resumed(run)


def test_an_item_that_lacks(run):
    shutil.rmtree(run / "checkpoints" / "20" / "train")
    with pytest.raises(CheckpointError, match=rf"it lacks train; whole is step 10: use {run}/checkpoints/10$"):
        find_checkpoint(run)
    shutil.rmtree(run / "checkpoints" / "20")
    (run / "checkpoints" / "20").mkdir()
    with pytest.raises(
        CheckpointError, match=r"20 is incomplete: it lacks params, train, data, assets; whole is step 10"
    ):
        find_checkpoint(run)


def _without_numbers(assets):
    return assets["statistics"]["actions"] | {"std": [math.nan, math.nan]}


@pytest.mark.parametrize(
    ("item", "change", "message"),
    [
        ("assets", lambda values: [], "it is a list, no mapping"),
        ("assets", lambda values: values | {"spec": 5}, "assets.spec must be BatchSpec, not int 5"),
        ("assets", lambda values: values | {"agent": 5}, "assets.agent must be str"),
        ("assets", lambda values: values | {"action_mask": [1]}, r"assets.action_mask\[0\] must be bool"),
        ("assets", lambda values: values | {"statistics": {"actions": 1}}, ""),
        (
            "assets",
            lambda values: values | {"spec": values["spec"] | {"action_dim": 3}},
            r"statistics.actions.mean has shape \(2,\), batches have 3",
        ),
        (
            "assets",
            lambda values: values | {"statistics": values["statistics"] | {"actions": _without_numbers(values)}},
            r"std is \[nan, nan\], not 2 numbers",
        ),
        ("data", lambda values: [], r"no data positions but \[\]"),
        ("data", lambda values: {}, "no data positions but {}"),
        ("data", lambda values: [3], r"no data positions but \[3\]"),
    ],
)
def test_json_of_another_kind(run, item, change, message):
    path = run / "checkpoints" / "20" / item / f"{item}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    (path.parents[1] / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=rf"{item}\.json cannot be read \(.*{message}.*\); whole is step 10"):
        resumed(run)


def test_metrics_that_cannot_be_read_are_named(run, state):
    empty(run / "checkpoints" / "10" / "metrics" / "metrics")
    with pytest.raises(CheckpointError, match=r"10/metrics/metrics cannot be read .*: remove .*/10/metrics, and"):
        Checkpointer(run, CheckpointConfig(), make_assets())
    shutil.rmtree(run / "checkpoints" / "10" / "metrics")
    with Checkpointer(run, CheckpointConfig(), make_assets()) as checkpointer:
        checkpointer.save(dataclasses.replace(state, step=state.step + 30), {}, {"mse": 2.0})


def test_folders_that_cannot_be_read(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "is_dir", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be read: Permission denied"):
        find_checkpoint(run)


def test_a_bucket_is_refused():
    with pytest.raises(ConfigError, match=r"gs://runs/x is no local path: use a local disk, or mount the bucket"):
        find_checkpoint("gs://runs/x")


def test_no_home(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(JaxvlaError, match="~/runs cannot be found: no home folder is known"):
        find_checkpoint("~/runs")


def test_damaged_assets(run):
    folder = run / "checkpoints" / "10"
    path = folder / "assets" / "assets.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values)[:100])
    with pytest.raises(CheckpointError, match=r"assets.json has 100 bytes, not \d+;"):
        read_assets(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"assets.json cannot be read \("):
        read_assets(folder)
    path.write_text(json.dumps({**values, "version": "0.0.1", "wheels": 4}))
    with pytest.raises(CheckpointError, match=r"written by jaxvla 0.0.1 and does not fit .*wheels"):
        read_assets(folder)
