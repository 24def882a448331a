"""The hook that makes actions, states and instructions of whole trajectories while files are indexed."""

import functools
import pathlib
import pickle

import numpy as np
import pytest
from data.rlds_episodes import STEPS, episode, write_dataset

from jaxvla.data import opening
from jaxvla.data.formats import index, rlds
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.formats.rlds_files import find_files
from jaxvla.data.formats.standard import Standardize
from jaxvla.data.skipping import UnusableError
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import DataError

PARTS = {
    "action/move": {"dtype": "float32", "shape": {"dimensions": ["3"]}},
    "action/close": {"dtype": "bool", "shape": {}},
}
CALLS = []


def parted(number, steps=6):
    rng = np.random.default_rng(number)
    parts = {"action__move": rng.normal(size=(steps, 3)).astype(np.float32), "action__close": rng.random(steps) < 0.5}
    return episode(number, steps, action=None, **parts)


def standardize(trajectory, first=0, stride=1):
    """Every `stride`-th step from `first` on, and the reached movement of a state."""
    CALLS.append(trajectory)
    n = len(trajectory["action"]["move"])
    if n == 3:
        raise UnusableError("too short to say", "three steps")
    steps = np.arange(first, n, stride)
    state = trajectory["observation"]["state"][steps, :2]
    gripper = 1 - trajectory["action"]["close"][steps[:-1], None].astype(np.float32)
    return {
        "actions": np.concatenate([state[1:] - state[:-1], gripper], 1),
        "proprio": state,
        "instruction": [text.decode().upper() for text in trajectory["language_instruction"][steps]],
        "steps": steps,
        "taught": np.arange(len(steps) - 1) != 0,
    }


@pytest.fixture
def folder(tmp_path):
    steps = {name: kind for name, kind in STEPS.items() if name != "action"} | PARTS
    return write_dataset(tmp_path, {"train": [[parted(i) for i in range(3)], [parted(3)]]}, steps)


def opened(folder, standard, **changes):
    config = SourceConfig("rlds", str(folder), cameras={"images0": "image_0"}, **changes)
    return opening.open_source(config, (8, 8), folder, "train", standard)


def test_what_it_makes_takes_the_place_of_the_datasets_features(folder):
    source, _, notes = opened(folder, Standardize("every", standardize))
    assert (len(source), source.actions.shape, source.proprio.shape, notes) == (4, (20, 3), (24, 2), ())
    for i in range(4):
        one = parted(i)
        state = one["steps/observation/state"][:, :2]
        np.testing.assert_array_equal(source.table(i).proprio, state)
        np.testing.assert_array_equal(source.table(i).actions[:, :2], state[1:] - state[:-1])
        np.testing.assert_array_equal(source.table(i).actions[:, 2], ~one["steps/action/close"][:-1])
        assert source.frames(i, [4], "images0")[0, 0, 0].tolist() == [i, 4, 7]
    assert source.language == (("GO",),) * 4
    assert source.taught.tolist() == [False, True, True, True, True] * 4
    assert source.steps.tolist() == [0, 1, 2, 3, 4, 5] * 4


def test_pictures_follow_the_steps_that_are_kept(folder):
    function = functools.partial(standardize, first=1, stride=2)
    source, _, _ = opened(folder, Standardize("every second", function))
    assert source.lengths.tolist() == [2] * 4
    assert (source.steps.tolist(), source.stored.tolist()) == ([1, 3, 5] * 4, [6] * 4)
    kept, _, _ = opened(folder, Standardize("every second", function), train_split="train[1:3]")
    assert (kept.steps.tolist(), kept.stored.tolist()) == ([1, 3, 5] * 2, [6] * 2)
    colors = source.frames(2, [0, 1, 2], "images0")[:, 0, 0].tolist()
    assert colors == [[2, 1, 7], [2, 3, 7], [2, 5, 7]]
    np.testing.assert_array_equal(source.table(2).proprio, parted(2)["steps/observation/state"][[1, 3, 5], :2])


