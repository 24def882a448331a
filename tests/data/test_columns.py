"""The tables of a split in one mapped file: made once, the same as those in memory, small to send, never stale."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from data.bridge_files import trajectory, write, write_dataset
from data.rlds_episodes import episode, opened
from data.rlds_episodes import write_dataset as write_rlds

from jaxvla.data import columns, loader, opening, statistics
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats import arrays, bridge_tfrecord, mapping
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.mixture import Mixture
from jaxvla.data.source import TrajectorySource
from jaxvla.data.tables import blocks, steps_of
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.tasks import TaskConfig

TASKS = {"a": [5, 3], "b": [4, 6, 2], "c": [7]}
NAMES = (
    *("lengths", "actions", "proprio", "taught", "texts", "vectors", "steps", "stored"),
    *("file_of", "taught_ahead", "action_starts"),
)


@pytest.fixture
def root(tmp_path):
    root = write_dataset(tmp_path / "data", TASKS)
    untaught = trajectory(50, 5) | {"taught": np.array([True, False, True, True, False])}
    write(root / "d" / "train" / "out.tfrecord", [untaught, trajectory(51, 3, ())])
    return root


def open_split(root, split="train", **changes):
    config = SourceConfig("bridge_tfrecord", str(root), (("**",),), **changes)
    return open_dataset(config, DataConfig(action_horizon=2), split)


def test_they_are_those_of_the_indices(root):
    source = open_split(root).source
    paths = [str(root / name / "train" / "out.tfrecord") for name in "abcd"]
    plain = TrajectorySource.of(paths, open_indices(paths, bridge_tfrecord.build_index), source.cameras)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(source, name), getattr(plain, name), err_msg=name)
        assert type(getattr(source, name)) is arrays.MappedArray, name
    assert (source.keys, source.language) == (plain.keys, plain.language)
    assert source.taught_ahead[-8:].tolist() == [1, 0, 2, 1, 0, 3, 2, 1]
    assert (source.paths, source.stored_sizes) == (plain.paths, plain.stored_sizes)


def test_a_part_of_the_trajectories_is_theirs(root):
    for task in TASKS:
        (root / task / "val" / "out.tfrecord").unlink()
    every = open_split(root).source
    parts = [open_split(root, split, validation_share=0.3).source for split in ("train", "val")]
    assert sorted(key for part in parts for key in part.keys) == sorted(every.keys)
    assert all(map(len, parts))
    numbers = {key: i for i, key in enumerate(every.keys)}
    for part in parts:
        for i, key in enumerate(part.keys):
            own, whole = part.table(i), every.table(numbers[key])
            np.testing.assert_array_equal(own.actions, whole.actions)
            np.testing.assert_array_equal(own.proprio, whole.proprio)
            assert own.language == whole.language
            frames = [source.frames(k, [0, 2], "images0") for source, k in ((part, i), (every, numbers[key]))]
            np.testing.assert_array_equal(*frames)


def test_the_next_start_reads_no_index_and_no_frame(root, monkeypatch):
    first = open_split(root, actions=ActionConvention(gripper=(6,), binarize=True))
    monkeypatch.setattr(opening, "open_indices", lambda *_: pytest.fail("the indices were read again"))
    monkeypatch.setattr(opening, "find_sizes", lambda *_: pytest.fail("frames were read again"))
    monkeypatch.setattr(arrays, "write", lambda *_: pytest.fail("tables were made again"))
    monkeypatch.setattr(statistics, "collect", lambda *_: pytest.fail("statistics were made again"))
    again = open_split(root, actions=ActionConvention(gripper=(6,), binarize=True))
    assert again.report == first.report
    np.testing.assert_array_equal(again.actions, first.actions)
    np.testing.assert_array_equal(again.drawable, first.drawable)
    assert not again.drawable.flags.owndata
    assert type(again.drawable) is arrays.MappedArray


def test_other_files_cameras_or_shares_have_their_own(root):
    before = open_split(root)
    write(root / "a" / "train" / "out.tfrecord", [trajectory(9, 4)])
    assert open_split(root).source.lengths.tolist() == [4, 4, 6, 2, 7, 5, 3]
    assert len(before.source.lengths) == 8, "the map of the earlier file stays what it was"
    assert len([*root.glob("train_columns-*")]) == 1, "stale files do not pile up"
    (root / "d" / "train" / "out.tfrecord").unlink()
    assert len(open_split(root).source) == 5


def test_what_is_taken_of_a_split_has_columns_of_its_own(root):
    def taken(**changes):
        dataset = open_split(root, **changes)
        assert open_split(root, **changes).report == dataset.report
        return dataset.source

    whole, dropped = taken(), taken(drop_first=1)
    assert type(dropped.steps) is arrays.MappedArray
    assert dropped.stored_steps(np.array([0, 1])).tolist() == [1, 2]
    np.testing.assert_array_equal(dropped.stored, whole.stored[whole.lengths > 2])
    # The movements that the convention makes decide what is a no-op, so it is a part of what they are of.
    still = {"no_op_below": 1e9}
    said = [taken(**still, actions=ActionConvention(gripper=own)) for own in ((6,), (5, 6))]
    assert said[0].columns.name != said[1].columns.name
    parts = [taken(max_trajectories=count, subset_seed=seed) for count, seed in ((3, 0), (2, 0), (3, 1))]
    assert [len(part) for part in parts] == [3, 2, 3]
    names = [source.columns.name for source in (whole, dropped, *said, *parts)]
    assert len({*names}) == len(names) == len([*root.glob("train_columns-*")])


def test_paraphrases_stand_behind_the_columns_own_texts(root):
    (root / "words.json").write_text('{"a": ["go there", "go on"]}')
    plain = open_split(root)
    told = DataConfig(action_horizon=2, tasks=TaskConfig(rephrase=0.5, paraphrases=str(root / "words.json")))
    dataset = open_dataset(SourceConfig("bridge_tfrecord", str(root), (("**",),)), told, "train")
    own = plain.source.language
    with_words = tuple(
        (*texts, *(text for own in texts for text in ("go there", "go on") * (own == "a"))) for texts in own
    )
    assert dataset.source.language == with_words
    assert len(dataset.annotations()) == sum(map(len, with_words)) > sum(map(len, own))
    drawn = dataset.source.draw_annotations(
        *dataset.source.locate(dataset.drawable), np.full(len(dataset.drawable), 0.9)
    )
    before = plain.source.draw_annotations(*plain.source.locate(plain.drawable), np.full(len(plain.drawable), 0.9))
    texts, words = plain.annotations(), dataset.annotations()
    assert [words[i] if i >= 0 else "" for i in drawn] == [texts[i] if i >= 0 else "" for i in before]
    assert dataset.source.columns.name == plain.source.columns.name, "the tables are the same"


def test_a_dataset_is_sent_as_the_places_of_its_tables(root):
    dataset = open_split(root)
    content = pickle.dumps(dataset)
    assert len(content) < 8000
    assert dataset.source.actions.tobytes() not in content
    code = "import pickle, sys; d = pickle.load(sys.stdin.buffer); print(d.actions[:].sum(), d.source.keys[3])"
    run = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert run.stdout.decode().split() == [str(dataset.actions[:].sum()), dataset.source.keys[3]]


def test_an_interruption_leaves_the_indices_and_nothing_half(root, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(columns, "_run_lengths", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_split(root)
    assert not [path for path in root.iterdir() if path.is_file()]
    assert len([*root.rglob("train/*.index")]) == 4
    assert len(open_split(root).source) == 8


def test_blocks_are_whole_trajectories_in_order(root):
    source = open_split(root).source
    for rows in (1, 6, 9, 1000):
        own = list(blocks(source, rows))
        assert [i for block in own for i in range(block.start, block.stop)] == list(range(8))
        sizes = [int(source.lengths[block].sum()) for block in own]
        assert all(size <= max(rows, source.lengths[block].max()) for size, block in zip(sizes, own))
        found = [steps_of(source, block) for block in own]
        assert [row for rows, _, _ in found for row in range(rows.start, rows.stop)] == list(range(35))
        step = np.concatenate([steps for _, steps, _ in found])
        np.testing.assert_array_equal(step, source.locate(np.arange(35))[1])


def test_letting_go_of_what_was_read_changes_no_batch(root, monkeypatch):
    keys = ("observations", "goals", "actions", "action_pad_mask", "language")

    def batches():
        stream = loader.training_batches(Mixture.of(open_split(root)), 16, 3, keys)
        return list(itertools.islice(stream, 3))

    before = batches()
    monkeypatch.setattr(mapping, "_MAPPED_BYTES", 0)
    for own, other in zip(before, batches()):
        np.testing.assert_array_equal(own["actions"], other["actions"])
        np.testing.assert_array_equal(own["observations"]["proprio"], other["observations"]["proprio"])
        assert type(own["actions"]) is type(own["language"]) is type(own["action_pad_mask"]) is np.ndarray


def test_a_slice_of_a_split_has_columns_of_its_own(tmp_path):
    folder = write_rlds(tmp_path, {"train": [[episode(i) for i in range(3)], [episode(i) for i in range(3, 5)]]})
    assert opened(folder, train_split="train[1:4]").source.keys == tuple(f"/raw/{i}#{i}" for i in (1, 2, 3))
    assert opened(folder, train_split="train[:2]").source.keys == ("/raw/0#0", "/raw/1#1")
    assert opened(folder, train_split="train[1:4]").source.keys == tuple(f"/raw/{i}#{i}" for i in (1, 2, 3))
