import io
import os
import pickle

import numpy as np
import pytest
from data.bridge_files import frame, trajectory, write
from PIL import Image

from jaxvla.data.formats import bridge_tfrecord
from jaxvla.data.formats.index import NO_TEXT, Frames, Index
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms.images import resize
from jaxvla.data.transforms.selection import usable
from jaxvla.errors import DataError


def open_source(paths, size=()):
    paths = tuple(str(path) for path in paths)
    return TrajectorySource.of(paths, open_indices(paths, bridge_tfrecord.build_index), (("images0", "images0"),), size)


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
    actions = open_indices([path], bridge_tfrecord.build_index)[0].actions.copy()
    with open(f"{path}.index", "r+b") as file:
        file.truncate(200)
    again = open_indices([path], bridge_tfrecord.build_index)[0]
    np.testing.assert_array_equal(again.actions, actions)


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
    for name in ("lengths", "actions", "proprio", "texts"):
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
    ("features", "reason", "detail"),
    [
        (trajectory(0, 1), "fewer than 2 transitions", ": 1"),
        (trajectory(0, 0), "fewer than 2 transitions", ": 0"),
        (
            trajectory(0, 3) | {"actions": np.full((3, 7), np.nan, np.float32)},
            "actions are not finite",
            "step 0, dimension 0: nan",
        ),
        (trajectory(0, 3) | {"actions": np.zeros((2, 7), np.float32)}, "lengths disagree", "2 actions, 4 states"),
        (
            trajectory(0, 3) | {"next_observations/state": np.zeros((2, 7), np.float32)},
            "lengths disagree",
            "states [3, 7], later ones [2, 7]",
        ),
        (trajectory(0, 3) | {"language": np.zeros(2)}, "'language' is no list of strings", "record 1"),
        (trajectory(0, 3) | {"actions": ["up"]}, "'actions' is no table of numbers", "record 1"),
        (without(trajectory(0, 3), "actions"), "no tensor 'actions'", "is it a BridgeData V2 TFRecord?"),
        (
            trajectory(0, 3) | {"actions": np.zeros((3, 8), np.float32)},
            "other dimensions than the rest",
            "actions [8], most have [7]",
        ),
    ],
)
def test_bad_trajectories_are_left_out_and_counted(tmp_path, features, reason, detail):
    path = write(tmp_path / "t" / "train" / "out.tfrecord", [trajectory(5, 3), features, trajectory(6, 4)])
    for _ in range(2):  # built, then read from where it was kept
        (index,) = open_indices([str(path)], bridge_tfrecord.build_index)
        assert index.keys == ("t/train/0#0", "t/train/2#0")
        assert (index.lengths.tolist(), index.total, len(index.actions)) == ([3, 4], 3, 7)
        ((found, where),) = index.skipped
        assert found == reason
        assert where.startswith(f"{path}: record 1")
        assert detail in where
    np.testing.assert_array_equal(open_source([path]).frames(1, [4], "images0")[0], frame(6, 4))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"next_observations/images0": None}, "pictures before or after the steps only"),
        ({"observations/images0": None, "next_observations/images0": None}, "no pictures"),
        ({"observations/images0": np.zeros((3, 8, 8, 3), np.float32)}, "float32 [3, 8, 8, 3], not uint8"),
        ({"observations/images0": np.zeros((2, 8, 8, 3), np.uint8)}, "observations but [3, 8, 8, 3] next ones"),
        (
            {f"{part}observations/images0": np.zeros((2, 8, 8, 3), np.uint8) for part in ("", "next_")},
            "3 pictures for 4 states",
        ),
        (
            {f"{part}observations/images0": np.zeros((3, 6, 6, 3), np.uint8) for part in ("", "next_")},
            "pictures of [6, 6, 3], most have [8, 8, 3]",
        ),
    ],
)
def test_only_the_cameras_that_are_used_matter(tmp_path, changes, what):
    broken = {key: value for key, value in (trajectory(1, 3) | changes).items() if value is not None}
    whole = [trajectory(0, 3), broken, trajectory(2, 4)]
    for t, length in zip(whole, (3, 3, 4)):
        images = trajectory(9, length)
        t |= {f"{part}/images1": images[f"{part}/images0"] for part in ("observations", "next_observations")}
    path = str(write(tmp_path / "t" / "train" / "out.tfrecord", whole))
    for _ in range(2):
        indices = open_indices([path], bridge_tfrecord.build_index)
        keep, skipped = usable([path], indices, {"images0": "images1"})
        assert (indices[0].lengths[keep[0]].tolist(), skipped) == ([3, 3, 4], [])
        keep, skipped = usable([path], indices, {"a": "images0", "b": "images1"})
        kept = [indices[0].select(keep[0])]
        assert kept[0].lengths.tolist() == [3, 4]
        ((reason, detail),) = skipped
        assert reason == "camera 'images0' cannot be used"
        assert detail.startswith(f"{path}: trajectory 't/train/1#0': ")
        assert what in detail
    source = TrajectorySource.of((path,), kept, (("a", "images0"), ("b", "images1")))
    np.testing.assert_array_equal(source.frames(1, [3], "a")[0], frame(2, 3))
    np.testing.assert_array_equal(source.frames(1, [3], "b")[0], frame(9, 3))


