"""The figures of small tables, worked out by hand."""

import dataclasses

import numpy as np
import pytest
from data import bridge_files
from data.inspection.episodes import STEPS, episode, parts, whole, write

from jaxvla.data.inspection.measures import BINS, explained_by_number, measure
from jaxvla.data.inspection.pictures import FRAMES, look
from jaxvla.data.inspection.recordings import find_config, open_recordings
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError


def opened(root, records, convention=None, max_episodes=0):
    config = find_config(write(root, records))
    config = dataclasses.replace(config, actions=convention or ActionConvention())
    return open_recordings(config, convention is not None, max_episodes, 0)


def of_tables(root, *episodes):
    """Figures of a train split of episodes without cameras, each of states and actions."""
    records = [{"actions": np.float32(a), "language": ["go"]} | parts("state", np.float32(s)) for s, a in episodes]
    bridge_files.write(root / "train" / "out.tfrecord", records)
    return measure(open_recordings(find_config(root), False, 0, 0))


def test_dimensions_by_hand(tmp_path):
    # x goes there and back, y stands still, the gripper is at either end; one episode of four steps, twice.
    states = [[0, 5, 1], [1, 5, 1], [2, 5, 0], [1, 5, 0], [0, 5, 1]]
    actions = [[2, 0, 1], [2, 0, 0], [-2, 0, 0], [-2, 0, 1]]
    found = of_tables(tmp_path, (states, actions), (states, actions))
    assert found.lengths.tolist() == [4, 4]
    assert found.actions.names == ("action 0", "action 1", "action 2")
    assert found.actions.constant.tolist() == [False, True, False]
    assert found.actions.switches.tolist() == [True, False, True]  # so few values are two, too
    histogram = found.actions.histograms
    assert histogram.shape == (3, BINS)
    assert (histogram[0, 0], histogram[0, -1], histogram[1, 0]) == (4, 4, 8)
    assert histogram.sum(1).tolist() == [8, 8, 8]
    np.testing.assert_allclose(found.actions.statistics.mean, [0, 0, 0.5])
    np.testing.assert_allclose(found.proprio.statistics.std[0], np.std([0, 1, 2, 1, 0]), rtol=1e-6)
    assert found.grippers == (0, 2)
    assert found.opens.all()
    assert found.closes.all()
    assert found.idle == 0
    assert found.duplicates == ((0, 1),)
    assert found.labelled.tolist() == [1, 1]


def test_actions_that_are_movements_are_told_by_their_number(tmp_path):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(201, 4)).cumsum(0)
    moves = np.diff(states, axis=0)
    # As it is; of another number, backwards; the state itself; nothing of it.
    actions = np.stack([moves[:, 0], -3 * moves[:, 2], states[1:, 3], rng.normal(size=200)], axis=1)
    found = of_tables(tmp_path, (states, actions)).explanation
    assert found.own[0] == pytest.approx(1)
    assert found.best[:3] == pytest.approx([1, -1, 1], abs=1e-6)
    assert found.what[:3] == ("the change of proprio 0", "the change of proprio 2", "proprio 3 that is reached")
    assert found.explained.tolist() == [True, True, True, False]


def test_a_config_names_dimensions_and_their_gripper(tmp_path):
    names = ("x (m)", "y (m)", "z (m)", "roll", "pitch", "yaw", "gripper")
    records = [episode(i) for i in range(4)]
    records[2]["actions"][:, 6] = 0.5
    found = measure(opened(tmp_path, records, ActionConvention(relabel=True, gripper=(6,), names=names)))
    assert found.actions.names == found.proprio.names == names
    assert explained_by_number(found) == [0, 1, 2, 3, 4, 5]
    assert found.opens[:, 0].tolist() == found.closes[:, 0].tolist() == [True, True, False, True, True]


def test_a_share_of_the_episodes_is_looked_at(tmp_path):
    records = [episode(i, 20 + i) for i in range(12)]
    recordings = opened(tmp_path, records, max_episodes=5)
    assert recordings.counts == (12, 1)
    assert len(recordings.source) == 5
    numbers = recordings.numbers.tolist()
    assert numbers == sorted({*numbers})
    own = [20 + n if n < 12 else STEPS for n in numbers]
    assert recordings.source.lengths.tolist() == own
    assert recordings.name(0) == f"#{numbers[0]} (train) raw/{numbers[0]}#0"
    assert recordings.tables(7).table(0).num_transitions == 27
    with pytest.raises(ConfigError, match=r"there is no episode 13: .* has 0 to 12$"):
        recordings.tables(13)


@pytest.mark.parametrize(("max_frames", "episodes"), [(1000, 13), (2 * FRAMES * 4, 4), (1, 1)])
def test_no_more_frames_are_read_than_may_be(max_frames, episodes, tmp_path):
    records = [episode(i) for i in range(12)]
    for record in records:
        images = whole(record, "images1")
        images[:, :, :] = np.arange(STEPS + 1)[:, None, None, None]
        record |= parts("images1", images)
    pictures = look(opened(tmp_path, records), max_frames, 0)
    assert [camera.name for camera in pictures.cameras] == ["images0", "images1"]
    assert [len(camera.rows) for camera in pictures.cameras] == [episodes] * 2
    assert [camera.frames for camera in pictures.cameras] == [episodes * FRAMES] * 2
    assert len(pictures.sheet) == min(episodes, 8)
    assert all(data[:2] == b"\xff\xd8" for views in pictures.sheet.values() for own in views.values() for data in own)
    first = pictures.cameras[1]
    assert first.sizes == {(16, 16): episodes * FRAMES}
    assert first.brightness.sum() == episodes * FRAMES
