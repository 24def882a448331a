import numpy as np
import pytest

from jaxvla.envs.expert import demonstrate
from jaxvla.envs.goals import last_frame
from jaxvla.envs.tabletop import TabletopEnv


@pytest.mark.parametrize(("seed", "task"), [(3, None), (4, "stack"), (5, "go_around")])
def test_the_goal_is_the_last_frame_of_the_demonstration(seed, task):
    *_, (expected, _) = demonstrate(TabletopEnv(24), seed, task)
    goal = last_frame(24, seed, task)
    assert goal.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(goal[name], value)
