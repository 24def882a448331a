"""Videos as LeRobot has them: frames encoded, or taken from videos that are there without decoding them.

A frame is shown at its number over the frequency, exactly. From one key frame to the next everything is copied, packet
by packet; what begins elsewhere can only be decoded.
"""

import fractions
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from jaxvla.data.conversion.lerobot.episode import Clip
from jaxvla.data.formats import video
from jaxvla.data.transforms.images import size_text
from jaxvla.errors import ConfigError, DataError

# Every second frame is a key frame, as LeRobot has it for access at random. Frames that need later ones would only
# make it wait.
_OPTIONS = {"g": "2", "bf": "0"}
_ENCODER, _PIXELS = "libx264", "yuv420p"
_TABLE_FIRST = {"movflags": "faststart"}
_MOST_PARTS = 1 << 16  # of which a second of a frequency such as 29.97 Hz is made


class Kind(NamedTuple):
    """What clips must have in common to lie in one video."""

    codec: str
    size: tuple[int, int]
    pixels: str
    setup: bytes


def encode(path: pathlib.Path, frames: Iterable[np.ndarray], fps: float, crf: int, where: str) -> int:
    """Writes frames uint8 [h, w, 3] of one size as H.264, each as it comes; gives how many there were.

    Raises:
        ConfigError: frames of an odd size, whose colours cannot be halved. Names `where` and the size.
        OSError: the file cannot be written.
    """
    rate, count = _rate(fps), 0
    with av.open(os.fspath(path), "w", format="mp4", options=_TABLE_FIRST) as container:
        stream = container.add_stream(_ENCODER, rate=rate, options={**_OPTIONS, "crf": str(crf)})
        for frame in frames:
            height, width = frame.shape[:2]
            if height % 2 or width % 2:
                raise ConfigError(
                    f"{where}: frames of {size_text((height, width))} pixels, but H.264 needs even sides: give "
                    "--image_size, or --pictures image"
                )
            if not count:
                stream.height, stream.width, stream.pix_fmt = height, width, _PIXELS
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            made.pts, made.time_base = count, 1 / rate
            container.mux(stream.encode(made))
            count += 1
        container.mux(stream.encode())
    return count


def kind_of(path: str) -> Kind:
    """That of a video; raises as `video.read_track`."""
    with video.opened(path, decoded=True) as container:
        context = container.streams.video[0].codec_context
        size = (context.height, context.width)
        return Kind(context.codec.canonical_name, size, str(context.pix_fmt), context.extradata or b"")


def describe(path: str, fps: float) -> dict[str, Any]:
    """What info.json says of the videos of a feature; raises as `kind_of`."""
    kind = kind_of(path)
    height, width = kind.size
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": kind.codec,
        "video.pix_fmt": kind.pixels,
        "video.is_depth_map": False,
        "video.fps": whole(fps),
        "video.channels": 1 if kind.pixels.startswith("gray") else 3,
        "has_audio": False,
    }


def can_copy(clip: Clip) -> bool:
    """Whether a clip is from a key frame to before another one, or to the end; raises as `kind_of`."""
    return _order(clip) is not None


def copy(path: pathlib.Path, clips: Sequence[Clip], fps: float) -> None:
    """Writes clips of one kind, which can be copied, one behind the other as one video.

    Raises:
        DataError: one cannot be copied after all, or what was written is not their frames; names it.
        OSError: a file cannot be read or written.
    """
    orders = [_order(clip) for clip in clips]
    bad = next((clip.path for clip, order in zip(clips, orders) if order is None), "")
    if bad:
        raise DataError(f"{bad}: cannot be cut where an episode begins or ends: it changed, convert again")
    delay = max(max(at - rank for at, rank in enumerate(order)) for order in orders)
    rate, first = _rate(fps), 0
    with av.open(os.fspath(path), "w", format="mp4", options=_TABLE_FIRST) as output:
        target = None
        for clip, order in zip(clips, orders):
            with video.opened(clip.path) as source:
                stream = source.streams.video[0]
                if target is None:
                    target = output.add_stream_from_template(stream, opaque=True)
                    target.time_base = 1 / rate
                for at, (packet, rank) in enumerate(zip(_packets(source, clip), order)):
                    packet.time_base, packet.stream = 1 / rate, target
                    packet.pts, packet.dts, packet.duration = first + rank, first + at - delay, 1
                    output.mux(packet)
            first += clip.count
    times = video.read_track(os.fspath(path)).times
    if len(times) != first or abs(times - np.arange(first) / fps).max() > 0.5 / fps:
        raise DataError(f"{path}: has {len(times)} frames where {first} were copied from {clips[0].path}: report it")


def whole(fps: float) -> int | float:
    """A frequency as info.json has it: an integer where it is one."""
    return int(fps) if fps == int(fps) else fps


def _rate(fps: float) -> fractions.Fraction:
    return fractions.Fraction(fps).limit_denominator(_MOST_PARTS)


def _packets(container: Any, clip: Clip) -> Iterable[Any]:
    """The packets from that of a clip's first frame on, as many as it has frames, in the order of decoding."""
    stream = container.streams.video[0]
    first = int(video.read_table(stream, clip.path).shown[clip.first])
    container.seek(first, stream=stream)
    packets = (packet for packet in container.demux(stream) if packet.dts is not None)
    return itertools.islice(itertools.dropwhile(lambda packet: packet.pts != first, packets), clip.count)


def _order(clip: Clip) -> list[int] | None:
    """Which frame of a clip each of its packets shows, in the order of decoding; None where it cannot be cut out.

    It can where it begins with a key frame, so does what follows it, and no frame of either lies among the other's.
    """
    with video.opened(clip.path) as container:
        table = video.read_table(container.streams.video[0], clip.path)
        end = clip.first + clip.count
        if not {clip.first, end} <= {*table.key_numbers.tolist(), len(table.shown)}:
            return None
        shown = [packet.pts for packet in _packets(container, clip)]
    ranks = {time: rank for rank, time in enumerate(table.shown[clip.first : end].tolist())}
    return [ranks[time] for time in shown] if {*shown} == {*ranks} and len(shown) == clip.count else None
