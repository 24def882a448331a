import dataclasses

import numpy as np
import pytest
from reasoning.text_cases import FULL, FULL_WORDS, LARA_FULL, LARA_WORDS

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.reasoning.curriculum import Curriculum, CurriculumConfig, Plan
from jaxvla.reasoning.record import Reasoning
from jaxvla.reasoning.words import ECOT

KEEP = np.full(16, 0.999)
SUBTASK, BBOX, REASON = LARA_WORDS


def curriculum(**values):
    return Curriculum(from_mapping(CurriculumConfig, values, "config.curriculum"))


@pytest.mark.parametrize("slots_for_missing", [True, False])
def test_stages_of_lara(slots_for_missing):
    lara = curriculum(component_set="lara", slots_for_missing=slots_for_missing)
    assert [lara.plan(LARA_FULL, stage, KEEP) for stage in range(4)] == [
        Plan(0, 0, (SUBTASK, BBOX, REASON)),
        Plan(1, 1, (BBOX, REASON)),
        Plan(2, 2, (REASON,)),
        Plan(3, 3, ()),
    ]


def test_stages_of_ecot():
    ecot = curriculum()
    assert ecot.components == ECOT
    assert ecot.plan(FULL, 0, KEEP) == Plan(0, 0, FULL_WORDS)
    assert ecot.plan(FULL, 3, KEEP) == Plan(3, 3, FULL_WORDS[3:])
    assert ecot.plan(FULL, 8, KEEP) == Plan(8, 8, ())
    assert (ecot.latent_components(2), ecot.word_components(6)) == (("TASK", "PLAN"), ("MOVE", "GRIPPER POSITION"))


def test_components_take_the_slots_that_are_configured():
    ecot = curriculum(tag2think_count={"PLAN": 4, "MOVE": 2})
    assert [ecot.num_slots(stage) for stage in range(9)] == [0, 1, 5, 6, 7, 8, 9, 11, 12]
    without_plan = dataclasses.replace(FULL, plan=None)
    assert ecot.plan(without_plan, 2, KEEP).num_slots == 5
    lara_rule = curriculum(tag2think_count={"PLAN": 4, "MOVE": 2}, slots_for_missing=False)
    assert [lara_rule.plan(without_plan, stage, KEEP).num_slots for stage in (0, 1, 2, 3, 8)] == [0, 1, 1, 2, 8]


def test_order_and_choice_of_components():
    lara = curriculum(component_set="lara", component_order=("BBOX", "SUBTASK"))
    assert [lara.plan(LARA_FULL, stage, KEEP) for stage in range(3)] == [
        Plan(0, 0, (BBOX, SUBTASK)),
        Plan(1, 1, (SUBTASK,)),
        Plan(2, 2, ()),
    ]


def test_slots_of_what_is_not_annotated():
    """At inference nothing is annotated, and every slot is there."""
    ecot = curriculum()
    some = Reasoning(subtask="reach", move="  ", boxes=((0.0, 0.0, 1.0, 1.0),))
    assert ecot.plan(some, 0, KEEP) == Plan(0, 0, ("SUBTASK: reach",))
    assert ecot.plan(some, 4, KEEP) == Plan(4, 4, ("SUBTASK: reach",))
    assert ecot.plan(some, 5, KEEP) == Plan(5, 5, ())
    for nothing in (None, Reasoning(), Reasoning(reason="not one of ECoT's")):
        assert ecot.plan(nothing, 0, KEEP) == Plan(-1, 0, ())
        assert ecot.plan(nothing, 3, KEEP) == Plan(3, 3, ())
    lara = curriculum(component_set="lara")
    assert lara.plan(Reasoning(reason="up"), 1, KEEP) == Plan(1, 1, ("Reasoning: up",)), "no box is made up"


