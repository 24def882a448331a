import collections.abc
import dataclasses
import json
import pathlib
import subprocess
import sys
import typing

import absl.flags
import pytest
from experiments.mains import load
from ml_collections import config_flags

from jaxvla.agents.backbone import BackboneConfig
from jaxvla.agents.language import LanguageConfig
from jaxvla.cli import OPEN_MAPPINGS, check_overrides, config_words, output_path, resolve_config_paths
from jaxvla.config import from_mapping
from jaxvla.data.dataset import DataConfig, SourceConfig
from jaxvla.data.mixture_config import read_mixture
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError
from jaxvla.reasoning.curriculum import CurriculumConfig
from jaxvla.reasoning.prompt import PromptConfig
from jaxvla.training.config import TrainConfig

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


def test_the_words_of_configs_are_handed_on():
    given = ["--config", "x.py:a", "-config.b=1", "--config.tuple", "(1,)", "--config.flag", "--configs=1"]
    others = ["--name=--config", "--bridgedata_config.k", "v", "rest", "--output_path", "o"]
    words = config_words([*given, *others], ("config", "bridgedata_config"))
    assert words == [*given[:-1], "--bridgedata_config.k", "v"]
    assert config_words(["--config"], ("config",)) == ["--config"]


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
    source = read_mixture(values.bridgedata_config.to_dict()).sources["tfrecord"]
    assert data.relabel_actions is relabel
    assert actions.items() <= dataclasses.asdict(source.actions).items()


@pytest.mark.parametrize("preset", ["tfrecord", "rlds"])
def test_data_of_other_robots_is_left_as_it_is(preset):
    values = load(CONFIGS / "data_config.py").get_config(preset).to_dict()
    assert read_mixture(values | {"data_path": "x"}).sources["x"].actions == ActionConvention()
    with pytest.raises(ConfigError, match="data_path is empty: give the folder of the data, as --config"):
        read_mixture(values)


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


SHOW = """
import json, sys
from absl import flags
from ml_collections import config_flags
from jaxvla import cli
for name in ("config", "bridgedata_config"):
    config_flags.DEFINE_config_file(name, None, "")
cli.run(lambda _: print(json.dumps(cli.read_configs("a", "b"))), ("config", "bridgedata_config"), sys.argv.pop(1))
"""


def read(*arguments):
    """The settings that a main gets."""
    configs = ["--config=train_config.py:ecot", "--bridgedata_config=data_config.py:sample"]
    command = [sys.executable, "-c", SHOW, str(CONFIGS), *configs, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_open_mappings_take_new_keys():
    done = read(
        "--bridgedata_config.cameras.images1=5",
        "--bridgedata_config.cameras.wrist",
        "image_1",
        "--config.optimizer.learning_rates.backbone/visual=0",
        "--config.optimizer.learning_rates.backbone=2e-5",
        "--config.curriculum.tag2think_count.SUBTASK REASONING=2",
        "--config.agent_kwargs.action_head.num_layers=3",
        "--config.agent_kwargs.other.pair",
        "(1, 2)",
        "--config.batch_size=7",
        "--config.data.camera_sizes.wrist=(128,128)",
    )
    assert done.returncode == 0, done.stderr
    settings, source = json.loads(done.stdout)
    assert settings["data"]["camera_sizes"] == {"wrist": [128, 128]}
    assert source["cameras"] == {"images0": "images0", "images1": "5", "wrist": "image_1"}
    assert settings["optimizer"]["learning_rates"] == {"backbone": 2e-5, "backbone/visual": 0.0}
    assert settings["curriculum"]["tag2think_count"] == {"SUBTASK REASONING": 2}
    assert settings["agent_kwargs"]["action_head"]["num_layers"] == 3
    assert settings["agent_kwargs"]["other"] == {"pair": [1, 2]}
    assert settings["batch_size"] == 7


def test_of_an_override_given_twice_the_last_counts():
    done = read(
        "--config.data.image_size=(64, 64)",
        "--config.data.image_size",
        "(128, 128)",
        "--bridgedata_config.include=(('a',),)",
        "--bridgedata_config.include=(('b', 'c'),)",
        "--config.mesh.data=4",
        "--config.mesh.data",
        "-1",
        "--bridgedata_config.cameras.images1=x",
        "--bridgedata_config.cameras.images1=y",
    )
    assert done.returncode == 0, done.stderr
    settings, source = json.loads(done.stdout)
    assert settings["data"]["image_size"] == [128, 128]
    assert source["include"] == [["b", "c"]]
    assert settings["mesh"]["data"] == -1
    assert source["cameras"]["images1"] == "y"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (
            "--bridgedata_config.camera.images1=x",
            "unknown key --bridgedata_config.camera.images1: did you mean cameras?",
        ),
        (
            "--config.optimizer.learning_rates.a=many",
            "--config.optimizer.learning_rates.a must be float, as those beside",
        ),
        (
            "--config.agent_kwargs.training_mode.a=1",
            "unknown key --config.agent_kwargs.training_mode.a: known are none",
        ),
        (
            "--config.curriculum.tag2think.a=1",
            "unknown key --config.curriculum.tag2think.a: did you mean tag2think_count",
        ),
    ],
)
def test_what_is_not_open_stays_closed(argument, line):
    done = read(argument)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


def mappings(cls, prefix=""):
    """The paths of the fields of a dataclass that take keys of any name."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from mappings(hint, f"{prefix}{name}.")
        elif any(typing.get_origin(one) in (dict, collections.abc.Mapping) for one in (hint, *typing.get_args(hint))):
            yield f"{prefix}{name}"


def test_all_open_mappings_are_known():
    parts = {"data": DataConfig, "backbone": BackboneConfig, "curriculum": CurriculumConfig, "prompt": PromptConfig}
    own = [f"{name}.{path}" for name, cls in (parts | {"language": LanguageConfig}).items() for path in mappings(cls)]
    assert {*OPEN_MAPPINGS["config"]} == {*mappings(TrainConfig), *own}
    assert {*OPEN_MAPPINGS["bridgedata_config"]} == {*mappings(SourceConfig), "datasets"}


def test_output_paths(tmp_path):
    assert output_path(str(tmp_path / "new" / "a.png")) == tmp_path / "new" / "a.png"
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.png", "cannot be made: .*"),
        ("gs://a", ""),
    ):
        with pytest.raises(ConfigError, match=f"--output_path: .*{reason}"):
            output_path(str(path))


def test_ctrl_c_is_one_line(tmp_path):
    script = "from jaxvla import cli\ndef main(_):\n    raise KeyboardInterrupt\ncli.run(main)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
