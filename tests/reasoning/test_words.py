import pytest
from reasoning.text_cases import FULL, FULL_WORDS, LARA_FULL, LARA_WORDS

from jaxvla.reasoning.record import Reasoning
from jaxvla.reasoning.words import COMPONENT_SETS, parse_explicit, render


@pytest.mark.parametrize(
    ("component_set", "reasoning", "words"), [("ecot", FULL, FULL_WORDS), ("lara", LARA_FULL, LARA_WORDS)]
)
def test_words_are_rendered_and_read_back(component_set, reasoning, words):
    texts = reasoning.components()
    names = COMPONENT_SETS[component_set]
    assert tuple(render(component_set, name, texts[name]) for name in names) == words
    parsed = parse_explicit(component_set, " " + " ".join(words) + "<|im_end|>\n and more TASK: x")
    assert list(parsed.items()) == [(name, texts[name]) for name in names]


def test_two_boxes_make_one_component():
    boxes = Reasoning(boxes=((0.0, 0.0, 0.25, 1.0), (0.1, 0.2, 0.3, 0.4))).components()["BBOX"]
    words = render("lara", "BBOX", boxes)
    assert words == "BBox: [0.0000 0.0000 0.2500 1.0000] [0.1000 0.2000 0.3000 0.4000]."
    assert parse_explicit("lara", words) == {"BBOX": boxes}


@pytest.mark.parametrize(
    ("component_set", "text", "parsed"),
    [
        ("ecot", "", {}),
        ("ecot", "no tags at all", {"": "no tags at all"}),
        ("ecot", "so, MOVE: up TASK: a b", {"": "so,", "MOVE": "up", "TASK": "a b"}),
        ("ecot", "SUBTASK REASONING: why SUBTASK: what", {"SUBTASK REASONING": "why", "SUBTASK": "what"}),
        ("ecot", "MOVE:\nup\nMOVE: down", {"MOVE": "up down"}),
        ("ecot", "PLAN: MOVE: up", {"MOVE": "up"}),
        ("ecot", "PLAN: xTASK: Task: TASK", {"PLAN": "xTASK: Task: TASK"}),
        ("ecot", "Subtask: a. Reasoning: b", {"": "Subtask: a. Reasoning: b"}),
        ("lara", "Subtask: a.. BBox: Reasoning: b.", {"SUBTASK": "a.", "REASON": "b."}),
        ("lara", "SUBTASK: a.", {"": "SUBTASK: a."}),
    ],
)
def test_broken_words_are_read_as_far_as_they_go(component_set, text, parsed):
    assert parse_explicit(component_set, text) == parsed
