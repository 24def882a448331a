"""Checkpoints for other programs: backbones and OpenVLA as on Hugging Face, policies as LeRobot's, any in one file."""

import pathlib

from jaxvla.agents import make_agent
from jaxvla.agents.backbone import BackboneConfig, merge_adapters
from jaxvla.agents.language import language_from_json
from jaxvla.config import from_mapping
from jaxvla.data.openvla_statistics import as_openvla_does, openvla_entries
from jaxvla.data.text.tokenizer import tokenizer_from_files
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.interchange.card import model_card, read_records
from jaxvla.interchange.exports import check_target
from jaxvla.interchange.native import write_native
from jaxvla.interchange.writing import check_written, write_policy
from jaxvla.models.lora import LORA
from jaxvla.models.prismatic.weights import save_hf as save_openvla
from jaxvla.models.qwen3_vl.peft import save_peft
from jaxvla.models.qwen3_vl.weights import save_hf
from jaxvla.models.weights import written_aside
from jaxvla.reasoning.prompt import THINKING_TOKENS
from jaxvla.serving.stored import open_stored


def export_backbone(
    checkpoint: str | pathlib.Path,
    folder: str | pathlib.Path,
    step: int | None = None,
    *,
    adapters: bool = False,
    dtype: str = "",
) -> None:
    """Writes weights, configuration and tokenizer.

    Args:
        checkpoint: a run folder, or the folder of one checkpoint.
        folder: is made; must be empty where it exists.
        step: which checkpoint of a run folder; None for the latest.
        adapters: write the adapters alone, with the rows of the thinking tokens, which the base model does not have;
            else the whole model, into which adapters are merged.
        dtype: of the whole model; that of its parameters where it is empty.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: it has no backbone, or no adapters; or adapters are given a dtype.
        WeightsError: the folder is not empty or cannot be written.
    """
    if adapters and dtype:
        raise ConfigError(f"the dtype {dtype} is that of a whole model, adapters are float32: leave out one of the two")
    stored, folder = open_stored(checkpoint, step), check_target(folder)
    path, assets = stored.path, stored.assets
    if "backbone" not in assets.agent_kwargs:
        raise ConfigError(f"{path} is of {assets.agent}, which has no backbone to export: give a checkpoint of ecot")
    if adapters and LORA not in assets.agent_kwargs:
        raise ConfigError(f"{path} was trained without LoRA: export the whole model, without adapters")
    config = make_agent(assets.agent, assets.agent_kwargs, assets.spec).config
    tokenizer = tokenizer_from_files(assets.text["tokenizer"])
    params = stored.read()
    if adapters:
        base = from_mapping(BackboneConfig, assets.train_config["backbone"], "config.backbone").folder or ""
        ids = [tokenizer.id_of(name) for name in THINKING_TOKENS]
        save_peft(params["backbone"], config.backbone, config.lora, folder, base=str(base), tokens=ids)
    else:
        _, params = merge_adapters(assets.agent_kwargs, params, dtype)
        save_hf(params["backbone"], config.backbone, folder, dtype=dtype or None)
    tokenizer.save(folder)


def export_openvla(
    checkpoint: str | pathlib.Path, folder: str | pathlib.Path, step: int | None = None, *, dtype: str = ""
) -> None:
    """Writes OpenVLA as its authors publish it, with the statistics of all datasets, and the tokenizer.

    Adapters are merged. Of actions that are regressed the further files are written, too, see
    `jaxvla.models.prismatic.components`.

    Args:
        checkpoint: a run folder, the folder of one checkpoint, or an export of it.
        folder: is made; must be empty where it exists.
        step: which checkpoint of a run folder; None for the latest.
        dtype: of the weights; that of the parameters where it is empty.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: it is of another agent, or normalizes otherwise than OpenVLA can.
        WeightsError: the folder is not empty or cannot be written.
    """
    stored, folder = open_stored(checkpoint, step), check_target(folder)
    assets = stored.assets
    if assets.agent != "openvla":
        raise ConfigError(f"{stored.path} is of {assets.agent}, not of openvla: leave --format openvla out")
    each = {name: assets.of(name) for name in assets.names}
    statistics = {
        name: as_openvla_does(own.action_normalizer(), own.proprio_normalizer(), own.statistics)
        for name, own in each.items()
    }
    tokenizer = language_from_json(assets.language).tokenizer
    kwargs, params = merge_adapters(assets.agent_kwargs, stored.read(), dtype)
    model = make_agent(assets.agent, kwargs, assets.spec).config.model
    try:
        with written_aside(folder) as partial:
            save_openvla(params, model, partial, dtype=dtype or None, norm_stats=openvla_entries(statistics))
            tokenizer.save(partial)
    except OSError as error:
        raise WeightsError(f"cannot write {folder}: {error.strerror}") from error


def export_lerobot(
    checkpoint: str | pathlib.Path,
    folder: str | pathlib.Path,
    step: int | None = None,
    *,
    dataset: str | None = None,
    data_licence: str = "",
) -> None:
    """Writes a policy as LeRobot saves its own: it loads there strictly, and acts there as it does here.

    Args:
        checkpoint: a run folder, the folder of one checkpoint, or an export of it.
        folder: is made; must be empty where it exists.
        step: which checkpoint of a run folder; None for the latest.
        dataset: in whose units it acts; None for the only one.
        data_licence: of the data, for the card.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: LeRobot has no such policy, or it is of several robots.
        WeightsError: the folder is not empty or cannot be written.
    """
    stored, folder = open_stored(checkpoint, step, dataset), check_target(folder)
    assets = stored.assets.of(dataset)
    check_written(assets)
    card = model_card(assets, stored.step, read_records(stored.path), data_licence)
    kwargs, params = merge_adapters(assets.agent_kwargs, stored.read())
    write_policy(folder, make_agent(assets.agent, kwargs, assets.spec), params, assets, card)


def export_native(
    checkpoint: str | pathlib.Path, folder: str | pathlib.Path, step: int | None = None, *, data_licence: str = ""
) -> None:
    """Writes any agent's parameters as one safetensors file, with assets.json and a card; `load_policy` reads it.

    Args:
        checkpoint, folder, step, data_licence: as of `export_lerobot`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        WeightsError: the folder is not empty or cannot be written.
    """
    stored, folder = open_stored(checkpoint, step), check_target(folder)
    card = model_card(stored.assets, stored.step, read_records(stored.path), data_licence)
    write_native(folder, stored.read(), stored.assets, stored.step, card)
