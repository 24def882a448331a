"""A policy that reasons, from annotated TFRecords through the stages of its curriculum to actions."""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from experiments.mains import load, train_main
from experiments.sample_world import make, run

from jaxvla.data.formats.bridge_tfrecord import build_index
from jaxvla.errors import ConfigError, DataError, PolicyError
from jaxvla.parallel import mesh
from jaxvla.parallel.mesh import make_mesh
from jaxvla.reasoning.batch import TextBatches
from jaxvla.serving.policy import load_policy
from jaxvla.training.doctor import CHECKS, examine
from jaxvla.training.job import open_job
from jaxvla.training.optimizer import make_optimizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


def make_settings(folder):
    """The tiny preset, shorter and smaller: one stage with words, one without."""
    settings = load(ROOT / "configs" / "train_config.py").get_config("ecot_tiny").to_dict()
    settings |= {"batch_size": 4, "num_steps": 4, "log_interval": 1, "eval_interval": 2, "save_interval": 2}
    settings |= {"save_dir": str(folder), "eval_batches": 1}
    settings["data"] |= {"image_size": (), "action_horizon": 2}
    settings["execution"]["execute_steps"], settings["rollout"]["world"] = 0, ""
    settings["curriculum"] |= {"component_order": ("SUBTASK", "MOVE"), "schedule": ((0, 0), (2, 2))}
    settings["agent_kwargs"] |= {"max_new_tokens": 6}
    settings["agent_kwargs"]["action_head"] |= {"num_layers": 2, "output_dim": 16, "hidden_size": 16}
    # Without a warmup, as the doctor has it, which then need not compile the step again.
    settings["optimizer"] |= {"warmup_steps": 0, "decay_steps": 100}
    return settings


