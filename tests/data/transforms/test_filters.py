import numpy as np
import pytest
from data import bridge_files

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.filters import FilterConfig, beyond, first_steps, no_ops, some_of_each
from jaxvla.errors import ConfigError, DataError

GRIPPER = ActionConvention(gripper=(6,))


def test_first_steps_of_each_trajectory():
    assert first_steps(np.array([3, 1, 2]), 1).tolist() == [True, False, False, True, True, False]
    assert first_steps(np.array([3, 1, 2]), 2).tolist() == [True, True, False, True, True, True]
    assert not first_steps(np.array([3, 1, 2]), 0).any()


def test_no_ops_do_not_move_and_leave_the_gripper():
    """Of two trajectories of 5 and 2 transitions; the second begins with another gripper than the first ends with."""
    moves = np.array([0, 5e-5, 0, 2e-4, 9e-5, 0, 6e-5])
    actions = np.stack([moves, np.where(moves == 6e-5, 9e-5, 0), np.array([1, 1, 0, 0, 0, 1, 1])], 1)
    found = no_ops(actions, np.array([5, 2]), (2,), 1e-4)
    # 0 and 5: first ones, still; 2: the gripper closes; 3: moves; 6: moves by 1.08e-4.
    assert found.tolist() == [True, True, False, False, True, True, False]
    assert no_ops(actions[:, :2], np.array([5, 2]), (), 1e-4).tolist() == [True, True, True, False, True, True, False]


def test_values_beyond_a_limit_are_of_a_trajectory():
    values = np.array([[0.0, 1], [2, -3], [0, 0], [3, 4], [-5, 0]])
    assert beyond(values, np.array([2, 1, 2]), 3.0) == {2: (0, 1, 4.0)}
    assert beyond(values, np.array([2, 1, 2]), 2.5) == {0: (1, 1, -3.0), 2: (0, 0, 3.0)}
    assert beyond(values, np.array([2, 1, 2]), 5.0) == {}


def test_some_steps_of_each_trajectory():
    owner, seeds = np.repeat([0, 1, 3], [10, 2, 40]), np.arange(4, dtype=np.uint64)
    keep = some_of_each(owner, 4, seeds)
    assert np.bincount(owner[keep]).tolist() == [4, 2, 0, 4]
    alone = some_of_each(owner[12:], 4, seeds)
    np.testing.assert_array_equal(alone, keep[12:])
    assert (some_of_each(owner, 4, seeds + 1) != keep).any()


def write(root, records, split="train"):
    bridge_files.write(root / "task" / split / "out.tfrecord", records)
    return root


def opened(root, split="train", data=None, **source):
    config = SourceConfig("bridge_tfrecord", str(root), (("**",),), actions=GRIPPER, **source)
    return open_dataset(config, DataConfig(normalization="none", **(data or {})), split)


def stored(dataset):
    return dataset.source.stored_steps(np.arange(len(dataset.actions))).tolist()


def steps_of(batch_index, trajectory, step, instruction, uniforms):
    return {"step": step}


@pytest.fixture
def idle(tmp_path):
    """Of 6 and 4 transitions, of which 1, 2 and 5, and 0 and 1 do nothing; and one that never does anything."""
    records = [bridge_files.trajectory(0, 6), bridge_files.trajectory(1, 4), bridge_files.trajectory(2, 3)]
    for record, steps in zip(records, ([1, 2, 5], [0, 1], [0, 1, 2])):
        record["actions"][:, 6] = 1
        record["actions"][steps, :6] = 1e-5
    return write(tmp_path, records)


def test_dropped_steps_leave_no_trace(idle):
    dataset = opened(idle, no_op_below=1e-4, data={"action_horizon": 2, "obs_horizon": 2})
    source = dataset.source
    assert source.lengths.tolist() == [3, 2]
    assert (stored(dataset), source.stored.tolist()) == ([0, 3, 4, 2, 3], [7, 5])
    assert dataset.report[0] == "dropped      8 of 13 train transitions: 8 no-ops"
    assert "fewer than 2 are left of 1 trajectories, such as " in dataset.report[1]
    whole = opened(idle).source
    np.testing.assert_array_equal(source.actions, whole.actions[[0, 3, 4, 8, 9]])
    np.testing.assert_array_equal(source.proprio, whole.proprio[[0, 3, 4, 6, 9, 10, 11]])
    assert dataset.statistics.num_transitions == 5
    # Pixels, chunks and histories go from one kept step to the next.
    np.testing.assert_array_equal(source.frames(0, [1, 3], "images0"), [bridge_files.frame(0, t) for t in (3, 6)])
    keys = ("observations", "actions", "action_pad_mask", "text")
    batch = next(training_batches(Mixture.of(dataset), 32, 0, keys, text=steps_of))
    shown = batch["observations"]["images0"][:, 1, 0, 0, 1]
    np.testing.assert_array_equal(batch["text"]["step"], shown)
    row = np.flatnonzero((batch["observations"]["images0"][:, 1, 0, 0, :2] == (0, 3)).all(1))[0]
    np.testing.assert_array_equal(batch["observations"]["images0"][row, 0], bridge_files.frame(0, 0))
    np.testing.assert_array_equal(batch["actions"][row], whole.actions[[3, 4]])
    assert batch["action_pad_mask"][row].all()


