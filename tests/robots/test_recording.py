"""Films and logs are whole, or not there."""

import json

import av
import numpy as np
import pytest

from jaxvla.errors import ConfigError, RobotError
from jaxvla.robots import recording
from jaxvla.robots.recording import Recording


def frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def kept():
    own = Recording("lift the cup", {"images0": np.zeros((8, 8, 3), np.uint8)})
    for value in (50, 200):
        own.see({"images0": np.full((8, 8, 3), value, np.uint8), "proprio": np.zeros(7, np.float32)}, "up")
        own.act(np.zeros(7), np.full(7, 0.1234567), np.zeros(7), at=float(value))
    return own


@pytest.mark.parametrize(("success", "framed"), [(True, True), (False, True), (None, False)])
def test_a_film_and_a_log(kept, tmp_path, success, framed):
    film, log = kept.save(tmp_path / "new", "one", {"task": "lift"}, success, 5.0)
    pictures = frames(film)
    assert len(pictures) == 2 + round(1.6 * 5 - 1)
    assert (abs(pictures[0][100, 20].astype(int) - 50) < 8).all()
    assert (abs(pictures[1][100, 20].astype(int) - 200) < 8).all()
    assert (abs(pictures[0][100, 350].astype(int)) < 8).all()  # the goal beside it
    assert framed == (np.ptp(pictures[-1][150, 1]) > 60)  # a frame has a colour
    facts = json.loads(log.read_text())
    assert (facts["task"], facts["success"]) == ("lift", success)
    assert facts["steps"][1] == {"state": [0.0] * 7, "wanted": [0.123457] * 7, "played": [0.0] * 7, "at": 200.0}
    assert sorted(path.name for path in film.parent.iterdir()) == ["one.json", "one.mp4"]


def test_nothing_seen_is_no_film(tmp_path):
    (log,) = Recording("lift").save(tmp_path, "none", {}, None, 5.0)
    assert json.loads(log.read_text())["steps"] == []
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_half_a_film_is_none(kept, tmp_path, monkeypatch, error):
    def half(path, *_):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(recording, "save_film", half)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RobotError):
        kept.save(tmp_path, "one", {}, None, 5.0)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(kept, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((RobotError, ConfigError), match=r"file.* cannot be written"):
        kept.save(tmp_path / "file", "one", {}, None, 5.0)