def test_laras_rule_for_what_is_not_annotated():
    lara = curriculum(component_set="lara", slots_for_missing=False)
    no_box = dataclasses.replace(LARA_FULL, boxes=())
    whole = "BBox: [0.0000 0.0000 1.0000 1.0000]."
    assert [lara.plan(no_box, stage, KEEP) for stage in range(4)] == [
        Plan(0, 0, (SUBTASK, REASON)),
        Plan(1, 1, (whole, REASON)),
        Plan(2, 2, (REASON,)),
        Plan(3, 3, ()),
    ]
    no_subtask = dataclasses.replace(LARA_FULL, subtask="")
    assert [lara.plan(no_subtask, stage, KEEP) for stage in range(4)] == [
        Plan(0, 0, (BBOX, REASON)),
        Plan(-1, 0, ()),
        Plan(2, 1, (REASON,)),
        Plan(3, 2, ()),
    ]
    for nothing in (None, Reasoning()):
        assert [lara.plan(nothing, stage, KEEP) for stage in range(4)] == [
            Plan(0, 0, ()),
            Plan(-1, 0, ()),
            Plan(2, 1, ()),
            Plan(3, 1, ()),
        ]
    ecot = curriculum(slots_for_missing=False)
    assert ecot.plan(Reasoning(move="up"), 6, KEEP) == Plan(-1, 0, ())
    assert ecot.plan(Reasoning(move="up"), 7, KEEP) == Plan(7, 1, ())
    assert ecot.plan(Reasoning(task="up"), 6, KEEP) == Plan(6, 1, ())


def test_schedule():
    steps = curriculum(schedule=((0, 0), (10, 1), (11, 1), (20, 8)))
    assert [steps.stage_at(step) for step in (0, 9, 10, 11, 19, 20, 10**9)] == [0, 0, 1, 1, 1, 8, 8]
    assert steps.stages == (0, 1, 8)
    assert steps.last_stage == 8
    assert steps.switches(0, 100) == ((10, 1), (20, 8))
    assert steps.switches(9, 20) == ((10, 1),)
    assert steps.switches(10, 20) == ()
    assert steps.switches(10, 21) == ((20, 8),)
    fixed = curriculum(schedule=((0, 3),))
    assert (fixed.stages, fixed.last_stage, fixed.stage_at(10**6), fixed.switches(0, 9)) == ((3,), 3, 3, ())


def test_tags_are_dropped_whole_and_independently():
    ecot = curriculum(tag_dropout=0.3)
    rows = np.random.default_rng(0).random((4000, ecot.num_uniforms))
    said = [ecot.plan(FULL, 0, row).words for row in rows]
    kept = np.array([[word in words for word in FULL_WORDS] for words in said])
    np.testing.assert_array_equal(kept, rows[:, 2:] >= 0.3)
    assert set().union(*said) == set(FULL_WORDS), "never a part of a text"
    np.testing.assert_allclose(kept.mean(0), 0.7, atol=4 * np.sqrt(0.21 / 4000))
    between = np.corrcoef(kept.T)[np.triu_indices(8, 1)]
    np.testing.assert_allclose(between, 0, atol=4.5 / np.sqrt(4000))
    slots = [ecot.plan(FULL, 5, row) for row in rows[:100]]
    assert {plan.num_slots for plan in slots} == {5}, "latent components are not dropped"
    assert curriculum(tag_dropout=1.0).plan(FULL, 0, KEEP) == Plan(-1, 0, ())


def test_whole_reasonings_are_dropped():
    ecot = curriculum(reasoning_dropout=0.25)
    rows = np.random.default_rng(1).random((4000, ecot.num_uniforms))
    for stage in (0, 4, 8):
        plans = [ecot.plan(FULL, stage, row) for row in rows]
        dropped = [plan == Plan(-1, 0, ()) for plan in plans]
        np.testing.assert_array_equal(dropped, rows[:, 0] < 0.25)
        assert {plan.num_slots for plan in plans if plan.stage >= 0} == {stage}
    assert np.mean(dropped) == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / 4000))


