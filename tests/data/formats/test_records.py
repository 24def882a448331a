"""Files of records of both kinds, read at random."""

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jaxvla.data.formats import records
from jaxvla.data.formats.tfrecord import RecordWriter
from jaxvla.errors import DataError

RECORDS = [bytes([i]) * (3000 + i) for i in range(5)]


def write(path, contents=RECORDS):
    if path.suffix == ".array_record":
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for content in contents:
            writer.write(content)
        writer.close()
    else:
        with RecordWriter(path) as writer:
            for content in contents:
                writer.write([content])
    return str(path)


@pytest.mark.parametrize("name", ["a.tfrecord", "a.array_record"])
def test_every_byte_has_an_offset(tmp_path, name):
    file = records.open_records(write(tmp_path / name))
    spans = list(file.spans())
    assert file.count() == len(spans) == 5
    assert [file.read(*span) for span in spans] == RECORDS
    assert file.read(spans[3].offset + 2990, 10) == bytes([3]) * 10
    out = np.zeros((2, 5), np.uint8)
    assert file.read_into(spans[4].offset + 100, out) == 10
    assert (out == 4).all()


def test_an_array_record_ends_where_its_record_does(tmp_path):
    file = records.open_records(write(tmp_path / "a.array_record"))
    spans = list(file.spans())
    assert file.read(spans[1].offset + 3000, 50) == b"\1"
    assert file.read_into(spans[1].offset + 2999, np.zeros(50, np.uint8)) == 2


def test_what_a_file_is_says_its_content(tmp_path):
    for name in ("a.tfrecord", "a.array_record"):
        path = write(tmp_path / name)
        (tmp_path / "data-00000").write_bytes((tmp_path / name).read_bytes())
        assert type(records.open_records(str(tmp_path / "data-00000"))) is type(records.open_records(path))
    assert isinstance(records.open_records(path), records.ArrayRecordFile)
    with pytest.raises(FileNotFoundError):
        records.open_records(str(tmp_path / "nowhere"))


def test_damage_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.array_record"
    write(path)
    whole = path.read_bytes()
    for length, what in (
        (len(whole) - 100, r"record 0 is damaged \([^\n]+\)"),
        (1 << 16, "is cut off or damaged: [^\n]+"),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"^{path}: {what}; make the file again$"):
            records.open_records(str(path))
    at = whole.index(b"\x28\xb5\x2f\xfd", 200)  # where compressed bytes of the third record begin
    path.write_bytes(whole[:at] + b"x" * 8 + whole[at + 8 :])
    file = records.open_records(str(path))
    assert [file.read(number << records.RECORD_BITS, 2) for number in (0, 1)] == [b"\0\0", b"\1\1"]
    with pytest.raises(DataError, match=rf"^{path}: record 2 is damaged \([^\n]+\); make the file again$"):
        list(file.spans())


def test_few_records_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_kept", kept := records.Kept(7000))
    file = records.open_records(write(tmp_path / "a.array_record"))
    for number in (0, 1, 0, 2):
        assert file.read(number << records.RECORD_BITS, 1) == bytes([number])
    assert [number for _, number in kept._values] == [0, 2]
    assert kept._bytes == sum(len(data) for data, _ in kept._values.values()) == 6002
