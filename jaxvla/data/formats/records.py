"""Files of records, whose bytes are read at random: TFRecord files, and array_record files through their library.

Every byte has an offset in its file, by which the indices know it. A TFRecord file stores its records as they are, so
there it is the position in the file. An array_record file compresses them, so there it is the number of the record,
shifted by `RECORD_BITS`, and the position in the record; to read a few bytes the whole record is decompressed, and the
records read last are kept in memory.

What a file is says its first bytes: an array_record file is a Riegeli file, whose signature is at
https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
"""

import collections
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.protobuf import Span
from jaxvla.errors import DataError

RECORD_BITS = 40  # a terabyte for a record, eight million records for a file
_IN_RECORD = (1 << RECORD_BITS) - 1
_SIGNATURE = bytes.fromhex("83af70d10d884a3f")
_KEPT_BYTES = 256 << 20
# Without these the library reads ahead, which costs ten times the time of a single record.
_AT_RANDOM = "readahead_buffer_size:0,max_parallelism:0"


class TFRecordFile:
    """An open TFRecord file; closed when the last reader lets go of it. Threads may share it."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def count(self) -> int:
        """How many records there are.

        Raises:
            DataError: the file is cut off or damaged; names it, the record and its byte position.
        """
        return len(tfrecord.scan_records(self._descriptor, self._path))

    def spans(self) -> Iterator[Span]:
        """Where the payload of each record lies; raises as `count`."""
        return iter(tfrecord.scan_records(self._descriptor, self._path))

    def whole(self, span: Span) -> tfrecord.Read:
        """Reads within one record, all of which is held in memory, its checksum verified.

        Raises:
            DataError: the record does not match its checksum; names the file and the byte position.
        """
        read = tfrecord.buffer_reader(tfrecord.read_record(self.read, span, self._path))
        return lambda offset, n: read(offset - span.offset, n)

    def read(self, offset: int, n: int) -> bytes:
        """The n bytes from an offset on, fewer at the end of the file."""
        return os.pread(self._descriptor, n, offset)

    def read_into(self, offset: int, out: np.ndarray) -> int:
        """Fills `out`, uint8 and C-contiguous, with what lies from an offset on; gives how many bytes that were."""
        return os.preadv(self._descriptor, [out], offset)


class ArrayRecordFile:
    """An open array_record file, likewise.

    Raises:
        DataError: it is cut off or damaged; names it.
    """

    def __init__(self, path: str) -> None:
        # A tenth of a second that only who reads such files needs to wait.
        from array_record.python.array_record_module import ArrayRecordReader

        self._path = path
        self._token = object()  # what is kept of the file must not keep it open
        self._reader = ArrayRecordReader(path, _AT_RANDOM)
        if not self._reader.ok():
            self._decompress(0)  # which mostly says what is wrong
            raise DataError(f"{path}: is cut off or damaged: it has no footer; make the file again")

    def count(self) -> int:
        """How many records there are."""
        return self._reader.num_records()

    def spans(self) -> Iterator[Span]:
        """Where the payload of each record lies.

        Raises:
            DataError: a record is damaged; names the file and the record.
        """
        for number in range(self.count()):
            yield Span(number << RECORD_BITS, len(self._record(number)))

    def whole(self, span: Span) -> tfrecord.Read:
        """Reads within one record, whose checksum its decompression verifies; what is read raises as `spans`."""
        return self.read

    def read(self, offset: int, n: int) -> bytes:
        """The n bytes from an offset on, fewer at the end of the record; raises as `spans`."""
        start = offset & _IN_RECORD
        return self._record(offset >> RECORD_BITS)[start : start + n]

    def read_into(self, offset: int, out: np.ndarray) -> int:
        """As that of `TFRecordFile`; raises as `spans`."""
        data = self.read(offset, out.nbytes)
        out.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def _record(self, number: int) -> bytes:
        data = _kept.get((self._token, number))
        if data is None:
            data = self._decompress(number)
            _kept.put((self._token, number), data, len(data))
        return data

    def _decompress(self, number: int) -> bytes:
        try:
            return self._reader.read([number])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"{self._path}: record {number} is damaged ({reason}); make the file again") from error


RecordFile = TFRecordFile | ArrayRecordFile


class Kept:
    """What was decompressed last, per process, up to a number of bytes; threads may share it."""

    def __init__(self, most: int = _KEPT_BYTES) -> None:
        self._most = most
        self._values: collections.OrderedDict[Any, tuple[Any, int]] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """The value of a key; None where it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Keeps a value of so many bytes, in place of those that were not asked for longest."""
        with self._lock:
            self._bytes += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = value, size
            while self._bytes > self._most and len(self._values) > 1:
                self._bytes -= self._values.popitem(last=False)[1][1]


_kept = Kept()


def open_records(path: str) -> RecordFile:
    """Opens a file of records, of either kind.

    Raises:
        OSError: it is missing or cannot be read.
        DataError: it is an array_record file that is cut off or damaged; names it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    if os.pread(descriptor, len(_SIGNATURE), 0) != _SIGNATURE:
        return TFRecordFile(path, descriptor)
    os.close(descriptor)
    return ArrayRecordFile(path)
