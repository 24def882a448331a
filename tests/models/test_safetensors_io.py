import json
import re
import struct

import numpy as np
import pytest
from models.qwen3_vl import hf_files

from jaxvla.errors import WeightsError
from jaxvla.models.safetensors_io import HostTensor, open_checkpoint, write_checkpoint, write_safetensors

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(8).astype(hf_files.DTYPES["BF16"]).reshape(4, 2, 1),
    "scalar": np.float16(7).reshape(()),
    "empty": np.zeros((0, 3), np.float32),
}


def write(folder, tensors=TENSORS, edit_header=lambda header: None):
    hf_files.write_file(folder / "model.safetensors", tensors, edit_header)
    return folder


def failure(folder):
    with pytest.raises(WeightsError) as error, open_checkpoint(folder):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_any_rows(tmp_path):
    with open_checkpoint(write(tmp_path)) as found:
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            name: (t.shape, t.dtype) for name, t in TENSORS.items()
        }
        np.testing.assert_array_equal(found["b"].read_rows(1, 2), [[3, 4, 5]])
        np.testing.assert_array_equal(found["a"].read_rows(1, 3), TENSORS["a"][1:3, :, 0])
        np.testing.assert_array_equal(found["scalar"].read_rows(0, 1), [[7]])


def test_written_bytes_follow_the_format(tmp_path):
    made = []

    def tensor(name):
        return HostTensor(TENSORS[name].shape, TENSORS[name].dtype, lambda: made.append(name) or TENSORS[name])

    write_safetensors(tmp_path / "x.safetensors", {name: tensor(name) for name in TENSORS})
    content = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header["a"] == {"dtype": "BF16", "shape": [4, 2, 1], "data_offsets": [24, 40]}
    assert content[8 + length :] == b"".join(values.tobytes() for values in TENSORS.values())
    assert made == list(TENSORS)


def test_what_is_written_can_be_read(tmp_path):
    tensors = {name: HostTensor(t.shape, t.dtype, lambda t=t: t) for name, t in TENSORS.items()}
    write_checkpoint(tmp_path, tensors, max_shard_bytes=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 24 + 16 + 2}
    assert index["weight_map"]["b"] == "model-00001-of-00002.safetensors"
    assert index["weight_map"]["a"] == "model-00002-of-00002.safetensors"
    with open_checkpoint(tmp_path) as found:
        assert found.keys() == TENSORS.keys()
        np.testing.assert_array_equal(found["a"].read_rows(0, 4), TENSORS["a"][..., 0])


def test_integers_are_not_written(tmp_path):
    with pytest.raises(WeightsError, match=r"x has dtype int32, .* cast it to one of .*bfloat16"):
        write_safetensors(tmp_path / "x", {"x": HostTensor((2,), np.dtype(np.int32), lambda: np.zeros(2, np.int32))})


def test_a_tensor_unlike_its_header_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="unlike its header"):
        write_safetensors(
            tmp_path / "x", {"x": HostTensor((2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32))}
        )


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_truncated_files(tmp_path, keep):
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "is truncated" in failure(tmp_path) or keep < 8


def test_no_safetensors_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "model.safetensors is no safetensors file" in failure(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 9) + b"[" * 9)
    assert "damaged header" in failure(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 50_000) + b"[" * 50_000)
    assert "damaged header" in failure(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h["b"].update(dtype="I8"), "b is stored as I8, only F64, F32, F16, BF16, I64 are read"),
        (lambda h: h["b"].update(data_offsets=[0, 20]), r"b \[2, 3\] float32 is said to take 20 bytes"),
        (lambda h: h["b"].update(shape=[-2, -3]), "damaged header"),
        (lambda h: h["b"].update(shape=[True, 6]), "damaged header"),
        (lambda h: h["b"].update(shape="6"), "damaged header"),
        (lambda h: h["b"].pop("shape"), "damaged header"),
        (lambda h: h["b"].update(data_offsets=[0]), "damaged header"),
        (lambda h: h["b"].update(data_offsets=[8, 32]), "does not begin where the tensor before it ends"),
        (lambda h: h["a"].update(data_offsets=[8, 24]), "does not begin where the tensor before it ends"),
        (lambda h: h.pop("a"), "scalar does not begin where"),
        (lambda h: [h.pop("scalar"), h.pop("empty")], "2 bytes follow its last tensor"),
        (lambda h: h.update(b=3), "damaged header"),
    ],
)
def test_damaged_headers(tmp_path, edit, message):
    assert re.search(message, failure(write(tmp_path, edit_header=edit)))


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = write(tmp_path) / "model.safetensors"
    with open_checkpoint(tmp_path) as found:
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(WeightsError, match="ends inside a: the file changed"):
            found["a"].read_rows(0, 4)


def write_shards(folder, weight_map=None):
    hf_files.write_file(folder / "one.safetensors", {"a": TENSORS["a"]})
    hf_files.write_file(folder / "two.safetensors", {"b": TENSORS["b"]})
    weight_map = weight_map or {"a": "one.safetensors", "b": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards(tmp_path):
    with open_checkpoint(write_shards(tmp_path)) as found:
        assert found.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors", "b": "gone.safetensors"}, "names the shard gone.safetensors, which is missing"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "two.safetensors disagree on what the shard holds: b, c"),
        ({"a": "../one.safetensors"}, "is damaged: no weight_map"),
        ({"a": 3}, "is damaged: no weight_map"),
    ],
)
def test_damaged_indices(tmp_path, weight_map, message):
    assert message in failure(write_shards(tmp_path, weight_map))


def test_an_index_that_is_no_json(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1")
    assert "model.safetensors.index.json is damaged" in failure(tmp_path)


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    assert "holds no weights: neither model.safetensors nor model.safetensors.index.json" in failure(tmp_path)
