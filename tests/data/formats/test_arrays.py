"""Files of arrays: what is written is mapped, pickled as its place, and never garbage."""

import gc
import os
import pathlib
import pickle

import numpy as np
import pytest

from jaxvla.data.formats import arrays, mapping
from jaxvla.data.formats.strings import Annotations, Strings, arrays_of
from jaxvla.errors import DataError

TABLE = np.arange(35, dtype=np.float32).reshape(5, 7)


def pieces():
    empty = np.empty((0, 3), np.int64)
    columns = {"table": [TABLE[:2], TABLE[2:]], "flags": [np.array([True, False, True])], "none": [empty]}
    return {name: lambda parts=parts: iter(parts) for name, parts in columns.items()}, {"total": 3}


@pytest.fixture
def path(tmp_path):
    with open(tmp_path / "x.arrays", "wb") as file:
        arrays.write(file, "stamp", *pieces())
    return tmp_path / "x.arrays"


def test_arrays_come_back_mapped_and_read_only(path):
    found = arrays.opened(path, "stamp")
    np.testing.assert_array_equal(found.arrays["table"], TABLE)
    assert found.arrays["flags"].tolist() == [True, False, True]
    assert (found.arrays["none"].shape, found.arrays["none"].dtype, found.notes) == ((0, 3), np.int64, {"total": 3})
    assert all(type(array) is arrays.MappedArray for array in found.arrays.values())
    assert type(found.arrays["table"][[1, 3]]) is type(found.arrays["table"][1:]) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["table"][0] = 1


def test_they_are_pickled_as_their_place_and_others_as_values(path):
    table = arrays.opened(path, "stamp").arrays["table"]
    content = pickle.dumps(table)
    assert len(content) < 250
    again = pickle.loads(content)
    np.testing.assert_array_equal(again, TABLE)
    assert type(again) is arrays.MappedArray
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(table + 1)), TABLE + 1)


def test_a_place_that_holds_something_else_by_then_is_an_error(path):
    content = pickle.dumps(arrays.opened(path, "stamp").arrays["table"])
    with open(path.with_suffix(".new"), "wb") as file:
        arrays.write(file, "other", *pieces())
    os.replace(path.with_suffix(".new"), path)
    with pytest.raises(DataError, match=r"x\.arrays: the data that it was made of changed"):
        pickle.loads(content)
    path.unlink()
    with pytest.raises(DataError, match=r"x\.arrays: cannot be read"):
        pickle.loads(content)


@pytest.mark.parametrize("cut", [1, 20, 60, 300])
def test_a_file_that_is_cut_off_is_made_again(path, cut):
    made = []

    def make():
        made.append(1)
        return pieces()

    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-cut])
    np.testing.assert_array_equal(arrays.kept(path, "stamp", make).arrays["table"], TABLE)
    assert path.read_bytes() == content
    arrays.kept(path, "stamp", make)
    assert made == [1]


def test_every_byte_that_counts_is_checked(path):
    content = path.read_bytes()
    padding = 35 * 4  # behind the first array, up to the next multiple of 64, nothing is stored
    for i in [*range(0, padding, 13), *range(192, 195), *range(len(content) - 36, len(content)), len(content) - 90]:
        damaged = bytearray(content)
        damaged[i] ^= 4
        path.unlink()
        path.write_bytes(damaged)
        arrays.kept(path, "stamp", pieces)
        assert path.read_bytes() == content, i


def test_another_stamp_is_made_again_and_replaced(path):
    other = {"table": lambda: [TABLE[:1]]}, None
    assert arrays.kept(path, "new", lambda: other).arrays["table"].shape == (1, 7)
    assert arrays.opened(path, "stamp") is None


def test_strings_are_sequences():
    texts = ["", "ä b", "\ud800", "x" * 300]
    strings = Strings.of(texts)
    assert (len(strings), list(strings), strings[-1], strings[1:3]) == (4, texts, "x" * 300, ("ä b", "\ud800"))
    assert strings == texts
    assert strings != texts[:3]
    assert strings != [*texts[:3], "y"]
    with pytest.raises(IndexError):
        strings[4]
    assert pickle.loads(pickle.dumps(strings)) == texts
    assert len(Strings.of([])) == 0


def test_annotations_are_those_of_each_trajectory():
    counts = np.array([2, 0, 1])
    own = Annotations(counts, np.array([0, 2, 2]), np.array([1, 0, 1]), Strings(*arrays_of(["go", "stop"])))
    assert own == (("stop", "go"), (), ("stop",))
    assert (own[0], own[1], own[1:]) == (("stop", "go"), (), ((), ("stop",)))
    assert own.all() == ("stop", "go", "stop")
    assert own != (("stop", "go"), (), ("go",))


def test_what_was_gathered_from_does_not_stay_in_memory(tmp_path, monkeypatch):
    """A row of each page: without letting go the whole file would be the process's."""
    monkeypatch.setattr(mapping, "_MAPPED_BYTES", 0)
    table = np.ones((1 << 20, 12), np.float32)  # 48 MB
    with open(tmp_path / "x.arrays", "wb") as file:
        arrays.write(file, "stamp", {"table": lambda: [table]}, None)
    found = arrays.opened(tmp_path / "x.arrays", "stamp").arrays["table"]

    def resident():
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("RssFile:")[1].split()[0]) / 1024

    before = resident()
    assert found[np.arange(0, len(table), 85)].sum() == 12 * -(-len(table) // 85)
    assert resident() - before < 8
    assert np.asarray(found)[::85].sum() > 0
    assert resident() - before > 32, "what is asked for as a whole is mapped"
    mapping.let_go()
    assert resident() - before < 8


def test_maps_hold_no_descriptor_and_end_with_their_last_reader(path):
    def held():
        return sum(os.path.samefile(f"/proc/self/fd/{fd}", path) for fd in os.listdir("/proc/self/fd") if real(fd))

    def real(fd):
        return os.path.exists(f"/proc/self/fd/{fd}")

    row = arrays.opened(path, "stamp").arrays["table"][1:2]
    assert held() == 0
    maps = pathlib.Path("/proc/self/maps")
    gc.collect()
    assert str(path) in maps.read_text()
    np.testing.assert_array_equal(row, TABLE[1:2])
    del row
    gc.collect()
    assert str(path) not in maps.read_text()


def test_an_empty_file_cannot_be_mapped(tmp_path):
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as file, pytest.raises(OSError, match="Invalid argument"):
        mapping.map_file(file)