def source(data, **changes):
    config = load(ROOT / "configs" / "data_config.py").get_config("bdv2_local").to_dict()
    return config | {"data_path": str(data)} | changes


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(mesh, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run folder of a policy that went through both stages, as experiments/train.py leaves it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(mesh, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    main = train_main()
    settings = make_settings(tmp_path_factory.mktemp("runs"))
    settings["rollout"] |= {"world": "tabletop", "level": "one", "episodes": 1, "last_episodes": 1, "interval": 2}
    settings["rollout"] |= {"parallel": 1}
    settings["save_interval"] = 1
    main.train(settings, source(data))
    patch.undo()
    return only_run(settings), settings, main


def only_run(settings):
    (run,) = pathlib.Path(settings["save_dir"]).iterdir()
    return run


def logged(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "training/loss" in row}


def test_the_sample_has_both_cameras(data):
    files = [*data.rglob("out.tfrecord")]
    assert [set(build_index(str(path)).frames) for path in files] == [{"images0", "images1"}] * len(files)
    assert len(files) > 3


def test_one_run_goes_through_the_stages(trained):
    run, _, _ = trained
    rows = logged(run)
    assert [rows[step]["training/stage"] for step in (1, 2, 3, 4)] == [0, 0, 2, 2]
    assert [rows[step]["training/n_latents"] > 0 for step in (1, 2, 3, 4)] == [False, False, True, True]
    for row in rows.values():
        total = row["training/action_loss"] + 0.1 * row["training/lm_loss"]
        assert row["training/loss"] == pytest.approx(total, rel=1e-5)
        assert row["training/grad_norm/backbone"] > 0
        assert row["training/grad_norm/action_head"] > 0
    for name in ("config.json", "dataset_statistics.json", "loss.png", "actions.png"):
        assert (run / name).stat().st_size > 100
    # It plays in either stage, in the first of which there are no slots to reason in.
    played = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in played if "rollout/success" in row] == [2, 4]
    # The step of the second stage was compiled while the first one trained, for batches as they came.
    assert [row["step"] for row in played if "timer/compile_s" in row] == [1]


def test_stopped_within_a_stage_and_resumed_is_as_if_never_stopped(trained, data, tmp_path, monkeypatch):
    run, settings, main = trained
    monkeypatch.setattr(main, "conclude", lambda *_: None)
    # From within the second stage, and without the rollouts.
    own = {"save_dir": str(tmp_path), "resume_path": str(run / "checkpoints" / "3")}
    resumed = settings | own | {"rollout": settings["rollout"] | {"world": ""}}
    main.train(resumed, source(data))
    again, whole = logged(only_run(resumed)), logged(run)
    assert [*again] == [4]
    assert again[4]["training/loss"] == whole[4]["training/loss"]


def view(policy):
    images = {camera: np.full((40, 40, 3), 90, np.uint8) for camera in policy.spec.cameras}
    return images | {"proprio": np.array([0.3, 0.0, 0.15, 0, 0, 0, 1], np.float32)}


def test_a_policy_acts_alone_in_every_mode(trained, data, tmp_path):
    run, _, _ = trained
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    task = {"language": "put the red cube in the bowl"}
    actions = {}
    for mode in ("implicit", "explicit", "none"):
        policy = load_policy(moved, inference=mode)
        actions[mode] = policy.act(view(policy), task)
        assert actions[mode].shape == (2, 7)
        # After four steps all that is said may be control signs, which are no words; tests/serving shows words.
        assert mode == "explicit" or policy.words == ""
        np.testing.assert_array_equal(policy.act(view(policy), task), actions[mode])
    for one, other in itertools.combinations(actions.values(), 2):
        assert not np.allclose(one, other)
    with pytest.raises(PolicyError, match="expected 'language', an instruction"):
        policy.act(view(policy), {"goals": view(policy)})
    with pytest.raises(DataError, match="control sign"):
        policy.act(view(policy), {"language": "go <|im_end|>"})
    with pytest.raises(ConfigError, match="implicit needs a stage with slots"):
        load_policy(moved, step=2, inference="implicit")


def test_slots_are_looked_into(trained, warm, tmp_path):
    run, _, _ = trained
    script = ROOT / "experiments" / "probe_slots.py"
    flags = ("--samples=100", f"--output_path={tmp_path / 'probe.json'}")
    done = warm.start([script, f"--checkpoint={run}", *flags], ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["samples"] == 100
    assert [*found["words"]] == ["SUBTASK", "MOVE"]
    for read in found["words"].values():
        assert read["texts"] > 1
        assert all(0 <= read[place] <= 1 for place in ("most frequent", "instruction", "its slots", "all slots"))
    shares = [share for share, _ in found["attention"].values()]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert min(shares) > 0
    errors = [*found["mse"].values()]
    assert len(set(errors)) == len(errors) == 5
    assert "slots hidden" in done.stdout
    early = warm.start([script, f"--checkpoint={run}/checkpoints/2"], ROOT)
    assert (early.returncode, early.stderr.count("\n")) == (1, 1)
    assert "does not think in slots" in early.stderr


def diagnose(settings, source_settings, change=lambda job: job):
    return list(examine(lambda: change(open_job(settings, source_settings)), mesh.make_mesh(mesh.MeshConfig())))


def test_the_doctor_passes_a_sound_configuration(data, tmp_path):
    findings = diagnose(make_settings(tmp_path), source(data))
    assert not any(finding.cause for finding in findings)
    assert [finding.check for finding in findings] == [*CHECKS, *CHECKS]
    assert {finding.stage for finding in findings} == {0, 2}


def with_texts(change):
    """A job whose training texts are changed after they are made."""

    class Changed(TextBatches):
        def __call__(self, *args):
            return change(super().__call__(*args))

    def changed(job):
        made = job.texts.training
        training = Changed(made.builder, made.curriculum, made.split, made.specs)
        return dataclasses.replace(job, texts=dataclasses.replace(job.texts, training=training))

    return changed


def without_delimiter(text):
    prefix = text["prefix"].copy()
    prefix[:, -1] = prefix[:, -3]
    return text | {"prefix": prefix, "prefix_start": text["prefix_start"]}


def without_labels(text):
    return text | {"labels": np.zeros_like(text["labels"])}


def with_nan(job):
    dataset = job.training.datasets[0]
    object.__setattr__(dataset, "actions", np.full(dataset.actions.shape, np.nan, np.float32))
    return job


@pytest.mark.parametrize(
    ("change", "check", "cause"),
    [
        (with_texts(without_delimiter), "data", "the text builder: no ' @'"),
        (with_texts(without_labels), "labels", "the labels: nothing to learn"),
        (with_nan, "data", "the data: values that are not finite"),
    ],
    ids=["delimiter", "labels", "nan"],
)
def test_the_doctor_names_what_is_broken(data, tmp_path, change, check, cause):
    last = diagnose(make_settings(tmp_path), source(data), change)[-1]
    assert (last.stage, last.check) == (0, check)
    assert cause in last.cause


def test_the_doctor_names_a_join_that_gives_nothing(data, tmp_path):
    annotations = json.loads((data.parent / "annotations.json").read_text())
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps({f"elsewhere/{key}": value for key, value in annotations.items()}))
    run("reasoning_to_store.py", "--input_path", renamed, "--output_path", tmp_path / "wrong.sqlite")
    wrong = source(data, reasoning_path=str(tmp_path / "wrong.sqlite"))
    (finding,) = diagnose(make_settings(tmp_path), wrong)
    assert "annotates none of the" in finding.saw[0]
    assert "join" in finding.cause


def test_the_doctor_has_nothing_to_say_of_what_never_reasons(data, tmp_path):
    settings = make_settings(tmp_path)
    settings["curriculum"]["reasoning_dropout"] = 1.0
    (finding,) = diagnose(settings, source(data))
    assert finding.saw == ("nothing ever reasons: set config.curriculum.reasoning_dropout below 1",)


def test_the_doctor_names_freezing(data, tmp_path):
    settings = make_settings(tmp_path)
    settings["optimizer"] |= {"learning_rates": {"backbone": 0.0, "action_head": 0.0}}
    last = diagnose(settings, source(data))[-1]
    assert last.check == "steps"
    assert "freezing" in last.cause


def test_one_setting_trains_adapters_at_the_rate_of_what_is_new(data, tmp_path):
    settings = make_settings(tmp_path)
    settings["optimizer"]["learning_rates"] = {"backbone": 1e-5}
    job = open_job(settings, source(data))
    assert (job.adapters(), job.parameters()) == ("", ())
    settings["backbone"]["lora"]["rank"] = 16
    job = open_job(settings, source(data))
    assert job.adapters() == "rank 16 on 7 kernels, 0.07 M parameters at 0.001"
    trained, frozen = job.parameters()
    assert frozen == "1.25 M (backbone 1.25; float32) frozen"
    assert "backbone 0.07" in trained
    rate_of = make_optimizer(job.config.optimizer, job.agent.frozen_modules).rate_of
    paths = ("backbone/lora/text/layers/mlp/up_proj/lora_a", "action_head/x", "backbone/text/x", "backbone/visual/x")
    assert [rate_of(path) for path in paths] == [1e-3, 1e-3, 0, 0]
    settings["optimizer"]["learning_rates"]["backbone/lora"] = 0.5
    assert "at 0.5" in open_job(settings, source(data)).adapters()
    settings["backbone"]["lora"]["targets"] = "layers/norm"
    with pytest.raises(ConfigError, match=r"^lora\.targets: no parameter path matches 'layers/norm'"):
        open_job(settings, source(data))


def test_a_missing_backbone_says_what_to_put_there(data, tmp_path):
    settings = make_settings(tmp_path)
    settings["backbone"]["preset"] = ""
    with pytest.raises(ConfigError, match=r"set --config\.backbone\.path to the folder of a Qwen3-VL model"):
        open_job(settings, source(data))


def test_a_missing_store_says_how_to_make_it(data, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.sqlite.*reasoning_to_store\.py"):
        open_job(make_settings(tmp_path), source(data, reasoning_path="nothing.sqlite"))
