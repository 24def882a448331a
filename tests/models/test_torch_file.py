import os
import zipfile

import ml_dtypes
import numpy as np
import pytest
from models.torch_files import KINDS, Saved, call, named, pack

from jaxvla.errors import WeightsError
from jaxvla.models.torch_file import open_torch

RNG = np.random.default_rng(0)


def read(path):
    with open_torch(path) as tensors:
        return {name: t.read_rows(0, t.shape[0]).reshape(t.shape) for name, t in tensors.items() if t.shape}


def test_tensors_of_every_dtype_by_nested_names(tmp_path):
    saved, arrays = Saved(), {str(dtype): (9 * RNG.normal(size=(3, 4))).astype(dtype) for dtype in KINDS}
    rows = arrays["float32"]
    parts = {name: saved.tensor(array) for name, array in arrays.items()}
    parts |= {"later.rows": saved.tensor(rows, start=4, shape=(2, 4)), "scalar": saved.tensor(rows, shape=())}
    parameter = call("torch._utils", "_rebuild_parameter", saved.tensor(rows), True, pack({}))
    content = {"model": parts | {"own": parameter}, "epoch": 3, "note": "text", "losses": (0.5, None)}
    saved.write(tmp_path / "a.pt", content)
    found = read(tmp_path / "a.pt")
    assert set(found) == {f"model.{name}" for name in (*arrays, "later.rows", "own")}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[f"model.{name}"], array)
        assert found[f"model.{name}"].dtype == array.dtype
    np.testing.assert_array_equal(found["model.later.rows"], rows[1:])
    np.testing.assert_array_equal(found["model.own"], rows)
    with open_torch(tmp_path / "a.pt") as tensors:
        assert tensors["model.scalar"].read_rows(0, 1) == rows[0, 0]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (lambda mark: call("os", "system", f"touch {mark}"), "os.system"),
        (lambda mark: call("builtins", "eval", f"open({mark!r}, 'w')"), "builtins.eval"),
        (lambda mark: call("builtins", "getattr", named("os", "path"), "join"), "builtins.getattr"),
        (lambda mark: named("torch.storage", "UntypedStorage"), "torch.storage.UntypedStorage"),
        (lambda mark: call("torch._utils", "_rebuild_tensor_v3"), "torch._utils._rebuild_tensor_v3"),
    ],
)
def test_code_is_named_and_not_run(tmp_path, code, name):
    mark, saved = tmp_path / "mark", Saved()
    saved.write(tmp_path / "a.pt", {"x": saved.tensor(np.zeros(2, np.float32)), "code": code(str(mark))})
    with pytest.raises(WeightsError, match=rf"a\.pt: its pickle names {name}, and only dicts of tensors"):
        read(tmp_path / "a.pt")
    assert not mark.exists()


def test_state_of_objects_is_not_altered(tmp_path):
    """BUILD, which sets attributes, on what the reader gave."""
    saved = Saved()
    tensor = saved.tensor(np.zeros((2, 2), np.float32))
    saved.write(tmp_path / "a.pt", {"x": tensor + pack({"shape": (9, 9)}) + b"b"})
    with pytest.raises(WeightsError, match="holds no whole pickle"):
        read(tmp_path / "a.pt")


ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(path, value=None, missing=False, options=None, **view):
    """A file of one tensor, and what is wrong with it."""
    saved = Saved()
    value = {"x": saved.tensor(ARRAY, **view)} if value is None else value
    if missing:
        saved.storages.clear()
    saved.write(path, value, **(options or {}))


def truncate(path):
    write(path)
    os.truncate(path, path.stat().st_size // 2)


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other", b"")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: write(path, start=1), r"damaged: x \[3, 4\] float32 is not all there"),
        (lambda path: write(path, length=99), r"damaged: x \[3, 4\] float32 is not all there"),
        (lambda path: write(path, missing=True), r"damaged: x \[3, 4\] float32 is not all there"),
        (lambda path: write(path, start=-4), r"holds no whole pickle \(a tensor is no view of a storage"),
        (lambda path: write(path, shape=(4, 3), strides=(1, 4)), r"holds x as a view with strides \(1, 4\): save it"),
        (lambda path: write(path, shape=(4, 3), strides=(1,)), r"damaged: x has the shape \[4, 3\] and strides \[1\]"),
        (lambda path: write(path, options={"compression": zipfile.ZIP_DEFLATED}), r"is compressed or encrypted in"),
        (lambda path: write(path, options={"byteorder": b"big"}), "was written in big byte order"),
        (lambda path: write(path, {"epoch": 3}), "holds no tensors by name"),
        (lambda path: write(path, {"x": b"\xff"}), "holds no whole pickle"),
        (truncate, r"is no whole file of torch\.save"),
        (lambda path: path.write_bytes(pack({"x": 1}) + b"."), r"is no whole file of torch\.save"),
        (other_archive, r"none of torch\.save: it holds no data\.pkl"),
        (lambda path: None, "cannot be read: No such file"),
    ],
)
def test_damaged_files_are_one_error(tmp_path, make, said):
    make(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=said):
        read(tmp_path / "a.pt")


def test_bfloat16_is_read_as_it_is(tmp_path):
    saved, array = Saved(), np.array([1.0, -2.5, 3e38], ml_dtypes.bfloat16)
    saved.write(tmp_path / "a.pt", {"x": saved.tensor(array)})
    np.testing.assert_array_equal(read(tmp_path / "a.pt")["x"], array)
