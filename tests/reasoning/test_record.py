import dataclasses
import json

import pytest

from jaxvla.reasoning.record import COMPONENTS, Reasoning

FULL = Reasoning(
    task="Put the carrot in the pot.",
    plan="Reach for the carrot. Lift it.",
    subtask_reason="The carrot is not held yet.",
    subtask="Reach for the carrot.",
    move_reason="The carrot lies to the left.",
    move="move left, open gripper",
    visible_objects=(("a carrot", (12, 40, 33, 61)), ("the pot", (97, 104, 158, 150))),
    gripper_positions=((97, 45), (97, 45), (89, 52), (83, 58), (82, 57)),
    boxes=((0.5, 0.43359375, 0.60546875, 0.56640625), (0.0, 0.1, 1.0, 0.12345)),
    reason="globally the gripper should progress towards the left direction, locally it is moving down.",
)


def test_components_read_as_in_ecot_and_lara():
    assert FULL.components() == {
        "TASK": "Put the carrot in the pot.",
        "PLAN": "Reach for the carrot. Lift it.",
        "VISIBLE OBJECTS": "a carrot [12, 40, 33, 61], the pot [97, 104, 158, 150]",
        "SUBTASK REASONING": "The carrot is not held yet.",
        "SUBTASK": "Reach for the carrot.",
        "MOVE REASONING": "The carrot lies to the left.",
        "MOVE": "move left, open gripper",
        "GRIPPER POSITION": "[97, 45, 97, 45, 89, 52, 83, 58, 82, 57]",
        "BBOX": "[0.5000 0.4336 0.6055 0.5664] [0.0000 0.1000 1.0000 0.1235]",
        "REASON": "globally the gripper should progress towards the left direction, locally it is moving down.",
    }


def test_every_component_is_listed_in_order():
    assert tuple(FULL.components()) == COMPONENTS


def test_what_is_absent_has_no_component_and_no_json():
    assert Reasoning().components() == {}
    assert Reasoning().to_json() == {}
    assert Reasoning(task="", visible_objects=()).to_json() == {}
    assert Reasoning(move="stop").to_json() == {"move": "stop"}
    assert Reasoning(gripper_positions=((0, 0),)).components() == {"GRIPPER POSITION": "[0, 0]"}


@pytest.mark.parametrize("record", [FULL, Reasoning(), Reasoning(subtask="grasp", boxes=((0.0, 0.0, 1.0, 1.0),))])
def test_json_round_trip(record):
    back = Reasoning.from_json(json.loads(json.dumps(record.to_json())))
    assert back == record
    assert hash(back) == hash(record)


def test_a_record_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.task = "another"


def test_an_unknown_part_is_refused():
    with pytest.raises(TypeError, match="goal"):
        Reasoning.from_json({"goal": "x"})