def test_texts_and_vectors_are_those_of_the_steps_that_are_kept(tmp_path):
    steps = STEPS | PARTS | {"language_embedding": {"dtype": "float32", "shape": {"dimensions": ["2"]}}}
    del steps["action"]
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    texts = ["a", "b", "b", "c", "", "c"]
    one = parted(0) | {
        f"steps/{name}": value for name, value in zip(("language_instruction", "language_embedding"), (texts, vectors))
    }
    folder = write_dataset(tmp_path, {"train": [[one]]}, steps)
    source, _, _ = opened(folder, Standardize("from one", functools.partial(standardize, first=1)))
    assert source.language == (("B", "C"),)
    assert source.texts.tolist() == [0, 0, 1, index.NO_TEXT]
    np.testing.assert_array_equal(source.vectors, vectors[[1, 3]])


def test_an_action_of_the_last_step_leads_nowhere(folder):
    def whole(trajectory):
        move = trajectory["action"]["move"]
        return {"actions": move, "proprio": move, "instruction": [""] * len(move)}

    source, _, _ = opened(folder, Standardize("whole", whole))
    np.testing.assert_array_equal(source.table(1).actions, parted(1)["steps/action/move"][:-1])
    assert (source.texts == index.NO_TEXT).all()
    assert source.taught.all()


def test_episodes_that_it_refuses_are_counted(tmp_path):
    steps = STEPS | PARTS
    del steps["action"]
    folder = write_dataset(tmp_path, {"train": [[parted(0), parted(1, 3)]]}, steps)
    source, _, notes = opened(folder, Standardize("every", standardize), max_skipped=0.5)
    assert source.keys == ("/raw/0#0",)
    assert notes[0] == "skipped      1 of 2 train trajectories (50.0%)"
    assert notes[1].endswith("record 1: three steps")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"actions": None}, "'x' gives no actions; it must"),
        (
            {"proprio": np.zeros((5, 2))},
            "'x' gives 5 of proprio, 6 of instruction, 5 of actions and 5 taught for 6 steps",
        ),
        ({"actions": np.zeros((7, 3))}, "7 of actions"),
        ({"taught": np.ones(6, bool)}, "and 6 taught for 6 steps"),
        ({"steps": np.array([0, 1, 2, 3, 4, 6])}, "gives steps that are not ascending from 0 to 5"),
        ({"steps": np.array([0, 1, 1, 3, 4, 5])}, "gives steps that are not ascending"),
    ],
)
def test_results_of_another_form_are_an_error(folder, changes, match):
    def broken(trajectory):
        return {key: value for key, value in (standardize(trajectory) | changes).items() if value is not None}

    with pytest.raises(DataError, match=rf"00000-of-00002: record 0: standardization .*{match}"):
        opened(folder, Standardize("x", broken))


def test_each_name_has_indices_of_its_own(folder):
    plain = rlds.RLDSFormat.of(folder, rlds.StepKeys("action/move"))
    one, two = (rlds.RLDSFormat.of(folder, rlds.StepKeys(), Standardize(name, standardize)) for name in ("one", "two"))
    paths = find_files(folder, "train")
    CALLS.clear()
    for reader, calls in ((plain, 0), (one, 4), (one, 4), (two, 8), (plain, 8), (one, 8)):
        open_indices(paths, reader.build_index, repr(reader), reader.variant)
        assert len(CALLS) == calls
    assert len([*folder.glob("*.index")]) == 6
    assert isinstance(pickle.loads(pickle.dumps(one)).build_index(paths[1]), index.Index)


def test_real_episodes_pass_through_it(bridge_rlds):
    def bridge(trajectory):
        state = trajectory["observation"]["state"]
        gripper = trajectory["action"][:-1, 6:]
        texts = [text.decode() for text in trajectory["language_instruction"]]
        return {"actions": np.append(np.diff(state[:, :6], axis=0), gripper, 1), "proprio": state, "instruction": texts}

    config = SourceConfig("rlds", str(bridge_rlds), cameras={"images0": "image_0"})
    standard, plain = (
        opening.open_source(config, (64, 64), pathlib.Path(bridge_rlds), "train", own)[0]
        for own in (Standardize("bridge", bridge), None)
    )
    np.testing.assert_array_equal(standard.proprio, plain.proprio)
    np.testing.assert_array_equal(standard.actions[:, 6], plain.actions[:, 6])
    assert standard.language == plain.language
    np.testing.assert_array_equal(standard.vectors, plain.vectors)
    moved = np.concatenate([np.diff(plain.table(i).proprio[:, :6], axis=0) for i in range(len(plain))])
    np.testing.assert_array_equal(standard.actions[:, :6], moved)
