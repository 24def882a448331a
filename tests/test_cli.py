import dataclasses
import pathlib
import subprocess
import sys

import absl.flags
import pytest
from experiments.mains import load
from ml_collections import config_flags

from jaxvla.cli import check_overrides, resolve_config_paths
from jaxvla.config import from_mapping
from jaxvla.data.actions import ActionConvention
from jaxvla.data.dataset import DataConfig, SourceConfig
from jaxvla.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("given", ["train_config.py:gc_bc", "experiments/configs/train_config.py:gc_bc"])
def test_bare_names_and_old_paths_resolve(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"{CONFIGS}/train_config.py:gc_bc"
    for argv in (["x", f"--config={given}"], ["x", "-config", given]):
        assert resolve_config_paths(argv, ("config",), CONFIGS)[-1].removeprefix("--config=") == expected


def test_a_file_that_exists_is_taken_as_it_is(tmp_path):
    mine = tmp_path / "train_config.py"
    mine.write_text("")
    argv = ["x", "--config", f"{mine}:a", "--config.batch_size", "3", "--name", "n"]
    assert resolve_config_paths(argv, ("config",), CONFIGS) == argv


def test_a_missing_config_file_names_those_that_exist():
    with pytest.raises(ConfigError, match=r"no config file 'tran.py'.*data_config.py, train_config.py"):
        resolve_config_paths(["x", "--config=tran.py:gc_bc"], ("config",), CONFIGS)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("flags", "relabel", "actions"),
    [
        ([], None, {"relabel": True, "gripper": (6,), "closed": 0.0}),
        (["--config.data.relabel_actions=False"], False, {"relabel": True}),
        (["--config.data.relabel_actions=True"], True, {}),
        (["--bridgedata_config.actions.relabel=False"], None, {"relabel": False}),
        (["--bridgedata_config.actions.gripper", "(6,13)"], None, {"gripper": (6, 13)}),
        (["--bridgedata_config.actions.open=0.08", "--bridgedata_config.actions.closed=-1"], None, {"open": 0.08}),
    ],
)
def test_what_actions_are_can_be_said_by_flags(flags, relabel, actions, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    values = absl.flags.FlagValues()
    for name, preset in (("config", "train_config.py:gc_bc"), ("bridgedata_config", "data_config.py:sample")):
        config_flags.DEFINE_config_file(name, str(CONFIGS / preset), flag_values=values)
    values(["x", *flags])
    data = from_mapping(DataConfig, values.config.to_dict()["data"])
    source = from_mapping(SourceConfig, values.bridgedata_config.to_dict())
    assert data.relabel_actions is relabel
    assert actions.items() <= dataclasses.asdict(source.actions).items()


@pytest.mark.parametrize("preset", ["tfrecord", "rlds"])
def test_data_of_other_robots_is_left_as_it_is(preset):
    values = load(CONFIGS / "data_config.py").get_config(preset).to_dict()
    assert from_mapping(SourceConfig, values).actions == ActionConvention()


def test_misspelt_overrides_are_named():
    config = {"batch_size": 1, "augment": {"order": ()}}
    check_overrides(["x", "--config.batch_size=3", "--config.augment.order", "()"], "config", config)
    with pytest.raises(ConfigError, match=r"--config\.batch_sise: did you mean batch_size\?"):
        check_overrides(["x", "--config.batch_sise=3"], "config", config)
    with pytest.raises(ConfigError, match=r"--config\.augment\.ordr: did you mean order\?"):
        check_overrides(["x", "--config.augment.ordr", "3"], "config", config)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: give both configs"),
        (["--config.batch_sise=3"], "error: unknown key --config.batch_sise: did you mean batch_size?"),
        (["--config.batch_size=many"], "error: flag --config.batch_size=many: invalid literal"),
        (["--nmae=x"], "error: Unknown command line flag 'nmae'. Did you mean: name"),
        (["extra"], "error: unexpected argument 'extra'"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_1(arguments, line, tmp_path):
    config = ["--config=train_config.py:gc_bc"] if arguments else []
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), *config, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_one_line(tmp_path):
    script = "from jaxvla import cli\ndef main(_):\n    raise KeyboardInterrupt\ncli.run(main)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
