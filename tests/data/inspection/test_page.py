"""The page is one well-formed file that needs no other; and what a film shows."""

import html.parser
import re

import numpy as np
import pytest
from data.inspection.episodes import episode, write
from PIL import Image

from jaxvla.data.inspection.film import draw_film
from jaxvla.data.inspection.findings import find
from jaxvla.data.inspection.measures import measure
from jaxvla.data.inspection.page import duration, render
from jaxvla.data.inspection.pictures import look
from jaxvla.data.inspection.recordings import find_config, open_recordings
from jaxvla.data.inspection.summary import summarize

EVIL = 'raw/<script src="http://example.org/x.js"></script>&amp;"\''
EMPTY = {"meta", "img", "br", "rect"}


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order, and keeps attributes and words."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    records = [episode(i) for i in range(5)]
    records[1] |= {"path": [EVIL], "language": ["put <b>it</b> & that there"]}
    records[2].pop("language")
    records[3]["actions"][2, 1] = np.nan
    root = tmp_path_factory.mktemp("data")
    recordings = open_recordings(find_config(write(root, records)), False, 0, 0)
    measures, pictures = measure(recordings), look(recordings, 1000, 0)
    return recordings, measures, pictures, find(recordings, measures, pictures)


@pytest.fixture(scope="module")
def page(inspected):
    return render(*inspected, ("a remark < another",))


def test_the_page_is_whole_and_alone(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert not {"script", "link", "iframe", "object"} & {*reader.tags}
    sources = [value for name, value in reader.attributes if name in ("src", "href", "data", "srcset", "action")]
    assert len(sources) == 1 + 4 + 5 * 2 * 3  # lengths, four episodes, and all that can be used, by two cameras
    assert all(re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", source) for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    without_words = re.sub(r">[^<]*<", "><", page)
    assert "http" not in re.sub(r'base64,[^"]*"', "", without_words)


def test_names_of_the_data_are_only_words(page):
    reader = Reader()
    reader.feed(page)
    words = "".join(reader.words)
    assert f"#1 (train) {EVIL}#0" in words
    assert "put <b>it</b> & that there" in words
    assert "a remark < another" in words
    assert "actions are not finite" in words


def test_the_summary_says_the_same(inspected):
    recordings, *_ = inspected
    lines = summarize(*inspected)
    assert lines[0] == f"dataset      {recordings.root} (bridge_tfrecord)"
    assert lines[1] == "episodes     6 (train 5, val 1), 5 of them looked at"
    assert lines[2] == "steps        200, 40 to 40 of each, median 40"
    assert lines[3] == "camera       images0 16 x 16, 25 frames looked at"
    assert lines[5].startswith("language     80.0% of the steps, 4 different instructions: 'put it there' (3), ")
    assert "findings     1 error, 1 warning" in lines
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90.0, "90 s"), (600.0, "10 min"), (3599.0, "59 min"), (3600.0, "1 h 0 min"), (7199.0, "1 h 59 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("cameras", "dims"), [(1, 7), (2, 14), (0, 3)])
def test_a_film_shows_cameras_and_the_present_action(cameras, dims):
    actions = np.random.default_rng(0).normal(size=(9, dims)).astype(np.float32)
    views = [{f"images{k}": np.full((12, 16, 3), 20 * t, np.uint8) for k in range(cameras)} for t in range(10)]
    names = [f"a very long name of action {d} that has no room" for d in range(dims)]
    pictures = [*draw_film(iter(views), actions, names, ["#0 raw/0", "go"])]
    assert len(pictures) == 10
    (size,) = {picture.size for picture in pictures}
    assert [side % 2 for side in size] == [0, 0]
    pixels = [np.asarray(picture) for picture in pictures]
    now = [np.unique(np.argwhere((own == (204, 51, 17)).all(-1))[:, 1]) for own in pixels]
    columns = 1 if dims <= 8 else 2
    assert [len(own) for own in now] == [columns] * 10
    lefts = [int(own[0]) for own in now]
    assert lefts[:9] == sorted({*lefts})  # it goes on with each action
    assert lefts[9] == lefts[8]  # the last frame has none
    if cameras:
        assert [own[100, 100].tolist() for own in pixels] == [[20 * t] * 3 for t in range(10)]
    assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in pictures)
