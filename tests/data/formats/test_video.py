"""Frames by number, of every codec that LeRobot writes."""

import ctypes
import gc
import os
import pathlib
import threading

import av
import numpy as np
import pytest
from data.lerobot_files import FPS, write_video

from jaxvla.data.formats import video
from jaxvla.errors import DataError

COUNT, INTERVAL = 25, 6
CODECS = {
    "libx264": {"g": "6", "bf": "2"},
    "libx265": {"x265-params": "keyint=6:min-keyint=6:bframes=2:open-gop=0:log-level=error"},
    "libsvtav1": {"g": "6", "crf": "30"},
}


@pytest.fixture(scope="module", params=CODECS)
def film(request, tmp_path_factory):
    """A video, and its frames as FFmpeg gives them from the first to the last."""
    path = tmp_path_factory.mktemp("film") / f"{request.param}.mp4"
    shades = np.linspace(20, 230, COUNT).astype(np.uint8)
    write_video(
        path, [np.full((64, 64, 3), shade, np.uint8) for shade in shades], request.param, **CODECS[request.param]
    )
    with av.open(str(path)) as container:
        frames = [found.to_ndarray(format="rgb24") for found in container.decode(video=0)]
    assert len(frames) == COUNT
    assert abs(np.array([pixels.mean() for pixels in frames]) - shades).max() < 3
    return str(path), frames


def test_what_a_video_says_of_itself(film):
    path, _ = film
    track = video.read_track(path)
    assert track.size == (64, 64)
    np.testing.assert_allclose(track.times, np.arange(COUNT) / FPS, atol=1e-6)


def test_any_frame_costs_no_more_than_those_from_its_key_frame_on(film):
    path, frames = film
    decoder = video.Decoder(path)
    for number in np.random.default_rng(0).permutation(COUNT).tolist():
        before = decoder.decoded
        np.testing.assert_array_equal(decoder.read(number), frames[number])
        assert decoder.decoded - before <= number % INTERVAL + 1


def test_ascending_frames_are_decoded_once(film):
    path, frames = film
    decoder = video.Decoder(path)
    for number in (0, 1, 1, 3, 4, 7, 8):
        np.testing.assert_array_equal(decoder.read(number), frames[number])
    assert decoder.decoded <= 9
    last = decoder.decoded
    np.testing.assert_array_equal(decoder.read(COUNT - 1), frames[COUNT - 1])
    assert decoder.decoded - last <= (COUNT - 1) % INTERVAL + 1
    np.testing.assert_array_equal(decoder.read(2), frames[2])


def test_each_thread_has_decoders_of_its_own(film):
    path, _ = film
    found = []

    def keep():
        video.read_frame(path, 0)
        found.append(video.decoder(path))

    threads = [threading.Thread(target=keep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is not found[1]
    assert video.decoder(path) is video.decoder(path)


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="only Linux lists the threads of a process")
def test_reading_leaves_no_threads(film):
    path, frames = film
    before = len(os.listdir("/proc/self/task"))
    decoder = video.Decoder(path)
    for number in (0, 9):
        np.testing.assert_array_equal(decoder.read(number), frames[number])
        assert len(os.listdir("/proc/self/task")) <= before


class Allocated(ctypes.Structure):
    """mallinfo2 of glibc: what C code holds."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc says what is allocated")
def test_going_back_and_forth_holds_no_more_and_more_memory(film):
    path, _ = film
    decoder, libc = video.Decoder(path), ctypes.CDLL(None)
    libc.mallinfo2.restype = Allocated

    def read(times):
        for i in range(times):
            decoder.read(i * 7 % COUNT)
        gc.collect()
        return libc.mallinfo2().uordblks

    assert read(50) + 300 * 30 > read(300)


def test_few_decoders_stay_open(film, tmp_path, monkeypatch):
    path, frames = film
    monkeypatch.setattr(video, "_OPEN_DECODERS", 2)
    monkeypatch.setattr(video, "_own", own := video._Own())
    links = [tmp_path / f"{number}.mp4" for number in range(3)]
    for link in links:
        link.symlink_to(path)
        np.testing.assert_array_equal(video.read_frame(str(link), 5), frames[5])
    assert [*own.decoders] == [str(link) for link in links[1:]]


def test_what_cannot_be_decoded_is_said(film, tmp_path):
    path, _ = film
    with pytest.raises(DataError, match=rf"no frame {COUNT}, it has {COUNT}: download"):
        video.read_frame(path, COUNT)
    whole = pathlib.Path(path).read_bytes()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged.mp4: is no video, or is cut off: download or make it again"):
        video.read_track(str(damaged))
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n")
    with pytest.raises(DataError, match=r"list.mp4: is no video"):
        video.read_track(str(tmp_path / "list.mp4"))
    begin, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    damaged.write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
    with pytest.raises(DataError, match=r"damaged.mp4: frame 3 (cannot be decoded|is not where its table says)"):
        video.Decoder(str(damaged)).read(3)


def test_a_file_that_ends_before_its_frames_is_said(tmp_path):
    """Where the table comes first, only the sizes of the frames tell."""
    path = tmp_path / "first.mp4"
    write_video(path, [np.full((64, 64, 3), shade, np.uint8) for shade in (0, 90, 180)], table_first=True)
    assert len(video.read_track(str(path)).times) == 3
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"first.mp4: is cut off: its frames end at byte \d+, the file at \d+: download"
    ):
        video.read_track(str(path))


def test_opening_decodes_no_frame(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, [np.full((16, 24, 3), 10 * t, np.uint8) for t in range(4)], "libx264", crf="1", bf="0")
    formats = []
    for decoded in (False, True):
        with video.opened(str(path), decoded) as container:
            formats.append(container.streams.video[0].codec_context.pix_fmt)
    assert formats == [None, "yuv420p"]
    assert abs(video.read_frame(str(path), 2).astype(int) - 20).max() <= 2
