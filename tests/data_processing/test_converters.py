import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from data.raw_files import files_of, make_session, to_numpy

from jaxvla.errors import DataError

ROOT = pathlib.Path(__file__).resolve().parents[2]
RAW_TO_NUMPY = "bridgedata_raw_to_numpy.py"
NUMPY_TO_TFRECORD = "bridgedata_numpy_to_tfrecord.py"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", str(ROOT / "data_processing" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_both_scripts_in_a_row(tmp_path):
    make_session(tmp_path / "raw" / "task", count=3, steps=2)
    make_session(tmp_path / "raw" / "other", count=1, steps=1)
    paths = ("--input_path", tmp_path / "raw", "--output_path", tmp_path / "np", "--depth", 2)
    first = run(
        RAW_TO_NUMPY,
        *paths,
        "--im_size",
        8,
        "--num_workers",
        2,
        "--train_proportion",
        0.7,
        "--seed",
        3,
        "--max_skipped",
        0.3,
    )
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[3:5] == ["cameras        images0 in all 3", "instructions   in 0 of 3"]
    assert lines[:2] == ["task folders   1 converted", "trajectories   3 converted: 2 train, 1 val"]
    assert "  1  fewer than 2 transitions" in lines
    assert lines[-1] == f"note           no usable trajectory, nothing written: {tmp_path / 'np' / 'other'}"
    paths = ("--input_path", tmp_path / "np", "--output_path", tmp_path / "tf", "--depth", 2)
    second = run(NUMPY_TO_TFRECORD, *paths, "--num_workers", 2)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[:2] == lines[:2]
    assert set(files_of(tmp_path / "tf")) == {"task/train/out.tfrecord", "task/val/out.tfrecord"}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (RAW_TO_NUMPY, ["--input_path", "gone", "--output_path", "x"], "no input folder gone"),
        (NUMPY_TO_TFRECORD, ["--input_path", "gone", "--output_path", "x"], "no input folder gone"),
        (RAW_TO_NUMPY, ["--input_path", "x"], "--output_path"),
        (RAW_TO_NUMPY, ["--input_path", "x", "--output_path", "gs://bucket"], "gs://bucket is no local path"),
        (RAW_TO_NUMPY, ["--input_path", "x", "--output_path", "x", "--num_workers", "0"], "num_workers=0"),
        (RAW_TO_NUMPY, ["--input_path", "x", "--output_path", "x", "--max_skipped", "2"], "max_skipped=2"),
        (RAW_TO_NUMPY, ["--input_path", "x", "--output_path", "x", "--cameras", "image0"], "not image0"),
        (NUMPY_TO_TFRECORD, ["--input_path", "x", "--output_path", "x", "--cameras", "images0,"], "not images0,"),
    ],
)
def test_user_errors_are_one_line(script, arguments, message):
    done = run(script, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_all_skipped_exits_with_one(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2, steps=1)
    paths = ("--input_path", tmp_path / "raw", "--output_path", tmp_path / "np", "--depth", 2)
    done = run(RAW_TO_NUMPY, *paths, "--num_workers", 1)
    assert done.returncode == 1
    assert "skipped        2 trajectories" in done.stdout
    assert done.stderr.startswith("error: all 2 trajectories were skipped, 2 for: fewer than 2 transitions")


def test_too_many_skipped_exits_with_one_after_the_rest_is_written(tmp_path):
    make_session(tmp_path / "raw" / "ta\udcffsk", count=3, steps=2)
    make_session(tmp_path / "raw" / "other", count=1, steps=1)
    paths = ("--input_path", tmp_path / "raw", "--output_path", tmp_path / "np", "--depth", 2, "--num_workers", 1)
    done = run(RAW_TO_NUMPY, *paths)
    assert done.returncode == 1
    assert "skipped        1 trajectories\n" in done.stdout
    assert done.stderr.startswith("error: 1 of 4 trajectories were skipped, more than --max_skipped 0.1, 1 for: fewer")
    assert len(files_of(tmp_path / "np")) == 2
    again = run(RAW_TO_NUMPY, *paths, "--max_skipped", 0.25)
    assert again.returncode == 0, again.stderr


def test_a_killed_conversion_takes_its_workers_along_and_goes_on(tmp_path):
    make_session(tmp_path / "raw" / "task", count=100, steps=2)
    raw, out = tmp_path / "raw", tmp_path / "np"
    paths = ("--input_path", raw, "--output_path", out, "--depth", 2, "--num_workers", 2)
    command = [sys.executable, str(ROOT / "data_processing" / RAW_TO_NUMPY), *map(str, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not list(out.glob("task/.partial/*.pkl")):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(DataError, match="another conversion writes into"):
            to_numpy(raw, out)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)  # the output ends when no worker holds it any more
    assert not (out / "task" / "train").exists()
    assert to_numpy(raw, out).converted == {"train": 70, "val": 30}
    assert set(files_of(out)) == {"task/train/out.npy", "task/val/out.npy"}


@pytest.mark.parametrize("script", [RAW_TO_NUMPY, NUMPY_TO_TFRECORD, "reasoning_to_store.py"])
def test_no_script_imports_a_framework(script):
    code = f"""
import runpy, sys
runpy.run_path({str(ROOT / "data_processing" / script)!r}, run_name="imported")
print([name for name in ("jax", "flax", "tensorflow", "torch", "grain") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
