"""RLDS datasets as people have them: other features, types and files than BridgeData's."""

import json

import numpy as np
import pytest
from data.rlds_episodes import FOUR, STEPS, episode, one_line, opened, picture, write_dataset

from jaxvla.data.formats.tfrecord import RecordWriter
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture


def without(steps, *names):
    return {name: kind for name, kind in steps.items() if name not in names}


# Language


def test_a_step_has_its_own_text_and_paraphrases_hold_for_an_episode(tmp_path):
    changing = ["open it"] * 2 + ["take it"] * 2 + ["  "] + ["open it"]
    episodes = [
        episode(0, language_instruction=changing),
        episode(1, language_instruction=["go"] * 6),
        episode(2, language_instruction=[" "] * 6),
        episode(3, language_instruction=["go"] * 5 + ["only the last step"]),
    ]
    dataset = opened(write_dataset(tmp_path, {"train": [episodes]}))
    source = dataset.source
    assert source.language == (("open it", "take it"), ("go",), (), ("go",))
    assert source.texts.tolist() == [0, 0, 1, 1, -2, *[-1] * 5, *[-2] * 5, *[-1] * 5]
    expected = ["open it", "open it", "take it", "take it", None, *["go"] * 5, *[None] * 5, *["go"] * 5]
    seen = set()
    stream = training_batches(Mixture.of(dataset), 64, 0, ("language", "observations"))
    for _ in range(4):
        batch = next(stream)
        number, step, _ = batch["observations"]["images0"][:, 0, 0, 0].T
        for annotation, row in zip(batch["language"], number * 5 + step):
            text = dataset.annotations()[annotation] if annotation >= 0 else None
            assert text == expected[row]
            seen.add(row)
    stream.close()
    assert seen == set(range(20))


def test_steps_without_a_text_are_not_drawn_on_request(tmp_path):
    partly = episode(0, language_instruction=["", "go", "go", "", "stop", "stop"])
    folder = write_dataset(tmp_path, {"train": [[partly, episode(1, language_instruction=[""] * 6), episode(2)]]})
    dataset = opened(folder, data={"skip_unlabeled": True})
    assert dataset.drawable.tolist() == [1, 2, 4, 10, 11, 12, 13, 14]
    assert (dataset.num_transitions, dataset.group_sizes) == (8, (8,))
    assert dataset.report[:-1] == ("unlabelled   7 of 15 train transitions, which are not drawn",)
    stream = training_batches(Mixture.of(dataset), 8, 0, ("language", "observations"))
    batch = next(stream)
    stream.close()
    number, step, _ = batch["observations"]["images0"][:, 0, 0, 0].T
    assert sorted(zip(number, step)) == [(0, 1), (0, 2), (0, 4), *((2, t) for t in range(5))]
    assert (batch["language"] >= 0).all()


def test_vectors_follow_their_texts(tmp_path):
    vectors = np.arange(18, dtype=np.float32).reshape(6, 3)
    texts = ["a", "a", "b", "", "b", "c"]
    two = [episode(0, language_instruction=texts, language_embedding=vectors), episode(1, language_embedding=vectors)]
    steps = STEPS | {"language_embedding": "tensor"}
    dataset = opened(write_dataset(tmp_path, {"train": [two]}, steps))
    assert dataset.annotations() == ("a", "b", "go")
    np.testing.assert_array_equal(dataset.source.vectors, vectors[[0, 2, 0]])


