import json
import pathlib

import pytest

from jaxvla.errors import DataError
from jaxvla.reasoning import json_stream
from jaxvla.reasoning.annotations import Tally, ecot_episodes, lara_episodes
from jaxvla.reasoning.record import Episode, Reasoning

TEXTS = {
    "task": "Put it in.",
    "plan": "1. Reach. 2. Grasp.",
    "subtask": "Reach.",
    "subtask_reason": "It is far.",
    "move": "move left",
    "move_reason": "It lies left.",
}


def ecot(path: pathlib.Path, content) -> tuple[dict, Tally]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    tally = Tally()
    return {episode.key: episode.steps for episode in ecot_episodes(path, tally, lambda count: None)}, tally


def one(path: pathlib.Path, **episode) -> tuple[dict[int, Reasoning], Tally]:
    """The steps of a file with a single episode."""
    episodes, tally = ecot(path, {"f": {"0": episode}})
    return episodes["f#0"], tally


def test_an_episode_in_full(tmp_path):
    steps, tally = one(
        tmp_path / "a.json",
        reasoning={"0": TEXTS, "1": TEXTS | {"move": " stop ", "plan": ""}},
        features={
            "state_3d": [[0.1, 0.2, 0.3]] * 2,
            "move_primitive": ["never read"] * 2,
            "gripper_position": [[1, 2], [3, 4]],
            "bboxes": [
                [[0.53, "a pot", [10, 20.4, 30, 255.6]], [0.4, "the lid", [0, 0, 256, 1]]],
                [],
            ],
        },
        metadata={"caption": "never read"},
    )
    assert steps == {
        0: Reasoning(
            **TEXTS,
            visible_objects=(("a pot", (10, 20, 30, 256)), ("the lid", (0, 0, 256, 1))),
            gripper_positions=((1, 2), (3, 4), (3, 4), (3, 4), (3, 4)),
        ),
        1: Reasoning(**TEXTS | {"move": "stop", "plan": None}, gripper_positions=((3, 4),) * 5),
    }
    assert tally == Tally()


def test_the_window_of_gripper_positions_moves_on(tmp_path):
    points = [[10 * t, t] for t in range(7)]
    steps, _ = one(tmp_path / "a.json", reasoning={}, features={"gripper_positions": points})
    assert steps[1].gripper_positions == ((10, 1), (20, 2), (30, 3), (40, 4), (50, 5))
    assert steps[2].gripper_positions[-1] == (60, 6)
    assert steps[4].gripper_positions == ((40, 4), (50, 5), (60, 6), (60, 6), (60, 6))
    assert steps[6].components() == {"GRIPPER POSITION": "[60, 6, 60, 6, 60, 6, 60, 6, 60, 6]"}


def test_what_is_missing_is_absent(tmp_path):
    episodes, tally = ecot(
        tmp_path / "a.json",
        {
            "f": {
                "0": {"reasoning": {"3": {"task": "x"}}},
                "1": {"features": {"gripper_position": [[1, 1]], "bboxes": [None, [[1, "cup", [0, 0, 5, 5]]]]}},
                "2": {"reasoning": None, "features": None},
                "3": {},
            },
            "g": {},
        },
    )
    assert episodes == {
        "f#0": {3: Reasoning(task="x")},
        "f#1": {
            0: Reasoning(gripper_positions=((1, 1),) * 5),
            1: Reasoning(visible_objects=(("cup", (0, 0, 5, 5)),)),
        },
        "f#2": {},
        "f#3": {},
    }
    assert tally == Tally(without_text=2, without_steps=2)


