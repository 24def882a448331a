"""Films of episodes, read back: what a player finds in them, and what cannot be written."""

import fractions

import av
import numpy as np
import pytest
from PIL import Image

from jaxvla.envs import film
from jaxvla.envs.film import FAILURE, MARGIN, SUCCESS, SUFFIX, SUFFIXES, Frame, check_films, save_film, wrap
from jaxvla.errors import ConfigError


def picture(value):
    return np.full((16, 16, 3), value, np.uint8)


FRAMES = [Frame({"images0": picture(40 + 60 * i), "goal": picture(220)}, ("go", "on " * 60)) for i in (0, 1, 2)]


def read(path):
    """The pictures [t, h, w, 3], and for how long each is seen, ms."""
    if path.suffix == ".gif":
        with Image.open(path) as frames:
            pictures, durations = [], []
            for i in range(frames.n_frames):
                frames.seek(i)
                pictures.append(np.asarray(frames.convert("RGB")))
                durations.append(frames.info["duration"])
    else:
        with av.open(path) as container:
            frames = list(container.decode(video=0))
        pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
        durations = [round(1000 * frame.duration * frame.time_base) for frame in frames]
    return np.stack(pictures).astype(int), durations


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("success", "color"), [(True, SUCCESS), (False, FAILURE)])
def test_a_film_shows_views_side_by_side_and_how_it_ended(tmp_path, success, color, suffix):
    path = tmp_path / "films" / f"one{suffix}"
    save_film(path, FRAMES, success)
    seen, durations = read(path)
    assert durations == ([200, 200, 1600] if suffix == ".gif" else [200] * 10)
    quarter, middle = seen[0].shape[1] // 4, 100
    for i in range(3):
        np.testing.assert_allclose(seen[i][middle, quarter], 40 + 60 * i, atol=12)
        np.testing.assert_allclose(seen[i][middle, 3 * quarter], 220, atol=12)
    for last in seen[2:]:
        np.testing.assert_allclose(last[MARGIN // 2, 100:200].mean(0), color, atol=8)
    np.testing.assert_allclose(seen[1][MARGIN // 2, 100:200].mean(0), film.PAPER, atol=8)


def test_an_mp4_is_one_that_browsers_play(tmp_path):
    path = tmp_path / f"one{SUFFIX}"
    rng = np.random.default_rng(0)
    frames = [Frame({"images0": rng.integers(0, 256, (8, 8, 3), np.uint8)}, (f"{i}: go", "left")) for i in range(3)]
    save_film(path, frames, True)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")  # it plays before all of it has come
    with av.open(path) as container:
        (stream,) = container.streams
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.frames, stream.average_rate) == ("h264", "yuv420p", 10, 5)
        # BT.709, limited range: a player that guesses shows other colours.
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        assert container.duration == 2_000_000
    error = np.abs(read(path)[0][0] - np.asarray(film._draw(frames[0], 2)))
    assert error.mean() < 2


@pytest.mark.parametrize("views", [0, 1, 3])
@pytest.mark.parametrize("texts", [(), ("go",), ("go", "a " * 999)])
def test_sizes_are_even(tmp_path, views, texts):
    path = tmp_path / f"one{SUFFIX}"
    save_film(path, [Frame({f"images{i}": picture(9) for i in range(views)}, texts)], True)
    seen, _ = read(path)
    assert len(seen) == 8
    assert not any(side % 2 for side in seen.shape[1:3])


@pytest.mark.parametrize(("suffix", "durations"), [(SUFFIX, [80] * (2 + 20)), (".gif", [80, 80, 1600])])
def test_the_pace_is_that_of_the_robot(tmp_path, suffix, durations):
    path = tmp_path / f"one{suffix}"
    save_film(path, FRAMES, True, frequency=12.5)
    assert read(path)[1] == durations
    if suffix == SUFFIX:
        with av.open(path) as container:
            assert container.streams[0].average_rate == fractions.Fraction(25, 2)


def test_long_texts_are_broken_and_cut():
    assert wrap("put the cube in the bowl", 1000, 2) == ["put the cube in the bowl"]
    lines = wrap("word " * 100, 120, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("...")
    assert len(wrap("x" * 500, 120, 3)) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_is_tried_before_anything_is_played(tmp_path, suffix):
    check_films(tmp_path / "new", suffix)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^the film {tmp_path}/file/.trial{suffix} cannot be written: File exists$"):
        check_films(tmp_path / "file", suffix)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / f".trial{suffix}").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"/full/.trial\S+ cannot be written: No space left on device$"):
        check_films(tmp_path / "full", suffix)


def test_what_is_no_film_and_what_cannot_be_encoded_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"one.avi is no film: its suffix must be .mp4 or .gif, not '.avi'$"):
        save_film(tmp_path / "one.avi", FRAMES, True)
    monkeypatch.setattr(film, "_ENCODER", "libx264_of_another_build")
    with pytest.raises(ConfigError, match=r"no encoder libx264_of_another_build, which .mp4 .* --video_format=gif$"):
        check_films(tmp_path / "films")
    check_films(tmp_path / "films", ".gif")
    assert list((tmp_path / "films").iterdir()) == []
