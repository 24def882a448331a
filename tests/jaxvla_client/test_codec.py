"""Messages in bytes: what comes back is what went in, and nothing that is refused is ever made."""

import tracemalloc

import msgpack
import numpy as np
import pytest

from jaxvla_client.codec import OPENPI, ArrayForm, Bounds, pack, unpack
from jaxvla_client.errors import CodecError

STR_KEYS = ArrayForm(str)


def described(dtype="<f4", shape=(2,), data=b"\0" * 8):
    """A message that holds an array in openpi's form, true or not."""
    array = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"x": array})


@pytest.mark.parametrize("form", [OPENPI, STR_KEYS])
def test_what_was_packed_comes_back(form):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (5, 4, 3), np.uint8),
        "turned": rng.normal(size=(3, 4)).astype(np.float32).T,
        "half": np.float16([0.5, np.nan]),
        "big endian": np.arange(3, dtype=">i4"),
        "none": np.zeros((0, 4), np.float64),
        "point": np.array(2.5),
        "flags": np.array([True, False]),
        "text": np.array(["put it", "in the pot"]),
    }
    message = {"prompt": "Öffne die Tür", "list": [1, -7, 2**40, None, True, 0.1], "state": arrays, b"raw": b"\0\1"}
    back = unpack(pack(message, form), form=form)
    for name, array in arrays.items():
        received = back["state"].pop(name)
        np.testing.assert_array_equal(received, array)
        assert (received.dtype, received.shape) == (array.dtype, array.shape)
        assert not received.flags.writeable
    assert back == message | {"state": {}}


def test_the_bytes_are_those_of_openpi():
    array = {b"__ndarray__": True, b"data": b"\1\2", b"dtype": "|u1", b"shape": [2]}
    assert pack({"x": np.uint8([1, 2])}) == msgpack.packb({"x": array})
    number = {b"__npgeneric__": True, b"data": 3.5, b"dtype": "<f4"}
    assert unpack(msgpack.packb([number])) == [np.float32(3.5)]
    assert unpack(pack({"x": np.float32(3.5), "y": np.int64(4), "z": np.bool_(True)})) == {"x": 3.5, "y": 4, "z": True}


@pytest.mark.parametrize("value", [np.array([{}]), np.zeros(2, "V8"), np.complex64(1), {1, 2}, object(), 1 << 70])
def test_what_is_no_number_is_not_packed(value):
    with pytest.raises(CodecError, match="cannot be"):
        pack({"x": value})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (described("|O"), r"dtype must be one of numbers or text, such as '<f4' or '\|u1', not '\|O'"),
        (described("<c8"), "not '<c8'"),
        (described("V8"), "not 'V8'"),
        (described([["a", "<f4"]]), "not "),
        (described("<U999999999"), "not '<U999999999'"),
        (described("<f4,<f4"), "not '<f4,<f4'"),
        (described(shape=(3,)), r"an array of float32\[3\] is 12 bytes, but 8 came"),
        (described(shape=(1 << 30, 1 << 30)), "but 8 came"),
        (described(shape=(-2, -1)), r"shape must be a list of whole numbers, not \[-2, -1\]"),
        (described(shape=(2.0,)), "whole numbers"),
        (described(shape=[1] * 9), "8 dimensions, not 9"),
        (described(shape=(0, 1 << 30, 1 << 30, 1 << 30), data=b""), "cannot be"),
        (described(data="text"), "data must be bytes, not str"),
        (described(data=[0] * 8), "data must be bytes, not list"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "300 is no uint8"),
        (msgpack.packb({b"__npgeneric__": True, b"data": {}, b"dtype": "|u1"}), "must be a number, not dict"),
        (msgpack.packb({b"__ndarray__": True}), "dtype must be one of numbers or text.*not None"),
        (b"\x81\x01\x02", "no msgpack of str or bytes keys"),
        (b"\xa1\xff", "UTF-8"),
        (b"", "cut off"),
        (b"\x93\x01", "cut off"),
        (b"\xc6\xff\xff\xff\xffabc", "cut off: something in it ends at"),
        (b"\xc5\x01", "cut off"),
        (b"\x01\x02", "ends after 1 of 2 bytes"),
        (b"\xd6\xff\x00\x00\x00\x00", "extension or unused type, 0xd6"),
        (b"\xc1", "extension or unused type, 0xc1"),
        (b"\x91" * 17 + b"\x01", "nests deeper than 16"),
        (b"\x91" * 100_000, "nests deeper than 16"),
        (b"\xdd\xff\xff\xff\xff", "more than 10000 items"),
        (b"\xdf\x7f\xff\xff\xff", "more than 10000 items"),
        (b"\x92\xdc\x20\x00" + b"\x01" * 0x2000 + b"\xdc\x20\x00" + b"\x01" * 0x2000, "more than 10000 items"),
        (bytes(33 * 2**20), "33554432 are admitted"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(CodecError, match=message):
        unpack(data)


def test_text_that_does_not_fit_is_cut_in_errors():
    with pytest.raises(CodecError) as raised:
        unpack(described("f" * 100_000))
    assert len(str(raised.value)) < 200


def test_declared_lengths_allocate_nothing():
    message = b"".join(b"\xdd\x00\x00\x20\x00" for _ in range(12)) + bytes(100_000)
    tracemalloc.start()
    with pytest.raises(CodecError, match="items"):
        unpack(message)
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()


def test_bounds_can_be_narrower():
    data = pack({"a": [[1]]})
    unpack(data, Bounds(nbytes=len(data), depth=3, items=5))
    for bounds in (Bounds(nbytes=len(data) - 1), Bounds(depth=2), Bounds(items=4)):
        with pytest.raises(CodecError):
            unpack(data, bounds)


def test_random_bytes_raise_nothing_else():
    rng = np.random.default_rng(0)
    whole = pack({"images": {"a": np.zeros((4, 4, 3), np.uint8)}, "prompt": "x", "state": np.zeros(3)})
    for _ in range(2000):
        data = bytearray(whole[: rng.integers(len(whole) + 1)])
        for place in rng.integers(0, max(len(data), 1), rng.integers(4)):
            data[place : place + 1] = rng.bytes(1)
        for candidate in (bytes(data), rng.bytes(rng.integers(40))):
            try:
                unpack(candidate)
            except CodecError:
                continue
