import os
import random
import struct
import warnings

import numpy as np
import pytest

from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.protobuf import Span
from jaxvla.errors import DataError


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def slow_masked(data: bytes) -> int:
    crc = slow_crc32c(data)
    return ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32


def framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", slow_masked(length)) + payload + struct.pack("<I", slow_masked(payload))


def joined(pieces) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


def parse(data: bytes):
    return tfrecord.parse_example(tfrecord.buffer_reader(data), Span(0, len(data)), "buffer")


def tensor_of(data: bytes):
    return tfrecord.read_tensor(tfrecord.buffer_reader(data), Span(0, len(data)), "buffer")


@pytest.fixture(scope="module")
def tf():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow")


ARRAYS = {
    "uint8": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "float32": np.array([[1.5, -2.0]], np.float32),
    "float64": np.array(3.25),
    "float16": np.array([0.5, -1], np.float16),
    "int32": np.array([-1, 2**31 - 1], np.int32),
    "int64": np.array([-(2**63), 7]),
    "uint16": np.array([65535], np.uint16),
    "bool": np.array([True, False, True]),
    "empty": np.zeros((0, 7), np.float32),
    "strided": np.arange(10, dtype=np.int32)[::3],
}


def test_crc_matches_published_vectors_and_bitwise_oracle():
    assert slow_crc32c(b"123456789") == 0xE3069283
    assert slow_crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    for data in (b"", b"123456789", bytes(32), bytes(range(256)) * 3):
        assert tfrecord.masked_crc32c(data) == slow_masked(data)
        assert tfrecord.masked_crc32c(memoryview(data)) == slow_masked(data)
        assert tfrecord.masked_crc32c(data[:2], np.frombuffer(data[2:], np.uint8)) == slow_masked(data)


