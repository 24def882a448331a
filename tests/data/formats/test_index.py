"""Indices of many files: parts of them, what an interruption leaves, and several processes."""

import os
import time

import numpy as np
import pytest
from data.bridge_files import write_dataset
from data.rlds_episodes import episode, write
from tqdm import tqdm

from jaxvla.data.formats import bridge_tfrecord, indexing, rlds, rlds_features
from jaxvla.data.formats.index import Frames, Index, IndexBuilder
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError


def built(lengths, wrong=()):
    """An index of trajectories of these lengths; 0 for one that is skipped, those of `wrong` without pictures."""
    builder = IndexBuilder()
    for number, length in enumerate(lengths):
        with builder.trajectory():
            if not length:
                raise UnusableError("empty", str(number))
            values = np.full((length + 1, 1), number)
            frames = "no pictures" if number in wrong else Frames(values[:, 0] + 1, values[:, 0] + 1, ())
            builder.add("x", str(number), values[:-1], values, (f"do {number}",), values[:-1, 0], {"camera": frames})
    return builder.build()


def test_a_part_counts_what_was_skipped():
    whole = built([2, 0, 3, 2, 0, 4], wrong=(2, 5))
    assert whole.numbers.tolist() == [0, 2, 3, 5]
    assert whole.between(0, 6) is whole
    part = whole.between(1, 5)
    assert (part.total, part.keys, part.numbers.tolist()) == (4, ("2", "3"), [2, 3])
    assert part.skipped == (("empty", "1"), ("empty", "4"))
    assert part.faults == ((0, "camera", "no pictures"),)
    assert part.actions[:, 0].tolist() == [2, 2, 2, 3, 3]
    assert part.language == (("do 2",), ("do 3",))
    assert part.frames["camera"].sizes.tolist() == [0] * 4 + [4] * 3
    last = whole.between(4, 6)
    assert (last.total, last.keys, last.faults) == (2, ("5",), ((0, "camera", "no pictures"),))
    assert whole.between(1, 2).total == 1
    again = Index.loads(part.dumps("s"), "s")
    np.testing.assert_array_equal(again.numbers, part.numbers)


@pytest.fixture
def paths(tmp_path):
    root = write_dataset(tmp_path, {name: [3, 4] for name in "abcdefghijkl"})
    return [str(root / name / "train" / "out.tfrecord") for name in "abcdefghijkl"]


def test_what_was_indexed_before_an_interruption_is_kept(paths, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    seen = []

    def build(path):
        time.sleep(0.05)
        seen.append(path)
        return bridge_tfrecord.build_index(path)

    class Bar(tqdm):
        def update(self, n=1):
            if len(seen) >= 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(indexing, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        open_indices(paths, build)
    monkeypatch.setattr(indexing, "tqdm", tqdm)
    first = list(seen)
    assert 2 <= len(first) < len(paths) - 4, "what is not begun is not waited for"
    assert [path for path in paths if os.path.exists(f"{path}.index")] == first
    found = open_indices(paths, build)
    assert seen == paths
    assert [len(one.lengths) for one in found] == [2] * len(paths)


def test_the_first_of_several_errors_is_told(paths):
    for path in paths[3:]:
        os.truncate(path, 50)
    with pytest.raises(DataError, match=rf"{paths[3]}: record 0"):
        open_indices(paths, bridge_tfrecord.build_index)


def test_many_bytes_are_shared_between_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "_MANY_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    files = [str(write(tmp_path / f"{i}.tfrecord", [episode(i), episode(9, 1)])) for i in range(3)]
    numbers, image = (rlds_features.Feature((), kind) for kind in (rlds_features.NUMBERS, rlds_features.PICTURES))
    features = [("action", numbers), ("observation/state", numbers), ("observation/image_0", image)]
    own = tuple(
        rlds_features.Feature(tuple(name.split("/")), like.kind, encoding="image" * (like is image))
        for name, like in features
    )
    reader = rlds.RLDSFormat(rlds.StepKeys(language="", vector=""), own)
    found = open_indices(files, reader.build_index, repr(reader))
    assert [one.keys for one in found] == [(f"/raw/{i}#{i}",) for i in range(3)]
    assert [one.skipped[0][0] for one in found] == ["fewer than 2 transitions"] * 3
    assert all(os.path.exists(f"{path}.index") for path in files)
    with open(files[1], "r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"1\.tfrecord: record 0 .*make the file again"):
        open_indices(files, reader.build_index, repr(reader))
