"""Whatever happens to a file of the latest checkpoint, a run goes on from one that is whole, or from none."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from training.linear_run import metrics_of, train_linear
from training.positional_batches import make_assets
from training.two_checkpoints import ARRAYS, at, cut, new_state, remove, save, served, shapes, the_file

from jaxvla.checkpoint import find_checkpoint, saved_steps
from jaxvla.errors import CheckpointError
from jaxvla.manifest import MANIFEST, write_manifest
from jaxvla.training import resuming
from jaxvla.training.checkpointer import Checkpointer, restore_state
from jaxvla.training.config import CheckpointConfig
from jaxvla.training.folders import begun
from jaxvla.training.resuming import whole_checkpoint

# What Orbax writes after everything else, and of which nothing is restored.
UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.fixture(scope="module")
def state():
    return new_state()


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    return save(state, tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files_of(run, step=20):
    folder = run / "checkpoints" / str(step)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    """One bit, of a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def restored(folder):
    return restore_state(folder, shapes())


def test_every_file_of_every_item_is_listed(saved):
    listed = json.loads((saved / "checkpoints" / "20" / MANIFEST).read_text())["files"]
    assert sorted({*listed, MANIFEST, *UNLISTED}) == sorted(map(str, files_of(saved)))
    assert {name.split("/")[0] for name in listed} == {"params", "train", "data", "assets", "metrics"}


@pytest.mark.parametrize("damage", [cut, zero, flip, remove])
def test_a_damaged_file_is_found_and_the_checkpoint_before_it_used(saved, state, tmp_path, capfd, damage):
    expected = {step: at(state, step) for step in (10, 20)}
    names = files_of(saved)
    assert len(names) > 20
    for i, name in enumerate(names):
        run = shutil.copytree(saved, tmp_path / str(i))
        damage(run / "checkpoints" / "20" / name)
        folder = whole_checkpoint(str(run))
        said = capfd.readouterr().err
        # Without a manifest it cannot be verified, which is said; what is not listed changes nothing.
        kept = str(name) in UNLISTED or (damage is remove and name.name == MANIFEST)
        assert folder.name == ("20" if kept else "10"), name
        if kept:
            assert ("20 was not verified" in said) == (name.name == MANIFEST)
        else:
            moved = f"moved to {run}/damaged/20; going on from step 10\n"
            assert said.startswith(f"WARNING: checkpoint {run}/checkpoints/20 is damaged: {name}")
            assert said.endswith(moved)
            assert said.count("\n") == 1
            assert saved_steps(run) == [10]
            assert files_of(run, "../damaged/20") == [other for other in names if damage is not remove or other != name]
        jax.tree.map(np.testing.assert_array_equal, restored(folder), expected[int(folder.name)])


@pytest.mark.parametrize("damage", [cut, zero, flip, remove])
def test_a_policy_is_not_read_from_a_damaged_file(saved, tmp_path, damage):
    names = [name for name in files_of(saved) if name.parts[0] in ("params", "assets")]
    for i, name in enumerate(names):
        run = shutil.copytree(saved, tmp_path / str(i))
        damage(run / "checkpoints" / "20" / name)
        with pytest.raises(CheckpointError) as error:
            served(run)
        assert str(error.value).startswith(f"{run}/checkpoints/20/{name}"), name
        assert str(error.value).endswith(f"; whole is step 10: use {run}/checkpoints/10")


def test_several_are_damaged(run, state, capfd):
    with Checkpointer(run, CheckpointConfig(), make_assets()) as checkpointer:
        checkpointer.save(at(state, 30), {"position": 30}, None)
    for step in (20, 30):
        flip(run / "checkpoints" / str(step) / "assets" / "assets.json")
    assert whole_checkpoint(str(run)).name == "10"
    assert sorted(path.name for path in (run / "damaged").iterdir()) == ["20", "30"]
    assert capfd.readouterr().err.count("WARNING") == 2
    shutil.copytree(run / "damaged" / "20", run / "checkpoints" / "20")
    whole_checkpoint(str(run))
    assert sorted(path.name for path in (run / "damaged").iterdir()) == ["20", "20_1", "30"]
    flip(run / "checkpoints" / "10" / "data" / "data.json")
    with pytest.raises(CheckpointError, match=r"/10/data/data.json does not match its checksum; .* no other step"):
        whole_checkpoint(str(run))


