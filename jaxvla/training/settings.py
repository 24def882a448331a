"""Which of the plain settings of a run training itself reads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxvla.config import from_mapping
from jaxvla.training.config import TrainConfig

# Keys of configs/train_config.py beside those of `TrainConfig`: for the loader, for agents that follow instructions,
# and for agents that read and write text.
DATA_KEYS = ("data", "data_path")
LANGUAGE_KEY = "language"
TEXT_KEYS = ("backbone", "curriculum", "prompt")
POLICY_KEY = "policy"


def read_train_config(settings: Mapping[str, Any]) -> TrainConfig:
    """The part of the settings that training reads.

    Raises:
        ConfigError: an unknown key, or a value that is refused.
    """
    others = (*DATA_KEYS, LANGUAGE_KEY, *TEXT_KEYS, POLICY_KEY)
    config = from_mapping(TrainConfig, {k: v for k, v in settings.items() if k not in others}, "config")
    return dataclasses.replace(config, optimizer=config.optimizer.for_run(config.num_steps))
