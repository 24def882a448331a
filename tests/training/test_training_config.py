import importlib.util
import pathlib

import pytest

from jaxvla.agents.backbone import BackboneConfig
from jaxvla.agents.language import LanguageConfig
from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.interchange.starting import PolicyConfig
from jaxvla.reasoning.curriculum import CurriculumConfig
from jaxvla.reasoning.prompt import PromptConfig
from jaxvla.training.config import CheckpointConfig, OptimizerConfig, RolloutConfig, TrainConfig

# Blocks that some methods have besides.
BLOCKS = {
    "ecot": {"backbone": BackboneConfig, "prompt": PromptConfig, "curriculum": CurriculumConfig},
    "lc_bc": {"language": LanguageConfig},
    "smolvla": {"language": LanguageConfig},
    "openvla": {"language": LanguageConfig},
}
CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"


def presets():
    spec = importlib.util.spec_from_file_location("train_config", CONFIGS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: module.get_config(name).to_dict() for name in module.PRESETS}


def small(**changes):
    values = {
        "agent": "linear",
        "agent_kwargs": {},
        "batch_size": 16,
        "num_steps": 10,
        "log_interval": 1,
        "eval_interval": 5,
        "save_interval": 5,
        "augment": {},
        "optimizer": {"learning_rate": 1e-3},
    }
    return values | changes


@pytest.mark.parametrize(("name", "values"), presets().items())
def test_presets_have_every_key_and_no_other(name, values):
    data = values.pop("data"), values.pop("data_path")
    assert None not in data
    assert from_mapping(PolicyConfig, values.pop("policy")) == PolicyConfig()
    for key, block in BLOCKS.get(values["agent"], {}).items():
        given = values.pop(key) | ({"path": "somewhere", "preset": ""} if key == "backbone" else {})
        from_mapping(block, given, key)
        # Of language a preset has what its encoder reads.
        assert set(given) == set(block.__dataclass_fields__) or key == "language"
    config = from_mapping(TrainConfig, values)
    assert config.optimizer.learning_rate == values["optimizer"]["learning_rate"]
    assert set(values) == set(TrainConfig.__dataclass_fields__)
    assert set(values["rollout"]) == set(RolloutConfig.__dataclass_fields__)
    # The data need not be of a world, but where a preset is for one.
    assert not config.rollout.world or name.startswith(config.rollout.world)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "config.batch_size must be at least 1, not 0"),
        ({"log_interval": -5}, "config.log_interval must be at least 1, not -5"),
        ({"eval_batches": -1}, "config.eval_batches must be 0"),
        ({"seed": -1}, "config.seed must be 0 to"),
        ({"optimizer": {"learning_rate": 0.0}}, "learning_rate must be positive, not 0.0"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate must be positive, not nan"),
        ({"optimizer": {"learning_rate": 1.0, "warmup_steps": 5, "decay_steps": 5}}, "must lie after warmup_steps"),
        ({"optimizer": {"learning_rate": 1.0, "clip_norm": -1.0}}, "clip_norm must be 0 or more, not -1.0"),
        ({"checkpoint": {"keep_last": 0}}, "keep_last must be at least 1, not 0"),
        ({"checkpoint": {"keep_best": -1}}, "keep_best must be 0 or more, not -1"),
        ({"rollout": {"interval": 0}}, r"config.rollout.interval must be at least 1, not 0; config.rollout.world \"\""),
        ({"rollout": {"episodes": -2}}, "config.rollout.episodes must be at least 1, not -2"),
        ({"rollout": {"parallel": 0}}, "config.rollout.parallel must be at least 1, not 0$"),
        ({"rollout": {"camera_size": 8}}, "config.rollout.camera_size must be at least 16, or 0, not 8"),
        ({"rollout": {"task": "stack"}}, "unknown key config.rollout.task: did you mean tasks"),
        ({"mesh": {"fsdp": 0}}, "mesh sizes must be positive"),
        ({"sead": 3}, "unknown key config.sead.*did you mean seed"),
    ],
)
def test_values_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(TrainConfig, small(**changes))


def test_zeros_that_switch_off_are_allowed():
    assert OptimizerConfig(1e-3, warmup_steps=10, decay_steps=0).decay_steps == 0
    assert CheckpointConfig(keep_best=0).keep_best == 0
