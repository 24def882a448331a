"""SmolVLA to LeRobot's folders and back; what it shares with act is in test_writing.py and test_starting.py."""

import json
import shutil

import jax
import numpy as np
import pytest
from data import lerobot_files
from interchange.act_policies import change, observation
from interchange.smolvla_policies import SPEC, save_run
from interchange.test_starting import settings, source

from jaxvla.errors import WeightsError
from jaxvla.models.smolvla.config import VLM
from jaxvla.serving.export import export_lerobot
from jaxvla.serving.policy import load_policy
from jaxvla.serving.stored import open_stored
from jaxvla.training.job import open_job

TASK = {"language": "pick up the cup"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("smolvla")
    params, _ = save_run(root / "run")
    export_lerobot(root / "run", root / "policy")
    return root / "run", params, root / "policy"


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported[2], tmp_path / "policy")


def test_what_is_written(exported):
    folder = exported[2]
    values = json.loads((folder / "config.json").read_text())
    assert values["vlm_model_name"] == str(folder / "vlm")
    assert (values["num_vlm_layers"], values["resize_imgs_with_padding"]) == (2, [16, 16])
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    kinds = ["rename_observations", "to_batch", "smolvla_new_line", "tokenizer", "device", "normalizer"]
    assert [step["registry_name"].removesuffix("_processor") for step in steps] == kinds
    assert steps[3]["config"]["tokenizer_name"] == str(folder / "tokenizer")
    assert steps[3]["config"]["max_length"] == 12
    assert steps[5]["config"]["norm_map"] == {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


def test_it_comes_back_and_plays_as_the_run_does(exported):
    run, params, kept = exported
    jax.tree.map(np.testing.assert_array_equal, open_stored(kept).read(), params)
    played = [load_policy(path).act(observation(SPEC), TASK) for path in (run, kept)]
    assert played[0].shape == (4, 3)
    np.testing.assert_allclose(*played, atol=1e-5)


def test_a_folder_that_was_moved_finds_its_sizes_and_words(exported, folder):
    change(folder, vlm_model_name="/gone/vlm")
    path = folder / "policy_preprocessor.json"
    path.write_text(path.read_text().replace(str(exported[2]), "/gone"))
    assets = open_stored(folder).assets
    assert assets.spec.instruction == SPEC.instruction
    assert assets.language == open_stored(exported[0]).assets.language


def test_what_is_missing(folder):
    change(folder, vlm_model_name="/gone/vlm")
    shutil.rmtree(folder / "vlm")
    with pytest.raises(WeightsError, match=r"vlm_model_name is '/gone/vlm', which is neither .* put that into"):
        open_stored(folder)
    change(folder, vlm_model_name=VLM)
    with pytest.raises(WeightsError, match=r"resize_imgs_with_padding is \[16, 16\], but this vision tower sees"):
        open_stored(folder)
    forget(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(WeightsError, match=rf"has no tokenizer, .*: put tokenizer.json of {VLM} into .*tokenizer"):
        open_stored(folder)


def forget(folder):
    """Names the published tokenizer in place of a folder."""
    path = folder / "policy_preprocessor.json"
    pipeline = json.loads(path.read_text())
    pipeline["steps"][3]["config"]["tokenizer_name"] = VLM
    path.write_text(json.dumps(pipeline))


def test_a_job_begins_from_it_with_some_of_its_cameras(exported, tmp_path):
    data = lerobot_files.write(tmp_path / "grasp", lengths=(6,) * 6)
    job = open_job(settings(exported[2], "smolvla"), source(data))
    assert job.agent.spec.cameras == ("top",)
    assert job.agent.spec.action_horizon == 4
    assert job.agent.config.model.dtype == "bfloat16"  # how it computes is as the run says
    assert job.agent.config.model.text.vocab_size == 1000
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(job.agent.init, jax.random.key(0))
    found = job.pretrained(jax.tree.map(lambda _: place, shapes))
    jax.tree.map(lambda x, shape: np.testing.assert_equal(str(x.dtype), str(shape.dtype)), found, shapes)
    expected = exported[1]["expert"]["norm"]["scale"]
    np.testing.assert_array_equal(found["expert"]["norm"]["scale"], expected)
    batch = next(job.training_batches())
    assert batch["instruction"].shape == (2, 12)
    text = "\n".join(job.weights)
    assert "lm_head.weight is not used: the policy says no words" in text
    assert "language.max_length 48 -> 12" in text
    assert "cameras without wrist, which the policy sees, too" in text


def test_another_tokenizer_is_taken_where_it_is_given(folder, tmp_path):
    data = lerobot_files.write(tmp_path / "grasp", lengths=(6,) * 6)
    own = folder.with_name("words")
    (folder / "tokenizer").rename(own)
    forget(folder)
    with pytest.raises(WeightsError, match="has no tokenizer"):
        open_job(settings(folder, "smolvla"), source(data))
    given = settings(folder, "smolvla")
    given["language"]["path"] = str(own)
    assert open_job(given, source(data)).agent.spec.instruction == SPEC.instruction
