import dataclasses

import numpy as np
import pytest

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats.index import NO_TEXT, Index
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms import action_checks
from jaxvla.data.transforms.action_checks import check_actions, describe_actions
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.normalization import FieldStatistics
from jaxvla.errors import ConfigError

BRIDGE = ActionConvention(relabel=True, gripper=(6,), binarize=True, angles=(3, 4, 5))
LENGTHS = (60, 40, 80)


def robot(seed=0, lengths=LENGTHS):
    """Movements that are nearly reached, and a gripper that opens and closes: actions [n, 7], proprio [n + k, 7]."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    actions = rng.normal(0, 0.02, (total, 7))
    actions[:, 6] = np.arange(total) // 10 % 2
    reached = 0.8 * actions + rng.normal(0, 0.004, (total, 7))
    reached[:, 6] = 0.1 * (actions[:, 6] - 0.5)
    episodes = np.split(reached, np.cumsum(lengths)[:-1])
    proprio = [np.cumsum(np.concatenate([rng.normal(0, 0.3, (1, 7)), episode]), axis=0) for episode in episodes]
    return actions.astype(np.float32), np.concatenate(proprio).astype(np.float32)


def source(actions, proprio, lengths=LENGTHS):
    names = tuple(f"t{i}" for i in range(len(lengths)))
    texts, taught = np.full(len(actions), NO_TEXT, np.int32), np.ones(len(actions), bool)
    unlabelled = {"language": ((),) * len(lengths), "texts": texts, "vectors": np.empty((0, 0), np.float32)}
    index = Index(np.array(lengths), actions, proprio, taught, **unlabelled, keys=names, frames={})
    return TrajectorySource.of(("file",), [index], (), (8, 8))


def check(actions, proprio, convention=BRIDGE, lengths=LENGTHS):
    return check_actions(source(actions, proprio, lengths), convention)


def one(remarks):
    (remark,) = remarks
    assert "\n" not in remark
    return remark


def test_real_bridgedata_is_what_is_said_of_it(samples, tmp_path):
    for path in (samples / "bridge_rlds" / "bridge_dataset" / "1.0.0").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = SourceConfig("rlds", str(tmp_path), cameras={"images0": "image_0"}, image_size=(8, 8), actions=BRIDGE)
    assert not any(line.startswith("warning: ") for line in open_dataset(config, DataConfig(), "train").report)


def test_what_is_true_needs_no_word():
    assert check(*robot()) == ()
    assert check(*robot(), ActionConvention()) == ()


@pytest.mark.parametrize("seed", range(5))
def test_real_robots_reach_late_and_not_all_of_their_dimensions_move(seed):
    actions, proprio = robot(seed)
    actions[:, 3] = 0  # never commanded: what the state does there says nothing
    actions[1:, :3] += actions[:-1, :3].copy()  # half of a command is reached one step later
    assert check(actions, proprio) == ()


@pytest.mark.parametrize("scale", [0.08, 0.04, -1.0])
def test_grippers_in_other_units_are_refused(scale):
    actions, proprio = robot()
    actions[:, 6] = actions[:, 6] * scale if scale > 0 else 2 * actions[:, 6] - 1
    with pytest.raises(
        ConfigError, match=r"gripper dimension 6 .*says 1 open, 0 closed.*set .*actions\.open and closed"
    ):
        check(actions, proprio)
    said = {"open": 1.0, "closed": -1.0} if scale < 0 else {"open": scale}
    assert check(actions, proprio, dataclasses.replace(BRIDGE, **said)) == ()


def test_a_gripper_that_rests_is_a_warning():
    actions, proprio = robot()
    actions[:, 6] = 1
    assert "the gripper never closes: gripper dimension 6 of the actions goes from 1 to 1" in one(
        check(actions, proprio)
    )
    actions[:, 6] = np.linspace(0.3, 1, len(actions))
    assert "never closes" in one(check(actions, proprio, dataclasses.replace(BRIDGE, binarize=False)))
    with pytest.raises(ConfigError, match=r"would undo what it does.*binarize=False"):
        check(actions, proprio)


def test_single_values_outside_of_the_range_are_a_warning():
    actions, proprio = robot()
    actions[61, 6] = 1.4
    assert "1 of it outside of what" in (remark := one(check(actions, proprio)))
    assert "(1.4 at step 1 of trajectory 't1')" in remark


def test_an_unnamed_gripper_is_no_movement():
    with pytest.raises(ConfigError, match=r"dimension 6 is a gripper .*, 0 or 1 in 100%.*set .*actions\.gripper"):
        check(*robot(), ActionConvention(relabel=True))


def test_quaternions_are_not_subtracted():
    actions, proprio = robot()
    quaternion = np.random.default_rng(1).normal(size=(len(proprio), 4)) * 0.1 + [0, 0, 0, 1]
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    proprio = np.concatenate([proprio[:, :3], quaternion, proprio[:, 6:]], 1).astype(np.float32)
    with pytest.raises(ConfigError, match=r"dimensions 3 to 6 are a quaternion .*relabel_actions=False"):
        check(actions, proprio)
    assert check(actions, proprio, dataclasses.replace(BRIDGE, relabel=False)) == ()


def test_joint_states_do_not_explain_movements_of_the_pose():
    actions, proprio = robot()
    joints = np.cumsum(np.random.default_rng(1).normal(0, 0.05, proprio.shape), axis=0).astype(np.float32) % 2
    with pytest.raises(ConfigError, match=r"no movements of the proprio: set config\.data\.relabel_actions=False"):
        check(actions, joints)
    few = check(actions[:30], joints[:31], lengths=(30,))
    assert "no movements of the proprio; if so" in one(few)


def test_absolute_actions_are_no_movements():
    actions, proprio = robot()
    after = np.delete(proprio, [0, 61, 102], axis=0)
    actions[:, :6] = after[:, :6]
    with pytest.raises(ConfigError, match="are states to be reached, not movements"):
        check(actions, proprio)


def test_a_dimension_that_goes_its_own_way_is_named():
    actions, proprio = robot()
    actions[:, 5] = np.random.default_rng(1).normal(0, 0.02, len(actions))
    assert "action dimension 5 does not explain" in one(check(actions, proprio))


def test_commands_in_other_units_are_named():
    actions, proprio = robot()
    actions[:, :6] *= 20
    assert "0.04 times the commanded ones" in one(check(actions, proprio))


def wrapping():
    actions, proprio = robot()
    turned = proprio[:, 3].astype(np.float64) * 8 + 3
    proprio[:, 3] = np.angle(np.exp(1j * turned))
    jumps = np.flatnonzero(abs(np.diff(proprio[:, 3])) > 5)
    jumps = jumps[~np.isin(jumps, [60, 101])]
    assert len(jumps)
    return actions, proprio, jumps


def test_angles_that_jump_are_a_warning():
    actions, proprio, jumps = wrapping()
    remark = next(remark for remark in check(actions, proprio) if "2 pi" in remark)
    assert remark.startswith(f"proprio dimension 3 jumps by 2 pi in {len(jumps)} of 180 steps (")
    assert remark.endswith("set bridgedata_config.actions.angles=(3, 4, 5) and wrap=True")
    assert not any("2 pi" in remark for remark in check(actions, proprio, dataclasses.replace(BRIDGE, wrap=True)))
    unnamed = one(check(actions, proprio, ActionConvention()))
    assert "set bridgedata_config.actions.angles=(3,) if it is known" in unnamed
    assert check(actions, proprio, ActionConvention(angles=(3,))) == ()


def test_the_example_of_a_jump_is_where_it_says():
    actions, proprio, jumps = wrapping()
    step = jumps[0] - (jumps[0] > 60) - (jumps[0] > 101)
    number = int(np.searchsorted(np.cumsum(LENGTHS), step, "right"))
    place = f"step {step - sum(LENGTHS[:number])} of trajectory 't{number}'"
    values = f"{proprio[jumps[0], 3]:.3g} to {proprio[jumps[0] + 1, 3]:.3g}"
    assert f"({values} at {place})" in one(check(actions, proprio, ActionConvention()))


def test_absolute_angles_in_actions_jump_too():
    actions, proprio = robot()
    actions[:, 4] = np.angle(np.exp(1j * np.linspace(0, 4, len(actions))))
    remark = one(check(actions, proprio, ActionConvention()))
    assert remark.startswith("action dimension 4 jumps by 2 pi in 1 of 177 steps")


def test_the_description_says_what_is_done():
    actions, _ = robot()
    statistics = FieldStatistics.of(actions)
    what, ranges = describe_actions(BRIDGE, statistics)
    assert what == "7: 6 reached movements (differences of states), gripper 6 (1 open, 0 closed, binarized)"
    assert ranges.startswith(f"from action 0 {actions[:, 0].min():.3g}..{actions[:, 0].max():.3g}, action 1 ")
    assert ranges.endswith("gripper 6 (1 open, 0 closed) 0..1")
    what, _ = describe_actions(dataclasses.replace(BRIDGE, wrap=True, binarize=False, open=0.08), statistics)
    assert what == "7: 6 reached movements (differences of states, angles wrapped), gripper 6 (0.08 open, 0 closed)"
    assert describe_actions(ActionConvention(), statistics)[0] == (
        "7: 7 as stored, nothing is said of them in bridgedata_config.actions"
    )


def test_of_many_transitions_pieces_are_looked_at(monkeypatch):
    monkeypatch.setattr(action_checks, "_MOST", 100)
    monkeypatch.setattr(action_checks, "_PIECES", 10)
    lengths = (10,) * 40
    actions, proprio = robot(lengths=lengths)
    actions[:, 6] = np.arange(400) % 10 // 5
    assert check(actions, proprio, lengths=lengths) == ()
    steps = action_checks._Steps.of(source(actions, proprio, lengths))
    assert steps.numbers.tolist() == list(range(0, 40, 4))
    np.testing.assert_array_equal(
        steps.after - steps.before, np.diff(proprio.reshape(40, 11, 7)[::4], axis=1).reshape(-1, 7)
    )
    actions[93, 6] = 7.0
    assert check(actions, proprio, lengths=lengths) == ()
    actions[83, 6] = 7.0
    assert "(7 at step 3 of trajectory 't8')" in one(check(actions, proprio, lengths=lengths))
