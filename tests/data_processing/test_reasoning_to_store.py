import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from data.raw_files import to_numpy, to_tfrecord

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats import bridge_tfrecord
from jaxvla.data.formats.untrusted import load_pickle
from jaxvla.envs.expert import demonstrate
from jaxvla.envs.tabletop import TabletopEnv
from jaxvla.reasoning.join import check, join
from jaxvla.reasoning.record import Reasoning
from jaxvla.reasoning.store import ReasoningStore

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(script: str, *flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", str(ROOT / "data_processing" / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def to_store(*flags: object) -> subprocess.CompletedProcess:
    return run("reasoning_to_store.py", *flags)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Raw demonstrations, their annotations, and the store and the TFRecords made of these."""
    root = tmp_path_factory.mktemp("world")
    flags = ("--num_trajectories=7", "--num_workers=1", "--image_size=16")
    made = run(
        "make_sample_bridgedata.py", "--output_path", root / "raw", "--annotations_path", root / "ecot.json", *flags
    )
    assert made.returncode == 0, made.stderr
    stored = to_store("--input_path", root / "ecot.json", "--output_path", root / "reasoning.store")
    assert stored.returncode == 0, stored.stderr
    to_numpy(root / "raw", root / "np", im_size=8)
    to_tfrecord(root / "np", root / "tf")
    return root


def open_split(world: pathlib.Path, split: str):
    config = SourceConfig("bridge_tfrecord", str(world / "tf"), (("**",),))
    return open_dataset(config, DataConfig(), split).source


def test_annotations_of_the_sample_world_cover_its_data(world):
    store = ReasoningStore(world / "reasoning.store")
    assert store.metadata == {"format": "ecot", "files": ["ecot.json"]}
    assert len(store) == 7
    matched = []
    for split in ("train", "val"):
        source = open_split(world, split)
        found = join(store, source.keys, source.lengths, source.language, range(len(source)))
        assert check(found, 0.0, "training") == ()
        facts = [store.facts(episode) for episode in found.episodes.tolist()]
        assert [fact.num_steps for fact in facts] == (source.lengths + 1).tolist()
        assert [fact.instruction for fact in facts] == [texts[0] for texts in source.language]
        assert found.num_matched == len(source)
        assert found.coverage == 1
        assert found.components == dict.fromkeys(found.components, 1.0)
        assert len(found.components) == 8
        matched += found.episodes.tolist()
    assert sorted(matched) == list(range(7))


def test_a_step_of_the_data_finds_what_was_true_in_its_frame(world):
    store, source = ReasoningStore(world / "reasoning.store"), open_split(world, "train")
    for i in range(len(source)):
        folder = world / "raw" / source.keys[i].removesuffix("#0")
        agent_data = load_pickle(folder / "agent_data.pkl")
        env = TabletopEnv(image_size=256, render=False, max_steps=90)
        frames = np.arange(source.lengths[i] + 1)
        steps = store.read(np.repeat(store.find([source.keys[i]]), len(frames)), frames)
        pixels = []
        for t, (observation, _) in enumerate(demonstrate(env, **agent_data["demonstration"])):
            np.testing.assert_allclose(source.table(i).proprio[t], observation["proprio"], atol=1e-6)
            boxes = dict(steps[t].visible_objects)
            assert set(boxes) == {item.name for item in env.items}
            for name, box in boxes.items():
                np.testing.assert_allclose(box, env.box(name, "images0"), atol=0.5)
            pixels.append(env.gripper_pixel("images0"))
        for t, step in enumerate(steps):
            ahead = np.minimum(np.arange(t, t + 5), len(steps) - 1)
            np.testing.assert_allclose(step.gripper_positions, np.array(pixels)[ahead], atol=0.5)


def test_a_step_reads_as_the_episode_was_told(world):
    told = json.loads((world / "ecot.json").read_text())
    store, source = ReasoningStore(world / "reasoning.store"), open_split(world, "train")
    episode = told[source.keys[0].removesuffix("#0")]["0"]
    (step,) = store.read(store.find(source.keys[:1]), np.array([12]))
    texts = step.components()
    assert texts["PLAN"] == episode["reasoning"]["12"]["plan"]
    assert texts["MOVE"] == episode["reasoning"]["12"]["move"]
    (_, name, box) = episode["features"]["bboxes"][12][0]
    assert texts["VISIBLE OBJECTS"].startswith(f"{name} {box}, ")


def test_the_key_survives_every_step_of_the_conversion(world):
    folders = (folder.relative_to(world / "raw").as_posix() for folder in world.glob("raw/*/*/raw/traj_group*/traj*"))
    paths = (world / "tf").glob("*/*/out.tfrecord")
    keys = [key for path in paths for key in bridge_tfrecord.build_index(str(path)).keys]
    assert sorted(keys) == sorted(f"{folder}#0" for folder in folders)


def test_real_annotations_become_a_store(samples, tmp_path):
    done = to_store(
        "--input_path", samples / "ecot_reasonings" / "reasonings_2.json", "--output_path", tmp_path / "r.store"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["episodes       3", "steps          573, 564 of them without reasoning in words"]
    assert "    1.6%  MOVE REASONING" in lines
    assert "  100.0%  GRIPPER POSITION" in lines
    assert len(ReasoningStore(tmp_path / "r.store")) == 3


def test_lara_files_become_a_store_and_faults_are_named(tmp_path):
    captions, boxes = tmp_path / "captions.jsonl", tmp_path / "boxes.jsonl"
    captions.write_text(
        '{"episode_index": 4, "steps": {"0": {"subtask": "grasp", "reasoning": "r"}}}\n'
        'broken\n{"episode_index": 5, "steps": {}}\n'
    )
    boxes.write_text('{"episode_index": 4, "dense_labels": {"active_bbox": [[0, 0, 1, 1], [0, 0, 9, 9]]}}\n')
    flags = ("--format=lara", "--input_path", captions, "--output_path", tmp_path / "r.store")
    done = to_store(*flags, "--boxes_path", boxes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("episodes       1, and 1 without any annotated step are left out\n")
    assert done.stdout.splitlines()[-5:] == [
        "faults         left out of the store, the rest is kept",
        "  1  box is not [x0, y0, x1, y1] with area, from 0 to 1",
        "       episode 4, step 1",
        "  1  line holds no episode_index",
        f"       {captions}: line 2",
    ]
    store = ReasoningStore(tmp_path / "r.store")
    expected = Reasoning(subtask="grasp", reason="r", boxes=((0.0, 0.0, 1.0, 1.0),))
    assert store.read(store.find(["4#0"]), np.array([0])) == [expected]
    assert "exists: pass --overwrite" in to_store(*flags).stderr
    spared = to_store(*flags, "--output_path", captions, "--overwrite")
    assert "captions.jsonl is no store, so --overwrite spares it" in spared.stderr
    assert "broken\n" in captions.read_text()
    assert to_store(*flags, "--overwrite").returncode == 0
    assert ReasoningStore(tmp_path / "r.store").metadata["files"] == ["captions.jsonl"]


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, (), "no annotations"),
        ('{"f": {"0": {}}}', (), "no annotated step"),
        ('{"f": {"0": {"reasoning": {"0": {"task": "x"', (), "is cut off or no valid JSON"),
        ("{}", ("--boxes_path=x",), "--boxes_path belongs to --format lara"),
        ("{}", ("--format=csv",), "--format"),
        ("{}", ("--output_path=gs://bucket/r.store",), "gs://bucket"),
        ("{}", ("--output_path=.",), "exists: pass --overwrite"),
        ("{}", ("--output_path=.", "--overwrite"), ". is no store, so --overwrite spares it"),
    ],
)
def test_user_errors_are_one_line(tmp_path, content, flags, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    done = to_store("--input_path", tmp_path / "a.json", "--output_path", tmp_path / "r.store", *flags)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"a.json"}
