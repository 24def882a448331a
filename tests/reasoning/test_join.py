import numpy as np
import pytest

from jaxvla.errors import DataError
from jaxvla.reasoning.join import Mismatch, check, join
from jaxvla.reasoning.record import Episode, Reasoning
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
    write_store(tmp_path / "r.store", [Episode(key, steps) for key, steps in episodes.items()], {})
    return ReasoningStore(tmp_path / "r.store")


def joined(store, keys, lengths, language=None, places=None, stored=None):
    """A join of trajectories that each lie at a place of their own; none has an instruction unless it is given."""
    return join(store, keys, np.array(lengths), language or [()] * len(keys), places or range(len(keys)), stored)


def one_episode(tmp_path, num_steps=None, instruction="", steps=(0,)):
    """A store of the one episode k#0."""
    annotated = {t: Reasoning(task="x") for t in steps}
    write_store(tmp_path / "one.store", [Episode("k#0", annotated, num_steps, instruction)], {})
    return ReasoningStore(tmp_path / "one.store")


def test_coverage_counts_transitions_that_exist(store):
    found = joined(store, ["b#0", "nowhere#0", "a#0"], [9, 20, 4])
    np.testing.assert_array_equal(found.episodes, [1, -1, 0])
    assert found.num_matched == 2
    assert found.num_transitions == 33
    assert found.coverage == pytest.approx(13 / 33)  # 9 of b's 10 steps, a's 4
    assert found.components == {"TASK": pytest.approx(4 / 33), "MOVE": pytest.approx(11 / 33)}
    assert found.mismatches == ()
    assert found.unmatched == ("nowhere#0",)
    assert found.unused == ("c#0", "d#1")
    assert found.describe().splitlines() == [
        f"reasoning    2 of 3 trajectories, 13 of 33 transitions (39.4%), {store.path}",
        "             TASK 12.1%, MOVE 33.3%",
    ]


def test_low_coverage_is_a_warning_with_keys_of_both_sides(store):
    (warning,) = check(joined(store, ["b#0", "nowhere#0"], [9, 31]), 0.1, "training")
    assert warning == (
        f"warning: {store.path} annotates only 22.5% of the training transitions: "
        "the data has keys such as 'nowhere#0'; the store 'a#0', 'c#0', 'd#1'"
    )
    assert check(joined(store, ["b#0", "nowhere#0"], [9, 9]), 0.1, "training") == ()


def test_sparse_steps_of_matched_trajectories_are_low_coverage_too(store):
    (warning,) = check(joined(store, ["a#0", "b#0", "c#0", "d#1"], [4, 100, 1, 1]), 0.1, "training")
    assert "15.1%" in warning
    assert "such as none that the other lacks; the store none that the other lacks" in warning


def test_a_join_of_nothing_is_an_error_with_keys_of_both_sides(store):
    keys = [f"/other/root/{name}#0" for name in "abcdefgh"]
    with pytest.raises(DataError, match="annotates none of the 8 trajectories") as error:
        check(joined(store, keys, [5] * 8), 0.1, "training")
    for key in (*keys[:3], "a#0", "b#0", "c#0"):
        assert repr(key) in str(error.value)
    assert keys[3] not in str(error.value)
    assert "\n" not in str(error.value)
    assert "no component" in joined(store, keys, [5] * 8).describe()
    (warning,) = check(joined(store, keys, [5] * 8), 0.1, "validation")
    assert "annotates only 0.0% of the validation transitions" in warning, "published annotations leave it out"


@pytest.mark.parametrize("num_steps", [9, 10, 11, 12, 13, 20])
def test_an_episode_has_a_step_for_each_frame_or_each_action(tmp_path, num_steps):
    """Of 10 transitions and 11 frames; 12 would be the raw frames of a rig whose first frame is lost."""
    found = joined(one_episode(tmp_path, num_steps), ["k#0"], [10])
    if num_steps in (10, 11):
        assert (found.episodes.tolist(), found.mismatches) == ([0], ())
    else:
        example = f"'k#0' ({num_steps} annotated, 11 frames)"
        assert found.episodes.tolist() == [-1]
        assert found.mismatches == (Mismatch(1, "have another number of steps", example),)


