"""What `make train` would run: each level is rendered to where its preset reads, as its small presets see it."""

import pathlib
import re
import runpy
import subprocess

import pytest

from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.scene import LEVELS

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAIN = runpy.run_path(str(ROOT / "configs" / "train_config.py"))["get_config"]
DATA = runpy.run_path(str(ROOT / "configs" / "data_config.py"))["get_config"]


def dry(*arguments):
    command = ["make", "-n", "-B", "train", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.replace("\\\n", " ")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_trained_on_where_it_is_rendered(level):
    lines = dry(f"LEVEL={level}", "METHOD=gc_bc_tiny").splitlines()
    made, numpy, tfrecord, store, trained = (line for line in lines if "_" in line and "--" in line and ".py " in line)
    (name,) = re.findall(r"data_config\.py:(\w+)", trained)
    source, settings = DATA(name), TRAIN("gc_bc_tiny")
    assert f"--level {level} " in made
    assert f"--output_path {source.data_path} " in tfrecord
    assert f"--output_path {source.data_path}/{source.reasoning_path} " in store
    assert source.cameras.to_dict() == {camera: camera for camera in CAMERAS}
    assert "--cameras" not in tfrecord
    for line, flag in ((made, "--image_size"), (numpy, "--im_size")):
        assert f"{flag} {settings.data.image_size[0]} " in line


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", ["act_tiny", "smolvla_tiny"])
def test_methods_of_lerobot_are_trained_on_what_is_converted_for_them(level, method):
    lines = [line for line in dry(f"LEVEL={level}", f"METHOD={method}").splitlines() if ".py " in line]
    written, converted, trained = lines[-4], lines[-2], lines[-1]
    folder = re.search(r"--output_path (\S+)", converted)[1]
    tfrecord = re.search(r"--from tfrecord:(\S+)", converted)[1]
    assert "bridgedata_numpy_to_tfrecord" in written
    assert f"--output_path {tfrecord} " in written
    assert f"data_config.py:sample_lerobot --config.data_path {folder} " in trained
    assert DATA("sample_lerobot").data_path == "data/sample/one/lerobot"
    assert folder == f"data/sample/{level}/lerobot"


def test_an_unknown_level_is_one_line():
    command = ["make", "-n", "train", "LEVEL=two"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "LEVEL must be one, few or full, not two" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_levels_share_no_folder():
    assert len({DATA(name).data_path for name in ("sample", "sample_few", "sample_full")}) == len(LEVELS)
