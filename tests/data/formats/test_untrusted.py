import collections
import os
import pickle
import struct

import numpy as np
import pytest

from jaxvla.data.formats.untrusted import load_object_npy, load_pickle
from jaxvla.errors import DataError

PLAIN = {
    "float64": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.array([1, 258], ">i4"),
    "strided": np.arange(10)[::2],
    "empty": np.zeros((0, 7), np.float32),
    "zero_dim": np.array(2.5),
    "strings": np.array(["ab", "c"]),
    "scalar": np.float32(2.5),
    "flag": np.bool_(True),
    "text": "hé",
    "bytes": b"ab\xff",
    "no_bytes": b"",
    "array_of_bytes": bytearray(b"x"),
    "numbers": [1, -(2**70), 2.5, 1j, None, True],
    "sets": ({1, 2}, frozenset({3})),
    "ordered": collections.OrderedDict(a=1),
}


class Calls:
    """Pickles as the call function(*args), and a state to set on the result."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def written(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        load_pickle(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_plain_data_of_both_numpy_versions_is_loaded(tmp_path, protocol, module):
    data = pickle.dumps(PLAIN, protocol)
    if protocol < 4:  # text lines; later protocols store lengths
        data = data.replace(b"numpy._core", module)
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    loaded = load_pickle(path)
    assert list(loaded) == list(PLAIN)
    for key, expected in PLAIN.items():
        np.testing.assert_array_equal(loaded[key], expected)
        if isinstance(expected, np.ndarray | np.generic):
            assert isinstance(loaded[key], type(expected))
            assert loaded[key].dtype.kind == expected.dtype.kind
            assert loaded[key].shape == expected.shape
        else:
            assert type(loaded[key]) is type(expected)


def test_object_arrays_nest(tmp_path):
    value = np.array([{"x": np.ones(2)}, None, [np.array([{"y": 1}, 2], object)]], object)
    loaded = load_pickle(written(tmp_path / "a.pkl", value))
    np.testing.assert_array_equal(loaded[0]["x"], [1, 1])
    assert loaded[1] is None
    assert loaded[2][0][0] == {"y": 1}


def test_python_2_pickle_is_loaded(tmp_path):
    values = struct.pack("<2f", 1.5, -2)
    path = tmp_path / "a.pkl"
    path.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(values)]) + values + b"tb."
    )
    np.testing.assert_array_equal(load_pickle(path), np.array([1.5, -2], np.float32))


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"full_state": [x]}, lambda x: np.array([{"a": x}, 1], object)]
)
def test_code_in_a_pickle_is_not_run(tmp_path, wrap):
    proof = tmp_path / "ran"
    bomb = Calls(os.system, f"touch {proof}")
    path = written(tmp_path / "a.pkl", wrap(bomb))
    refused(path, r"names posix\.system")
    np.save(tmp_path / "a.npy", np.array([{"observations": [wrap(bomb)]}], object))
    with pytest.raises(DataError, match=r"a\.npy: the pickle names posix\.system"):
        load_object_npy(tmp_path / "a.npy")
    assert not proof.exists()
    with open(path, "rb") as file:
        pickle.load(file)
    assert proof.exists(), "the bomb itself must work, or the test shows nothing"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(eval, "1"), r"builtins\.eval"),
        (Calls(getattr, "", "upper"), r"builtins\.getattr"),
        (Calls(np.load, "x"), r"numpy\.load"),
        (Calls(np.fromfile, "x"), r"numpy\.fromfile"),
        (np.ma.masked_array([1, 2]), r"numpy\.ma"),
        (collections.Counter("a"), r"collections\.Counter"),
        (PLAIN.keys, r"builtins\.getattr"),
    ],
)
def test_other_globals_are_refused(tmp_path, value, name):
    refused(written(tmp_path / "a.pkl", value), rf"names {name}")


def array_with_state(shape, dtype, data):
    reconstruct = np._core.multiarray._reconstruct
    return Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


POINTERS = struct.pack("<2Q", 0x41, 0x41)
HIDDEN_OBJECT = Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
HIDDEN_FIELD = Calls(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))


@pytest.mark.parametrize(
    "value",
    [
        Calls(np.ndarray, (2,), HIDDEN_OBJECT, POINTERS),
        Calls(np.ndarray, (2,), "O", POINTERS),
        Calls(np.ndarray, (2,), "|V8", POINTERS),
        Calls(np.ndarray, (3,), "<f8", POINTERS),
        array_with_state((2,), HIDDEN_OBJECT, POINTERS),
        array_with_state((2,), HIDDEN_FIELD, POINTERS),
        Calls(np._core.numeric._frombuffer, POINTERS, HIDDEN_OBJECT, (2,), "C"),
        Calls(np._core.numeric._frombuffer, POINTERS, HIDDEN_FIELD, (2,), "C"),
        Calls(np._core.multiarray.scalar, HIDDEN_OBJECT, POINTERS),
        array_with_state((1000,), np.dtype("O"), [1]),
        array_with_state((-2,), np.dtype("O"), [1, 2]),
        array_with_state((1000,), np.dtype("f8"), POINTERS),
        array_with_state((2,), np.dtype("f8"), [1.0, 2.0]),
        Calls(np._core.multiarray._reconstruct, list, (0,), b"b"),
        Calls(np.dtype, "O8,O8"),
        Calls(np.dtype, "M8"),
        Calls(pickle.codecs.encode, "a", "rot13"),
    ],
)
def test_numpy_state_that_does_not_fit_is_refused(tmp_path, value):
    refused(written(tmp_path / "a.pkl", value), "not a whole pickle")


def test_a_pickle_cannot_alter_what_it_is_given(tmp_path):
    path = tmp_path / "a.pkl"
    for name in (b"numpy\ndtype", b"numpy\nndarray", b"builtins\ndict", b"collections\nOrderedDict"):
        path.write_bytes(b"\x80\x02c" + name + b"\nN}X\x01\x00\x00\x00xK\x01s\x86b.")  # sets the attribute x = 1
        refused(path, "not a whole pickle")


def test_damaged_pickles_are_dataerrors(tmp_path):
    path = tmp_path / "obs_dict.pkl"
    whole = pickle.dumps(PLAIN)
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(whole), 100):
        path.write_bytes(whole[:end])
        refused(path, r"obs_dict\.pkl: not a whole pickle")
    for _ in range(300):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), 3):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            load_pickle(path)
        except DataError as error:
            message = str(error)
    assert message.startswith(str(path))
    refused(tmp_path / "gone.pkl", "cannot be read: No such file")


def test_npy_of_objects_and_of_numbers(tmp_path):
    trajectories = [{"actions": [np.ones(7)] * 3, "language": ["lift"]}, {"actions": []}]
    np.save(tmp_path / "a.npy", trajectories)
    loaded = load_object_npy(tmp_path / "a.npy")
    assert type(loaded) is np.ndarray
    assert loaded.shape == (2,)
    assert loaded[0]["language"] == ["lift"]
    np.testing.assert_array_equal(loaded[0]["actions"], np.ones((3, 7)))
    np.save(tmp_path / "b.npy", np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(load_object_npy(tmp_path / "b.npy"), np.arange(4, dtype=np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "not a whole .npy file"),
        (lambda data: b"PK\x03\x04", "not a whole .npy file"),
        (lambda data: data[:40], "not a whole .npy file"),
        (lambda data: data[:-5], "not a whole pickle"),
        (lambda data: data[:6] + b"\x09\x00" + data[8:], "not a whole .npy file"),
        (lambda data: data.replace(b"'|O'", b"[ ]x"), "not a whole .npy file"),
        (lambda data: data[:128] + pickle.dumps({"a": 1}), "holds a dict, not an array of objects"),
    ],
)
def test_damaged_npy_files_are_dataerrors(tmp_path, change, message):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(change(data))
    with pytest.raises(DataError, match=rf"a\.npy: {message}"):
        load_object_npy(tmp_path / "a.npy")


def test_structured_npy_with_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(2, [("a", object)]))
    with pytest.raises(DataError, match=r"not a whole \.npy file"):
        load_object_npy(tmp_path / "a.npy")
