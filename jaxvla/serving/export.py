"""The backbone of a checkpoint for other programs: a model in Hugging Face's layout, or its adapters in PEFT's."""

import pathlib

from jaxvla.agents import make_agent
from jaxvla.agents.backbone import BackboneConfig, merge_adapters
from jaxvla.checkpoint import find_checkpoint, read_assets
from jaxvla.config import from_mapping
from jaxvla.data.text.tokenizer import tokenizer_from_files
from jaxvla.errors import ConfigError
from jaxvla.models.lora import LORA
from jaxvla.models.qwen3_vl.peft import save_peft
from jaxvla.models.qwen3_vl.weights import save_hf
from jaxvla.models.weights import check_empty
from jaxvla.reasoning.prompt import THINKING_TOKENS
from jaxvla.serving.policy import read_params


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
    path, folder = find_checkpoint(checkpoint, step, ("params", "assets")), pathlib.Path(folder).expanduser()
    assets = read_assets(path)
    if "backbone" not in assets.agent_kwargs:
        raise ConfigError(f"{path} is of {assets.agent}, which has no backbone to export: give a checkpoint of ecot")
    if adapters and LORA not in assets.agent_kwargs:
        raise ConfigError(f"{path} was trained without LoRA: export the whole model, without adapters")
    check_empty(folder)
    config = make_agent(assets.agent, assets.agent_kwargs, assets.spec).config
    tokenizer = tokenizer_from_files(assets.text["tokenizer"])
    params = read_params(path, assets)
    if adapters:
        base = from_mapping(BackboneConfig, assets.train_config["backbone"], "config.backbone").folder or ""
        ids = [tokenizer.id_of(name) for name in THINKING_TOKENS]
        save_peft(params["backbone"], config.backbone, config.lora, folder, base=str(base), tokens=ids)
    else:
        _, params = merge_adapters(assets.agent_kwargs, params, dtype)
        save_hf(params["backbone"], config.backbone, folder, dtype=dtype or None)
    tokenizer.save(folder)