def test_writer_gives_golden_frames(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tfrecord.RecordWriter(path) as writer:
        writer.write([b"ab", np.frombuffer(b"c", np.uint8)])
        writer.write([])
    assert path.read_bytes() == framed(b"abc") + framed(b"")
    assert tfrecord.scan_records(path) == [Span(12, 3), Span(31, 0)]
    with open(path, "rb") as file:
        assert tfrecord.read_record(tfrecord.file_reader(file.fileno()), Span(12, 3), "a") == b"abc"
        assert tfrecord.scan_records(file.fileno()) == [Span(12, 3), Span(31, 0)]


def test_golden_example_bytes():
    golden = bytes.fromhex("0a0d 0a0b 0a0161 1206 0a04 0a027879")  # {"a": bytes_list ["xy"]}
    assert joined(tfrecord.encode_example({"a": [b"x", b"y"]})) == golden
    feature = parse(golden)["a"]
    assert feature == ("bytes", [Span(13, 2)])
    assert golden[13:15] == b"xy"


@pytest.mark.parametrize(
    ("feature", "kind", "values"),
    [
        ("12 0a 0a 08 0000803f 000000c0", "float", [1.0, -2.0]),  # packed
        ("12 0a 0d 0000803f 0d 000000c0", "float", [1.0, -2.0]),  # one by one
        ("1a 0f 0a 0d 05 ac02 ffffffffffffffffff01", "int64", [5, 300, -1]),
        ("1a 05 08 05 08 ac02", "int64", [5, 300]),
        ("12 02 0a 00", "float", []),
        ("1a 00", "int64", []),
        ("0a 01 00 ", None, None),
    ],
)
def test_numeric_features_packed_and_not(feature, kind, values):
    value = bytes.fromhex(feature)
    entry = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    example = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    if kind is None:
        with pytest.raises(DataError, match=r"buffer: damaged at byte \d+"):
            parse(example)
        return
    feature = parse(example)["k"]
    assert feature.kind == kind
    np.testing.assert_array_equal(feature.values, values)
    assert feature.values.dtype == (np.float32 if kind == "float" else np.int64)


def test_feature_without_kind_is_left_out_and_last_duplicate_counts():
    assert parse(bytes.fromhex("0a07 0a05 0a0161 1200")) == {}
    twice = bytes.fromhex("0a18 0a0a 0a0161 1205 0a03 0a0178 0a0a 0a0161 1205 0a03 0a0179")
    (span,) = parse(twice)["a"].values
    assert twice[span.offset : span.end] == b"y"


def test_golden_tensor_bytes():
    golden = bytes.fromhex("0801 1208 12020801 12020802 2208 0000c03f 000000c0")
    assert joined(tfrecord.encode_tensor(ARRAYS["float32"])) == golden
    read = tfrecord.buffer_reader(golden)
    tensor = tfrecord.parse_tensor(read, Span(0, len(golden)), "buffer")
    assert tensor == (np.dtype(np.float32), (1, 2), Span(14, 8), None)
    assert joined(tfrecord.encode_tensor(["a", ""])) == bytes.fromhex("0807 1204 12020802 4201 61 4200")


@pytest.mark.parametrize("name", ARRAYS)
def test_tensor_round_trip(name):
    array = tensor_of(joined(tfrecord.encode_tensor(ARRAYS[name])))
    np.testing.assert_array_equal(array, ARRAYS[name])
    assert array.dtype == ARRAYS[name].dtype
    assert array.shape == ARRAYS[name].shape


def test_string_tensor_round_trip_and_big_endian_input():
    texts = ["put the pot", "", "überall 鍋"]
    assert tensor_of(joined(tfrecord.encode_tensor(texts))) == [text.encode() for text in texts]
    assert tensor_of(joined(tfrecord.encode_tensor([]))) == []
    np.testing.assert_array_equal(tensor_of(joined(tfrecord.encode_tensor(np.array([1, 2], ">i4")))), [1, 2])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("0801 1204 12020803 2d 0000803f", np.ones(3, np.float32)),  # one value stands for all
        ("0801 1204 12020803 2a08 0000803f 00000040", np.array([1, 2, 2], np.float32)),  # the last is repeated
        ("0801 1204 12020803", np.zeros(3, np.float32)),
        ("0804 1204 12020802 3a02 05 07", np.array([5, 7], np.uint8)),
        ("0803 1204 12020802 38ffffffffffffffffff01 3802", np.array([-1, 2], np.int32)),
        ("080a 1204 12020802 5a02 01 00", np.array([True, False])),
        ("0813 1204 12020801 6a02 8078", np.array([1], np.float16)),
        ("0802 1200 31 000000000000f03f", np.float64(1)),
        ("0809 1200 5005", np.int64(5)),
        ("0807 1204 12020802 4201 61", [b"a", b"a"]),
    ],
)
def test_tensors_stored_as_values(data, expected):
    found = tensor_of(bytes.fromhex(data))
    if isinstance(expected, list):
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("0801 1204 12020803 2204 0000803f", r"float32 \[3\] has 4 bytes"),
        ("0801 1204 12020801 2d 0000803f 2d 0000803f", "list of 2 values"),
        ("0815 1200", "unsupported dtype number 21"),
        ("1200", "unsupported dtype number 0"),
        ("0807 1204 12020801 2201 61", "has 1 bytes of content"),
        ("0801 1202 1801", "no known rank"),
        ("0801 120d 120b 08ffffffffffffffffff01", "impossible shape"),
        ("0801 120e 1200 120a 08ffffffffffffffff3f", "impossible shape"),
        ("0801 1209 1207 08ffffffffff01", "is stored as a list of 0 values"),
        ("0801 120f 1202", "reaches beyond the end"),
        ("08", "the data ends here|does not end"),
        ("0b", "unknown wire type 3"),
        ("00 00", "number 0"),
        ("08ffffffffffffffffffff01", "does not end"),
    ],
)
def test_damaged_tensors_name_the_byte(data, message):
    with pytest.raises(DataError, match=rf"buffer: damaged at byte \d+: .*({message})"):
        tensor_of(bytes.fromhex(data))


