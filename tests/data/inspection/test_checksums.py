"""Records against their checksums."""

import dataclasses

import pytest
from data.inspection.episodes import episode, write

from jaxvla.data.formats.tfrecord import scan_records
from jaxvla.data.inspection.checksums import check_records, damaged_records
from jaxvla.data.inspection.recordings import choose_config, open_recordings
from jaxvla.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, [episode(i, steps=4) for i in range(3)])


def test_every_damaged_record_is_named(root):
    path = root / "task" / "train" / "out.tfrecord"
    assert damaged_records([str(path)]) == ()
    content, spans = bytearray(path.read_bytes()), scan_records(path)
    for span in (spans[0], spans[2]):
        content[span.offset + span.length // 2] ^= 1
    path.write_bytes(content)
    first, second = damaged_records([str(path)])
    assert first.startswith(f"{path}: the record at byte {spans[0].offset} does not match its checksum")
    assert f"byte {spans[2].offset} " in second


def test_behind_a_cut_nothing_is_looked_for(root):
    path = root / "task" / "train" / "out.tfrecord"
    path.write_bytes(path.read_bytes()[:-30])
    (reason,) = damaged_records([str(path)])
    assert "but the file ends at byte" in reason


def test_files_without_checksums_are_refused(root):
    _, config, said = choose_config(root, None, "")
    recordings = open_recordings(config, said, 0, 0)
    check_records(recordings)
    with pytest.raises(ConfigError, match="the files of a LeRobotDataset have no checksums"):
        check_records(dataclasses.replace(recordings, format="lerobot"))
