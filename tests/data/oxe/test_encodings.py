import pytest

from jaxvla.data.oxe.encodings import ActionEncoding, StateEncoding
from jaxvla.data.oxe.registry import find

T, F = True, False


@pytest.mark.parametrize(
    ("encoding", "normalized", "absolute"),
    [
        # The two of OpenVLA, where each mask is the other's complement.
        ("EEF_POS", [T] * 6 + [F], [F] * 6 + [T]),
        ("EEF_R6", [T] * 9 + [F], [F] * 9 + [T]),
        # Octo's, which says nothing of absolute actions.
        ("JOINT_POS", [T] * 7 + [F], [F] * 7 + [T]),
        ("JOINT_POS_BIMANUAL", ([T] * 6 + [F]) * 2, [T] * 14),
        ("NAV_2D", [T] * 2, [F] * 2),
        ("JOINT_POS_BIMANUAL_NAV", ([T] * 6 + [F]) * 2 + [T] * 2, [T] * 14 + [F] * 2),
    ],
)
def test_masks_of_actions(encoding, normalized, absolute):
    encoding = ActionEncoding[encoding]
    assert encoding.normalization_mask == tuple(normalized)
    assert encoding.absolute_mask == tuple(absolute)
    assert encoding.width == len(encoding.names) == len(normalized)
    assert encoding.grippers == tuple(d for d, learned in enumerate(normalized) if not learned)


@pytest.mark.parametrize(
    ("encoding", "width", "gripper"),
    [("NONE", 8, ()), ("POS_EULER", 8, (7,)), ("POS_QUAT", 8, (7,)), ("JOINT", 8, (7,)), ("POS_NAV", 3, ()),
     ("JOINT_BIMANUAL", 14, (6, 13))],
)  # fmt: skip
def test_widths_of_states(encoding, width, gripper):
    encoding = StateEncoding[encoding]
    assert encoding.width == width
    assert tuple(d for d, name in enumerate(encoding.names) if "gripper" in name) == gripper


def test_encodings_are_different_ones():
    assert len(StateEncoding) == 6
    assert len(ActionEncoding) == 6


def test_poses_to_reach_are_absolute_throughout():
    assert find("rh20t").absolute_mask == (True,) * 7
    assert find("droid").absolute_mask == (False,) * 6 + (True,)
