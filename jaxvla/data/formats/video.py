"""Frames of videos by their numbers: what a file says of itself, and decoders that seek no further than they must.

A frame's number is its place in the order in which frames are shown. The container's own table says which frames there
are, when they are shown and which are key frames, without a byte of them being read. Every decoded frame is held
against that table, so that no other than the one that was asked for is given out.
"""

import collections
import dataclasses
import os
import threading
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from jaxvla.errors import DataError

# FFmpeg would otherwise take a list of addresses for a video, and follow them.
_TRUSTED = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2", "protocol_whitelist": "file"}
# It would also decode a frame to find out more than the container says, which for H.264 is most of what opening costs.
_UNDECODED = {"skip_frame": "all", "probesize": "32", "analyzeduration": "0"}
# Of each thread. A decoder holds some frames of its video, and the file open.
_OPEN_DECODERS = 16
# So many are tried before a frame, so that a damaged video is not decoded from its begin for each of its frames.
_KEY_FRAMES = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """What a video holds.

    Attributes:
        size: (height, width) of its frames, pixels.
        times: float64 [n], when each frame is shown, seconds, ascending.
    """

    size: tuple[int, int]
    times: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """When each frame is shown, and the frames from which decoding may begin, in the stream's units of time.

    `shown` int64 [n] is ascending. `key_numbers` int64 [k] are the places of key frames in the order of decoding:
    nothing that is decoded before is shown later than they are, but for frames that are shown between the last of these
    and the key frame itself.
    """

    shown: np.ndarray
    key_numbers: np.ndarray

    def number_at(self, time: int) -> int | None:
        """The frame that is shown at a time; None where that is no frame's."""
        at = int(np.searchsorted(self.shown, time))
        return at if at < len(self.shown) and self.shown[at] == time else None


def read_track(path: str) -> Track:
    """What a video says of itself; no frame is decoded for it.

    Raises:
        DataError: it is no video, is cut off, or does not say where its frames lie. OSError: it cannot be read.
    """
    with opened(path) as container:
        stream = container.streams.video[0]
        table = read_table(stream, path)
        context = stream.codec_context
        return Track((context.height, context.width), table.shown * float(stream.time_base))


def opened(path: str, decoded: bool = False) -> Any:
    """A video file, open for reading; raises as `read_track`.

    Args:
        path: of the file.
        decoded: whether a frame is decoded, without which the format of pixels may not be known.
    """
    import av  # here, for it loads FFmpeg

    try:
        container = av.open(path, options=_TRUSTED if decoded else _TRUSTED | _UNDECODED)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise _no_video(path) from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise _no_video(path)
    return container


def read_table(stream: Any, path: str) -> Table:
    """Where the frames of an open file's stream lie; raises as `read_track`."""
    entries = [entry for entry in stream.index_entries if not entry.is_discard]
    if not entries:
        raise DataError(
            f"{path}: does not say where its frames lie: rewrite it with ffmpeg -i IN -c copy -movflags +faststart OUT"
        )
    end, size = max(entry.pos + entry.size for entry in entries), os.stat(path).st_size
    if end > size:
        raise DataError(f"{path}: is cut off: its frames end at byte {end}, the file at {size}: download it again")
    decoded = np.array([entry.timestamp for entry in entries], np.int64)
    keys = np.flatnonzero([entry.is_keyframe for entry in entries])
    # Frames are shown at the same distances as they are decoded, each a constant later.
    shown = np.sort(decoded) - decoded.min() + (stream.start_time or 0)
    return Table(shown, keys)


def read_frame(path: str, number: int) -> np.ndarray:
    """One frame: uint8 [h, w, 3].

    What is asked for in ascending order is cheapest. Otherwise no more frames are decoded than there are from the key
    frame before it. Decoders are this thread's own, and the last ones stay open.

    Raises:
        DataError: the video is damaged, or has no such frame; names both.
    """
    return decoder(path).read(number)