def test_the_first_steps_can_be_dropped(idle):
    dataset = opened(idle, no_op_below=1e-4, drop_first=1)
    assert stored(dataset) == [3, 4, 2, 3]
    assert dataset.report[0] == "dropped      9 of 13 train transitions: 3 at the start of a trajectory, 6 no-ops"
    assert stored(opened(idle, drop_first=2)) == [2, 3, 4, 5, 2, 3]
    assert stored(opened(idle)) == [*range(6), *range(4), *range(3)]


def test_data_of_no_ops_alone_is_refused(idle):
    with pytest.raises(DataError, match=r"of no train trajectory 2 transitions are left: lower .*no_op_below=1"):
        opened(idle, no_op_below=1.0)


def test_outliers_are_left_out_and_counted(tmp_path):
    records = [bridge_files.trajectory(i, 4) for i in range(5)]
    records[1]["actions"][2, 3] = -9.0
    records[3]["observations/state"][1, 0] = records[3]["next_observations/state"][0, 0] = 7.0
    write(tmp_path, records)
    data = {"filters": FilterConfig(max_action=5.0, max_proprio=5.0)}
    dataset = opened(tmp_path, data=data)
    trajectory, _ = dataset.source.locate(dataset.drawable)
    assert sorted(set(trajectory.tolist())) == [0, 2, 4]
    total, action, state = dataset.report[-3:]
    assert total == "skipped      2 of 5 train trajectories (40.0%)"
    assert "1 an action beyond config.data.filters.max_action, such as " in action
    assert action.endswith("step 2, dimension 3: -9 normalized")
    assert state.endswith("step 1, dimension 0: 7 normalized")
    # As Octo has it, statistics are of all trajectories.
    assert dataset.statistics.num_trajectories == 5
    assert opened(tmp_path).num_transitions == 20
    with pytest.raises(DataError, match=r"filters leave all 5 train trajectories out: raise"):
        opened(tmp_path, data={"filters": FilterConfig(max_action=1e-6)})


def test_steps_of_a_trajectory_are_subsampled_for_training_alone(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, [bridge_files.trajectory(i, n) for i, n in enumerate((9, 3, 20))], split)
    data = {"filters": FilterConfig(max_steps=5)}
    dataset = opened(tmp_path, data=data)
    trajectory, _ = dataset.source.locate(dataset.drawable)
    assert np.bincount(trajectory).tolist() == [5, 3, 5]
    assert "subsampled   13 of 32 train transitions, at most 5 of a trajectory" in dataset.report
    np.testing.assert_array_equal(opened(tmp_path, data=data).drawable, dataset.drawable)
    assert opened(tmp_path, "val", data).num_transitions == 32


def test_a_part_of_the_trajectories(tmp_path):
    for split, count in (("train", 40), ("val", 3)):
        write(tmp_path, [bridge_files.trajectory(i, 2) for i in range(count)], split)

    def keys(split="train", **changes):
        return set(opened(tmp_path, split, **changes).source.keys)

    ten = keys(max_trajectories=10)
    assert len(ten) == 10
    assert keys(max_trajectories=4) < ten
    assert len(keys(max_trajectories=100)) == 40
    assert keys(max_trajectories=10, subset_seed=1) != ten
    half = keys(trajectory_share=0.5)
    assert 12 <= len(half) <= 28
    assert keys(trajectory_share=0.1) < half
    assert len(keys(trajectory_share=0.001)) == 1
    assert len(keys("val", max_trajectories=1)) == 3
    report = opened(tmp_path, max_trajectories=10).report
    assert report[0] == "subset       10 of 40 train trajectories (subset_seed=0)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajectory_share": 0.0}, r"trajectory_share must lie in \(0, 1\], not 0.0"),
        ({"max_trajectories": -1}, "max_trajectories must be 0 or more, not -1"),
        ({"no_op_below": float("nan")}, "no_op_below must be 0 or more, not nan"),
    ],
)
def test_bad_parts(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        SourceConfig("bridge_tfrecord", str(tmp_path), (("**",),), **changes)


def test_bad_filters():
    with pytest.raises(ConfigError, match=r"config.data.filters.max_action must be 0 or more, not -1"):
        FilterConfig(max_action=-1.0)
