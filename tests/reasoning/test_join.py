import numpy as np
import pytest

from jaxvla.errors import DataError
from jaxvla.reasoning.join import check, join
from jaxvla.reasoning.record import Reasoning
from jaxvla.reasoning.store import ReasoningStore, write_store


@pytest.fixture
def store(tmp_path):
    """Episodes a (4 steps, all with a task, 2 of them with a move), b (10 steps with a move), c and d (1 step)."""
    episodes = {
        "a#0": {t: Reasoning(task="x", move="up" if t < 2 else None) for t in range(4)},
        "b#0": {t: Reasoning(move="up") for t in range(10)},
        "c#0": {0: Reasoning(task="x")},
        "d#1": {0: Reasoning(task="x")},
    }
    write_store(tmp_path / "r.store", episodes.items(), {})
    return ReasoningStore(tmp_path / "r.store")


def test_coverage_counts_transitions_that_exist(store):
    found = join(store, ["b#0", "nowhere#0", "a#0"], np.array([6, 20, 4]))
    np.testing.assert_array_equal(found.episodes, [1, -1, 0])
    assert found.num_matched == 2
    assert found.num_transitions == 30
    assert found.coverage == pytest.approx(10 / 30)  # 6 of b's 10 steps, a's 4
    assert found.components == {"TASK": pytest.approx(4 / 30), "MOVE": pytest.approx(8 / 30)}
    assert found.unmatched == ("nowhere#0",)
    assert found.unused == ("c#0", "d#1")
    assert found.describe().splitlines() == [
        f"reasoning    2 of 3 trajectories, 10 of 30 transitions (33.3%), {store.path}",
        "             TASK 13.3%, MOVE 26.7%",
    ]


def test_low_coverage_is_a_warning_with_keys_of_both_sides(store):
    warning = check(join(store, ["b#0", "nowhere#0"], np.array([6, 20])))
    assert warning == (
        f"warning: {store.path} annotates only 23.1% of the transitions: "
        "the data has keys such as 'nowhere#0'; the store 'a#0', 'c#0', 'd#1'"
    )
    assert check(join(store, ["b#0", "nowhere#0"], np.array([6, 6]))) is None


def test_sparse_steps_of_matched_trajectories_are_low_coverage_too(store):
    warning = check(join(store, ["a#0", "b#0", "c#0", "d#1"], np.array([4, 100, 1, 1])))
    assert "15.1%" in warning
    assert "such as none that the other lacks; the store none that the other lacks" in warning


def test_a_join_of_nothing_is_an_error_with_keys_of_both_sides(store):
    keys = [f"/other/root/{name}#0" for name in "abcdefgh"]
    with pytest.raises(DataError, match="annotates none of the 8 trajectories") as error:
        check(join(store, keys, np.full(8, 5)))
    for key in (*keys[:3], "a#0", "b#0", "c#0"):
        assert repr(key) in str(error.value)
    assert keys[3] not in str(error.value)
    assert "\n" not in str(error.value)
    assert "no component" in join(store, keys, np.full(8, 5)).describe()


def test_lengths_must_fit_the_keys(store):
    with pytest.raises(ValueError, match="broadcast"):
        join(store, ["a#0", "b#0", "c#0"], np.array([1, 2]))