@pytest.mark.parametrize(
    ("episode", "num_steps", "instruction", "faults"),
    [
        ({"metadata": {"n_steps": 31, "language_instruction": " put it in "}}, 31, "put it in", []),
        ({"metadata": {"n_steps": 31}, "features": {"state_3d": [[0, 0, 0]] * 30}}, 31, "", []),
        ({"features": {"move_primitive": ["up"] * 4, "bboxes": [[]] * 5, "state_2d": [0] * 9}}, 5, "", []),
        ({"features": {"gripper_positions": [[1, 1]] * 3}, "metadata": None}, 3, "", []),
        ({"reasoning": {"7": TEXTS}, "metadata": {"language_instruction": ""}}, None, "", []),
        ({"metadata": {"n_steps": "31"}}, None, "", ["n_steps is no number of steps"]),
        ({"metadata": {"n_steps": True}}, None, "", ["n_steps is no number of steps"]),
        ({"metadata": {"n_steps": 0}}, None, "", ["n_steps is no number of steps"]),
        ({"metadata": {"n_steps": 10**30}}, None, "", ["n_steps is no number of steps"]),
        ({"metadata": {"language_instruction": ["put it in"]}}, None, "", ["text is no string"]),
        ({"metadata": "none"}, None, "", ["metadata is no dict"]),
    ],
)
def test_what_ecot_says_of_an_episode_itself(tmp_path, episode, num_steps, instruction, faults):
    path, tally = tmp_path / "a.json", Tally()
    path.write_text(json.dumps({"f": {"0": episode}}))
    (found,) = ecot_episodes(path, tally, lambda count: None)
    assert (found.key, found.num_steps, found.instruction) == ("f#0", num_steps, instruction)
    assert list(tally.faults) == faults


def features(**values) -> dict:
    return {"features": values}


def boxes(*found) -> dict:
    return features(bboxes=[list(found)])


POINT, CUP = [5, 5], [0.9, "cup", [1, 2, 3, 4]]
KEPT_CUP = Reasoning(visible_objects=(("cup", (1, 2, 3, 4)),))


@pytest.mark.parametrize(
    ("episode", "reason", "kept"),
    [
        ({"reasoning": {"0": {"task": "x", "plan": ["a"]}}}, "text is no string", {0: Reasoning(task="x")}),
        ({"reasoning": {"0": {"task": "x", "plan": float("nan")}}}, "text is no string", {0: Reasoning(task="x")}),
        ({"reasoning": {"0": {"task": "x"}, "1": "words"}}, "step is not an object", {0: Reasoning(task="x")}),
        ({"reasoning": {"0": {"task": "x"}, "end": TEXTS}}, "step is not numbered", {0: Reasoning(task="x")}),
        ({"reasoning": {"0": {"task": "x"}, "9" * 9: TEXTS}}, "step is not numbered", {0: Reasoning(task="x")}),
        ({"reasoning": [TEXTS], **boxes(CUP)}, "reasoning is no dict", {0: KEPT_CUP}),
        ({"reasoning": {"0": {"task": "x"}}, "features": "none"}, "features is no dict", {0: Reasoning(task="x")}),
        (features(bboxes={"0": [CUP]}), "bboxes is no list", {}),
        (features(bboxes=["cup", [CUP]]), "bboxes of a step are no list", {1: KEPT_CUP}),
        (boxes(CUP, [0.9, "cup", [1, 2, 3]]), "box is not", {0: KEPT_CUP}),
        (boxes(CUP, [0.9, None, [1, 2, 3, 4]]), "box is not", {0: KEPT_CUP}),
        (boxes(CUP, ["cup", [1, 2, 3, 4]]), "box is not", {0: KEPT_CUP}),
        (boxes(CUP, [0.9, "cup", [1, 2, float("nan"), 4]]), "box is not", {0: KEPT_CUP}),
        (boxes(CUP, [0.9, "cup", [1, 2, True, 4]]), "box is not", {0: KEPT_CUP}),
        (boxes(CUP, [0.9, "cup", [1, 2, 10**400, 4]]), "box is not", {0: KEPT_CUP}),
        (boxes(CUP, [0.9, "pan", [3, 4, 1, 2]]), "no area inside the frame", {0: KEPT_CUP}),
        (boxes(CUP, [0.9, "pan", [-9, -9, -3, -2]]), "no area inside the frame", {0: KEPT_CUP}),
        (
            boxes([0.9, "pan", [-9, 3, 20, 300]]),
            "cut off at the edge",
            {0: Reasoning(visible_objects=(("pan", (0, 3, 20, 256)),))},
        ),
        (
            features(gripper_position=[POINT, [1, float("inf")], [7, 8]]),
            "gripper position is no pixel",
            {
                0: Reasoning(gripper_positions=((5, 5), (7, 8), (7, 8), (7, 8), (7, 8))),
                2: Reasoning(gripper_positions=((7, 8),) * 5),
            },
        ),
        (
            features(gripper_position=[POINT, "lost"]),
            "gripper position is no pixel",
            {0: Reasoning(gripper_positions=((5, 5),) * 5)},
        ),
    ],
)
def test_what_is_wrong_is_counted_and_the_rest_kept(tmp_path, episode, reason, kept):
    steps, tally = one(tmp_path / "a.json", **episode)
    assert steps == kept
    ((found, count),) = tally.faults.items()
    assert reason in found
    assert count == 1
    assert tally.examples[found][0].startswith("f#0")


