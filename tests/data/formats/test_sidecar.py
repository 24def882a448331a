"""Derived files cost time where they cannot be kept or read, and nothing else."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from data.bridge_files import write_dataset
from training.file_limit import file_limit

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats import index, sidecar
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import InstructionSpec
from jaxvla.data.text.instructions import open_table
from jaxvla.errors import DataError
from jaxvla.reasoning.lengths import Longest, TextLengths

SPEC = InstructionSpec(2)
LENGTHS = TextLengths(Longest(3, "a"), (Longest(1, ""), Longest(2, "b")))


@pytest.fixture(autouse=True)
def not_warned(monkeypatch):
    sidecar._warned.clear()
    yield
    sidecar._warned.clear()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), {"sweep": [6, 9]})


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A cache that nobody can write to, not even root."""
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))


def make_read_only(root):
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o555)


def open_all(root, split="train"):
    dataset = open_dataset(SourceConfig("bridge_tfrecord", str(root), (("**",),)), DataConfig(), split)
    return dataset, open_table(
        Mixture.of(dataset), SPEC, lambda texts: np.array([[len(text), 1.0] for text in texts]), "lengths"
    )


def assert_same(found, expected):
    for (dataset, table), (other, other_table) in zip([found], [expected]):
        np.testing.assert_array_equal(dataset.actions, other.actions)
        np.testing.assert_array_equal(dataset.proprio, other.proprio)
        np.testing.assert_array_equal(table.values_ml, other_table.values_ml)
        frames = [each.source.frames(0, [0, 3], "images0") for each in (dataset, other)]
        np.testing.assert_array_equal(*frames)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_derived_files_lie_beside_the_data(root, cache):
    before = files(root)
    open_all(root)
    made = set(files(root)) - set(before)
    assert {name.split("/")[-1].split("-")[0] for name in made} == {
        "out.tfrecord.index",
        "train_columns",
        "drawable",
        "dataset_statistics",
        "instructions",
    }
    assert not cache.exists()


def test_a_read_only_folder_sends_them_to_the_cache(root, cache, capfd):
    before = files(root)
    make_read_only(root)
    first = open_all(root)
    assert len(files(cache)) == 5
    assert files(root) == before
    assert_same(open_all(root), first)
    assert capfd.readouterr().err == ""


def test_what_lies_beside_read_only_data_is_read(root, no_cache, monkeypatch, capfd):
    first = open_all(root)
    make_read_only(root)
    monkeypatch.setattr(index.Index, "dumps", lambda *_: pytest.fail("indexed again"))
    assert_same(open_all(root), first)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("given", ["", "cache", "./cache"])
def test_a_cache_that_is_empty_or_relative_counts_as_not_set(tmp_path, monkeypatch, given):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    beside, cached = sidecar.places(tmp_path / "data" / "x.index")
    assert beside == tmp_path / "data" / "x.index"
    assert cached.is_relative_to(tmp_path / "home" / ".cache" / "jaxvla")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert sidecar.places(beside)[1].is_relative_to("/somewhere/jaxvla")


def test_no_home_at_all(root, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    make_read_only(root)
    before = files(tmp_path)
    assert len(open_all(root)[0].source) == 2
    assert files(tmp_path) == before
    assert capfd.readouterr().err.count("\n") == 1


def test_nowhere_to_keep_them_costs_one_line(root, no_cache, tmp_path, capfd):
    expected = open_all(shutil.copytree(root, tmp_path / "writable"))
    make_read_only(root)
    before = files(tmp_path)
    for _ in range(2):
        assert_same(open_all(root), expected)
    assert files(tmp_path) == before
    line = capfd.readouterr().err
    assert line.startswith("warning: out.tfrecord.index and what else is derived from the data cannot be kept (")
    assert f"{root}/sweep/train: Read-only folder; {tmp_path}/a_file/jaxvla/" in line
    assert ": Not a directory), and is made again at every start: make room, or set XDG_CACHE_HOME to a folder" in line
    assert line.count("\n") == 1


def test_a_full_disk_costs_one_line(root, cache, tmp_path, capsys):
    expected = open_all(shutil.copytree(root, tmp_path / "roomy"))
    with file_limit(10):
        found = open_all(root)
    assert_same(found, expected)
    line = capsys.readouterr().err
    assert line.count(": File too large") == 2
    assert line.count("\n") == 1
    assert not list(root.rglob(".*")), "a part of a file was left"
    assert not list(root.rglob("*.index"))


def test_a_table_without_room_is_refused_before_texts_are_encoded(root, no_cache, capsys):
    dataset, _ = open_all(root)
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return np.ones((len(texts), 2))

    with file_limit(10):
        table = open_table(Mixture.of(dataset), SPEC, encode, "other")
    assert len(calls) == 1
    assert table.take(np.array([0, -1])).tolist() == [[1, 1], [0, 0]]


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x55
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def other_json(path):
    path.write_bytes(b"[1, 2]\n")


def without_arrays(path):
    line, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(line.replace(b'"arrays"', b'"sarrays"') + b"\n" + body)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("**/*.index", cut),
        ("**/*.index", flip),
        ("**/*.index", empty),
        ("**/*.index", other_json),
        ("**/*.index", without_arrays),
        ("*_columns-*", cut),
        ("*_columns-*", flip),
        ("*_columns-*", empty),
        ("drawable-*", cut),
        ("dataset_statistics-*", cut),
        ("dataset_statistics-*", empty),
        ("dataset_statistics-*", other_json),
        ("**/instructions-*", cut),
        ("**/instructions-*", empty),
        ("**/instructions-*", other_json),
    ],
)
def test_a_garbled_file_is_made_again(root, pattern, damage, capfd):
    first = open_all(root)
    (path,) = root.glob(pattern)
    content = path.read_bytes()
    path.unlink()  # the table of the first is mapped
    path.write_bytes(content)
    damage(path)
    if pattern == "**/*.index":  # which are read only where these are not there
        next(root.glob("*_columns-*")).unlink()
    assert_same(open_all(root), first)
    assert path.read_bytes() == content
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"prefix": 3}', LENGTHS.dumps().replace(b": 3", b': "3"'), b"\xff\xfe"]
)
def test_garbled_lengths_are_measured_again(tmp_path, content):
    path = tmp_path / "text_lengths.json"
    path.write_bytes(content)
    assert sidecar.kept(path, TextLengths.loads, lambda: LENGTHS, TextLengths.dumps) == LENGTHS
    assert TextLengths.loads(path.read_bytes()) == LENGTHS


def test_a_folder_in_place_of_a_data_file(root):
    path = root / "sweep" / "train" / "out.tfrecord"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"out.tfrecord is no file, or a link that leads nowhere"):
        open_all(root)


def test_a_data_folder_that_cannot_be_read(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "listdir", refuse)
    for form in ("bridge_tfrecord", "rlds"):
        with pytest.raises(DataError, match=rf"^{root}: cannot be read: Permission denied$"):
            open_dataset(SourceConfig(form, str(root), (("**",),)), DataConfig(), "train")


def test_a_data_file_that_goes_while_it_is_read(root):
    dataset, _ = open_all(root)
    pathlib.Path(dataset.source.paths[0]).unlink()
    with pytest.raises(DataError, match=r"out.tfrecord: cannot be read: No such file or directory$"):
        dataset.source.frames(0, [0], "images0")
