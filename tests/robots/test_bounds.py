"""What reaches a robot lies within a step's limits and the workspace; what cannot be brought there stops it."""

import numpy as np
import pytest

from jaxvla.errors import RobotError
from jaxvla.robots.bounds import MAX_ROTATION, MAX_TRANSLATION, Bounds, Gripper, Guard, check_action

STATE = np.array([0.3, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0])


def begun(state=STATE, bounds=None):
    guard = Guard(bounds or Bounds())
    guard.begin(state)
    return guard


def test_a_step_is_clipped_to_what_the_data_was_collected_with():
    guard = begun()
    admitted = guard.admit(np.array([1.0, -0.02, -9, 0.3, -0.1, -2, 1.7]))
    expected = [MAX_TRANSLATION, -0.02, -MAX_TRANSLATION, MAX_ROTATION, -0.1, -MAX_ROTATION, 1]
    np.testing.assert_allclose(admitted, expected)
    assert guard.clipped == 1
    np.testing.assert_allclose(guard.admit(admitted * 0.1), admitted * 0.1)
    assert guard.clipped == 1


@pytest.mark.parametrize("way", [np.eye(7)[d] * sign for d in (0, 1, 2, 5) for sign in (-1, 1)])
def test_the_sum_of_what_is_admitted_stays_in_the_workspace(way):
    guard, total = begun(), STATE.copy()
    for _ in range(40):
        total[:6] += guard.admit(way)[:6]
    bounds, d = Bounds(), int(np.flatnonzero(way)[0])
    assert total[d] == pytest.approx((bounds.low if way.sum() < 0 else bounds.high)[{5: 3}.get(d, d)])
    back = guard.admit(-way * 0.04)  # what was not played is not owed
    assert back[d] == pytest.approx(-way[d] * 0.04)


def test_an_arm_that_begins_at_the_edge_comes_back_and_goes_no_further():
    state = STATE.copy()
    state[1] = -0.16
    guard = begun(state)
    assert guard.admit(np.array([0, -0.05, 0, 0, 0, 0, 1.0]))[1] == 0
    assert guard.admit(np.array([0, 0.05, 0, 0, 0, 0, 1.0]))[1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("d", "value", "message"),
    [
        (0, 0.5, "out of bounds: x is 0.500, admitted are 0.1 to 0.45"),
        (2, -0.2, "out of bounds: z is -0.200"),
        (5, 2.0, "out of bounds: yaw is 2.000"),
        (3, np.nan, "state is .*nan"),
    ],
)
def test_a_robot_that_is_elsewhere_stops(d, value, message):
    state = STATE.copy()
    state[d] = value
    with pytest.raises(RobotError, match=message):
        begun().check(state)


@pytest.mark.parametrize(
    "action",
    [np.full(7, np.nan), np.array([0, 0, 0, 0, 0, np.inf, 0]), np.zeros(6), np.zeros((1, 7)), np.zeros(7, int)],
)
def test_what_is_no_action_is_not_admitted(action):
    for judge in (check_action, begun().admit):
        with pytest.raises(RobotError, match=r"the policy gave the action .*; expected 7 finite numbers: x, y"):
            judge(action)


def test_bounds_hold_something():
    with pytest.raises(RobotError, match="nothing lies between"):
        Bounds((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 1.0))


def test_the_gripper_follows_decisions_in_a_row():
    wanted = [0.9, 0.1, 0.6, 0.2, 0.4, 0.3, 0.9, 0.8, 0.7]
    assert [Gripper(1).decide(each) for each in wanted[:2]] == [1, 0]
    gripper, quick = Gripper(3), Gripper(1)
    assert [gripper.decide(each) for each in wanted] == [1, 1, 1, 1, 1, 0, 0, 0, 1]
    assert [quick.decide(each) for each in wanted] == [1, 0, 1, 0, 0, 0, 1, 1, 1]
