"""What linear maps read of made-up hidden states."""

import numpy as np
import pytest

from jaxvla.training.probe import Halves, mean_point, most_frequent, read_classes, read_points

EPISODE = np.repeat(np.arange(40), 10)
HALVES = Halves(EPISODE)
RNG = np.random.default_rng(0)
NAMES = RNG.choice(["left", "right", "up"], 400, p=[0.5, 0.3, 0.2]).tolist()
NOISE = RNG.normal(size=(400, 24))
POINTS = RNG.uniform(0, 256, (400, 2))


def test_episodes_are_whole_and_on_one_side():
    assert HALVES.own_n.sum() == HALVES.judged_n.sum() == 200
    assert not (HALVES.own_n & HALVES.judged_n).any()
    assert not set(EPISODE[HALVES.own_n]) & set(EPISODE[HALVES.judged_n])
    assert not (HALVES.chosen_n & ~HALVES.own_n).any()
    assert set(EPISODE[HALVES.chosen_n]) == {0, 8, 16, 24, 32}


def test_what_is_there_is_read_and_what_is_not_is_not():
    coded = NOISE + 4 * (np.array(NAMES)[:, None] == ["left", "right", "up"]) @ RNG.normal(size=(3, 24))
    assert read_classes(coded, NAMES, HALVES) > 0.95
    base = most_frequent(NAMES, HALVES)
    assert base == (np.array(NAMES) == "left")[HALVES.judged_n].mean()
    assert abs(read_classes(NOISE, NAMES, HALVES) - base) < 0.15
    placed = NOISE + POINTS / 20 @ RNG.normal(size=(2, 24)) + 100
    explained, pixels = read_points(placed, POINTS, HALVES)
    assert explained > 0.95
    assert pixels < 15
    assert read_points(NOISE, POINTS, HALVES)[0] < 0.1
    assert mean_point(POINTS, HALVES)[0] == pytest.approx(0, abs=0.02)


def test_what_only_tells_episodes_apart_reads_nothing_of_others():
    own_point = RNG.uniform(0, 256, (40, 2))[EPISODE]
    which = np.eye(40)[EPISODE]
    assert read_points(which, own_point, HALVES)[0] < 0.1


def test_too_few_episodes_are_refused():
    with pytest.raises(ValueError, match="too few episodes"):
        read_points(NOISE[:20], POINTS[:20], Halves(EPISODE[:20]))
