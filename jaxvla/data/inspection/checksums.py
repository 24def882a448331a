"""Records that are not as they were written, which training does not notice where it reads single frames of them."""

import os
from collections.abc import Sequence

from tqdm import tqdm

from jaxvla.data.formats.records import open_records
from jaxvla.data.inspection.findings import ERROR, Finding, plural
from jaxvla.data.inspection.recordings import Recordings
from jaxvla.errors import ConfigError, DataError


def check_records(recordings: Recordings) -> None:
    """Raises ConfigError where the files of a dataset have no checksums."""
    if recordings.format == "lerobot":
        raise ConfigError(f"--verify: the files of a LeRobotDataset have no checksums, and {recordings.root} is one")


def find_damaged(recordings: Recordings) -> tuple[Finding, ...]:
    """Reads every record of every file, and holds it against its checksum."""
    reasons = damaged_records(recordings.files)
    if not reasons:
        return ()
    what = f"{plural(len(reasons), 'record')} cannot be read, or not as written."
    return (Finding(ERROR, "damaged", what, reasons, "copy or make their files again"),)


def damaged_records(paths: Sequence[str]) -> tuple[str, ...]:
    """What is wrong with which record, of TFRecord and array_record files; each is read from end to end."""
    reasons: list[str] = []
    total = sum(os.path.getsize(path) for path in paths)
    with tqdm(total=total, desc="verifying records", unit="B", unit_scale=True, disable=None) as bar:
        for path in paths:
            reasons += _damaged(path)
            bar.update(os.path.getsize(path))
    return tuple(reasons)


def _damaged(path: str) -> list[str]:
    reasons = []
    try:
        file = open_records(path)
        for span in file.spans():
            try:
                file.whole(span)
            except DataError as error:
                reasons.append(str(error))
    except DataError as error:  # of what lies between the records: nothing behind it can be found
        reasons.append(str(error))
    return reasons
