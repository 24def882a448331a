"""What the numbers of a standard trajectory are: the encodings of states and of actions, dimension by dimension.

Octo and OpenVLA name the same encodings, and differ in three points:

- OpenVLA fills every state of one arm up to eight numbers, so that datasets of one arm agree; Octo leaves the padding
  out: a pose is seven numbers, and a missing state is a single zero. Here they are filled up.
- OpenVLA normalizes the actions that are not absolute. Octo has dropped the notion of absolute actions, and normalizes
  all but the grippers. For the encodings that OpenVLA loads, EEF_POS and EEF_R6, this is the same; Octo's rule holds
  for joint targets too, so it is taken. (OpenVLA-OFT normalizes the grippers of two arms as well.)
- Which actions are absolute says OpenVLA of these two alone. The joints of two arms are targets, by what ALOHA stores;
  those of one arm are movements, by what both peers say of JOINT_POS.
"""

import enum

_PAD = "pad"
_GRIPPER = "gripper"
_ANGLES = ("roll", "pitch", "yaw")
_POSE = ("x", "y", "z", *_ANGLES)
_JOINTS = tuple(f"joint {i}" for i in range(1, 8))
_ARMS = tuple(f"{side} {part}" for side in ("left", "right") for part in (*_JOINTS[:6], _GRIPPER))


class _Encoding(enum.Enum):
    @property
    def names(self) -> tuple[str, ...]:
        """Of the dimensions."""
        return self.value

    @property
    def width(self) -> int:
        """How many dimensions there are."""
        return len(self.value)


class StateEncoding(_Encoding):
    """What a state is; the value names its dimensions, `pad` those that are always 0.

    Lengths are in meters and angles in radians where the dataset does not say otherwise, which few do. Of a quaternion
    the order, and of a gripper the sense, are the dataset's.
    """

    NONE = (_PAD,) * 8
    POS_EULER = (*_POSE, _PAD, _GRIPPER)
    POS_QUAT = ("x", "y", "z", "q1", "q2", "q3", "q4", _GRIPPER)
    JOINT = (*_JOINTS, _GRIPPER)
    JOINT_BIMANUAL = _ARMS
    POS_NAV = ("x", "y", "yaw")

    @property
    def angles(self) -> tuple[int, ...]:
        """The dimensions that are angles of a pose, which may jump by 2 pi."""
        return tuple(d for d, name in enumerate(self.value) if name in _ANGLES)


class ActionEncoding(_Encoding):
    """What an action is; the value names its dimensions. Grippers are absolute, 1 open and 0 closed.

    EEF_POS              movement of the end effector, or its velocity, and rotation about x, y, z
    EEF_R6               the same, with the first two rows of the rotation's matrix
    JOINT_POS            movement of seven joints
    JOINT_POS_BIMANUAL   the joints to reach, of two arms
    NAV_2D               movement of a base, in its own frame
    JOINT_POS_BIMANUAL_NAV   those of two arms, and the linear and the angular velocity of their base
    """

    EEF_POS = (*_POSE, _GRIPPER)
    EEF_R6 = ("x", "y", "z", "r11", "r12", "r13", "r21", "r22", "r23", _GRIPPER)
    JOINT_POS = (*_JOINTS, _GRIPPER)
    JOINT_POS_BIMANUAL = _ARMS
    NAV_2D = ("x", "y")
    JOINT_POS_BIMANUAL_NAV = (*_ARMS, "base velocity", "base turn")

    @property
    def grippers(self) -> tuple[int, ...]:
        """The dimensions that are grippers, for `ActionConvention.gripper`."""
        return tuple(d for d, name in enumerate(self.value) if name.endswith(_GRIPPER))

    @property
    def absolute_mask(self) -> tuple[bool, ...]:
        """True where an action is something to reach, which stays as it is when nothing is to be done.

        Elsewhere it is a movement, and 0 when nothing is to be done.
        """
        targets = self in (ActionEncoding.JOINT_POS_BIMANUAL, ActionEncoding.JOINT_POS_BIMANUAL_NAV)
        return tuple(d in self.grippers or (targets and d < len(_ARMS)) for d in range(self.width))

    @property
    def normalization_mask(self) -> tuple[bool, ...]:
        """True where an action is normalized: everywhere but at grippers. For `bridgedata_config.action_mask`."""
        return tuple(d not in self.grippers for d in range(self.width))
