"""TensorBoard event files, without TensorFlow, a writer thread, or packages that import torch where it is installed.

An event file is a TFRecord file of `tensorflow.Event` messages (tensorflow/core/util/event.proto):

    1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary   7 session_log: SessionLog
    Summary { 1 value: repeated Value { 1 tag: string   2 simple_value: float } }   SessionLog { 1 status: enum }
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from jaxvla.data.formats.protobuf import FIXED32, FIXED64, VARINT, header, varint
from jaxvla.data.formats.tfrecord import masked_crc32c

_SESSION_START = 1


class EventFile:
    """An event file that is open for writing.

    Args:
        folder: of event files; TensorBoard joins all that lie there.
        first_step: what files before this one hold from this step on is taken back.
    """

    def __init__(self, folder: pathlib.Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._append(event(time.time(), 0, (3, b"brain.Event:2")))
        self._append(event(time.time(), first_step, (7, varint(1 << 3 | VARINT) + varint(_SESSION_START))))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one event with scalars by name."""
        values = b"".join(_field(1, scalar(name, value)) for name, value in metrics.items())
        self._append(event(time.time(), step, (5, values)))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, payload: bytes) -> None:
        length = struct.pack("<Q", len(payload))
        crcs = [struct.pack("<I", masked_crc32c(piece)) for piece in (length, payload)]
        self._file.write(length + crcs[0] + payload + crcs[1])


def event(wall_time: float, step: int, content: tuple[int, bytes]) -> bytes:
    """An Event message; `content` is the number of its last field, and that field's bytes."""
    start = varint(1 << 3 | FIXED64) + struct.pack("<d", wall_time) + varint(2 << 3 | VARINT) + varint(step)
    return start + _field(*content)


def scalar(tag: str, value: float) -> bytes:
    """A Summary.Value message."""
    return _field(1, tag.encode()) + varint(2 << 3 | FIXED32) + struct.pack("<f", value)


def _field(number: int, payload: bytes) -> bytes:
    return header(number, len(payload)) + payload