def test_episodes_that_are_none_do_not_stop_the_others(tmp_path):
    content = '{"list": [1], "f": {"0": "words", "1": {"reasoning": {"0": {"task": "x"}}}, "1": {}}, "number": 12}'
    episodes, tally = ecot(tmp_path / "a.json", content)
    assert episodes == {"f#1": {0: Reasoning(task="x")}}
    assert tally.faults == {"not an episode": 3, "episode given twice, the first counts": 1}
    assert tally.examples["not an episode"] == ["list", "f#0", "number"]


def test_examples_are_few(tmp_path):
    _, tally = one(tmp_path / "a.json", features={"gripper_position": ["?"] * 50})
    assert tally.faults == {"gripper position is no pixel": 50}
    assert len(tally.examples["gripper position is no pixel"]) == 3


def test_text_is_always_valid_unicode(tmp_path):
    content = r'{"f\ud800": {"0": {"reasoning": {"0": {"task": "a \ud83d\ude00 b\udfff"}}}}}'
    episodes, _ = ecot(tmp_path / "a.json", content)
    assert episodes == {"f?#0": {0: Reasoning(task="a 😀 b?")}}


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_files_are_read_piece_by_piece(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    whole = {"ä": {"1": {"x": [1.5, None, "ü\n"]}, "2": -1234567}, "e": {}, "n": [[1]]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False))
    read = []
    found = list(json_stream.members(path, 2, read.append))
    assert found == [(("ä", "1"), {"x": [1.5, None, "ü\n"]}), (("ä", "2"), -1234567), (("n",), [[1]])]
    assert sum(read) == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not begin with an object"),
        ("[1]", "does not begin with an object"),
        ('{"a": {"b": {"c": 1}}', r"character 21 \(, or } is missing\)"),
        ('{"a": {"b": {"c": [1, 2', "character 23"),
        ('{"a": {"b": {"c": "wor', "Unterminated string"),
        ('{"a": {"b": {"c" 1}}}', r"character 17 \(Expecting ':'"),
        ('{"a" {"b": 1}}', ": is missing"),
        ('{1: {"b": 1}}', "a name is missing"),
        ('{"a": {"b": 1}} {"a": {}}', "something follows"),
        ('{"a": {"b": ' + "[" * 100_000, "recursion"),
        ('{"a": {"b": ' + "9" * 10_000 + "}}", "digits"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        ecot(tmp_path / "a.json", content)
    assert str(tmp_path / "a.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_damage_in_a_large_file_is_found_without_reading_it_all(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 100)
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": [1 2, ' + "3, " * 10_000 + "4]}}")
    read = []
    with pytest.raises(DataError, match=r"character 15 \(Expecting ','"):
        list(json_stream.members(path, 2, read.append))
    assert sum(read) < 20_000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        list(ecot_episodes(tmp_path / "gone.json", Tally(), lambda count: None))
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        list(lara_episodes(tmp_path / "gone.jsonl", None, Tally(), lambda count: None))


def test_real_annotations_are_patchy_but_clean(samples):
    path = samples / "ecot_reasonings" / "reasonings_5.json"
    truth = json.loads(path.read_text())
    tally, read = Tally(), []
    whole = {episode.key: episode for episode in ecot_episodes(path, tally, read.append)}
    episodes = {key: episode.steps for key, episode in whole.items()}
    assert sum(read) == path.stat().st_size
    assert not tally.faults
    assert set(episodes) == {f"{file}#{name}" for file, found in truth.items() for name in found}
    assert len(episodes) == 53
    worded = 0
    for file, found in truth.items():
        for name, episode in found.items():
            steps = episodes[f"{file}#{name}"]
            points = episode["features"]["gripper_positions"]
            assert list(steps) == list(range(len(points)))
            assert whole[f"{file}#{name}"].num_steps == len(points)
            assert whole[f"{file}#{name}"].instruction == episode["metadata"]["language_instruction"]
            for t, step in steps.items():
                ahead = points[t : t + 5]
                assert step.gripper_positions == tuple(map(tuple, ahead + ahead[-1:] * (5 - len(ahead))))
                texts = {part: getattr(step, part) for part in TEXTS}
                assert texts == episode["reasoning"].get(str(t), dict.fromkeys(TEXTS))
                worded += any(texts.values())
    assert (worded, tally.without_text) == (63, 10109 - 63)


