import dataclasses
import json
import pathlib
import runpy

import numpy as np
import pytest
from data.bridge_files import trajectory, write
from data.rlds_episodes import episode, write_dataset
from serving.policies import gray, save
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC, make_assets

from jaxvla.agents.language import StoredLanguage, TokenLanguage, language_from_json
from jaxvla.assets import Assets
from jaxvla.data.schema import NO_TOKEN
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import DataError, PolicyError
from jaxvla.serving.instructions import Instructions
from jaxvla.serving.policy import load_policy
from jaxvla.training.job import open_job

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)


def of(batch_keys, **assets):
    return Instructions.of(LinearAgent(SPEC, batch_keys), dataclasses.replace(make_assets(), **assets), 3)


def made(language):
    """As a checkpoint of this language gives them, assets through JSON and back."""
    spec = dataclasses.replace(SPEC, instruction=language.spec)
    assets = dataclasses.replace(make_assets(), spec=spec, language=language.to_json())
    back = Assets.from_json(json.loads(json.dumps(assets.to_json())))
    assert back.spec == spec
    return of(("observations", "instruction", "actions"), spec=back.spec, language=back.language)


@pytest.fixture
def learned():
    return made(TokenLanguage(load_tokenizer(TINY), 12))


@pytest.fixture
def stored():
    return made(StoredLanguage("there", ("go left", "go right"), VECTORS))


def test_agents_that_follow_none_have_none():
    assert of(("observations", "goals", "actions")) is None


def test_texts_become_what_the_agent_was_trained_on(learned, stored):
    tasks = [{"language": "Go  RIGHT"}, {"language": "go left", "goals": {}}]
    ids = learned.task(tasks)["instruction"]
    assert (ids.shape, ids.dtype) == ((2, 12), np.int32)
    tokenizer = load_tokenizer(TINY)
    for row, text in zip(ids, ("go right", "go left")):
        expected = tokenizer.encode(text)
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert (row[len(expected) :] == NO_TOKEN).all()
    vectors = stored.task([{"language": "go right"}, {"language": "go left"}])["instruction"]
    np.testing.assert_array_equal(vectors, VECTORS[::-1])


def test_vectors_are_taken_as_they_are(stored):
    own = np.array([0.5, 0.25, -1])
    found = stored.task([{"language": own}, {"language": "go left"}])["instruction"]
    np.testing.assert_array_equal(found, [own, VECTORS[0]])
    assert found.dtype == np.float32


def test_blanks_have_the_shapes_of_tasks(learned, stored):
    for instructions in (learned, stored):
        blank, real = instructions.blank(3)["instruction"], instructions.task([{"language": "go left"}] * 3)
        assert (blank.shape, blank.dtype) == (real["instruction"].shape, real["instruction"].dtype)


def test_a_text_is_encoded_once(stored, monkeypatch):
    calls = []
    encode = StoredLanguage.encode
    monkeypatch.setattr(StoredLanguage, "encode", lambda self, texts: calls.append(texts) or encode(self, texts))
    for _ in range(3):
        stored.task([{"language": "go left"}, {"language": "go right"}])
    assert calls == [["go left"], ["go right"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"is NoneType; expected an instruction such as .*, or its vector, finite float32\[3\]"),
        ({"language": " "}, "is ' '; expected"),
        ({"language": np.zeros(4)}, r"is float64\[4\]"),
        ({"language": np.zeros(3, int)}, r"is int64\[3\]"),
        ({"language": np.full(3, np.nan)}, "finite"),
    ],
)
def test_other_tasks_are_refused(stored, given, message):
    with pytest.raises(PolicyError, match=message):
        stored.task([{"language": "go left"}, given])


def test_token_ids_are_not_taken(learned):
    with pytest.raises(PolicyError, match=r"is ndarray; expected an instruction such as 'pick up the cup'$"):
        learned.task([{"language": np.zeros(12, np.int32)}])


def test_texts_that_cannot_be_encoded_are_named(learned, stored):
    with pytest.raises(DataError, match="'go up' has no vector among the 2 of there"):
        stored.task([{"language": "go up"}])
    with pytest.raises(DataError, match="more than 12: shorten it"):
        learned.task([{"language": "left " * 40}])


SMALL = {
    "encoder": {"name": "resnetv1-tiny-film"},
    "instruction_encoder": {"width": 8, "num_layers": 1, "num_heads": 2},
    "hidden_dims": (8,),
}


def settings(encoder, path):
    config = runpy.run_path(str(CONFIGS / "train_config.py"))["get_config"]("lc_bc_tiny").to_dict()
    config["data"]["image_size"] = ()
    return config | {"agent_kwargs": SMALL, "language": {"encoder": encoder, "path": str(path)}}


