import pickle

import numpy as np
import pytest
from data import rlds_episodes
from data.bridge_files import write_dataset
from reasoning.text_cases import thinking_tokenizer

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.mixture import Member, Mixture
from jaxvla.errors import DataError
from jaxvla.reasoning.curriculum import CurriculumConfig
from jaxvla.reasoning.prompt import PromptConfig
from jaxvla.reasoning.record import Episode, Reasoning
from jaxvla.reasoning.store import write_store
from jaxvla.reasoning.texts import StoreChoice, open_texts


@pytest.fixture
def data(tmp_path):
    """Trajectories a/train/0 to 3 of 6 transitions, told "a" or "a again", and a/val/0 of 4, told "do it"."""
    return write_dataset(tmp_path / "data", {"a": [6, 6, 6, 6]})


def annotated(key, num_steps, instruction):
    return Episode(key, {t: Reasoning(move=f"{key} {t}") for t in range(num_steps)}, num_steps, instruction)


GOOD = {f"a/train/{i}#0": (7 - i % 2, "A again.") for i in range(4)} | {"a/val/0#0": (5, "")}


def opened(data, include=(("**",),), max_mismatched=0.25, drop_first=0, **changes):
    """The texts with a store of `GOOD`, but for the episodes in `changes`."""
    facts = GOOD | changes
    write_store(data / "r.store", [annotated(key, *known) for key, known in facts.items()], {})
    config = SourceConfig("bridge_tfrecord", str(data), include, drop_first=drop_first)
    training = open_dataset(config, DataConfig(), "train")
    splits = [Mixture.of(x) for x in (training, open_dataset(config, DataConfig(), "val", training.statistics))]
    store = str(data / "r.store")
    settings = (thinking_tokenizer(), PromptConfig(), CurriculumConfig(), (2,))
    return open_texts(*settings, *splits, [StoreChoice(store, max_mismatched)]), store


def test_annotations_that_fit_are_joined(data):
    texts, store = opened(data)
    assert texts.report == (
        f"reasoning    4 of 4 trajectories, 24 of 24 transitions (100.0%), {store}\n             MOVE 100.0%",
        "             100.0% of the validation transitions",
    )
    assert texts.training.split.episodes.tolist() == [0, 1, 2, 3]


def test_annotations_find_their_steps_where_others_are_dropped(data):
    texts, _ = opened(data, drop_first=2)
    split = texts.training.split
    assert split.episodes.tolist() == [0, 1, 2, 3]
    assert split.transitions.tolist() == [[i, t] for i in range(4) for t in range(2, 6)]


def test_annotations_of_something_else_are_left_out_and_reported(data):
    texts, store = opened(data, **{"a/train/2#0": (7, "take the cup")})
    assert texts.report[1:] == (
        f"warning: 1 of the 4 training trajectories that {store} names are not what it annotates: 1 have another "
        "instruction, such as 'a/train/2#0' ('take the cup' annotated, 'a' in the data); they get no reasoning",
        "             100.0% of the validation transitions",
    )
    assert texts.report[0].startswith("reasoning    3 of 4 trajectories, 18 of 24 transitions (75.0%)")
    assert texts.training.split.episodes.tolist() == [0, 1, -1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a/train/0#0": (9, ""), "a/train/1#0": (5, "")},
            r"^2 of the 4 training trajectories .* 2 have another number of steps, such as "
            r"'a/train/0#0' \(9 annotated, 7 frames\); .*bridgedata_config\.max_mismatched=0\.25",
        ),
        ({"a/val/0#0": (7, "")}, r"^1 of the 1 validation trajectories .*'a/val/0#0' \(7 annotated, 5 frames\)"),
    ],
)
def test_annotations_of_other_data_are_refused(data, changes, message):
    with pytest.raises(DataError, match=message):
        opened(data, **changes)


def test_a_file_in_two_groups_keeps_its_reasoning(data):
    texts, _ = opened(data, (("**",), ("a",)))
    assert texts.training.split.episodes.tolist() == [0, 1, 2, 3] * 2


def test_two_folders_whose_trajectories_have_the_same_keys_get_no_reasoning(data):
    write_dataset(data / "elsewhere", {"a": [6]})
    with pytest.raises(DataError, match=r"2 share their key, such as 'a/train/0#0' \(that of 2 trajectories\)"):
        opened(data)


