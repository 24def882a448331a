"""The main that makes frame caches: killed and begun again, checked, and its errors."""

import pathlib
import subprocess
import sys
import time

from data import lerobot_files

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "data_processing" / "cache_frames.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_killed_run_goes_on_and_a_whole_one_is_checked(tmp_path):
    root = lerobot_files.write(tmp_path / "data", lengths=(30,) * 8)
    arguments = (root, "--image_size=384,480", "--num_threads=1")
    path = root / "frames" / f"{lerobot_files.CAMERA}-384x480-lanczos.frames"
    piece = 30 * 384 * 480 * 3
    log = tmp_path / "log"
    with (
        open(log, "wb") as out,
        subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=out, stderr=out) as process,
    ):
        part, deadline = path.with_name(f"{path.name}.part"), time.monotonic() + 120
        while not (part.exists() and part.stat().st_size >= 2 * piece) and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9, log.read_text()
    assert not path.exists()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: 240 frames, 0.133 GB\n")
    before = int(done.stdout.split(" GB, ")[1].split()[0])
    assert 30 <= before < 240
    assert before % 30 == 0
    again = run(*arguments)
    assert again.stdout == f"{path}: 240 frames are there, and every byte is right\n"
    with open(path, "r+b") as file:
        file.seek(12345678)
        file.write(b"!")
    mended = run(*arguments)
    assert f"{path}: the frame at byte 12165120 is damaged: made again\n" in mended.stdout


def test_what_cannot_be_is_one_line(tmp_path):
    root = lerobot_files.write(tmp_path / "data")
    for arguments, message in (
        ((), "give the folder of a dataset, or --bridgedata_config"),
        ((root, "--cameras=side"), f"{root}: no camera side, it has {lerobot_files.CAMERA}: see --cameras"),
        ((tmp_path,), f"{tmp_path} holds no dataset that is read"),
        ((root, "--output_path", root / "meta/info.json"), "cannot be written: a file is in the way"),
    ):
        done = run("--image_size=8", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert message in done.stderr
    assert "--image_size must be HEIGHT or HEIGHT,WIDTH in pixels, not 0" in run(root, "--image_size=0").stderr
