"""What papers tell of an evaluation."""

import pytest

from jaxvla.envs.evaluation import Tally
from jaxvla.envs.metaworld.protocols import PROTOCOLS
from jaxvla.envs.metaworld.scores import by_difficulty, markdown, mean_of, to_json

TALLY = Tally({"assembly-v3": (1, 10), "reach-v3": (10, 10), "push-v3": (5, 10), "shelf-place-v3": (0, 10)}, 3.0)


def test_the_mean_is_that_of_difficulties():
    levels = by_difficulty(TALLY)
    assert levels == {"easy": (10, 10), "hard": (6, 20), "very_hard": (0, 10)}
    mean, low, high = mean_of(levels)
    assert mean == pytest.approx((1 + 0.3 + 0) / 3)
    assert 0 < low < mean < high < 1


def test_smolvlas_own_mean_is_formed_so():
    """82.5, 41.8, 45 and 60 are 57.3 together; the mean over their tasks would be another one."""
    levels = {"easy": (231, 280), "medium": (46, 110), "hard": (27, 60), "very_hard": (30, 50)}
    assert mean_of(levels)[0] == pytest.approx(0.573, abs=5e-4)


def test_ends_have_intervals():
    assert mean_of({"easy": (10, 10)})[1:] != (1.0, 1.0)
    assert mean_of({"easy": (0, 10)})[2] > 0.05


def test_the_page_has_a_row_for_each_difficulty_and_task():
    page = markdown({"policy": TALLY}, PROTOCOLS["starvla"], "as trained")
    assert page.startswith("# Meta-World, protocol starvla\n\n```\nas trained\n```\n")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 + 3 + 4
    assert any(row.startswith("| very hard | 0 of 10 = 0%") for row in rows)
    told = to_json(TALLY, PROTOCOLS["starvla"])
    assert told["difficulties"]["hard"]["success_rate"] == 0.3
    assert told["protocol"] == "starvla"