def test_files_of_other_dimensions_or_without_the_camera_are_left_out(tmp_path):
    odd = trajectory(3, 3) | {"actions": np.zeros((3, 6), np.float32)}
    blind = without(without(trajectory(4, 2), "observations/images0"), "next_observations/images0")
    files = {"a": [trajectory(0, 3), trajectory(1, 4)], "b": [odd], "c": [blind], "d": []}
    paths = [str(write(tmp_path / name / "train" / "out.tfrecord", rows)) for name, rows in files.items()]
    indices = open_indices(paths, bridge_tfrecord.build_index)
    keep, skipped = usable(paths, indices, {"images0": "images0"})
    assert [index.lengths[own].tolist() for index, own in zip(indices, keep)] == [[3, 4], [], [], []]
    assert skipped == [
        ("other dimensions than the rest", f"{paths[1]}: trajectory 'b/train/0#0': actions [6], most have [7]"),
        ("no camera 'images0'", f"{paths[2]}: trajectory 'c/train/0#0'"),
    ]


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
        usable(paths, indices, {"images0": "images7"})


def test_frames_of_several_sizes_need_an_image_size(tmp_path):
    paths = [
        write(tmp_path / name / "train" / "out.tfrecord", [trajectory(0, 3, size=size)])
        for name, size in (("a", 8), ("b", 6))
    ]
    with pytest.raises(DataError, match=r"frames of 6 x 6, 8 x 8 pixels: set config\.data\.image_size"):
        open_source(paths)
    source = open_source(paths, (8, 8))
    assert source.frames(1, [0], "images0").shape == (1, 8, 8, 3)
    assert [source.stored_frames(i, [0], "images0")[0].shape for i in (0, 1)] == [(8, 8, 3), (6, 6, 3)]
    assert source.stored_sizes == {}
    (line,) = source.pixel_path()
    assert (
        "camera -> 6 x 6 or 8 x 8 stored -> 8 x 8 (several sizes: a policy resizes its camera's frames straight" in line
    )


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ((), "images0      camera -> 8 x 8 stored -> 8 x 8"),
        ((4, 8), "images0      camera -> 8 x 8 stored -> 4 x 8"),
        (
            (4, 12),
            "images0      camera -> 8 x 8 stored -> 4 x 12: enlarged, which adds no detail; convert again with "
            "--im_size 12, or set config.data.image_size=(8,8)",
        ),
    ],
)
def test_the_path_of_pixels_is_told(files, size, line):
    source = open_source(files, size)
    assert source.stored_sizes == {"images0": (8, 8)}
    assert source.pixel_path() == (line,)


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def encoded_source(folder, files, size=()):
    """Trajectories of two transitions, one in each file, whose frames are PNGs of these pixels."""
    paths, indices = [], []
    for number, frames in enumerate(files):
        contents = list(map(png, frames))
        path = folder / f"{number}.bin"
        path.write_bytes(b"".join(contents))
        sizes = np.array(list(map(len, contents)))
        found = {"image_0": Frames(np.cumsum(sizes) - sizes, sizes, ())}
        tables = np.zeros((2, 7), np.float32), np.zeros((3, 7), np.float32), np.ones(2, bool)
        unlabelled = ((),), np.full(2, NO_TEXT, np.int32), np.zeros((0, 0), np.float32)
        indices.append(Index(np.array([2]), *tables, *unlabelled, (str(number),), found))
        paths.append(str(path))
    return TrajectorySource.of(tuple(paths), indices, (("images0", "image_0"),), size)


def test_encoded_frames_say_their_size(tmp_path):
    frames = [frame(0, t, 12)[:8] for t in range(3)]
    source = pickle.loads(pickle.dumps(encoded_source(tmp_path, [frames] * 2)))
    assert source.image_size == (8, 12)
    assert source.stored_sizes == {"images0": (8, 12)}
    np.testing.assert_array_equal(source.frames(1, range(3), "images0"), frames)
    smaller = encoded_source(tmp_path, [frames], (4, 4))
    np.testing.assert_array_equal(smaller.frames(0, range(3), "images0"), resize(np.stack(frames), (4, 4)))
    np.testing.assert_array_equal(smaller.stored_frames(0, range(3), "images0"), frames)
    (line,) = encoded_source(tmp_path, [frames], (8, 16)).pixel_path()
    assert line.endswith("8 x 12 encoded -> 8 x 16: enlarged, which adds no detail; set config.data.image_size=(8,12)")


def test_a_depth_camera_is_refused_at_the_start(tmp_path):
    depth = np.linspace(300, 3000, 64).reshape(8, 8).astype(np.uint16)
    with pytest.raises(DataError, match=r"0\.bin: images0 at byte 0: the image has 16 bits a channel .*another camera"):
        encoded_source(tmp_path, [[depth] * 3], (8, 8))


def test_frames_that_change_their_size_are_named(tmp_path):
    frames = [frame(0, 0), frame(0, 1), frame(0, 2, 12)[:8]]
    source = encoded_source(tmp_path, [frames], (8, 8))
    offset = sum(len(png(pixels)) for pixels in frames[:2])
    with pytest.raises(DataError, match=rf"0\.bin: images0 at byte {offset}: 8 x 12 pixels, but .* frames of 8 x 8"):
        source.frames(0, range(3), "images0")
    np.testing.assert_array_equal(source.frames(0, [0, 1], "images0"), frames[:2])


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
