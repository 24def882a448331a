"""SmolVLA between LeRobot's folders and the settings of the agent.

tokenizer/    that of the instructions, as LeRobot 0.6 leaves it
vlm/          config.json of a vision-language model of other sizes than the published one
"""

import dataclasses
import json
import pathlib
from typing import Any

from jaxvla.agents.smolvla import SmolVLAAgent
from jaxvla.assets import Assets
from jaxvla.data.schema import BatchSpec
from jaxvla.data.text.tokenizer import tokenizer_from_files
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.interchange.policy_folder import CONFIG, PolicyFolder
from jaxvla.interchange.processors import NEW_LINE, TOKENIZE, Step, read_object
from jaxvla.models.smolvla.config import PUBLISHED, VLM, SmolVLAConfig, from_lerobot, to_vlm

_TOKENIZER, _VLM = "tokenizer", "vlm"
_TOKENS = "tokenizer.json"
_LENGTH = 48  # of LeRobot's instructions
# What of the model is how it is trained or computed, which the run says.
_OF_THE_RUN = (
    "chunk_size",
    "freeze_vision_encoder",
    "train_expert_only",
    "train_state_proj",
    "loss_reduction",
    "dtype",
    "remat",
    "scan_layers",
    "attention",
)


def read_kwargs(policy: PolicyFolder) -> dict[str, Any]:
    """The `agent_kwargs` that the weights fix; how they are trained is not among them.

    Raises:
        WeightsError: a variant that the agent does not have, or a vision-language model that is not there.
    """
    name, vlm = policy.values.get("vlm_model_name", VLM), None
    if policy.mode_of("VISUAL") != "IDENTITY":
        raise WeightsError(f"{policy.path}: pictures are normalized by {policy.mode_of('VISUAL')}, smolvla does not")
    if name != VLM:
        folders = [pathlib.Path(str(name)), policy.path / _VLM]
        found = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
        if found is None:
            raise WeightsError(
                f"{policy.config_path}: vlm_model_name is {name!r}, which is neither {VLM!r} nor a folder with a "
                f"{CONFIG}: put that into {policy.path / _VLM}"
            )
        vlm = read_object(found / CONFIG)
    try:
        model = dataclasses.asdict(from_lerobot(policy.values, policy.config_path, vlm))
    except ConfigError as error:
        raise WeightsError(str(error)) from error
    return {"model": {key: value for key, value in model.items() if key not in _OF_THE_RUN}}


def read_language(policy: PolicyFolder, path: str = "") -> dict[str, Any]:
    """The keys of config.language that give the tokens of LeRobot.

    Args:
        policy: the folder.
        path: of a folder with its tokenizer; empty for that in or beside the policy's.

    Raises:
        WeightsError: there is none.
    """
    step = None if policy.preprocessor is None else policy.preprocessor.step(TOKENIZE)
    config = {} if step is None else step.config
    name = str(config.get("tokenizer_name") or policy.values.get("vlm_model_name", VLM))
    folders = [policy.path / _TOKENIZER, policy.path, pathlib.Path(name)]
    found = path or next((folder for folder in folders if (folder / _TOKENS).is_file()), None)
    if found is None:
        raise WeightsError(
            f"{policy.path} has no tokenizer, and nothing is downloaded: put {_TOKENS} of {name} into "
            f"{policy.path / _TOKENIZER}"
        )
    length = config.get("max_length", policy.values.get("tokenizer_max_length", _LENGTH))
    return {"encoder": "tokens", "path": str(found), "max_length": length, "on_overflow": "truncate"}


def check(policy: PolicyFolder, spec: BatchSpec) -> None:
    """States and actions are filled up to what the weights take, and the agent refuses more: any robot fits."""


def language_steps(agent: SmolVLAAgent, assets: Assets, path: pathlib.Path) -> tuple[Step, ...]:
    """The steps that LeRobot makes tokens by, of a folder that will lie at `path`."""
    config = {
        "max_length": assets.spec.instruction.length,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": VLM if _is_published(agent.config.model) else str(path / _TOKENIZER),
    }
    return Step(NEW_LINE), Step(TOKENIZE, config)


def write_values(agent: SmolVLAAgent, assets: Assets, path: pathlib.Path) -> dict[str, Any]:
    """The part of config.json that is of SmolVLA alone, of a folder that will lie at `path`."""
    model = agent.config.model
    return {
        "max_state_dim": model.max_state_dim,
        "max_action_dim": model.max_action_dim,
        "resize_imgs_with_padding": [model.vision.image_size] * 2,
        "empty_cameras": 0,
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "tokenizer_max_length": assets.spec.instruction.length,
        "num_steps": model.num_steps,
        "use_cache": True,
        "freeze_vision_encoder": model.freeze_vision_encoder,
        "train_expert_only": model.train_expert_only,
        "train_state_proj": model.train_state_proj,
        **_optimizer(assets),
        "vlm_model_name": VLM if _is_published(model) else str(path / _VLM),
        "load_vlm_weights": False,  # which LeRobot would fetch, to put these in their place
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "prefix_length": -1,
        "pad_language_to": "max_length",
        "num_expert_layers": -1,
        "num_vlm_layers": model.text.num_hidden_layers,
        "self_attn_every_n_layers": 2,
        "expert_width_multiplier": model.expert_width_multiplier,
        "min_period": model.min_period,
        "max_period": model.max_period,
    }


def write_more(agent: SmolVLAAgent, assets: Assets, path: pathlib.Path) -> None:
    """Writes the tokenizer, and the sizes of the vision-language model where they are not the published ones."""
    tokenizer_from_files(assets.language["tokenizer"], chats=False).save(path / _TOKENIZER)
    if not _is_published(agent.config.model):
        (path / _VLM).mkdir()
        (path / _VLM / CONFIG).write_text(json.dumps(to_vlm(agent.config.model), indent=2) + "\n")


def _optimizer(assets: Assets) -> dict[str, Any]:
    """LeRobot's preset of the optimizer, with what the run says."""
    given = {"learning_rate": 1e-4, "b2": 0.95, "weight_decay": 1e-10, "clip_norm": 10.0}
    given |= {"warmup_steps": 1000, "decay_steps": 30_000, "final_learning_rate": 2.5e-6}
    given |= dict(assets.train_config.get("optimizer") or {})
    return {
        "optimizer_lr": given["learning_rate"],
        "optimizer_betas": [0.9, given["b2"]],
        "optimizer_eps": 1e-8,
        "optimizer_weight_decay": given["weight_decay"],
        "optimizer_grad_clip_norm": given["clip_norm"],
        "scheduler_warmup_steps": given["warmup_steps"],
        "scheduler_decay_steps": given["decay_steps"],
        "scheduler_decay_lr": given["final_learning_rate"],
    }


def _is_published(model: SmolVLAConfig) -> bool:
    """Whether the vision-language model is as large as the published one."""
    text = dataclasses.replace(model.text, num_hidden_layers=PUBLISHED.text.num_hidden_layers)
    own = text, model.vision, model.scale_factor
    return own == (PUBLISHED.text, PUBLISHED.vision, PUBLISHED.scale_factor)
