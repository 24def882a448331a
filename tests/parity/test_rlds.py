"""RLDS datasets as tensorflow_datasets reads them: the real BridgeData, and features of every kind that it writes."""

import json
import os
import pathlib
import types
import warnings

import numpy as np
import pytest

from jaxvla.data.formats.records import open_records
from jaxvla.data.formats.rlds import RLDSFormat, StepKeys
from jaxvla.data.formats.rlds_files import find_files
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms import images

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

FORMATS = ("tfrecord", "array_record")
CAMERAS = tuple(f"image_{i}" for i in range(4))


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("tensorflow")
        pytest.importorskip("tensorflow_datasets")
    return module


@pytest.fixture(scope="module")
def tfds(tf):
    import tensorflow_datasets

    return tensorflow_datasets


@pytest.fixture(scope="module", params=FORMATS)
def bridge(request, tfds, samples, tmp_path_factory):
    """The version folder of the real BridgeData, as it is and as TFDS writes its records into array_record files."""
    given = samples / "bridge_rlds" / "bridge_dataset" / "1.0.0"
    if request.param == "tfrecord":
        return given
    folder = tmp_path_factory.mktemp("rewritten") / "bridge_dataset" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text((given / "features.json").read_text())
    info = json.loads((given / "dataset_info.json").read_text()) | {"fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for path in given.glob("bridge_dataset-*"):
        file = open_records(str(path))
        records = [(i, file.read(*span)) for i, span in enumerate(file.spans())]
        write = tfds.core.file_adapters.ArrayRecordFileAdapter.write_examples
        write(folder / path.name.replace("tfrecord", "array_record"), records)
    return folder


def read_by_tfds(tfds, folder, split="train", decoders=None):
    """The steps of each episode: nested dicts of one value a step, and the other features of each."""
    builder = tfds.builder_from_directory(str(folder))
    decoders = decoders and {"steps": decoders}
    if next(folder.glob("*.array_record-*"), None):
        episodes = builder.as_data_source(split=split, decoders=decoders)
        return [([*one["steps"]], {key: one[key] for key in one if key != "steps"}) for one in episodes]
    read = tfds.ReadConfig(interleave_cycle_length=1)  # shard after shard
    episodes = builder.as_dataset(split=split, decoders=decoders, read_config=read)
    return [([*one.pop("steps").as_numpy_iterator()], next(iter(tfds.as_numpy([one])))) for one in episodes]


def flat(node, name=""):
    """The leaves of nested dicts by their "/"-joined names; sequences of groups as groups of sequences."""
    if not isinstance(node, dict):
        return {name: node}
    return {key: value for own, child in node.items() for key, value in flat(child, f"{name}/{own}".strip("/")).items()}


def read_here(folder, split="train"):
    """The reader of a dataset, and the trajectories of a split."""
    reader = RLDSFormat.of(pathlib.Path(folder), StepKeys())
    paths = find_files(pathlib.Path(folder), split)
    return reader, paths, [reader.trajectory(episode) for path in paths for episode, _ in reader.episodes(path)]


def assert_steps_equal(found, steps, pixels):
    """Every feature but those of pixels: equal in all bits, of the same dtype and shape, and no other."""
    found, expected = flat(found), [flat(step) for step in steps]
    assert {*found} == {*expected[0]} - {*pixels}
    for name, values in found.items():
        assert len(values) == len(expected), name
        for value, step in zip(values, expected):
            wanted = step[name]
            if isinstance(wanted, list):  # strings of a sequence
                wanted = np.array(wanted, value.dtype).reshape(-1, *value.shape[1:])
            assert np.shape(value) == np.shape(wanted), name
            assert getattr(value, "dtype", None) == getattr(wanted, "dtype", None), name
            np.testing.assert_array_equal(value, wanted, err_msg=name)


def exactly(tf, jpeg):
    """A JPEG by libjpeg's accurate transform, which Pillow takes; TensorFlow's own choice is a faster one."""
    return tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE").numpy()


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_step_of_the_real_data(tf, tfds, bridge, split):
    undecoded = {"observation": {camera: tfds.decode.SkipDecoding() for camera in CAMERAS}}
    theirs = read_by_tfds(tfds, bridge, split, undecoded)
    reader, paths, found = read_here(bridge, split)
    assert len(found) == len(theirs) == 25
    cameras = tuple((camera, f"observation/{camera}") for camera in CAMERAS)
    source = TrajectorySource.of(tuple(paths), [reader.build_index(path) for path in paths], cameras, (64, 64))
    seen = 0
    for number, (trajectory, (steps, others)) in enumerate(zip(found, theirs)):
        assert_steps_equal(trajectory, steps, {f"observation/{camera}" for camera in CAMERAS})
        table, every = source.table(number), range(len(steps))
        names = others["episode_metadata"]
        assert table.key == f"{names['file_path'].decode()}#{names['episode_id']}"
        np.testing.assert_array_equal(table.actions, np.stack([step["action"] for step in steps])[:-1])
        np.testing.assert_array_equal(table.proprio, np.stack([step["observation"]["state"] for step in steps]))
        texts = {step["language_instruction"].decode().strip() for step in steps}
        assert table.language == tuple(text for text in texts if text)
        for camera in CAMERAS:
            pictures = [exactly(tf, step["observation"][camera]) for step in steps]
            np.testing.assert_array_equal(source.frames(number, every, camera), pictures)
            seen += len(pictures)
    assert seen == 4 * 250


def test_pictures_that_tfds_decodes_itself(tfds, bridge):
    """With Pillow they are the same; TensorFlow's faster transform of JPEGs rounds otherwise, by at most 17 of 255."""
    reader, paths, _ = read_here(bridge)
    cameras = tuple((camera, f"observation/{camera}") for camera in CAMERAS)
    source = TrajectorySource.of(tuple(paths), [reader.build_index(path) for path in paths], cameras, (64, 64))
    errors = []
    for number, (steps, _) in enumerate(read_by_tfds(tfds, bridge)):
        for camera in CAMERAS:
            theirs = np.stack([step["observation"][camera] for step in steps]).astype(int)
            errors.append(abs(source.frames(number, range(len(steps)), camera) - theirs))
    by_pillow = ".array_record" in paths[0]
    assert np.max(errors) <= (0 if by_pillow else 17)
    assert np.mean(errors) <= (0 if by_pillow else 1.5)


def odd_features(features):
    """A step of every kind of feature."""
    group = {"name": features.Text(), "place": features.Tensor(shape=(2,), dtype=np.float32)}
    return {
        "action": features.Tensor(shape=(7,), dtype=np.float64),
        "language_instruction": features.Text(),
        "label": features.ClassLabel(num_classes=4),
        "box": features.BBoxFeature(),
        "words": features.Tensor(shape=(2,), dtype=np.str_),
        "is_first": features.Scalar(dtype=np.bool_),
        "ragged": features.Sequence(features.Tensor(shape=(2,), dtype=np.float32)),
        "objects": features.Sequence(group),
        "observation": {
            "state": features.Tensor(shape=(2, 3), dtype=np.float32),
            "present/xyz": features.Tensor(shape=(3,), dtype=np.float32),
            "inner": {"half": features.Tensor(shape=(2,), dtype=np.float16)},
            "zipped": features.Tensor(shape=(2, 2), dtype=np.float64, encoding="zlib"),
            "bytes": features.Tensor(shape=(3,), dtype=np.int16, encoding="bytes"),
            "int8": features.Tensor(shape=(2,), dtype=np.int8),
            "uint8": features.Tensor(shape=(5,), dtype=np.uint8),
            "int32": features.Scalar(dtype=np.int32),
            "int64": features.Scalar(dtype=np.int64),
            "flags": features.Tensor(shape=(3,), dtype=np.bool_),
            "jpeg": features.Image(shape=(16, 24, 3), encoding_format="jpeg"),
            "png": features.Image(shape=(6, 5, 3), encoding_format="png"),
            "gray": features.Image(shape=(6, 5, 1), encoding_format="png"),
            "raw": features.Tensor(shape=(4, 5, 3), dtype=np.uint8),
            "raw_bytes": features.Tensor(shape=(4, 5, 3), dtype=np.uint8, encoding="bytes"),
            "millimetres": features.Image(shape=(5, 4, 1), dtype=np.uint16),
            "metres": features.Image(shape=(5, 4, 1), dtype=np.float32),
        },
    }


PICTURES = ("jpeg", "png", "gray", "raw", "raw_bytes")
DEPTH = ("millimetres", "metres")


def odd_step(number, t):
    """The step `t` of the episode of a number."""
    rng = np.random.default_rng((number, t))
    several = int(rng.integers(0, 4))
    return {
        "action": rng.normal(size=7),
        "language_instruction": f"hinüber {number}",
        "label": int(rng.integers(4)),
        "box": np.array([0.1, 0.2, 0.5, 0.25 * (1 + t % 3)], np.float32),
        "words": ["", f"ö {t}"],
        "is_first": t == 0,
        "ragged": rng.normal(size=(several, 2)).astype(np.float32),
        "objects": [{"name": f"cup {i}", "place": rng.normal(size=2).astype(np.float32)} for i in range(several)],
        "observation": {
            "state": rng.normal(size=(2, 3)).astype(np.float32),
            "present/xyz": np.array([np.finfo(np.float32).max, -0.0, np.finfo(np.float32).tiny], np.float32),
            "inner": {"half": rng.normal(size=2).astype(np.float16)},
            "zipped": rng.normal(size=(2, 2)),
            "bytes": rng.integers(-(2**15), 2**15, 3).astype(np.int16),
            "int8": rng.integers(-128, 128, 2).astype(np.int8),
            "uint8": rng.integers(0, 256, 5).astype(np.uint8),
            "int32": int(rng.integers(-(2**31), 2**31)),
            "int64": -(2**63) if t else 2**63 - 1,
            "flags": rng.random(3) < 0.5,
            "jpeg": rng.integers(0, 256, (16, 24, 3), np.uint8),
            "png": rng.integers(0, 256, (6, 5, 3), np.uint8),
            "gray": rng.integers(0, 256, (6, 5, 1), np.uint8),
            "raw": rng.integers(0, 256, (4, 5, 3), np.uint8),
            "raw_bytes": rng.integers(0, 256, (4, 5, 3), np.uint8),
            "millimetres": rng.integers(0, 2**16, (5, 4, 1)).astype(np.uint16),
            "metres": rng.normal(size=(5, 4, 1)).astype(np.float32),
        },
    }


@pytest.fixture(scope="module", params=FORMATS)
def odd(request, tfds, tmp_path_factory):
    """A dataset of such steps that TFDS wrote: seven episodes of 1 to 7 steps in two or more shards."""
    root = tmp_path_factory.mktemp("odd")

    class OddSteps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path, url_infos = root, {}  # else it looks for a page that describes it, and for what it downloads

        def _info(self):
            features = tfds.features
            names = {"file_path": features.Text(), "episode_id": features.Scalar(dtype=np.int32)}
            every = {"steps": features.Dataset(odd_features(features)), "episode_metadata": names}
            return self.dataset_info_from_configs(features=features.FeaturesDict(every), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(7):
                steps = [odd_step(number, t) for t in range(1 + number)]
                yield number, {"steps": steps, "episode_metadata": {"file_path": "a/b", "episode_id": number}}

    builder = OddSteps(data_dir=str(root), file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    folder = pathlib.Path(builder.data_path)
    assert len([*folder.glob(f"*.{request.param}-*")]) == 2
    undecoded = {"observation": {name: tfds.decode.SkipDecoding() for name in DEPTH}}
    return types.SimpleNamespace(folder=folder, theirs=read_by_tfds(tfds, folder, decoders=undecoded))


def test_every_kind_of_number_and_text(odd):
    _, _, found = read_here(odd.folder)
    assert [len(steps) for steps, _ in odd.theirs] == [1, 2, 3, 4, 5, 6, 7]
    for trajectory, (steps, _) in zip(found, odd.theirs):
        assert_steps_equal(trajectory, steps, {f"observation/{name}" for name in (*PICTURES, *DEPTH)})


def test_every_kind_of_picture(tf, odd):
    """But the JPEGs, see above: these are of noise, the worst there is for a transform that rounds otherwise."""
    reader, paths, _ = read_here(odd.folder)
    indices = [reader.build_index(path) for path in paths]
    whole = [theirs for theirs in odd.theirs if len(theirs[0]) > 2]  # an episode of n steps has n - 1 transitions
    for name in PICTURES:
        source = TrajectorySource.of(tuple(paths), indices, ((name, f"observation/{name}"),), ())
        assert source.keys == tuple(f"a/b#{number}" for number in range(2, 7))
        for number, (steps, _) in enumerate(whole):
            theirs = np.stack([step["observation"][name] for step in steps])
            ours = source.frames(number, range(len(steps)), name)
            if name == "jpeg":
                assert abs(ours.astype(int) - theirs).mean() < 2
            else:
                np.testing.assert_array_equal(ours, np.broadcast_to(theirs, ours.shape))


def test_every_kind_of_depth(odd):
    """Of what was written, which PNGs keep: without OpenCV, TFDS reads none of it from array_record files."""
    reader, paths, _ = read_here(odd.folder)
    for name in DEPTH:
        found = []
        for path in paths:
            frames, file = reader.build_index(path).frames[f"observation/{name}"], open_records(path)
            places = zip(frames.offsets.tolist(), frames.sizes.tolist())
            found += [images.decode_depth(file.read(*place), name) for place in places]
        written = [odd_step(number, t)["observation"][name] for number in range(2, 7) for t in range(1 + number)]
        np.testing.assert_array_equal(found, np.stack(written)[..., 0])
        assert found[0].dtype == written[0].dtype
