"""Evaluations that are killed and go on."""

import dataclasses

import pytest

from jaxvla.envs.journal import Journal
from jaxvla.envs.rollout import Result
from jaxvla.errors import DataError

ONE, TWO = (
    Result(number, 5, "go", "go on", number == 1, 3, 2, 1.5, ("so",), (0.5,), 0.25, (0.75, 1.0)) for number in (1, 2)
)


def test_it_gives_what_was_added_before(tmp_path):
    path = tmp_path / "journal"
    Journal(path, {"seed": 0}).add("none", ONE)
    again = Journal(path, {"seed": 0})
    assert again.results("none") == {1: ONE}
    assert again.results("other") == {}
    again.add("other", TWO)
    assert Journal(path, {"seed": 0}).results("other") == {2: TWO}


def test_lines_of_before_discontinuities_are_read(tmp_path):
    path = tmp_path / "journal"
    Journal(path, {}).add("none", ONE)
    text = path.read_text()
    assert text.count(', "discontinuities": [0.75, 1.0]') == 1
    path.write_text(text.replace(', "discontinuities": [0.75, 1.0]', ""))
    assert Journal(path, {}).results("none") == {1: dataclasses.replace(ONE, discontinuities=())}


def test_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, {"seed": 0})
    journal.add("none", ONE)
    journal.add("none", TWO)
    path.write_bytes(path.read_bytes()[:-7])
    cut = Journal(path, {"seed": 0})
    assert cut.results("none") == {1: ONE}
    cut.add("none", TWO)
    assert Journal(path, {"seed": 0}).results("none") == {1: ONE, 2: TWO}


def test_another_evaluation_begins_anew(tmp_path):
    path = tmp_path / "journal"
    Journal(path, {"seed": 0}).add("none", ONE)
    assert Journal(path, {"seed": 1}).results("none") == {}
    assert Journal(path, {"seed": 0}).results("none") == {}


def test_damage_is_one_error(tmp_path):
    path = tmp_path / "journal"
    Journal(path, {}).add("none", ONE)
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(DataError, match=r"cannot go on with it.*remove it"):
        Journal(path, {})


def test_without_a_path_nothing_is_kept():
    journal = Journal(None, {})
    journal.add("none", ONE)
    journal.close()
    assert journal.results("none") == {1: ONE}
