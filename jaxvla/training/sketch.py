"""The training step of a run without its data: the same agent, optimizer and step, on shapes alone.

What data would tell, `Robot` says: cameras, dimensions, and how long the texts are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvla.agents import Agent, make_agent
from jaxvla.agents.backbone import BackboneConfig, open_backbone
from jaxvla.agents.language import LanguageConfig, open_language
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec, InstructionSpec, TextSpec
from jaxvla.data.text.tokenizer import IM_END
from jaxvla.errors import ConfigError
from jaxvla.parallel.sharding import Rules
from jaxvla.reasoning.prompt import THINKING_TOKENS
from jaxvla.training.config import TrainConfig
from jaxvla.training.optimizer import Optimizer, make_optimizer
from jaxvla.training.settings import LANGUAGE_KEY, read_train_config
from jaxvla.training.state import TrainState, abstract_state
from jaxvla.training.step import TrainStep, step_of

# What needs the data to be opened.
_OF_DATA = ("qwen3_vl", "precomputed")


@dataclasses.dataclass(frozen=True)
class Robot:
    """What is assumed of the data.

    Attributes:
        cameras: how many.
        dims: values of the state and of an action.
        stored_size: (height, width) of pictures that the preset leaves as they are.
        columns: tokens of the prefix, slots, and tokens of the suffix, for agents that read and write text.
    """

    cameras: int = 1
    dims: int = 7
    stored_size: tuple[int, int] = (256, 256)
    columns: tuple[int, int, int] = (192, 8, 128)


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """A run on shapes.

    Attributes:
        config: see `TrainConfig`.
        agent: what is trained.
        optimizer: what trains it.
    """

    config: TrainConfig
    agent: Agent
    optimizer: Optimizer

    def state(self, mesh: Mesh, rules: Rules = ()) -> TrainState:
        """Shapes, dtypes and shardings of the state on this mesh."""
        return abstract_state(self.agent, self.optimizer, mesh, rules, ema=self.config.ema_decay > 0)

    def batch(self, rows: int) -> dict[str, Any]:
        """Shapes and dtypes of a batch."""
        one = self.agent.spec.fake_batch(1, self.agent.batch_keys, np.random.default_rng(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one)

    def step(self, state: TrainState, mesh: Mesh) -> TrainStep:
        """The step that training takes, which is that of `loop.train`.

        Raises:
            ConfigError: the batch does not divide over the mesh.
        """
        return step_of(self.config, self.agent, self.optimizer, state, mesh)


def sketch(settings: Mapping[str, Any], robot: Robot) -> Sketch:
    """The run of plain settings, as configs/train_config.py gives them, on data that looks like `robot`.

    Raises:
        ConfigError: an unknown key or a value that is refused; instructions that only the data can tell the size of.
    """
    config = read_train_config(settings)
    data, kwargs = settings["data"], dict(config.agent_kwargs)
    cameras = tuple(f"images{number}" for number in range(robot.cameras))
    text = None
    if "backbone" in settings:
        backbone = open_backbone(from_mapping(BackboneConfig, settings["backbone"], "config.backbone"), THINKING_TOKENS)
        stop, pad = backbone.tokenizer.id_of(IM_END), backbone.tokenizer.pad_id
        kwargs |= backbone.agent_kwargs() | {"stop_token": stop, "pad_token": pad}
        text = TextSpec(*robot.columns)
    spec = BatchSpec(
        cameras,
        tuple(data["image_size"]) or robot.stored_size,
        robot.dims,
        robot.dims,
        obs_horizon=data["obs_horizon"],
        action_horizon=data["action_horizon"],
        text=text,
        instruction=_instruction(settings),
        camera_sizes=tuple((name, tuple(size)) for name, size in data["camera_sizes"].items()),
    )
    agent = make_agent(config.agent, kwargs, spec)
    return Sketch(config, agent, make_optimizer(config.optimizer, agent.frozen_modules))


def _instruction(settings: Mapping[str, Any]) -> InstructionSpec | None:
    if LANGUAGE_KEY not in settings:
        return None
    config = from_mapping(LanguageConfig, settings[LANGUAGE_KEY], f"config.{LANGUAGE_KEY}")
    if config.encoder in _OF_DATA and not config.path:
        raise ConfigError(
            f"config.language.encoder {config.encoder!r} takes its size from data or weights: set its path"
        )
    return open_language(config, ()).spec
