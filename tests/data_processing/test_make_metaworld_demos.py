"""Demonstrations of Meta-World: whole or not at all, the same from the same flags, and read with what is thought."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxvla.config import from_mapping
from jaxvla.data.conversion.lerobot.from_lerobot import open_lerobot
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.source_config import SourceConfig
from jaxvla.envs.metaworld.expert import demonstrate
from jaxvla.envs.metaworld.protocols import PROTOCOLS
from jaxvla.envs.metaworld.world import MetaWorld
from jaxvla.envs.rollout import check_fit
from jaxvla.envs.worlds import Scenario
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.store import ReasoningStore

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAIN = [sys.executable, str(ROOT / "data_processing" / "make_metaworld_demos.py")]
SIDE = 32
FLAGS = ["--tasks=reach-v3,button-press-topdown-v3", "--num_trajectories=1", "--num_validation=1", "--num_workers=1"]
FLAGS += [f"--image_size={SIDE}", "--push_rate=0.05"]

there = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="needs the simulator: pip install -e '.[metaworld]'"
)


def run(*flags):
    return subprocess.run([*MAIN, *flags], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset whose making was killed after the first episode, and gone on with."""
    output = tmp_path_factory.mktemp("demos") / "two"
    process = subprocess.Popen([*MAIN, f"--output_path={output}", *FLAGS], stderr=subprocess.DEVNULL)
    marks = output.with_name("two.partial") / "marks"
    while not (marks.is_dir() and any(marks.iterdir())):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = next(iter(output.with_name("two.partial").rglob("*.parquet")))
    at = first.stat().st_mtime_ns
    done = run(f"--output_path={output}", *FLAGS)
    assert done.returncode == 0, done.stderr
    return output, at, done


@there
def test_it_goes_on_and_leaves_nothing_else(made):
    output, at, done = made
    assert sorted(path.name for path in output.parent.iterdir()) == ["two"]
    files = sorted((output / "data").rglob("*.parquet"))
    assert len(files) == 4
    assert files[0].stat().st_mtime_ns == at, "what was done is not done again"
    assert "4 of 4: 2 train, 2 val" in done.stdout
    assert done.stdout.startswith("to make      4 episodes, about 360 frames and 1 MB")


@there
def test_frames_are_those_of_the_world_and_thoughts_are_joined(made):
    output, *_ = made
    episodes = open_lerobot(output)
    store = ReasoningStore(output / "reasoning.sqlite")
    assert len(store) == 4
    for number, task in enumerate(["reach-v3", "button-press-topdown-v3"] * 2):
        episode = episodes.read(number)
        states = np.stack(episode.columns["observation.state"].to_pylist())
        actions = np.stack(episode.columns["action"].to_pylist())
        assert states.shape == actions.shape == (len(episode.tasks), 4)
        assert np.abs(actions).max() <= 1
        seed = next(
            found
            for attempt in range(20)
            if np.array_equal(start(task, found := drawn(number, attempt))["proprio"], np.float32(states[0]))
        )
        world = MetaWorld(PROTOCOLS["starvla"], SIDE, render=False)
        shown = [*demonstrate(world, seed, task, push_rate=0.05, error_rate=0.01)][:-1]
        assert world.done
        np.testing.assert_array_equal(np.float32(states), [seen["proprio"] for seen, _ in shown])
        np.testing.assert_array_equal(actions, [decision.action for _, decision in shown])
        assert episode.columns["taught"].to_pylist() == [decision.taught for _, decision in shown]
    assert not all(episodes.read(1).columns["taught"].to_pylist())


def drawn(number, attempt):
    return int(np.random.SeedSequence([0, number, attempt]).generate_state(1)[0])


def start(task, seed):
    return MetaWorld(PROTOCOLS["starvla"], SIDE, render=False).reset(seed=seed, task=task)[0]


@there
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--tasks=reech-v3"], "error: no Meta-World task named 'reech-v3', did you mean 'reach-v3'?"),
        (["--image_size=33"], "error: --image_size must be even, not 33"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, line):
    done = run(f"--output_path={tmp_path / 'x'}", *flags)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def source_of(folder, **changes):
    """The preset's."""
    preset = runpy.run_path(str(ROOT / "configs" / "data_config.py"))["get_config"]("metaworld_mt10").to_dict()
    names = [field.name for field in dataclasses.fields(SourceConfig)]
    own = {name: preset[name] for name in names} | {"data_path": str(folder)} | changes
    return from_mapping(SourceConfig, own, "bridgedata_config")


@there
def test_a_policy_of_one_view_is_refused_by_the_other(made):
    """Data of another view by the preset's camera, and the policy by the world."""
    output, *_ = made
    dataset = open_dataset(source_of(output), DataConfig(), "train")
    assert dataset.spec.cameras == ("corner2_crop",)
    assert dataset.spec.action_dim == dataset.spec.proprio_dim == 4
    needed = {"observation": [*dataset.spec.cameras, "proprio"], "goals": []}
    check_fit("metaworld", Scenario("metaworld", "starvla").make().spec, needed, 4, 4)
    with pytest.raises(ConfigError, match=r"reads corner2_crop, proprio \[4\] .* shows corner2, proprio \[4\]"):
        check_fit("metaworld", Scenario("metaworld", "lerobot").make().spec, needed, 4, 4)
    other = source_of(output, cameras={"corner2": "observation.images.corner2"})
    with pytest.raises(DataError, match=r"no camera 'observation.images.corner2'.*observation.images.corner2_crop"):
        open_dataset(other, DataConfig(), "train")


@there
def test_a_broken_folder_is_one_error(made, tmp_path):
    output, *_ = made
    broken = shutil.copytree(output, tmp_path / "broken")
    for path in sorted((broken / "data").rglob("*.parquet")):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="broken"):
        open_dataset(source_of(broken), DataConfig(), "train")


@there
def test_nothing_is_written_over(made):
    output, *_ = made
    done = run(f"--output_path={output}", *FLAGS)
    assert done.returncode == 1
    assert done.stderr == f"error: {output} exists: remove it, or give another --output_path\n"
    begun = output.with_name("other.annotations")
    begun.mkdir()
    (begun / "recipe").write_text(json.dumps({"seed": 5}))
    done = run(f"--output_path={output.with_name('other')}", *FLAGS)
    assert "was begun with other flags" in done.stderr
    os.remove(begun / "recipe")
    begun.rmdir()