def test_data_without_a_language_feature_is_unlabelled(tmp_path):
    steps = without(STEPS, "language_instruction") | {"observation/task": {"dtype": "string"}}
    episodes = [episode(i, language_instruction=None, observation__task=["lift"] * 6) for i in range(3)]
    folder = write_dataset(tmp_path, {"train": [episodes]}, steps)
    dataset = opened(folder)
    assert dataset.annotations() == ()
    assert dataset.report[:-1] == (
        "language     steps have no text 'language_instruction', texts are observation/task: "
        "bridgedata_config.language_key chooses one",
    )
    one_line(
        folder,
        r"no train transition has an instruction, which .*skip_unlabeled=True asks.*bridgedata_config\.language_key",
        data={"skip_unlabeled": True},
    )
    labelled = opened(folder, language_key="observation/task", data={"skip_unlabeled": True})
    assert labelled.annotations() == ("lift",) * 3
    assert len(labelled.report) == 1, "nothing but the way of the pictures"
    one_line(folder, r"no feature 'words'; text are observation/task: set .*language_key", language_key="words")


# Features


@pytest.mark.parametrize("kind", [np.int64, bool, np.float64])
def test_integers_and_booleans_are_numbers(tmp_path, kind):
    values = (np.arange(42).reshape(6, 7) % 5 - 2).astype(kind)
    folder = write_dataset(tmp_path, {"train": [[episode(0, action=values, observation__state=values), episode(1)]]})
    table = opened(folder).source.table(0)
    assert table.actions.dtype == table.proprio.dtype == np.float32
    np.testing.assert_array_equal(table.actions, values[:-1])
    np.testing.assert_array_equal(table.proprio, values)


def test_scalars_are_columns(tmp_path):
    one = [episode(i, observation__state=np.arange(6, dtype=np.float32)) for i in range(2)]
    assert opened(write_dataset(tmp_path, {"train": [one]})).source.proprio.shape == (12, 1)


@pytest.mark.parametrize("name", ["image", "second/deep/image_1", "observation/image_0", "image_0"])
def test_cameras_are_found_below_the_steps(tmp_path, name):
    there = {"image_0": "observation/image_0"}.get(name, name)
    steps = without(STEPS, "observation/image_0") | {there: "image"}
    changes = {"observation__image_0": None}
    episodes = [
        episode(i, **(changes | {there.replace("/", "__"): [picture(i + 9, t) for t in range(6)]})) for i in range(2)
    ]
    dataset = opened(write_dataset(tmp_path, {"train": [episodes]}, steps), cameras={"images0": name})
    assert dataset.source.frames(1, [4], "images0")[0, 0, 0].tolist() == [10, 4, 7]
    one_line(
        tmp_path,
        rf"no camera 'wrist', the steps have {there}: set bridgedata_config\.cameras\.x",
        cameras={"x": "wrist"},
    )


def test_a_camera_that_nobody_uses_may_be_missing(tmp_path):
    steps = STEPS | {"observation/wrist": "image"}
    wrist = [picture(50, t) for t in range(6)]
    episodes = [
        episode(0, observation__wrist=wrist),
        episode(1),
        episode(2, observation__wrist=wrist[:3]),
        episode(3, observation__wrist=[*wrist[:2], b"", *wrist[3:]]),
        episode(4, observation__wrist=np.zeros(6)),
    ]
    folder = write_dataset(tmp_path, {"train": [episodes]}, steps)
    assert len(opened(folder).source) == 5
    assert len(opened(folder).report) == 1, "nothing but the way of the pictures"
    both = opened(folder, cameras={"images0": "wrist", "images1": "image_0"}, max_skipped=0.9)
    assert both.source.keys == ("/raw/0#0",)
    assert both.report[0] == "skipped      4 of 5 train trajectories (80.0%)"
    assert "4 camera 'observation/wrist' cannot be used, such as" in both.report[1]
    assert both.report[1].endswith("trajectory '/raw/1#1': no pictures")