def test_big_payloads_are_not_read(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    arrays = {"observations/images0": frames, "next_observations/images0": frames[::-1], "actions": np.ones((20, 7))}
    path = tmp_path / "a.tfrecord"
    with tfrecord.RecordWriter(path) as writer:
        for _ in range(2):
            writer.write(tfrecord.encode_example({key: tfrecord.encode_tensor(x) for key, x in arrays.items()}))
    asked = []
    with open(path, "rb") as file:

        def read(offset, n):
            asked.append(n)
            return os.pread(file.fileno(), n, offset)

        _, second = tfrecord.scan_records(path)
        features = tfrecord.parse_example(read, second, str(path))
        tensors = {key: tfrecord.parse_tensor(read, x.values[0], str(path)) for key, x in features.items()}
        assert sum(asked) < 2000
        assert list(features) == list(arrays)
        for key, array in arrays.items():
            assert tensors[key].shape == array.shape
            content = os.pread(file.fileno(), tensors[key].content.length, tensors[key].content.offset)
            np.testing.assert_array_equal(np.frombuffer(content, array.dtype).reshape(array.shape), array)


def test_every_cut_of_a_file_is_found(tmp_path):
    whole = framed(b"first") + framed(b"second record")
    boundaries = {0: 0, len(framed(b"first")): 1, len(whole): 2}
    path = tmp_path / "cut.tfrecord"
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        if end in boundaries:
            assert len(tfrecord.scan_records(path)) == boundaries[end]
        else:
            number = 0 if end < len(framed(b"first")) else 1
            with pytest.raises(DataError, match=rf"cut\.tfrecord: record {number} at byte"):
                tfrecord.scan_records(path)
    path.write_bytes(whole + b"trailing garbage")
    with pytest.raises(DataError, match="record 2 at byte 50 is damaged"):
        tfrecord.scan_records(path)
    with pytest.raises(DataError, match=r"gone\.tfrecord: cannot be read: No such file"):
        tfrecord.scan_records(tmp_path / "gone.tfrecord")


def test_flipped_payload_fails_its_checksum():
    data = bytearray(framed(b"payload"))
    data[14] ^= 1
    with pytest.raises(DataError, match="the record at byte 12 does not match its checksum"):
        tfrecord.read_record(tfrecord.buffer_reader(bytes(data)), Span(12, 7), "a")
    with pytest.raises(DataError, match="checksum"):
        tfrecord.read_record(tfrecord.buffer_reader(bytes(data[:15])), Span(12, 7), "a")


def test_damaged_examples_give_dataerror_or_a_valid_parse():
    rng = random.Random(0)
    features = {name: tfrecord.encode_tensor(array) for name, array in ARRAYS.items()}
    features["language"] = tfrecord.encode_tensor(["one", "two"])
    whole = joined(tfrecord.encode_example(features))
    outcomes = {True: 0, False: 0}
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 2)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        read = tfrecord.buffer_reader(data)
        try:
            for feature in parse(data).values():
                if feature.kind == "bytes":
                    [tfrecord.read_tensor(read, span, "buffer") for span in feature.values]
            outcomes[True] += 1
        except DataError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize("name", ARRAYS)
def test_tensor_bytes_equal_tensorflow(tf, name):
    assert joined(tfrecord.encode_tensor(ARRAYS[name])) == tf.io.serialize_tensor(ARRAYS[name]).numpy()


def test_tensorflow_reads_what_is_written(tf, tmp_path):
    path = tmp_path / "a.tfrecord"
    texts = ["a", "ü"]
    assert joined(tfrecord.encode_tensor(texts)) == tf.io.serialize_tensor(texts).numpy()
    with tfrecord.RecordWriter(path) as writer:
        for factor in (1, 2):
            array = ARRAYS["uint8"] * factor
            features = {"x": tfrecord.encode_tensor(array), "language": tfrecord.encode_tensor(texts)}
            writer.write(tfrecord.encode_example(features))
    spec = {key: tf.io.FixedLenFeature([], tf.string) for key in ("x", "language")}
    for factor, record in enumerate(tf.data.TFRecordDataset(str(path)), 1):
        parsed = tf.io.parse_single_example(record, spec)
        np.testing.assert_array_equal(tf.io.parse_tensor(parsed["x"], tf.uint8), ARRAYS["uint8"] * factor)
        assert tf.io.parse_tensor(parsed["language"], tf.string).numpy().tolist() == [b"a", "ü".encode()]
    assert factor == 2


def test_reads_what_tensorflow_writes(tf, tmp_path):
    path = tmp_path / "a.tfrecord"
    tensors = {
        "filled": tf.make_tensor_proto(1.5, tf.float32, (2, 3)),
        "values": tf.make_tensor_proto([1, 2, 3], tf.int64),
        "half": tf.make_tensor_proto([0.5], tf.float16),
        "strings": tf.make_tensor_proto(["a", "b"]),
    }
    feature = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[proto.SerializeToString()]))
        for key, proto in tensors.items()
    }
    feature["floats"] = tf.train.Feature(float_list=tf.train.FloatList(value=[0.25, -3]))
    feature["ints"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[-(2**63), 2**63 - 1, 0]))
    feature["bytes"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"ab", b"", b"c"]))
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example.SerializeToString())
    (record,) = tfrecord.scan_records(path)
    data = path.read_bytes()
    read = tfrecord.buffer_reader(data)
    found = tfrecord.parse_example(read, record, "a")
    for key, proto in tensors.items():
        value = tfrecord.read_tensor(read, found[key].values[0], "a")
        np.testing.assert_array_equal(value, tf.make_ndarray(proto))
    np.testing.assert_array_equal(found["floats"].values, [0.25, -3])
    np.testing.assert_array_equal(found["ints"].values, [-(2**63), 2**63 - 1, 0])
    assert [data[span.offset : span.end] for span in found["bytes"].values] == [b"ab", b"", b"c"]