def source(root):
    config = runpy.run_path(str(CONFIGS / "data_config.py"))["get_config"]("bdv2_local").to_dict()
    return config | {"data_path": str(root)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [trajectory(0, 4, ()), trajectory(1, 4, ("go left", "turn left")), trajectory(2, 4, ("go right",))]
    for split in ("train", "val"):
        write(folder / "task" / split / "out.tfrecord", rows)
    np.savez(folder / "own.npz", texts=["go left", "turn left", "go right"], vectors=np.eye(3))
    return folder


@pytest.mark.parametrize("encoder", ["learned", "precomputed"])
def test_a_job_has_the_instructions_of_both_splits(root, encoder):
    job = open_job(settings(encoder, root / "own.npz" if encoder == "precomputed" else ""), source(root))
    language = language_from_json(job.assets.language)
    assert job.agent.spec.instruction == language.spec == job.assets.spec.instruction
    stream = job.training_batches()
    for batch in (next(stream), next(job.validation_batches(0))):
        number = batch["observations"]["images0"][:, 0, 0, 0, 0]
        assert set(number) == {1, 2}, "unlabelled trajectories are left out"
        told = {text: language.encode([text])[0] for text in ("go left", "turn left", "go right")}
        for i, row in zip(number, batch["instruction"]):
            texts = ("go left", "turn left") if i == 1 else ("go right",)
            assert any((row == told[text]).all() for text in texts)
    stream.close()
    example = job.example()
    assert example.trajectory == 1
    np.testing.assert_array_equal(example.told, ["go left" if encoder == "learned" else told["go left"]] * 4)


def test_the_example_is_told_at_each_step_what_holds_there(tmp_path):
    texts = ["", "go left", "go right", "", "go right", "go left"]
    folder = write_dataset(tmp_path, {split: [[episode(0, language_instruction=texts)]] for split in ("train", "val")})
    config = source(folder) | {"format": "rlds", "include": (), "cameras": {"images0": "image_0"}, "image_size": (8, 8)}
    example = open_job(settings("learned", ""), config).example()
    assert example.trajectory == 0
    assert example.told == ["go left", "go left", "go right", "go left", "go right"]


def test_a_policy_follows_what_each_robot_is_told(root, tmp_path):
    job = open_job(settings("learned", ""), source(root))
    others = {"language": job.assets.language, "statistics": job.assets.statistics}
    save(tmp_path, "lc_bc", SMALL, job.agent.spec, values=(-0.5, 0.5), **others)
    view = {"images0": gray(90)}
    tasks = [{"language": text} for text in ("go left", "go right", "go left")]
    policy = load_policy(tmp_path, robots=3)
    assert policy.needed == {"observation": ("images0",), "goals": ()}
    left, right, again = policy.act_batch([view] * 3, tasks).actions_nad
    np.testing.assert_allclose(left, again, rtol=1e-5)
    assert np.abs(left - right).max() > 1e-4


def test_a_job_of_several_datasets(root, tmp_path):
    """Their annotations are one table; the example is of the first dataset that has any."""
    silent = write(tmp_path / "silent" / "a" / "train" / "out.tfrecord", [trajectory(9, 4, ())]).parents[2]
    write(silent / "a" / "val" / "out.tfrecord", [trajectory(8, 4, ())])
    datasets = {"b": {"data_path": str(root), "weight": 3.0}, "a": {"data_path": str(silent)}}
    config = source(root) | {"data_path": "", "datasets": datasets}
    wanted = settings("learned", "")
    wanted["data"] = wanted["data"] | {"skip_unlabeled": False}
    job = open_job(wanted, config)
    assert (job.training.names, job.training.shares) == (("a", "b"), {"a": 0.25, "b": 0.75})
    assert sum(job.drawn(10, 20).values()) == pytest.approx(1)
    language = language_from_json(job.assets.language)
    stream = job.training_batches()
    batch = next(stream)
    stream.close()
    spoken = {1: ("go left", "turn left"), 2: ("go right",)}
    for number, row in zip(batch["observations"]["images0"][:, 0, 0, 0, 0].tolist(), batch["instruction"]):
        known = [language.encode([text])[0] for text in spoken.get(number, ())] or [language.spec.unlabelled()]
        assert any((row == own).all() for own in known)
    assert set(next(job.validation_batches(0))["dataset"]) == {0, 1}
    example = job.example()
    assert (example.name, example.trajectory, example.told) == ("b", 1, ["go left"] * 4)
    assert list(job.assets.datasets) == ["a", "b"]
    assert job.assets.of("b").statistics.num_trajectories == len(job.training.datasets[1].source)
