import dataclasses

import numpy as np
import pytest

from jaxvla.reasoning.accuracy import accuracy, objects
from jaxvla.reasoning.record import Reasoning
from jaxvla.reasoning.words import render

KNOWN = Reasoning(
    subtask="Lift the red cube.",
    move="move up",
    visible_objects=(("blue bowl", (60, 140, 130, 196)), ("red cube", (170, 100, 200, 134))),
    gripper_positions=((129, 120), (138, 113)),
)


def words(reasoning):
    return " ".join(render("ecot", name, text) for name, text in reasoning.components().items())


def test_what_is_annotated_is_all_right():
    found = accuracy([words(KNOWN)] * 2, [KNOWN] * 2)
    assert (found.samples, found.named, found.invented, found.box_error, found.gripper_error) == (2, 1, 0, 0, 0)
    assert found.sentences == {"SUBTASK": 1.0, "MOVE": 1.0}


def test_errors_are_counted_where_they_are():
    said = dataclasses.replace(
        KNOWN,
        subtask="Lower the red cube.",
        visible_objects=(("blue bowl", (62, 140, 130, 192)), ("green cup", (1, 2, 3, 4))),
        gripper_positions=((132, 124), (138, 113)),
    )
    found = accuracy([words(said), words(KNOWN)], [KNOWN, KNOWN])
    assert (found.named, found.invented) == (3 / 4, 1 / 4)
    assert found.box_error == np.median([2, 0, 0, 4, *[0] * 8])
    assert found.gripper_error == pytest.approx(2.5)  # of 5, and of 0
    assert found.sentences == {"SUBTASK": 0.5, "MOVE": 1.0}


def test_silence_names_nothing():
    found = accuracy([""], [KNOWN])
    assert found.named == 0
    assert np.isnan([found.box_error, found.gripper_error]).all()
    assert found.sentences == {}


def test_what_is_cut_off_is_left_out():
    assert objects("blue bowl [1, 2, 3, 4], red cube [5, 6") == {"blue bowl": (1, 2, 3, 4)}