def test_a_run_is_complete_with_a_checkpoint_that_is_whole(run, capfd):
    def find(num_steps):
        return begun(str(run.parent), run.name, num_steps)

    assert begun(str(run.parent), "other", 20) == ("", 0)
    assert find(20) == find(19) == (str(run), 20)
    flip(run / "checkpoints" / "20" / "data" / "data.json")
    assert find(30) == (str(run), 20), "it is looked at when the run goes on from it"
    assert not capfd.readouterr().err
    assert find(20) == (str(run), 10)
    assert "data/data.json does not match its checksum: moved to" in capfd.readouterr().err
    cut(run / "checkpoints" / "10" / "train" / "_METADATA")
    with pytest.raises(CheckpointError, match="/10/train/_METADATA has"):
        find(10)


def test_none_is_whole(run):
    for step in (10, 20):
        cut(run / "checkpoints" / str(step) / "train" / "_METADATA")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* latest, train/_METADATA has \d+ bytes"):
        whole_checkpoint(str(run))
    assert saved_steps(run) == [10, 20]


@pytest.mark.parametrize("name", [MANIFEST, "metrics"])
def test_what_another_process_does_not_see(run, monkeypatch, name):
    def with_another(value):
        return [value, value | {"seen": value["seen"] | {name: False}}] if "seen" in value else [value, {}]

    monkeypatch.setattr(resuming, "gather", with_another)
    with pytest.raises(CheckpointError, match=rf"none of the 2 .* of the latest, {name} is missing \(says process 1\)"):
        whole_checkpoint(str(run))
    assert saved_steps(run) == [10, 20]


def test_the_folder_of_one_checkpoint_is_that_one_or_none(run):
    flip(run / "checkpoints" / "20" / "data" / "data.json")
    with pytest.raises(CheckpointError, match=r"20/data/data.json does not match its checksum; whole is step 10"):
        whole_checkpoint(str(run / "checkpoints" / "20"))
    assert saved_steps(run) == [10, 20]


def test_a_checkpoint_without_a_manifest_is_looked_at_as_before(run, capfd):
    for step in (10, 20):
        (run / "checkpoints" / str(step) / MANIFEST).unlink()
    assert whole_checkpoint(str(run)).name == "20"
    assert capfd.readouterr().err == (
        f"checkpoint {run}/checkpoints/20 was not verified: it is of a version that wrote no manifest\n"
    )
    served(run)
    assert capfd.readouterr().err == ""
    shutil.rmtree(run / "checkpoints" / "20" / "train")
    assert whole_checkpoint(str(run)).name == "10"
    assert "20 is damaged: train/_METADATA: No such file or directory" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_moved(run, monkeypatch):
    def refuse(path, target):
        raise PermissionError(13, "Permission denied", str(path))

    flip(run / "checkpoints" / "20" / "data" / "data.json")
    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    message = r"/20 is damaged \(data/data.json .*\) and cannot be moved to .*/damaged/20: Permission denied; move it"
    with pytest.raises(CheckpointError, match=message):
        whole_checkpoint(str(run))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"files": {"params/x": 5}, "crc32c": 0}', b"[" * 100_000]
)
def test_a_manifest_that_is_none(run, capfd, content):
    (run / "checkpoints" / "20" / MANIFEST).write_bytes(content)
    assert whole_checkpoint(str(run)).name == "10"
    assert f"20 is damaged: {MANIFEST} is damaged: " in capfd.readouterr().err


def test_a_run_goes_on_from_the_checkpoint_before_and_saves_at_the_same_steps_again(tmp_path, capfd):
    run = tmp_path / "run"
    train_linear(run, save_interval=20)
    losses = metrics_of(run, "training/loss")
    flip(the_file(find_checkpoint(run), f"params/{ARRAYS}"))
    train_linear(run, save_interval=20, resume_path=str(run))
    assert "going on from step 40" in capfd.readouterr().err
    assert metrics_of(run, "training/loss") == losses
    assert saved_steps(run) == [20, 40, 60]
    assert whole_checkpoint(str(run)).name == "60"


def test_a_manifest_that_cannot_be_written_leaves_none(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.json").write_text("{}")

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(tmp_path)
    assert not (tmp_path / MANIFEST).exists()
