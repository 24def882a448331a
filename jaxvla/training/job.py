"""From plain settings to everything that a training run is made of: data, texts, agent, and what goes with them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxvla.agents import Agent, make_agent
from jaxvla.agents.backbone import Backbone, BackboneConfig, open_backbone
from jaxvla.agents.language import Language, LanguageConfig, open_language
from jaxvla.assets import Assets
from jaxvla.config import from_mapping, local_path
from jaxvla.data.dataset import DataConfig, Dataset, SourceConfig, open_dataset
from jaxvla.data.formats.index import NO_TEXT
from jaxvla.data.loader import training_batches, validation_batches
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.data.text.chat import num_image_tokens
from jaxvla.data.text.instructions import InstructionTable
from jaxvla.data.text.tokenizer import IM_END
from jaxvla.data.transforms.images import patch_grid
from jaxvla.errors import ConfigError
from jaxvla.models.lora import LORA, LoraConfig
from jaxvla.parallel.feed import BatchIterator
from jaxvla.reasoning.curriculum import CurriculumConfig
from jaxvla.reasoning.prompt import THINKING_TOKENS, PromptConfig
from jaxvla.reasoning.texts import Texts, open_texts
from jaxvla.training.config import TrainConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import Pretrained

# Keys of configs/train_config.py beside those of `TrainConfig`: for the loader, for agents that follow instructions,
# and for agents that read and write text.
_DATA_KEYS = ("data", "data_path")
_LANGUAGE_KEY = "language"
_TEXT_KEYS = ("backbone", "curriculum", "prompt")


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A run that can start.

    Attributes:
        config: see `TrainConfig`.
        agent: what is trained.
        training, validation: the splits.
        texts: of both; None for an agent that reads none.
        instructions: the tables of training and validation; None for an agent that follows none.
        assets: for the checkpoints.
        pretrained: reads the parameters that training starts from; None where all are drawn at random.
    """

    config: TrainConfig
    agent: Agent
    training: Dataset
    validation: Dataset
    texts: Texts | None
    instructions: tuple[InstructionTable, InstructionTable] | None
    assets: Assets
    pretrained: Pretrained | None

    def training_batches(self, rows: slice = slice(None)) -> BatchIterator:
        """The endless training stream; `rows` of each global batch."""
        text = None if self.texts is None else self.texts.training
        table = None if self.instructions is None else self.instructions[0]
        config, keys = self.config, self.agent.batch_keys
        return training_batches(self.training, config.batch_size, config.seed, keys, rows, text, table)

    def validation_batches(self, step: int, rows: slice = slice(None)) -> Iterator[Batch]:
        """One pass over the validation data after `step` updates, with the texts of the stage of the last of them."""
        text, config = None, self.config
        if self.texts is not None:
            stage = self.texts.wording.stage_after(step)
            text = self.texts.validation.at_stage(stage)
        table = None if self.instructions is None else self.instructions[1]
        keys = self.agent.batch_keys
        return validation_batches(self.validation, config.batch_size, keys, rows, config.eval_batches, text, table)

    def adapters(self) -> str:
        """What LoRA trains of the backbone, and at what rate; empty without."""
        if LORA not in self.assets.agent_kwargs:
            return ""
        config = from_mapping(LoraConfig, self.assets.agent_kwargs[LORA])
        shapes = jax.eval_shape(self.agent.init, jax.random.key(0))["backbone"]
        kernels, rate = len(jax.tree.leaves(shapes[LORA])) // 2, make_optimizer(self.config.optimizer).rate_of
        trained, every = (sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for tree in (shapes[LORA], shapes))
        return (
            f"rank {config.rank} on {kernels} kernels, {trained:.2f} M parameters at {rate(f'backbone/{LORA}'):g}; "
            f"{every - trained:.2f} M of the backbone are frozen, in {self.agent.config.backbone.dtype}"
        )

    def example(self) -> tuple[int, list[str | None] | list[np.ndarray]]:
        """A validation trajectory, labelled if any is, and what a policy is told at each of its T steps.

        That is the step's annotation, or the vector of it where the agent reads vectors: no text is encoded again. A
        step without one is told the trajectory's first.
        """
        source, drawable, spec = self.validation.source, self.validation.drawable, self.agent.spec.instruction
        labelled = drawable[source.texts[drawable] != NO_TEXT]
        trajectory = int(source.locate((labelled if len(labelled) else drawable)[:1])[0][0])
        steps = np.arange(source.lengths[trajectory])
        annotation = source.draw_annotations(np.full_like(steps, trajectory), steps, np.zeros(len(steps)))
        if (annotation < 0).all():
            return trajectory, [None] * len(steps)
        annotation = np.where(annotation < 0, annotation[annotation >= 0][0], annotation)
        if self.instructions is None or spec is None or spec.vocab_size:
            texts = self.validation.annotations()
            return trajectory, [texts[i] for i in annotation.tolist()]
        return trajectory, list(self.instructions[1].take(annotation))


def read_train_config(settings: Mapping[str, Any]) -> TrainConfig:
    """The part of the settings that training reads.

    Raises:
        ConfigError: an unknown key, or a value that is refused.
    """
    own = {key: value for key, value in settings.items() if key not in (*_DATA_KEYS, _LANGUAGE_KEY, *_TEXT_KEYS)}
    return from_mapping(TrainConfig, own, "config")