def test_annotations_end_with_their_trajectory(tmp_path):
    store = one_episode(tmp_path, steps=(0, 3, 10))
    assert joined(store, ["k#0"], [10]).num_matched == 1
    assert joined(store, ["k#0"], [50]).num_matched == 1, "steps without words are not annotated"
    (mismatch,) = joined(store, ["k#0"], [9]).mismatches
    assert mismatch.example == "'k#0' (annotated up to step 10, 10 frames)"
    contradictory = one_episode(tmp_path, num_steps=10, steps=(0, 12))
    assert joined(contradictory, ["k#0"], [10]).num_matched == 0


@pytest.mark.parametrize(
    ("annotated", "language", "fits"),
    [
        ("put the pot down", ("Put  the pot, down.",), True),
        ("put_the_pot_down", ("put the pot down",), True),
        ("put the pot down", ("take it", "PUT THE POT DOWN"), True),
        ("put the CAF\u00c9 \uff44own", ("put the cafe\u0301 down",), True),
        ("", ("take it",), True),
        ("put the pot down", (), True),
        ("put the pot down", ("...",), True),
        ("put the pot down", ("put the pot up",), False),
        ("take 1", ("take 2", "take 3"), False),
        ("把锅放下", ("把锅拿起",), False),
    ],
)
def test_instructions_are_compared_by_their_letters(tmp_path, annotated, language, fits):
    found = joined(one_episode(tmp_path, instruction=annotated), ["k#0"], [3], [language])
    assert found.num_matched == fits
    if not fits:
        example = f"'k#0' ({annotated!r} annotated, {language[0]!r} in the data)"
        assert found.mismatches == (Mismatch(1, "have another instruction", example),)


def test_trajectories_that_share_a_key_have_no_episode(store):
    keys = ["a#0", "b#0", "a#0", "x#0", "x#0"]
    found = joined(store, keys, [4, 9, 4, 3, 3])
    assert found.episodes.tolist() == [-1, 1, -1, -1, -1]
    assert found.mismatches == (Mismatch(2, "share their key", "'a#0' (that of 2 trajectories)"),)
    assert found.unmatched == ("x#0", "x#0")
    twice = joined(store, ["a#0", "b#0", "a#0"], [4, 9, 4], places=[("f", 0), ("f", 1), ("f", 0)])
    assert twice.episodes.tolist() == [0, 1, 0], "a file that two groups include"


def test_mismatches_are_a_warning_up_to_a_share_and_then_an_error(store):
    found = joined(store, ["a#0", "b#0", "c#0", "nowhere#0", "d#1"], [2, 9, 1, 1, 1])
    assert (found.num_mismatched, found.num_named) == (1, 4)
    assert found.annotated[0] == 11, "what does not fit annotates nothing"
    differ = (
        f"1 of the 4 training trajectories that {store.path} names are not what it annotates: 1 have another number of "
        "steps, such as 'a#0' (annotated up to step 3, 3 frames)"
    )
    assert check(found, 0.25, "training") == (f"warning: {differ}; they get no reasoning",)
    for split in ("training", "validation"):
        with pytest.raises(DataError) as error:
            check(found, 0.24, split)
        assert str(error.value) == (
            f"{differ}; make the store of the annotations that belong to this data, or raise "
            "bridgedata_config.max_mismatched=0.24 to train on these without reasoning"
        ).replace("training traj", f"{split} traj")
    nothing = joined(store, ["a#0"], [2])
    with pytest.raises(DataError, match="annotates none of the 1 trajectories: 1 of the 1 training trajectories"):
        check(nothing, 1.0, "training")


def test_lengths_must_fit_the_keys(store):
    with pytest.raises(ValueError, match="zip"):
        joined(store, ["a#0", "b#0", "c#0"], [1, 2])


def test_steps_that_a_trajectory_leaves_out_count_as_those_of_its_episode(tmp_path):
    store = one_episode(tmp_path, num_steps=10, steps=range(10))
    assert joined(store, ["k#0"], [3]).num_mismatched == 1
    found = joined(store, ["k#0"], [3], stored=np.array([10]))
    assert (found.num_matched, found.annotated[0]) == (1, 3)
    (mismatch,) = joined(store, ["k#0"], [9], stored=np.array([12])).mismatches
    assert mismatch.example == "'k#0' (10 annotated, 12 frames)"