@pytest.mark.parametrize(
    ("steps", "changes", "match"),
    [
        (
            {"action": {"dtype": "float32", "encoding": "zlib"}},
            {},
            r"something else at 'action'; numbers are observation/state: set bridgedata_config\.action_key to one",
        ),
        (
            {"observation/state": "other"},
            {},
            r"something else at 'observation/state'; numbers are action: set bridgedata_config\.proprio_key",
        ),
        (
            {},
            {"action_key": "actions"},
            r"no feature 'actions'; numbers are action, observation/state: set .*action_key",
        ),
        (
            {},
            {"proprio_key": "observation"},
            r"a group of features 'observation' \(observation/state, observation/image",
        ),
        ({}, {"language_key": "action"}, r"numbers at 'action'; text are language_instruction: set .*language_key"),
    ],
)
def test_features_of_other_names_or_types_are_named(tmp_path, steps, changes, match):
    write_dataset(tmp_path, {"train": [FOUR]}, STEPS | steps)
    one_line(tmp_path, match, **changes)


def test_features_are_chosen_by_the_configuration(tmp_path):
    steps = {"act/joints": "tensor", "joints": "tensor", "observation/image_0": "image", "is_first": "tensor"}
    renamed = [
        episode(
            i, action=None, observation__state=None, act__joints=e["steps/action"], joints=e["steps/observation/state"]
        )
        for i, e in enumerate(FOUR)
    ]
    folder = write_dataset(tmp_path, {"train": [renamed]}, steps)
    dataset = opened(folder, action_key="act/joints", proprio_key="joints")
    np.testing.assert_array_equal(dataset.source.table(2).actions, FOUR[2]["steps/action"][:-1])
    # The same files, but other numbers, have other statistics.
    other = opened(folder, action_key="joints", proprio_key="act/joints")
    np.testing.assert_array_equal(other.statistics.actions.max, other.source.actions.max(0))


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ({"episode_metadata/episode_id": ["left"]}, ("/raw/0#left", "/raw/1#1")),
        ({"episode_metadata/episode_id": np.array([12345678])}, ("/raw/0#12345678", "/raw/1#1")),
        ({"episode_metadata/file_path": [], "episode_metadata/episode_id": ["x"]}, ("x", "/raw/1#1")),
        (
            {"episode_metadata/file_path": [], "episode_metadata/episode_id": np.zeros(0, int)},
            ("my-set-train.tfrecord-00000-of-00001#0", "/raw/1#1"),
        ),
        (
            {"episode_metadata/file_path": [], "episode_metadata/episode_id": np.zeros(0, int), "episode_id": ["top"]},
            ("top", "/raw/1#1"),
        ),
    ],
)
def test_keys(tmp_path, names, keys):
    assert opened(write_dataset(tmp_path, {"train": [[episode(0) | names, episode(1)]]})).source.keys == keys


def test_steps_are_counted_without_flags_too(tmp_path):
    assert len(opened(write_dataset(tmp_path / "a", {"train": [[episode(0, is_first=None)]]})).source) == 1
    none = episode(0, is_first=None, language_instruction=None, observation__image_0=None)
    folder = write_dataset(tmp_path / "b", {"train": [[none, *FOUR]]})
    one_line(folder, r"1 no feature says how many steps there are.*record 0: it has .*steps/action", max_skipped=0.1)


# Episodes that cannot be used


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (episode(9, 1), r"1 fewer than 2 transitions, such as .*record 1: trajectory '/raw/9#9': 0"),
        (episode(9, dims=(7, 8)), r"1 other dimensions than the rest.*'/raw/9#9': states \[8\], most have \[7\]"),
        (episode(9, action=np.zeros((5, 7))), r"1 lengths disagree.*record 1: 35 values of 'action' for 6 steps"),
        (episode(9, language_instruction=["x"]), "1 lengths disagree.*1 values of 'language_instruction' for 6 steps"),
        (episode(9, action=None), r"1 no feature 'steps/action', such as .*record 1: it has .*does features\.json"),
        (episode(9, action=["x"] * 6), "1 'steps/action' is bytes values, not float or int64"),
        (episode(9, action=np.full((6, 7), np.inf)), r"1 actions are not finite.*step 0, dimension 0: inf"),
        (episode(9, is_first=np.zeros(0, int)), "1 fewer than 2 transitions.*no steps"),
    ],
)
def test_one_bad_episode_is_counted(tmp_path, bad, match):
    folder = write_dataset(tmp_path, {"train": [[FOUR[0], bad, FOUR[1]], [FOUR[2]]]})
    message = one_line(folder, rf"1 of 4 train trajectories cannot be used, over .*max_skipped=0\.1: {match}")
    assert message.endswith("repair the data, or set bridgedata_config.max_skipped=0.25")
    for _ in range(2):
        dataset = opened(folder, max_skipped=0.25)
        assert dataset.source.keys == ("/raw/0#0", "/raw/1#1", "/raw/2#2")
        assert dataset.report[0] == "skipped      1 of 4 train trajectories (25.0%)"
        assert dataset.source.frames(1, [3], "images0")[0, 0, 0].tolist() == [1, 3, 7]


