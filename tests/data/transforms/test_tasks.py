import itertools

import numpy as np
import pytest
from data import bridge_files

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.loader import training_batches, validation_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.transforms.tasks import TaskConfig, add_paraphrases
from jaxvla.errors import ConfigError, DataError

KEYS = ("observations", "goals", "language", "actions")


def test_paraphrases_stand_behind_a_trajectorys_texts():
    language = (("a", "b"), (), ("b",))
    added, where = add_paraphrases(language, {"b": ("b1", "b2"), "z": ("z1",)})
    assert added == (("a", "b", "b1", "b2"), (), ("b", "b1", "b2"))
    assert where.count.tolist() == [0, 2, 0, 0, 2, 0, 0]
    text = np.array([0, 1, 1, 1, 4, 4, -1], np.int32)
    # A third of the unit interval for each of itself and its two paraphrases; 0.5 and more leaves it as it is.
    uniforms = np.array([[0, 0.9], [0, 0.3], [0, 0.4], [0, 0.9], [0.49, 0.99], [0.5, 0.99], [0, 0.9]])
    told = where.draw(text, 0.5, uniforms)
    assert (told.tolist(), told.dtype) == ([0, 1, 2, 3, 6, 4, -1], np.int32)


def test_no_sample_loses_both():
    tasks, uniforms = TaskConfig(drop_language=0.25, drop_goal=0.75), np.linspace(0, 0.999, 1000)[:, None]
    no_language, no_goal = tasks.drops_language(uniforms), tasks.drops_goal(uniforms)
    assert (no_language ^ no_goal).all()
    assert no_language.sum() == pytest.approx(250, abs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_goal": 1.5}, r"drop_goal must lie in \[0, 1\]"),
        ({"drop_goal": 0.6, "drop_language": 0.5}, "must sum to 1 at most"),
        ({"rephrase": 0.5}, "need each other"),
        ({"paraphrases": "file.json"}, "need each other"),
    ],
)
def test_bad_tasks(changes, message):
    with pytest.raises(ConfigError, match=message):
        TaskConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({"drop_goal": 0.1}, ("observations", "instruction"), "drop_goal=0.1 has no effect: the agent takes no goals"),
        ({"drop_language": 0.1}, ("goals",), "drop_language=0.1 has no effect: the agent takes no instructions"),
        ({"rephrase": 0.1, "paraphrases": "x"}, ("goals",), "rephrase=0.1 has no effect"),
        ({"drop_language": 0.1}, ("text",), "needs an instruction in each: set it to 0"),
    ],
)
def test_what_an_agent_cannot_take_is_refused(changes, keys, message):
    with pytest.raises(ConfigError, match=message):
        TaskConfig(**changes).check(keys)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return bridge_files.write_dataset(tmp_path_factory.mktemp("data"), {"a": [5, 7], "b": [6]})


def opened(root, split="train", **tasks):
    config = SourceConfig("bridge_tfrecord", str(root), (("**",),))
    dataset = open_dataset(config, DataConfig(tasks=TaskConfig(**tasks)), split)
    return dataset, Mixture.of(dataset)


def test_dropped_tasks(root, monkeypatch):
    plain, changed = (
        list(itertools.islice(training_batches(opened(root, **tasks)[1], 16, 3, KEYS), 4))
        for tasks in ({}, {"drop_language": 0.3, "drop_goal": 0.4})
    )
    lost = {"language": 0, "goals": 0}
    for before, after in zip(plain, changed):
        np.testing.assert_array_equal(before["actions"], after["actions"])
        np.testing.assert_array_equal(before["observations"]["images0"], after["observations"]["images0"])
        silent, blind = after["language"] < 0, ~after["goals"]["images0"].any((1, 2, 3))
        assert not (silent & blind).any()
        assert not after["goals"]["proprio"][blind].any()
        np.testing.assert_array_equal(np.where(silent, -1, before["language"]), after["language"])
        for name, values in before["goals"].items():
            np.testing.assert_array_equal(values[~blind], after["goals"][name][~blind])
        lost["language"] += silent.sum()
        lost["goals"] += blind.sum()
    assert lost["language"] == pytest.approx(0.3 * 64, abs=10)
    assert lost["goals"] == pytest.approx(0.4 * 64, abs=10)


def test_instructions_are_told_in_other_words(root, tmp_path):
    path = tmp_path / "paraphrases.json"
    path.write_text('{"a": ["A one", "A two"], "no such thing": ["nothing"]}')
    dataset, mixture = opened(root, rephrase=0.5, paraphrases=str(path))
    lines = dataset.report[:2]
    assert lines[0] == f"paraphrases  of 1 of 4 instructions, {path}"
    assert lines[1].strip() == "1 instructions of the file match none here, such as 'no such thing'"
    plain = training_batches(opened(root)[1], 64, 3, KEYS)
    told, texts, originals = (
        training_batches(mixture, 64, 3, KEYS),
        mixture.annotations(),
        opened(root)[0].annotations(),
    )
    counts = {"a": 0, "A one": 0, "A two": 0}
    for before, after in itertools.islice(zip(plain, told), 6):
        for old, new in zip(before["language"].tolist(), after["language"].tolist()):
            old, new = originals[old], texts[new]
            assert new == old or (old == "a" and new in counts)
            if old == "a":
                counts[new] += 1
    # Of half of them a third is drawn as it was.
    total = sum(counts.values())
    assert counts["a"] / total == pytest.approx(2 / 3, abs=0.1)
    assert counts["A one"] / total == pytest.approx(1 / 6, abs=0.08)
    # Nothing is told otherwise in validation.
    validation, _ = opened(root, "val", rephrase=0.5, paraphrases=str(path))
    assert validation.annotations() == opened(root, "val")[0].annotations()
    assert (next(validation_batches(Mixture.of(validation), 4, KEYS))["language"] >= 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds no object of instructions"),
        ('{"a": "b"}', "the paraphrases of 'a' are no list of texts: 'b'"),
        ('{"a": ["b", " "]}', "the paraphrases of 'a' are no list of texts"),
    ],
)
def test_bad_paraphrases(root, tmp_path, content, message):
    path = tmp_path / "paraphrases.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        opened(root, rephrase=0.5, paraphrases=str(path))


def test_paraphrases_that_are_not_there(root, tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        opened(root, rephrase=0.5, paraphrases=str(tmp_path / "none.json"))
