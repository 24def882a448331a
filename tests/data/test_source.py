import os
import pickle

import numpy as np
import pytest
from data.bridge_files import frame, trajectory, write

from jaxvla.data import bridge_tfrecord
from jaxvla.data.index import Index, open_indices
from jaxvla.data.source import TrajectorySource
from jaxvla.errors import DataError


def open_source(paths, size=()):
    paths = tuple(str(path) for path in paths)
    return TrajectorySource(paths, open_indices(paths, bridge_tfrecord.build_index), (("images0", "images0"),), size)


@pytest.fixture
def files(tmp_path):
    first = write(tmp_path / "a" / "train" / "out.tfrecord", [trajectory(0, 3), trajectory(1, 5, ("", "open it "))])
    second = write(tmp_path / "b" / "train" / "out.tfrecord", [trajectory(2, 2)])
    return [first, second]


def test_tables_are_what_was_written(files):
    source = open_source(files)
    assert len(source) == 3
    for i, transitions in enumerate((3, 5, 2)):
        table, written = source.table(i), trajectory(i, transitions)
        np.testing.assert_array_equal(table.actions, written["actions"])
        states = np.concatenate([written["observations/state"], written["next_observations/state"][-1:]])
        np.testing.assert_array_equal(table.proprio, states)
    assert source.table(1).language == ("open it",)
    assert source.table(2).key == "b/train/0#0"


def test_the_raw_folder_is_the_key_where_it_is_known(tmp_path):
    named = trajectory(1, 3) | {"path": ["task/2022-01-01_00-00-00/raw/traj_group0/traj7"]}
    path = write(tmp_path / "t" / "val" / "out.tfrecord", [trajectory(0, 3), named])
    assert open_source([path]).keys == ("t/val/0#0", "task/2022-01-01_00-00-00/raw/traj_group0/traj7#0")


def test_every_frame_is_found_whatever_the_order(files):
    source = open_source(files)
    steps = [5, 0, 3]
    np.testing.assert_array_equal(source.frames(1, steps, "images0"), [frame(1, t) for t in steps])
    np.testing.assert_array_equal(source.frames(2, [2], "images0"), [frame(2, 2)])


def test_frames_are_resized_on_request(files):
    source = open_source(files, (4, 6))
    assert source.frames(0, [0, 1], "images0").shape == (2, 4, 6, 3)


def test_a_source_survives_pickling(files):
    source = pickle.loads(pickle.dumps(open_source(files)))
    np.testing.assert_array_equal(source.frames(0, [1], "images0")[0], frame(0, 1))


def test_the_index_is_kept_and_rebuilt_when_the_file_changes(files):
    path = str(files[0])
    calls = []

    def build(path):
        calls.append(path)
        return bridge_tfrecord.build_index(path)

    open_indices([path], build)
    assert os.path.exists(f"{path}.index")
    kept = open_indices([path], build)[0]
    assert calls == [path]
    np.testing.assert_array_equal(kept.lengths, [3, 5])
    write(files[0], [trajectory(9, 4)])
    np.testing.assert_array_equal(open_indices([path], build)[0].lengths, [4])
    assert calls == [path, path]


def test_a_damaged_index_is_rebuilt(files):
    path = str(files[0])
    index = open_indices([path], bridge_tfrecord.build_index)[0]
    with open(f"{path}.index", "r+b") as file:
        file.truncate(200)
    again = open_indices([path], bridge_tfrecord.build_index)[0]
    np.testing.assert_array_equal(again.actions, index.actions)


