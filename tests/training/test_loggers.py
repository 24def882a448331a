import json
import struct
import sys

import pytest
from training.file_limit import file_limit

from jaxvla.data.formats.protobuf import header
from jaxvla.data.formats.tfrecord import buffer_reader, read_record, scan_records
from jaxvla.errors import ConfigError, TrainingError
from jaxvla.training.config import WandbConfig
from jaxvla.training.loggers import Loggers
from jaxvla.training.tensorboard import EventFile, event, scalar

OFF = WandbConfig()


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_event_is_a_line_at_once(tmp_path):
    with Loggers(tmp_path / "run", 0, OFF, {}) as loggers:
        loggers.write(10, {"training/loss": 0.5})
        assert lines(tmp_path / "run") == [{"step": 10, "training/loss": 0.5}]
        loggers.write(20, {"validation/mse": float("nan")})
    assert lines(tmp_path / "run")[1] == {"step": 20, "validation/mse": None}


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path):
    with Loggers(tmp_path, 0, OFF, {}) as loggers:
        for step in (10, 20, 20, 30, 40):
            loggers.write(step, {"x": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "x"')  # cut off by a kill
    with Loggers(tmp_path, 20, OFF, {}) as loggers:
        loggers.write(30, {"x": -1.0})
    assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [(10, 10), (20, 20), (20, 20), (30, -1)]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot write logs to .*/run: "):
        Loggers(tmp_path / "run", 0, OFF, {})


def test_a_disk_that_fills_up(tmp_path):
    with Loggers(tmp_path, 0, OFF, {}) as loggers:
        loggers.write(1, {"x": 1.0})
        with file_limit(200), pytest.raises(TrainingError, match=r"cannot write logs to .*: .*File too large"):
            loggers.write(2, {f"name{i}": 1.0 for i in range(100)})


def test_events_are_those_of_tensorflow():
    # Event(wall_time=1234.5, step=40) with the values training/loss 1.5 and b -0.25, serialized by TensorFlow 2.21.
    golden = "0900000000004a934010282a200a140a0d747261696e696e672f6c6f7373150000c03f0a080a016215000080be"
    values = [scalar("training/loss", 1.5), scalar("b", -0.25)]
    summary = b"".join(header(1, len(value)) + value for value in values)
    assert event(1234.5, 40, (5, summary)).hex() == golden


def test_an_event_file_is_whole_after_each_write(tmp_path):
    file = EventFile(tmp_path / "tensorboard", 31)
    file.write(40, {"training/loss": 1.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    records = [read_record(buffer_reader(data), span, "events") for span in scan_records(path)]
    assert records[0][9:].endswith(b"brain.Event:2")
    assert records[1][9:] == bytes([2 << 3, 31, 7 << 3 | 2, 2, 1 << 3, 1])  # step 31, session_log.status = START
    assert records[2][9:11] == bytes([2 << 3, 40])
    assert b"training/loss" in records[2]
    assert records[2].endswith(struct.pack("<f", 1.5))
    file.close()


WANDB = """
calls = []

class Run:
    def log(self, metrics, step): calls.append((step, metrics))
    def finish(self): calls.append("finish")

def init(**settings):
    calls.append(settings)
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A module called wandb that writes down what it is asked; no credentials in sight."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield lambda: sys.modules["wandb"].calls
    sys.modules.pop("wandb", None)


def start_wandb(folder):
    with Loggers(folder / "gc_bc_1", 0, WandbConfig(True, "bridge", "me"), {"seed": 3}) as loggers:
        loggers.write(10, {"x": 1.0})


def test_wandb_gets_all_and_never_asks_for_a_login(tmp_path, wandb, capsys):
    start_wandb(tmp_path)
    settings, *rest = wandb()
    assert (settings["mode"], settings["project"], settings["entity"]) == ("offline", "bridge", "me")
    assert (settings["id"], settings["config"], settings["resume"]) == ("gc_bc_1", {"seed": 3}, "allow")
    assert rest == [(10, {"x": 1.0}), "finish"]
    assert "wandb sync" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_wandb_is_online_where_there_is_a_key(tmp_path, wandb, monkeypatch, source):
    if source == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    start_wandb(tmp_path)
    assert wandb()[0]["mode"] == "online"


def test_wandb_mode_is_respected(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    start_wandb(tmp_path)
    assert wandb()[0]["mode"] == "disabled"


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"config.wandb.enabled needs the wandb package: pip install wandb"):
        Loggers(tmp_path, 0, WandbConfig(True), {})