def open_job(settings: Mapping[str, Any], source_settings: Mapping[str, Any]) -> Job:
    """Opens data, backbone, texts and instructions, and makes the agent.

    Args:
        settings: as configs/train_config.py gives them.
        source_settings: as configs/data_config.py gives them.

    Raises:
        ConfigError, DataError, CheckpointError, WeightsError: a setting, the data or the backbone cannot be used.
    """
    config = read_train_config(settings)
    data_config = from_mapping(DataConfig, settings["data"], "config.data")
    source_config = from_mapping(SourceConfig, source_settings, "bridgedata_config")
    config.execution.steps(data_config.action_horizon)  # says what is wrong with them before anything is read
    backbone = _open_backbone(settings)
    training = open_dataset(source_config, data_config, "train")
    validation = open_dataset(source_config, data_config, "val", training.statistics)
    spec, kwargs, texts, pretrained = training.spec, dict(config.agent_kwargs), None, None
    language = _open_language(settings, training, validation)
    if language is not None:
        spec = dataclasses.replace(spec, instruction=language.spec)
    if backbone is not None:
        kwargs |= {
            **backbone.agent_kwargs(),
            "stop_token": backbone.tokenizer.id_of(IM_END),
            "pad_token": backbone.tokenizer.pad_id,
        }
        make_agent(config.agent, kwargs, spec)  # says what is wrong with the settings before texts are measured
        texts = _open_texts(settings, source_config, backbone, training, validation)
        spec = dataclasses.replace(spec, text=texts.wording.spec_at(0))
        pretrained = _pretrained(backbone)
        config = _with_adapter_rate(config, backbone)
    assets = Assets(
        agent=config.agent,
        agent_kwargs=kwargs,
        spec=spec,
        statistics=training.statistics,
        action_normalization=data_config.normalization,
        proprio_normalization=data_config.normalization,
        action_mask=source_config.action_mask,
        train_config=settings,
        data_config=source_settings,
        text=None if texts is None else texts.wording.to_json(),
        language=None if language is None else language.to_json(),
        actions=training.convention,
        stored_sizes=training.source.stored_sizes,
        execution=config.execution,
        control_frequency=source_config.control_frequency,
    )
    agent = make_agent(config.agent, kwargs, spec)  # says what is wrong with the settings before texts are encoded
    tables = None if language is None else (language.table(training), language.table(validation))
    return Job(config, agent, training, validation, texts, tables, assets, pretrained)


def _open_language(settings: Mapping[str, Any], training: Dataset, validation: Dataset) -> Language | None:
    if _LANGUAGE_KEY not in settings:
        return None
    config = from_mapping(LanguageConfig, settings[_LANGUAGE_KEY], f"config.{_LANGUAGE_KEY}")
    return open_language(config, (training, validation))


def _open_backbone(settings: Mapping[str, Any]) -> Backbone | None:
    given = [key for key in _TEXT_KEYS if key in settings]
    if not given:
        return None
    if len(given) < len(_TEXT_KEYS):
        missing = [key for key in _TEXT_KEYS if key not in given]
        raise ConfigError(f"config has {', '.join(given)} but lacks {', '.join(missing)}; give all or none")
    return open_backbone(from_mapping(BackboneConfig, settings["backbone"], "config.backbone"), THINKING_TOKENS)


def _open_texts(
    settings: Mapping[str, Any], source: SourceConfig, backbone: Backbone, training: Dataset, validation: Dataset
) -> Texts:
    store = local_path(source.data_path) / local_path(source.reasoning_path) if source.reasoning_path else ""
    return open_texts(
        backbone.tokenizer,
        from_mapping(PromptConfig, settings["prompt"], "config.prompt"),
        from_mapping(CurriculumConfig, settings["curriculum"], "config.curriculum"),
        _image_tokens(training.spec),
        training,
        validation,
        str(store),
        source.max_mismatched,
    )


def _image_tokens(spec: BatchSpec) -> tuple[int, ...]:
    return (num_image_tokens(patch_grid(*spec.image_size)),) * len(spec.cameras)


def _pretrained(backbone: Backbone) -> Pretrained | None:
    load = backbone.load
    return None if load is None else lambda shardings: {"backbone": load(shardings["backbone"])}


def _with_adapter_rate(config: TrainConfig, backbone: Backbone) -> TrainConfig:
    """New adapters learn at the rate of new parameters, not at that by which the backbone would be tuned."""
    if not backbone.lora.rank:
        return config
    rates = {f"backbone/{LORA}": config.optimizer.learning_rate, **config.optimizer.learning_rates}
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rates=rates))


def demonstration(dataset: Dataset, trajectory: int) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """One trajectory as a robot would show it to a policy.

    Returns:
        T + 1 observations {camera: uint8 [h, w, 3] of the stored size, "proprio": [p] in robot units}, and actions
        float32 [T, d] in robot units, transformed as for training.
    """
    source = dataset.source
    table, start = source.table(trajectory), int(source.action_starts[trajectory])
    steps = range(table.num_transitions + 1)
    frames = {camera: source.stored_frames(trajectory, steps, camera) for camera, _ in source.cameras}
    views = [{camera: images[t] for camera, images in frames.items()} | {"proprio": table.proprio[t]} for t in steps]
    actions = dataset.actions[start : start + table.num_transitions]
    return views, dataset.action_normalizer.inverse(actions)
