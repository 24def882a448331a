"""From plain settings to everything that a training run is made of: data, texts, agent, and what goes with them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvla.agents import Agent, check_takes_guide, make_agent, start_of
from jaxvla.agents.backbone import Backbone, BackboneConfig, open_backbone
from jaxvla.agents.language import Language, LanguageConfig, open_language
from jaxvla.assets import Assets, DatasetAssets
from jaxvla.config import from_mapping
from jaxvla.data.dataset import DataConfig, Dataset
from jaxvla.data.formats.index import NO_TEXT
from jaxvla.data.loader import training_batches, validation_batches
from jaxvla.data.mixture import Mixture, open_mixture
from jaxvla.data.mixture_config import MixtureConfig, expand, read_mixture
from jaxvla.data.opening import store_path
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.data.text.chat import num_image_tokens
from jaxvla.data.text.instructions import InstructionTable
from jaxvla.data.text.tokenizer import IM_END
from jaxvla.data.transforms.images import patch_grid
from jaxvla.errors import ConfigError
from jaxvla.interchange.starting import settings_from, start_from
from jaxvla.models.lora import LORA, LoraConfig
from jaxvla.models.module import Params
from jaxvla.parallel.feed import BatchIterator
from jaxvla.parallel.table import table
from jaxvla.reasoning.curriculum import CurriculumConfig
from jaxvla.reasoning.prompt import THINKING_TOKENS, PromptConfig
from jaxvla.reasoning.texts import StoreChoice, Texts, open_texts
from jaxvla.training.config import TrainConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.settings import LANGUAGE_KEY, TEXT_KEYS, read_train_config
from jaxvla.training.state import Pretrained, abstract_state, param_shapes


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
        weights: lines on what it reads, where the agent's own settings name the files.
    """

    config: TrainConfig
    agent: Agent
    training: Mixture
    validation: Mixture
    texts: Texts | None
    instructions: tuple[InstructionTable, InstructionTable] | None
    assets: Assets
    pretrained: Pretrained | None
    weights: tuple[str, ...] = ()

    def drawn(self, start: int, stop: int) -> dict[str, float]:
        """By name, the share of each dataset in the batches of steps `start` + 1 to `stop`; empty where it is one."""
        if len(self.training.members) == 1:
            return {}
        size = self.config.batch_size
        return self.training.drawn(self.config.seed, start * size, stop * size)

    def training_batches(self, rows: slice | np.ndarray = slice(None)) -> BatchIterator:
        """The endless training stream; `rows` of each global batch."""
        text = None if self.texts is None else self.texts.training
        table = None if self.instructions is None else self.instructions[0]
        config, keys = self.config, self.agent.batch_keys
        return training_batches(self.training, config.batch_size, config.seed, keys, rows, text, table)

    def validation_batches(self, step: int, rows: slice | np.ndarray = slice(None)) -> Iterator[Batch]:
        """One pass over the validation data after `step` updates, with the texts of the stage of the last of them."""
        text, config = None, self.config
        if self.texts is not None:
            stage = self.texts.wording.stage_after(step)
            text = self.texts.validation.at_stage(stage)
        table = None if self.instructions is None else self.instructions[1]
        keys = self.agent.batch_keys
        if len(self.validation.members) > 1:
            keys = (*keys, "dataset")  # the baseline is the mean action of each
        return validation_batches(self.validation, config.batch_size, keys, rows, config.eval_batches, text, table)

    def stages(self) -> list[Batch]:
        """The shapes and dtypes of the global batches of each stage that the curriculum comes to within the run."""
        if self.texts is None:
            return []
        wording, rng = self.texts.wording, np.random.default_rng(0)
        specs = [wording.specs[n] for first, n in wording.curriculum.config.schedule if first < self.config.num_steps]
        rows = [dataclasses.replace(self.agent.spec, text=s).fake_batch(1, self.agent.batch_keys, rng) for s in specs]
        size = self.config.batch_size
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), rows)

    def adapters(self) -> str:
        """What LoRA trains, and at what rate; empty without."""
        config = from_mapping(LoraConfig, self.assets.agent_kwargs.get(LORA, {}))
        if not config.rank:
            return ""
        shapes = param_shapes(self.agent)
        path = LORA if LORA in shapes else f"backbone/{LORA}"
        leaves = jax.tree.leaves(shapes.get(LORA) or shapes["backbone"][LORA])
        size, rate = sum(x.size for x in leaves) / 1e6, make_optimizer(self.config.optimizer).rate_of(path)
        return f"rank {config.rank} on {len(leaves) // 2} kernels, {size:.2f} M parameters at {rate:g}"

    def parameters(self) -> tuple[str, ...]:
        """Lines on what is trained and what is not; empty where everything is."""
        split = make_optimizer(self.config.optimizer, self.agent.frozen_modules).split
        trained, frozen = split(param_shapes(self.agent))
        if not frozen:
            return ()
        return f"{_counted(trained)} trained", f"{_counted(frozen)} frozen"

    def held(self, mesh: Mesh) -> tuple[str, ...]:
        """Lines on what parameters and optimizer take of each device of a mesh, see `jaxvla.parallel.table`."""
        optimizer = make_optimizer(self.config.optimizer, self.agent.frozen_modules)
        return table(abstract_state(self.agent, optimizer, mesh, ema=self.config.ema_decay > 0), mesh)

    def example(self) -> "Example":
        """A validation trajectory, labelled if any is, of the first dataset that has one."""
        labelled = [(m, m.dataset.source.texts[m.dataset.drawable] != NO_TEXT) for m in self.validation.members]
        member, has_text = next((pair for pair in labelled if pair[1].any()), labelled[0])
        dataset, number = member.dataset, self.validation.members.index(member)
        source, spec = dataset.source, self.agent.spec.instruction
        own = dataset.drawable[has_text] if has_text.any() else dataset.drawable
        trajectory = int(source.locate(own[:1])[0][0])
        steps = np.arange(source.lengths[trajectory])
        annotation = source.draw_annotations(np.full_like(steps, trajectory), steps, np.zeros(len(steps)))
        if (annotation < 0).all():
            return Example(member.name, dataset, trajectory, [None] * len(steps))
        annotation = np.where(annotation < 0, annotation[annotation >= 0][0], annotation)
        if self.instructions is None or spec is None or spec.vocab_size:
            texts = dataset.annotations()
            return Example(member.name, dataset, trajectory, [texts[i] for i in annotation.tolist()])
        vectors = self.instructions[1].take(annotation + self.validation.text_starts[number])
        return Example(member.name, dataset, trajectory, list(vectors))


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A trajectory of a dataset, and what a policy is told at each of its T steps.

    Attributes:
        name: of the dataset.
        dataset: a split of it.
        trajectory: its number there.
        told: the step's annotation, or the vector of it where the agent reads vectors: no text is encoded again. A
            step without one is told the trajectory's first; None where it has none.
    """

    name: str
    dataset: Dataset
    trajectory: int
    told: list[str | None] | list[np.ndarray]


def _counted(params: Params) -> str:
    """The size of a part of the parameters, of each of its modules, and in what dtypes it is held."""
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) / 1e6 for name, part in params.items()}
    dtypes = sorted({x.dtype.name for x in jax.tree.leaves(params)})
    modules = ", ".join(f"{name} {size:.2f}" for name, size in sizes.items())
    return f"{sum(sizes.values()):.2f} M ({modules}; {', '.join(dtypes)})"


def open_job(settings: Mapping[str, Any], source_settings: Mapping[str, Any]) -> Job:
    """Opens data, backbone, texts and instructions, and makes the agent.

    Args:
        settings: as configs/train_config.py gives them.
        source_settings: as configs/data_config.py gives them.

    Raises:
        ConfigError, DataError, CheckpointError, WeightsError: a setting, the data or the backbone cannot be used.
    """
    source_settings = expand(source_settings)
    begun = settings_from(settings, source_settings)
    if begun is not None:
        settings, source_settings = begun.train, begun.data
    config = read_train_config(settings)
    data_config = from_mapping(DataConfig, settings["data"], "config.data")
    mixture_config = read_mixture(source_settings)
    config.execution.steps(data_config.action_horizon)  # says what is wrong with them before anything is read
    backbone = _open_backbone(settings)
    training = open_mixture(mixture_config, data_config, "train")
    validation = open_mixture(mixture_config, data_config, "val", training)
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
        texts = _open_texts(settings, mixture_config, backbone, training, validation)
        spec = dataclasses.replace(spec, text=texts.wording.spec_at(0))
        pretrained = _pretrained(backbone)
        config = _with_adapter_rate(config, backbone)
    assets = Assets(
        agent=config.agent,
        agent_kwargs=kwargs,
        spec=spec,
        action_normalization=data_config.normalization,
        proprio_normalization=data_config.normalization,
        train_config=settings,
        data_config=_with_stored_cameras(source_settings, training),
        text=None if texts is None else texts.wording.to_json(),
        language=None if language is None else language.to_json(),
        execution=config.execution,
        **_of_datasets(mixture_config, training),
    )
    agent = make_agent(config.agent, kwargs, spec)  # says what is wrong with the settings before texts are encoded
    if config.execution.realtime.enabled:
        check_takes_guide(config.agent, agent, config.execution.realtime.by)
    data_config.tasks.check(agent.batch_keys)
    tables = None if language is None else (language.table(training), language.table(validation))
    start = start_of(config.agent, agent) if begun is None else start_from(begun.policy, agent, spec)
    if start is not None:
        pretrained = start.load
    report = () if start is None else (*start.report, *(begun.report if begun else ()))
    return Job(config, agent, training, validation, texts, tables, assets, pretrained, report)


def _with_stored_cameras(source_settings: dict[str, Any], training: Mixture) -> dict[str, Any]:
    """The settings with the names that cameras have in a LeRobotDataset, where these may be given by their place."""
    datasets = {name: dict(own) for name, own in source_settings.get("datasets", {}).items()}
    for member in training.members:
        own = datasets.get(member.name, source_settings)
        if own.get("format", source_settings.get("format")) == "lerobot":
            found = {"cameras": dict(member.dataset.source.cameras)}
            source_settings = source_settings if datasets else source_settings | found
            own.update(found if datasets else {})
    return source_settings | ({"datasets": datasets} if datasets else {})


def _of_datasets(config: MixtureConfig, training: Mixture) -> dict[str, Any]:
    """The fields of `Assets` that say what the numbers of each dataset are."""
    datasets = {
        member.name: DatasetAssets(
            statistics=member.dataset.statistics,
            action_mask=member.dataset.statistics.action_mask,
            actions=member.dataset.convention,
            cameras=member.dataset.spec.cameras,
            stored_sizes=member.dataset.source.stored_sizes,
            control_frequency=source.control_frequency,
            weight=member.weight,
        )
        for member, source in zip(training.members, config.sources.values())
    }
    if len(datasets) > 1:
        return {"statistics": None, "action_mask": (), "datasets": datasets}
    (only,) = datasets.values()
    shared = ("statistics", "action_mask", "actions", "stored_sizes", "control_frequency")
    return {name: getattr(only, name) for name in shared}


def _open_language(settings: Mapping[str, Any], training: Mixture, validation: Mixture) -> Language | None:
    if LANGUAGE_KEY not in settings:
        return None
    config = from_mapping(LanguageConfig, settings[LANGUAGE_KEY], f"config.{LANGUAGE_KEY}")
    return open_language(config, (training, validation))


def _open_backbone(settings: Mapping[str, Any]) -> Backbone | None:
    given = [key for key in TEXT_KEYS if key in settings]
    if not given:
        return None
    if len(given) < len(TEXT_KEYS):
        missing = [key for key in TEXT_KEYS if key not in given]
        raise ConfigError(f"config has {', '.join(given)} but lacks {', '.join(missing)}; give all or none")
    return open_backbone(from_mapping(BackboneConfig, settings["backbone"], "config.backbone"), THINKING_TOKENS)


def _open_texts(
    settings: Mapping[str, Any], config: MixtureConfig, backbone: Backbone, training: Mixture, validation: Mixture
) -> Texts:
    choices = []
    for source in config.sources.values():
        choices.append(StoreChoice(store_path(source), source.max_mismatched))
    return open_texts(
        backbone.tokenizer,
        from_mapping(PromptConfig, settings["prompt"], "config.prompt"),
        from_mapping(CurriculumConfig, settings["curriculum"], "config.curriculum"),
        _image_tokens(training.spec),
        training,
        validation,
        choices,
    )


def _image_tokens(spec: BatchSpec) -> tuple[int, ...]:
    return tuple(num_image_tokens(patch_grid(*spec.size_of(camera))) for camera in spec.cameras)


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