def decoder(path: str) -> "Decoder":
    """This thread's decoder of a video."""
    found = _own.decoders.pop(path, None)
    if found is None:
        if len(_own.decoders) >= _OPEN_DECODERS:
            _own.decoders.popitem(last=False)[1].close()
        found = Decoder(path)
    _own.decoders[path] = found
    return found


class Decoder:
    """An open video; for one thread.

    Attributes:
        decoded: how many frames were decoded so far.

    Raises:
        DataError: as `read_track`.
    """

    def __init__(self, path: str) -> None:
        self.decoded = 0
        self._path = path
        self._container = opened(path)
        self._stream = self._container.streams.video[0]
        # Threads of its own would hold frames back until later ones are read, and the loader has threads already.
        self._stream.codec_context.thread_count = 1
        self._table = read_table(self._stream, path)
        self._colours = _reformatter()
        self._packets: Generator[Any] | None = None
        self._frames: Iterator[Any] | None = None
        self._last: tuple[int, Any] | None = None

    def close(self) -> None:
        """Closes the file."""
        self._stop()
        self._container.close()

    def read(self, number: int) -> np.ndarray:
        """As `read_frame`."""
        count = len(self._table.shown)
        if not 0 <= number < count:
            raise DataError(f"{self._path}: no frame {number}, it has {count}: download or make it again")
        try:
            # A frame's own conversion would start threads for each frame, and end them with it.
            return self._colours.reformat(self._find(number), format="rgb24", threads=1).to_ndarray()
        except _broken() as error:
            self._stop()
            raise DataError(
                f"{self._path}: frame {number} cannot be decoded ({error.strerror}): download or make it again"
            ) from error

    def _find(self, number: int) -> Any:
        """The decoded frame: the last one, or one that comes from here on, or from a key frame on."""
        first = int(np.searchsorted(self._table.key_numbers, number, side="right")) - 1
        if self._last is not None and self._frames is not None:
            at = self._last[0]
            if at == number:
                return self._last[1]
            if at < number and (first < 0 or self._table.key_numbers[first] <= at + 1):
                found = self._decode_to(number)
                if found is not None:
                    return found
        # Frames that are shown before a key frame may be decodable from an earlier one only.
        for key in range(first, max(first - _KEY_FRAMES, -1), -1):
            self._begin(int(self._table.shown[self._table.key_numbers[key]]))
            found = self._decode_to(number)
            if found is not None:
                return found
        raise DataError(f"{self._path}: frame {number} is not where its table says: download or make it again")

    def _decode_to(self, number: int) -> Any:
        """Decodes up to a frame; None where it does not come."""
        for frame in self._frames:
            self.decoded += 1
            at = None if frame.is_corrupt or frame.pts is None else self._table.number_at(frame.pts)
            if at is None:
                break
            self._last = (at, frame)
            if at >= number:
                return frame if at == number else None
        self._stop()
        return None

    def _begin(self, time: int) -> None:
        """Frames come from the key frame at this time on."""
        self._stop()
        self._container.seek(time, stream=self._stream)
        self._packets = self._container.demux(self._stream)
        self._frames = (frame for packet in self._packets for frame in packet.decode())

    def _stop(self) -> None:
        """No frame comes any more, and none is kept."""
        if self._packets is not None:
            # PyAV frees what it reads packets with where it is told to, not where the reader is dropped.
            self._packets.close()
        self._packets = self._frames = self._last = None


class _Own(threading.local):
    """The decoders of a thread, the one used last at the end."""

    def __init__(self) -> None:
        self.decoders: collections.OrderedDict[str, Decoder] = collections.OrderedDict()


_own = _Own()


def _no_video(path: str) -> DataError:
    return DataError(f"{path}: is no video, or is cut off: download or make it again")


def _reformatter() -> Any:
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _broken() -> type[Exception]:
    import av

    return av.error.FFmpegError