def test_stages_are_mixed_uniformly():
    ecot = curriculum(uniform_stage_probability=0.4)
    rows = np.random.default_rng(2).random((6000, ecot.num_uniforms))
    plans = [ecot.plan(FULL, 3, row) for row in rows]
    shares = np.bincount([plan.stage for plan in plans], minlength=4) / len(rows)
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.1, 0.7], atol=4 * np.sqrt(0.21 / 6000))
    for plan in plans[:300]:
        assert plan == Plan(plan.stage, plan.stage, FULL_WORDS[plan.stage :])
    assert ecot.sample_stages(3) == (0, 1, 2, 3)
    assert curriculum().sample_stages(3) == (3,)


def test_validation_draws_nothing_at_random():
    ecot = curriculum(
        uniform_stage_probability=1.0, tag_dropout=0.9, reasoning_dropout=0.9, schedule=((0, 0), (5, 8))
    ).at_stage(4)
    assert ecot.stage_at(0) == ecot.stage_at(7) == ecot.last_stage == 4
    for row in (np.zeros(16), KEEP):
        assert ecot.plan(FULL, 4, row) == Plan(4, 4, FULL_WORDS[4:])


def test_what_never_reasons_does_not_in_validation_either():
    silent = curriculum(reasoning_dropout=1.0, schedule=((0, 8),))
    assert not silent.reasons
    assert curriculum(reasoning_dropout=0.99).reasons
    assert silent.at_stage(8).plan(FULL, 8, KEEP) == Plan(-1, 0, ())


def test_too_few_random_numbers_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        curriculum().plan(FULL, 0, KEEP[:9])


@pytest.mark.parametrize("slots_for_missing", [True, False])
@pytest.mark.parametrize("uniform", [0.0, 0.5])
@pytest.mark.parametrize("left_out", [0.0, 1.0])
def test_annotations_are_read_where_they_matter(slots_for_missing, uniform, left_out):
    mixed = {"uniform_stage_probability": uniform, "reasoning_dropout": left_out}
    ecot = curriculum(slots_for_missing=slots_for_missing, tag_dropout=0.2, **mixed)
    rows = np.random.default_rng(3).random((200, ecot.num_uniforms))
    for stage in (0, 7, 8):
        differs = any(ecot.plan(FULL, stage, row) != ecot.plan(None, stage, row) for row in rows)
        assert ecot.reads_reasoning(stage) == differs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"component_set": "cot"}, "component_set must be ecot or lara"),
        ({"component_order": ("TASK", "GRASP")}, "component_order.GRASP: .*known are GRIPPER POSITION"),
        ({"component_order": ("TASK", "TASK")}, "names a component twice"),
        ({"component_set": "lara", "tag2think_count": {"BOX": 1}}, "tag2think_count.BOX: did you mean BBOX"),
        ({"tag2think_count": {"TASK": 0}}, "tag2think_count.TASK must be a positive whole number, not 0"),
        ({"tag2think_count": {"TASK": True}}, "tag2think_count.TASK must be int, not bool True"),
        ({"schedule": ()}, "schedule must hold"),
        ({"schedule": ((1, 0),)}, "steps rising from 0"),
        ({"schedule": ((0, 0), (5, 1), (5, 2))}, "steps rising from 0"),
        ({"schedule": ((0, 0), (5, 9))}, "stage 9; with 8 components there are stages 0 to 8"),
        ({"schedule": ((0, -1),)}, "stage -1"),
        ({"component_set": "lara", "schedule": ((0, 4),)}, "with 3 components"),
        ({"component_order": ("PLAN",), "schedule": ((0, 2),)}, "with 1 components"),
        ({"schedule": ((0, 0, 1),)}, "needs 2 values"),
        ({"tag_dropout": 1.1}, r"tag_dropout must lie in \[0, 1\]"),
        ({"reasoning_dropout": -0.1}, "reasoning_dropout"),
        ({"uniform_stage_probability": float("nan")}, "uniform_stage_probability"),
        ({"uniform_prob": 0.1}, "unknown key config.curriculum.uniform_prob"),
    ],
)
def test_bad_configurations(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        curriculum(**values)
    assert "\n" not in str(error.value)