def test_a_real_episode_without_reasoning_says_what_it_is(samples):
    path, tally = samples / "ecot_libero" / "reasonings_libero_spatial_one_episode.json", Tally()
    (episode,) = ecot_episodes(path, tally, lambda count: None)
    assert episode.key.endswith("on_the_plate_demo.hdf5#386")
    assert (len(episode.steps), episode.num_steps) == (0, 138)
    assert episode.instruction.startswith("pick up the black bowl in the top drawer")
    assert tally == Tally(without_steps=1)


def write_lines(path: pathlib.Path, *lines) -> pathlib.Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def lara(captions, boxes) -> tuple[list, Tally, int]:
    tally, read = Tally(), []
    return list(lara_episodes(captions, boxes, tally, read.append)), tally, sum(read)


def test_lara_files_are_joined_whatever_their_order(tmp_path):
    captions = write_lines(
        tmp_path / "captions.jsonl",
        {"episode_index": 7, "steps": {"0": {"subtask": "grasp", "reasoning": "r", "gripper_state": "open"}}},
        {"episode_index": 2, "steps": {"1": {"subtask": "", "reasoning": "only this"}, "2": {"subtask": " "}}},
    )
    labels = {"active_bbox": [None, [0, 0.25, 0.5, 1]], "active_bbox2": [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]}
    boxes = write_lines(
        tmp_path / "boxes.jsonl",
        {"episode_index": 2, "num_steps": 3, "dense_labels": labels, "dense_scores": []},
        "",
        {"episode_index": 9, "dense_labels": {"active_bbox": [[0, 0, 1, 1.0000001]]}},
    )
    episodes, tally, read = lara(captions, boxes)
    assert episodes == [
        Episode("7#0", {0: Reasoning(subtask="grasp", reason="r")}),
        Episode(
            "2#0",
            {
                0: Reasoning(boxes=((0.1, 0.2, 0.3, 0.4),)),
                1: Reasoning(reason="only this", boxes=((0.0, 0.25, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0))),
            },
            3,
        ),
        Episode("9#0", {0: Reasoning(boxes=((0.0, 0.0, 1.0, 1.0),))}, 1),
    ]
    assert tally == Tally(without_text=2)
    assert read == captions.stat().st_size + boxes.stat().st_size
    assert [episode.key for episode in lara(captions, None)[0]] == ["7#0", "2#0"]


def test_faults_in_lara_files_are_counted(tmp_path):
    captions = write_lines(
        tmp_path / "captions.jsonl",
        {"episode_index": 0, "steps": {"0": {"subtask": 5, "reasoning": "r"}, "x": {}, "1": "words"}},
        '{"episode_index": 1, "steps": {"0"',
        {"episode": 2},
        {"episode_index": 0, "steps": {}},
    )
    labels = {"active_bbox": [[0, 0, 2, 1], [0.5, 0.5, 0.5, 0.6], [0, 0, float("nan"), 1], [0, 0, 1]]}
    boxes = write_lines(tmp_path / "boxes.jsonl", {"episode_index": 0, "dense_labels": labels})
    episodes, tally, _ = lara(captions, boxes)
    assert episodes == [Episode("0#0", {0: Reasoning(reason="r")}, 4)]
    assert tally.faults == {
        "text is no string": 1,
        "step is not numbered": 1,
        "step is not an object": 1,
        "line holds no episode_index": 2,
        "episode given twice, the first counts": 1,
        "box is not [x0, y0, x1, y1] with area, from 0 to 1": 4,
    }
    assert tally.examples["line holds no episode_index"] == [f"{captions}: line 2", f"{captions}: line 3"]
