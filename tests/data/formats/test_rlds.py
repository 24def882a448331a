import hashlib
import json
import pathlib

import numpy as np
import pytest

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats import rlds, tfrecord
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.formats.rlds_files import find_files
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.source import TrajectorySource
from jaxvla.errors import DataError


@pytest.fixture
def folder(bridge_rlds) -> pathlib.Path:
    return bridge_rlds


def open_split(folder, split="train", camera="image_0", size=(64, 64)):
    config = SourceConfig("rlds", str(folder), cameras={"images0": camera}, image_size=size)
    return open_dataset(config, DataConfig(), split)


def test_real_episodes_match_the_golden_file(samples, folder):
    golden = json.loads((samples / "bridge_rlds" / "DERIVED_golden_train.json").read_text())["episodes"]
    reader = rlds.RLDSFormat.of(folder, rlds.StepKeys())
    assert reader.cameras == tuple(f"observation/image_{i}" for i in range(4))
    paths = tuple(find_files(folder, "train"))
    indices = open_indices(paths, reader.build_index)
    source = TrajectorySource.of(paths, indices, (("images0", "observation/image_0"),), (64, 64))
    assert len(source) == len(golden) == 25
    content = pathlib.Path(paths[0]).read_bytes()
    for i, episode in enumerate(golden):
        table = source.table(i)
        assert table.key == f"{episode['file_path']}#{episode['episode_id']}"
        assert table.language == ((episode["language"],) if episode["language"] else ())
        assert hashlib.md5(table.proprio.tobytes()).hexdigest() == episode["state_md5_f32le"]
        assert len(table.actions) == episode["n_steps"] - 1
        np.testing.assert_array_equal(table.actions[1], np.array(episode["action_1"], np.float32))
        assert source.frames(i, [0], "images0").mean() == pytest.approx(episode["image_0_step0_mean_pil"], abs=1e-9)
        rows = slice(source.frame_starts[i], source.frame_starts[i] + episode["n_steps"])
        frames = indices[0].frames["observation/image_0"]
        jpegs = b"".join(content[o : o + n] for o, n in zip(frames.offsets[rows], frames.sizes[rows]))
        assert hashlib.md5(jpegs).hexdigest() == episode["image_0_jpeg_md5"]


def test_vectors_are_those_of_the_first_step_of_each_annotation(folder):
    reader = rlds.RLDSFormat.of(folder, rlds.StepKeys())
    (path,) = find_files(folder, "train")
    (index,) = open_indices([path], reader.build_index, repr(reader))
    with open(path, "rb") as file:
        read = tfrecord.file_reader(file.fileno())
        records = [tfrecord.parse_example(read, span, path) for span in tfrecord.scan_records(file.fileno(), path)]
    steps = [record["steps/language_embedding"].values.reshape(10, 512) for record in records]
    assert [len(texts) for texts in index.language] == [1] * 25
    np.testing.assert_array_equal(index.vectors, [vectors[0] for vectors in steps])
    assert np.linalg.norm(index.vectors, axis=1).min() > 0.9
    (again,) = open_indices([path], never, repr(reader))
    np.testing.assert_array_equal(again.vectors, index.vectors)


def never(_):
    raise AssertionError("indexed again")


def test_data_without_vectors_is_read_too(folder):
    path = folder / "features.json"
    path.write_text(path.read_text().replace("language_embedding", "something_else"))
    assert open_split(folder).source.vectors.shape == (25, 0)


def test_batches_of_real_frames(folder):
    dataset = open_split(folder, size=(32, 48))
    batch = next(training_batches(Mixture.of(dataset), 8, 0, ("observations", "goals", "actions")))
    assert batch["observations"]["images0"].shape == (8, 1, 32, 48, 3)
    assert batch["observations"]["images0"].std() > 20
    assert np.isfinite(batch["actions"]).all()
    assert dataset.num_transitions == 225


def damage(folder, at, content):
    """Puts other bytes into the file, with the checksums of what it then holds."""
    (path,) = folder.glob("*-train.tfrecord-?????-of-?????")
    spans, data = tfrecord.scan_records(path), bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    with tfrecord.RecordWriter(path) as writer:
        for span in spans:
            writer.write([bytes(data[span.offset : span.end])])


def test_one_wrong_bit_anywhere_is_an_error_that_names_the_record(folder):
    (path,) = folder.glob("*-train.tfrecord-?????-of-?????")
    spans, whole = tfrecord.scan_records(path), path.read_bytes()
    for number, share in ((0, 0.0), (3, 0.31), (11, 0.77), (24, 1.0)):
        span, data = spans[number], bytearray(whole)
        data[span.offset + int(share * (span.length - 1))] ^= 4
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            open_split(folder)
        assert str(error.value) == (
            f"{path}: the record at byte {span.offset} does not match its checksum; make the file again"
        )
    path.write_bytes(whole)
    assert len(open_split(folder).source) == 25


def test_a_jpeg_cut_in_half_is_named(folder):
    dataset = open_split(folder)
    row = dataset.source.frame_starts[4] + 3
    index = rlds.RLDSFormat.of(folder, rlds.StepKeys()).build_index(dataset.source.paths[0])
    frames = index.frames["observation/image_0"]
    offset, size = (int(x[row]) for x in (frames.offsets, frames.sizes))
    damage(folder, offset + size // 2, bytes(size - size // 2))
    damage(folder, offset, b"\0\0\0\0")
    with pytest.raises(DataError, match=rf"images0 at byte {offset}: not a whole image"):
        open_split(folder).source.frames(4, [3], "images0")


def test_encoded_images_come_at_their_own_size(folder):
    dataset = open_split(folder, size=())
    assert dataset.spec.image_size == (64, 64)
    assert dataset.report == ("images0      camera -> 64 x 64 encoded -> 64 x 64",)
