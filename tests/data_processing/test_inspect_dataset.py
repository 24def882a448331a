import itertools
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest
from data.inspection.episodes import STEPS, episode, write

from jaxvla.data.openvla_statistics import read_openvla

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*words: object) -> subprocess.CompletedProcess:
    warnings = ("-W", "error", "-W", "ignore:the load_module():DeprecationWarning")  # the latter of ml_collections
    command = [sys.executable, *warnings, str(ROOT / "data_processing" / "inspect_dataset.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [episode(i) for i in range(6)]
    records[2].pop("language")
    root = write(tmp_path_factory.mktemp("data"), records)
    path = root / "task" / "val" / "out.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # that nothing else reads
    path.write_bytes(content)
    return root


def test_a_dataset_is_looked_at_as_its_config_says(data, tmp_path):
    flags = ("--bridgedata_config=data_config.py:sample", "--video", "2", "--output_path", tmp_path / "new" / "folder")
    done = run(data, *flags, "--max_frames=60", "--statistics_path", tmp_path / "s.json", "--verify")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "new" / "folder"
    lines = done.stdout.splitlines()
    assert lines[1] == "episodes     7 (train 6, val 1)"
    assert lines[2] == f"steps        {7 * STEPS}, 40 to 40 of each, median 40; 56 s at 5 Hz"
    assert lines[-8:] == [
        "findings     1 error, 1 warning",
        "  error    damaged: 1 record cannot be read, or not as written.",
        f"           {data}/task/val/out.tfrecord: the record at byte 12 does not match its checksum; "
        "make the file again",
        "  warning  no language: Without an instruction: 1 of 7 episodes.",
        "           #2 (train) raw/2#0",
        f"page         {folder}/inspection.html",
        f"statistics   {tmp_path}/s.json",
        f"film         {folder}/episode_2.mp4",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["episode_2.mp4", "inspection.html"]
    assert "gripper (1 open)" in (folder / "inspection.html").read_text()
    written = read_openvla(tmp_path / "s.json", data.name)
    assert (written.num_trajectories, written.num_transitions, written.action_mask) == (6, 6 * STEPS, (True,) * 7)
    with av.open(folder / "episode_2.mp4") as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 5
    assert len(frames) == STEPS + 1 + 7  # the last one stays for 1.6 s
    changed = [np.abs(a.astype(int) - b).max() > 60 for a, b in itertools.pairwise(frames)]
    assert changed == [True] * STEPS + [False] * 7


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "error: give the folder of a dataset, or --bridgedata_config data_config.py:NAME\n"),
        (
            ["--bridgedata_config=data_config.py:mixture_example"],
            "error: --dataset must be one of those of the config, bridge, tabletop, not ''\n",
        ),
        (
            ["none"],
            "error: no data folder none: give a folder of TFRecords, an RLDS version folder or a LeRobotDataset\n",
        ),
        (
            ["{data}", "--statistics_path=s.json"],
            "error: --statistics_path needs --bridgedata_config, which says what the actions are\n",
        ),
        (["{data}", "more"], "error: unexpected argument 'more': "),
        (["{data}", "--video=7"], "error: there is no episode 7: {data} has 0 to 6\n"),
        (["{data}", "--output_path=/proc/x/y"], "error: --output_path: /proc/x/y cannot be made: "),
        (["{data}", "--output_path={tmp}/file"], "error: --output_path: {tmp}/file cannot be made: File exists\n"),
    ],
)
def test_mistakes_are_one_line(words, line, data, tmp_path):
    (tmp_path / "file").touch()
    done = run(f"--output_path={tmp_path}/out", *(word.format(data=data, tmp=tmp_path) for word in words))
    assert done.returncode == 1
    assert done.stderr.startswith(line.format(data=data, tmp=tmp_path))
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.glob("out/*"))