def test_the_index_of_a_read_only_folder_goes_to_the_cache(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.chmod(files[0].parent, 0o555)
    open_indices([str(files[0])], bridge_tfrecord.build_index)
    os.chmod(files[0].parent, 0o755)
    assert not os.path.exists(f"{files[0]}.index")
    assert len(list((tmp_path / "cache" / "jaxvla").rglob("out.tfrecord.index"))) == 1


def test_index_round_trip(files):
    index = bridge_tfrecord.build_index(str(files[0]))
    back = Index.loads(index.dumps("x"), "x")
    assert Index.loads(index.dumps("x"), "y") is None
    assert (back.language, back.keys) == (index.language, index.keys)
    for name in ("lengths", "actions", "proprio"):
        np.testing.assert_array_equal(getattr(back, name), getattr(index, name))
    np.testing.assert_array_equal(back.frames["images0"].offsets, index.frames["images0"].offsets)
    assert back.frames["images0"].shape == (8, 8, 3)


def test_files_written_by_tensorflow_are_read(tmp_path):
    tf = pytest.importorskip("tensorflow")
    written = trajectory(3, 4)
    features = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.serialize_tensor(value).numpy()]))
        for key, value in written.items()
    }
    path = tmp_path / "t" / "train" / "out.tfrecord"
    path.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    source = open_source([path])
    np.testing.assert_array_equal(source.table(0).actions, written["actions"])
    assert source.table(0).language == ("do it",)
    np.testing.assert_array_equal(source.frames(0, range(5), "images0"), [frame(3, t) for t in range(5)])


def without(features, key):
    return {k: v for k, v in features.items() if k != key}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (trajectory(0, 1), "1 transitions, at least 2"),
        (trajectory(0, 0), "0 transitions, at least 2"),
        (trajectory(0, 3) | {"actions": np.full((3, 7), np.nan, np.float32)}, "actions that are not finite at step 0"),
        (trajectory(0, 3) | {"actions": np.zeros((2, 7), np.float32)}, "2 actions but 4 steps of proprio"),
        (without(trajectory(0, 3), "actions"), "no tensor 'actions'"),
        (without(trajectory(0, 3), "next_observations/images0"), "no tensor 'next_observations/images0'"),
        (trajectory(0, 3) | {"observations/images0": np.zeros((3, 8, 8, 3), np.float32)}, "not stored as uint8"),
    ],
)
def test_bad_trajectories_are_named(tmp_path, features, message):
    path = write(tmp_path / "t" / "train" / "out.tfrecord", [trajectory(5, 3), features])
    with pytest.raises(DataError, match=message) as error:
        open_source([path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_an_error_at_the_index(files):
    with open(files[0], "r+b") as file:
        file.truncate(files[0].stat().st_size - 10)
    with pytest.raises(DataError, match=r"out\.tfrecord"):
        open_source(files)


def test_a_file_cut_off_after_indexing_is_an_error_not_a_crash(files):
    source = open_source(files)
    with open(files[1], "r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="ends before the frame"):
        source.frames(2, [1], "images0")


def test_an_unknown_camera_names_those_that_exist(files):
    paths = tuple(map(str, files))
    indices = open_indices(paths, bridge_tfrecord.build_index)
    with pytest.raises(DataError, match=r"no camera 'images7', it has images0: set bridgedata_config.cameras.images0"):
        TrajectorySource(paths, indices, (("images0", "images7"),))


def test_frames_of_several_sizes_need_an_image_size(tmp_path):
    paths = [
        write(tmp_path / name / "train" / "out.tfrecord", [trajectory(0, 3, size=size)])
        for name, size in (("a", 8), ("b", 6))
    ]
    with pytest.raises(DataError, match=r"set bridgedata_config\.image_size"):
        open_source(paths)
    assert open_source(paths, (8, 8)).frames(1, [0], "images0").shape == (1, 8, 8, 3)


def test_more_files_than_may_be_open(tmp_path):
    paths = [write(tmp_path / f"t{i}" / "train" / "out.tfrecord", [trajectory(i % 250, 2)]) for i in range(300)]
    source = open_source(paths)
    for _ in range(2):
        for i in range(300):
            assert source.frames(i, [1], "images0")[0, 0, 0, 0] == i % 250
    held = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    assert sum(name.startswith(str(tmp_path)) for name in held) <= 256