def test_validation_without_annotations_is_a_warning(data):
    texts, store = opened(data, **{"a/val/0#0": (0, "")})
    coverage, warning = texts.report[1:]
    assert coverage == "             0.0% of the validation transitions"
    assert warning.startswith(f"warning: {store} annotates only 0.0% of the validation transitions: the data has keys")


def test_every_dataset_has_its_own_store(tmp_path):
    """Three datasets whose trajectories have the same keys; the second has no reasoning."""
    members, stores = {"train": [], "val": []}, []
    for name, annotates in (("one", True), ("three", True), ("two", False)):
        root = write_dataset(tmp_path / name, {"a": [6, 5]})
        facts = {"a/train/0#0": (7, ""), "a/train/1#0": (6, ""), "a/val/0#0": (5, "")}
        episodes = [
            Episode(key, {t: Reasoning(move=f"{name} {key} {t}") for t in range(steps)}, steps, told)
            for key, (steps, told) in facts.items()
        ]
        store = str(tmp_path / f"{name}.store") if annotates else ""
        if annotates:
            write_store(store, episodes, {})
        stores.append(StoreChoice(store, 0.0))
        statistics = None
        for split in members:
            dataset = open_dataset(
                SourceConfig("bridge_tfrecord", str(root), (("**",),)), DataConfig(), split, statistics
            )
            members[split].append(Member(name, dataset))
            statistics = dataset.statistics
    splits = [Mixture(tuple(own)) for own in members.values()]
    texts = open_texts(thinking_tokenizer(), PromptConfig(), CurriculumConfig(), (2,), *splits, stores)
    assert [line.rsplit("  ", 1)[1] for line in texts.report] == ["[one]", "[three]"] * 2
    split = texts.training.split
    assert split.instructions == splits[0].annotations()
    found = split.read(np.array([3, 0, 5, 2]), np.array([1, 2, 0, 4]))
    said = [None if known is None else known.move for known in found]
    assert said == ["three a/train/1#0 1", "one a/train/0#0 2", None, "three a/train/0#0 4"]
    again = pickle.loads(pickle.dumps(split))
    assert again.read(np.array([3]), np.array([1]))[0].move == "three a/train/1#0 1"
    assert split.names(np.array([4]), np.array([2]))(0) == "trajectory 'a/train/0#0' step 2"
    np.testing.assert_array_equal(np.unique(split.transitions[:, 0]), np.arange(6))


def test_annotations_count_the_steps_of_the_stored_episode(tmp_path):
    """Whichever of them a trajectory keeps: of BridgeData all but the first."""
    episodes = [rlds_episodes.episode(number) for number in range(3)]
    members, stores = {"train": [], "val": []}, []
    for name, standardization in (("all", ""), ("later", "bridge_orig")):
        root = rlds_episodes.write_dataset(tmp_path / name, {split: [episodes] for split in members})
        annotations = [
            Episode(f"/raw/{i}#{i}", {t: Reasoning(move=f"{name} {i} {t}") for t in range(6)}, 6, "go")
            for i in range(3)
        ]
        write_store(tmp_path / f"{name}.store", annotations, {})
        stores.append(StoreChoice(str(tmp_path / f"{name}.store"), 0.0))
        own = {"cameras": {"images0": "image_0"}, "image_size": (8, 8), "standardization": standardization}
        for split, opened_before in members.items():
            dataset = open_dataset(SourceConfig("rlds", str(root), **own), DataConfig(), split)
            opened_before.append(Member(name, dataset))
    splits = [Mixture(tuple(own)) for own in members.values()]
    texts = open_texts(thinking_tokenizer(), PromptConfig(), CurriculumConfig(), (2,), *splits, stores)
    split = texts.training.split
    found = split.read(*split.transitions[[5, 9, 19, 22]].T)  # the first and the last of the second trajectory of each
    assert [known.move for known in found] == ["all 1 0", "all 1 4", "later 1 1", "later 1 4"]
    assert texts.report[0].startswith("reasoning    3 of 3 trajectories, 15 of 15 transitions (100.0%)")
    assert texts.report[1].startswith("reasoning    3 of 3 trajectories, 12 of 12 transitions (100.0%)")
