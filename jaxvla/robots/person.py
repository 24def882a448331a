"""Who arranges the scene, says what is to be done, and judges whether it was."""

from typing import Protocol, runtime_checkable

from jaxvla.robots.simulated import SimulatedWidowX


@runtime_checkable
class Person(Protocol):
    """Somebody beside the robot. Each method returns when it is done."""

    def show_goal(self) -> None:
        """Arranges the scene as it is to become."""

    def put_back(self) -> None:
        """Arranges the scene as an episode begins."""

    def instruct(self) -> str:
        """What is to be done."""

    def judge(self) -> bool | None:
        """Whether it was done; None where nobody says."""


class AtKeyboard:
    """A person who is asked on the terminal.

    Args:
        instruction: what is to be done in every episode; empty to be asked for.
    """

    def __init__(self, instruction: str = "") -> None:
        self._instruction = instruction

    def show_goal(self) -> None:
        """See `Person.show_goal`."""
        input("Arrange the scene as it is to become, out of the gripper's way, and press Enter ")

    def put_back(self) -> None:
        """See `Person.put_back`."""
        input("Put everything to where it begins, and press Enter ")

    def instruct(self) -> str:
        """See `Person.instruct`."""
        words = self._instruction
        while not words.strip():
            words = input("What is to be done? ")
        return words.strip()

    def judge(self) -> bool | None:
        """See `Person.judge`."""
        try:
            answer = input("Was it done? [y/n, Enter to leave it open] ").strip().lower()
        except EOFError:
            return None
        return {"y": True, "n": False}.get(answer[:1])


class Simulated:
    """A person beside a simulated robot, who can do what is to be done.

    Args:
        robot: whose scene it is.
        instruction: what is to be done, in other words than those of the scene; empty for those.
    """

    def __init__(self, robot: SimulatedWidowX, instruction: str = "") -> None:
        self._robot, self._instruction = robot, instruction

    def show_goal(self) -> None:
        """See `Person.show_goal`."""
        self._robot.arrange(done=True)

    def put_back(self) -> None:
        """See `Person.put_back`."""
        self._robot.arrange(done=False)

    def instruct(self) -> str:
        """See `Person.instruct`."""
        return self._instruction or self._robot.instruction

    def judge(self) -> bool | None:
        """See `Person.judge`."""
        return self._robot.success