def test_shards_of_other_dimensions_are_counted(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR[:2], [episode(8, dims=(9, 7))], FOUR[2:]]})
    one_line(
        folder, r"1 of 5 train .*1 other dimensions than the rest.*-00001-of-00003.*actions \[9\], most have \[7\]"
    )
    assert len(opened(folder, max_skipped=0.5).source) == 4


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR]})
    path = next(folder.glob("*.tfrecord*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    one_line(folder, rf"{path}: record 3 .*make the file again", max_skipped=1.0)
    path.write_bytes(whole[:12] + b"\xff" * 12 + whole[24:])
    one_line(folder, rf"{path}: the record at byte 12 does not match its checksum", max_skipped=1.0)
    with RecordWriter(path) as writer:
        writer.write([b"\xff" * 12])
    one_line(folder, rf"{path}: .*damaged at byte", max_skipped=1.0)


# The structures of public datasets


def fabricate(structure, steps=4):
    """The step features of a public dataset, and one episode of them."""
    features, values = {}, {}

    def walk(node, name):
        for key, child in node.items():
            path = f"{name}/{key}".strip("/")
            if isinstance(child, dict):
                walk(child, path)
                continue
            kind, shape, dtype, *_ = child
            features[path] = {"Image": "image", "Text": "text"}.get(kind, {"dtype": dtype, "shape": {}})
            if kind == "Image":
                values[path] = [picture(1, t) for t in range(steps)]
            elif dtype == "string":
                values[path] = ["lift it"] * steps
            else:
                numbers = np.random.default_rng(0).integers(0, 2, (steps, *shape))
                values[path] = numbers.astype(np.float32 if dtype.startswith("float") else np.int64)

    walk(structure["steps"], "")
    return features, {f"steps/{name}": value for name, value in values.items()}


def test_every_public_structure_opens_with_its_own_keys_or_says_what_is_missing(samples, tmp_path):
    path = samples / "oxe_features" / "DERIVED_features.json"
    found = json.loads(path.read_text())["datasets"]
    assert len(found) >= 45
    for name, structure in found.items():
        features, one = fabricate(structure)
        folder = write_dataset(tmp_path / name, {"train": [[one, one]]}, features)
        numeric = [key for key, kind in features.items() if isinstance(kind, dict) and kind["dtype"] != "string"]
        actions = [key for key in numeric if key.startswith("action")]
        states = [key for key in numeric if key.startswith("observation")]
        texts = [k for k, kind in features.items() if kind == "text" or (isinstance(kind, dict) and k not in numeric)]
        camera = next(key for key, kind in features.items() if kind == "image")
        usual = [name for name in ("action", "observation/state") if name in numeric]
        keys = {"action_key": [*usual, *actions][0], "proprio_key": [*usual[1:], *states, *actions][0]}
        keys |= {"language_key": texts[0]} if texts else {}
        dataset = opened(folder, cameras={"a": camera}, **keys)
        assert len(dataset.source) == 2, name
        assert dataset.annotations() == (("lift it",) * 2 if texts else ()), name
        if len(usual) < 2:
            one_line(folder, r"action_key|proprio_key", cameras={"a": camera})
