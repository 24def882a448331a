"""Tables and plots of success and jumps by latency."""

import matplotlib.image
import numpy as np

from jaxvla.envs.pacing import Paced, markdown, plot
from jaxvla.envs.rollout import Result


def result(number, success, jumps, change=0.2, discontinuities=()):
    return Result(number, number, "stack", "go", success, 5, 3, 4.0, (), jumps, change, discontinuities)


ROWS = [
    Paced(
        "naive", 0, [result(0, True, (1.0, 3.0), 0.2, (0.5, 1.0)), result(1, False, (2.0,)), result(2, True, (), 0.5)]
    ),
    Paced("naive", 2, [result(0, False, (4.0,)), result(1, False, (4.0,)), result(2, False, (4.0,))]),
    Paced("realtime", 2, [result(0, True, ())]),
]


def test_jumps_are_of_all_decisions_and_the_largest_of_each_episode():
    assert ROWS[0].jumps == {"mean": 2.0, "max": 3.0, "episode_max": 2.5, "change": 0.3}
    assert ROWS[2].jumps == {"mean": 0.0, "max": 0.0, "episode_max": 0.0, "change": 0.2}
    assert ROWS[0].discontinuities == {"mean": 0.75, "max": 1.0, "episode_max": 1.0}
    assert ROWS[2].discontinuities == {}
    found = ROWS[0].to_json()
    assert (found["way"], found["latency"], found["successes"], found["jumps"]["mean"]) == ("naive", 0, 2, 2.0)


def test_a_row_of_the_table():
    lines = markdown(ROWS).splitlines()
    assert len(lines) == 5
    assert lines[2] == "| naive | 0 | 2 of 3 | 21 to 94 % | 2.00 | 2.50 | 0.30 | 0.75 | 1.00 | 4.0 |"
    assert lines[4] == "| realtime | 2 | 1 of 1 | 21 to 100 % | 0.00 | 0.00 | 0.20 |  |  | 4.0 |"


def test_a_plot_is_drawn(tmp_path):
    plot(ROWS, tmp_path / "latency.png")
    assert np.ptp(matplotlib.image.imread(tmp_path / "latency.png")) > 0.5
