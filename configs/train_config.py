"""How to train: `--config train_config.py:NAME`. Values only; each is read once, into the dataclasses of jaxvla.

    python experiments/train.py --config train_config.py:gc_bc --bridgedata_config data_config.py:bdv2_local

Names: gc_bc, lc_bc, gc_ddpm_bc, gc_iql, contrastive_rl_td, with BridgeData V2's values; ecot (a Qwen3-VL that reasons,
needs --config.backbone.path), and ecot_lara with LaRA-VLA's. NAME_tiny of all but the last trains on two CPU cores.

`data.image_size` (height, width) is what the policy sees, empty for the stored size; convert at no less than it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

AUGMENT = {
    "order": ("random_resized_crop", "brightness", "contrast", "saturation", "hue"),
    "crop_scale": (0.8, 1.0),
    "crop_ratio": (0.9, 1.1),
    "brightness": 0.2,
    "contrast": (0.8, 1.2),
    "saturation": (0.8, 1.2),
    "hue": 0.1,
    "shift": 0.05,
    "goals_differ": False,
}

_LORA_TARGETS = r"^text/layers/(self_attn|mlp)/\w+_proj/kernel$"


def _base() -> dict:
    return {
        "batch_size": 256,
        "num_steps": 2_000_000,
        "log_interval": 100,
        "eval_interval": 5000,
        "eval_batches": 0,
        "save_interval": 5000,
        "accumulate_steps": 1,
        "ema_decay": 0.0,
        "seed": 42,
        "data_path": "",
        "save_dir": "runs",
        "resume_path": "",
        "data": {
            "relabel_actions": placeholder(bool),  # as the dataset says
            "goal_relabeling": {"strategy": "uniform", "reached_proportion": 0.0, "discount": 0.98, "delta": (0, 24)},
            "obs_horizon": 1,
            "action_horizon": 1,
            "normalization": "normal",
            "image_size": (),
            "skip_unlabeled": False,
            "num_threads": 2,
            "prefetch": 4,
        },
        "augment": AUGMENT,
        "optimizer": {
            "learning_rate": 3e-4,
            "warmup_steps": 2000,
            "decay_steps": 2_000_000,
            "final_learning_rate": 0.0,
            "learning_rates": {},
            "undecayed": (),
            "b2": 0.999,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "execution": {"execute_steps": 0, "ensemble": placeholder(float)},
        "checkpoint": {"keep_last": 3, "keep_best": 1, "best_metric": "mse"},
        "rollout": {
            "world": "",  # none
            "level": "full",
            "tasks": (),
            "episodes": 20,
            "last_episodes": 50,
            "interval": 5000,
            "parallel": 10,
            "camera_size": 0,  # as the data is stored
            "dataset": "",  # the only one
        },
        "wandb": {"enabled": False, "project": "jaxvla", "entity": ""},
    }


def _gc_bc() -> dict:
    config = _base() | {
        "agent": "gc_bc",
        "agent_kwargs": {
            "encoder": {"name": "resnetv1-34-bridge", "pooling": "avg", "add_coordinates": True, "activation": "swish"},
            "early_goal_concat": True,
            "shared_goal_encoder": True,
            "use_proprio": False,
            "hidden_dims": (256, 256, 256),
            "dropout_rate": 0.1,
            "policy": {"std": "fixed", "fixed_std": 1.0, "tanh": False},
            "loss": "likelihood",
            "dtype": "float32",
        },
    }
    config["data"]["image_size"] = (128, 128)
    return config


def _gc_bc_tiny() -> dict:
    return _tiny(_gc_bc(), 3000)


def _tiny(config: dict, num_steps: int) -> dict:
    """`_small` for a method that looks through a ResNet: it keeps where things are, and knows the robot's state."""
    kwargs, encoder = config["agent_kwargs"], config["agent_kwargs"]["encoder"]
    encoder |= {"name": encoder["name"].replace("34-bridge", "tiny"), "pooling": "spatial_softmax"}
    kwargs["use_proprio"] = True
    if "hidden_dims" in kwargs:
        kwargs["hidden_dims"] = (256, 256)
    return _small(config, num_steps, 32)


def _small(config: dict, num_steps: int, batch_size: int) -> dict:
    """A preset made small enough for two CPU cores and some minutes; docs/methods.md has what it reaches.

    It sees small pictures as they are, without crops that would move things, and plays half of every chunk it plans.
    """
    quarter = num_steps // 4
    config |= {"batch_size": batch_size, "num_steps": num_steps, "eval_interval": quarter, "save_interval": quarter}
    config["data"] |= {"image_size": (64, 64), "action_horizon": 8}
    config["augment"] = AUGMENT | {"order": ()}
    config["optimizer"] |= {"learning_rate": 1e-3, "warmup_steps": 100, "decay_steps": num_steps}
    config["execution"]["execute_steps"] = 4
    config["rollout"]["interval"] = quarter
    return config


def _gc_ddpm_bc() -> dict:
    config = _gc_bc() | {"agent": "gc_ddpm_bc", "ema_decay": 0.998}
    for name in ("hidden_dims", "dropout_rate", "policy", "loss"):
        del config["agent_kwargs"][name]
    config["agent_kwargs"] |= {
        "score_network": {"time_dim": 32, "hidden_dim": 256, "num_blocks": 3, "dropout_rate": 0.1, "layer_norm": True},
        "diffusion": {
            "num_levels": 20,
            "schedule": "cosine",
            "sampler": "ddpm",
            "num_inference_steps": 20,
            "clip": 2.0,
            "repeat_last_step": 0,
        },
        "repeated_diffusion_steps": 1,
    }
    return config


def _gc_ddpm_bc_tiny() -> dict:
    config = _tiny(_gc_ddpm_bc(), 5000) | {"ema_decay": 0.995}
    config["agent_kwargs"]["repeated_diffusion_steps"] = 8
    config["agent_kwargs"]["score_network"]["dropout_rate"] = 0.0
    return config


def _gc_iql() -> dict:
    config = _gc_bc() | {"agent": "gc_iql"}
    del config["agent_kwargs"]["loss"]
    config["agent_kwargs"] |= {
        "shared_encoder": True,
        "discount": 0.98,
        "expectile": 0.7,
        "temperature": 1.0,
        "target_rate": 0.002,
        "negative_proportion": 0.1,
        "dropout_target_networks": True,
    }
    config["data"]["goal_relabeling"]["reached_proportion"] = 0.1
    config["optimizer"]["decay_steps"] = 0
    return config


def _gc_iql_tiny() -> dict:
    config = _tiny(_gc_iql(), 2500)
    # An encoder for each network, so that the squared errors of values do not move the actor's. Values of a nearer
    # future are learned in these steps, and targets that follow sooner.
    config["agent_kwargs"] |= {"shared_encoder": False, "discount": 0.9, "temperature": 2.0, "target_rate": 0.02}
    return config


def _contrastive_rl_td() -> dict:
    config = _gc_bc() | {"agent": "contrastive_rl_td"}
    for name in ("early_goal_concat", "loss"):
        del config["agent_kwargs"][name]
    critics = {"shared_encoder": False, "repr_dim": 16, "use_td": True, "discount": 0.98, "target_rate": 0.002}
    config["agent_kwargs"] |= critics | {"gcbc_coef": 0.2}
    config["agent_kwargs"]["encoder"]["add_coordinates"] = False
    # The actor's rate decays, that of the critics does not.
    config["optimizer"]["undecayed"] = ("critic_encoder", "critic")
    return config


def _contrastive_rl_td_tiny() -> dict:
    config = _tiny(_contrastive_rl_td(), 2500)
    # With 0.98 next frames weigh 0.02, and so few steps hardly move the critics from their start. Imitation is averaged
    # over the slots of a chunk while critics pull at all of them, so it needs more weight than for single actions.
    config["agent_kwargs"] |= {"discount": 0.9, "target_rate": 0.02, "gcbc_coef": 0.9}
    config["optimizer"]["undecayed"] = ()
    return config


def _lc_bc() -> dict:
    config = _gc_bc() | {
        "agent": "lc_bc",
        "language": {"encoder": "learned", "path": "", "max_length": 64, "prompt": "Instruction:", "dtype": "bfloat16"},
    }
    for goal_setting in ("early_goal_concat", "shared_goal_encoder"):
        del config["agent_kwargs"][goal_setting]
    config["agent_kwargs"]["encoder"]["name"] = "resnetv1-34-bridge-film"
    config["agent_kwargs"]["instruction_encoder"] = {"width": 128, "num_layers": 4, "num_heads": 4}
    config["data"]["skip_unlabeled"] = True
    return config


def _lc_bc_tiny() -> dict:
    config = _tiny(_lc_bc(), 3000)
    config["agent_kwargs"]["instruction_encoder"] |= {"width": 64, "num_layers": 2}
    config["language"]["max_length"] = 32
    return config


def _reasoning() -> dict:
    """What policies that reason have besides: a backbone, the wording of its prompts, and a curriculum."""
    return {
        "backbone": {
            "path": "",
            "preset": "",
            "token_init": "copy:<<",
            "position_mode": "mrope",
            "dtype": "bfloat16",
            "remat": "block",
            "attention": "xla",
            "lora": {"rank": 0, "alpha": 16.0, "targets": _LORA_TARGETS, "dropout": 0.0},
        },
        "prompt": {
            "base_prompt": "Robot task reasoning: first think the task through, then act. Instruction:",
            "lower_case_instruction": True,
            "max_prefix_length": 0,
            "max_suffix_length": 0,
            "on_overflow": "error",
        },
        "curriculum": {
            "component_set": "ecot",
            "component_order": (),
            "tag2think_count": {},
            "schedule": ((0, 0), (10_000, 2), (15_000, 5), (20_000, 8)),
            "uniform_stage_probability": 0.1,
            "tag_dropout": 0.0,
            "reasoning_dropout": 0.1,
            "slots_for_missing": True,
        },
    }


def _ecot() -> dict:
    """Qwen3-VL reasons in the eight parts of embodied chain of thought, then in slots, and a flow head acts."""
    config = _base() | _reasoning()
    config |= {"agent": "ecot", "batch_size": 64, "num_steps": 60_000}
    config |= {"eval_interval": 2500, "eval_batches": 16, "save_interval": 2500}
    config["agent_kwargs"] = {
        "training_mode": "full",
        "language_loss_weight": 0.1,
        "latent_hidden": "pre_norm",
        "context_hidden": "pre_norm",
        "hide_words": 0.5,
        "inference": "implicit",
        "max_new_tokens": 512,
        "action_head": {
            "kind": "flow_matching",
            "size": "dit_b",
            "use_state": False,
            "dropout": 0.2,
            "num_future_tokens": 32,
            "repeated_diffusion_steps": 8,
            "num_inference_steps": 4,
            "t_clamp": 0.999,
            "dtype": "bfloat16",
            "remat": "none",
        },
    }
    # Crops would move what boxes and gripper positions speak of.
    config["augment"] = AUGMENT | {"order": ("brightness", "contrast", "saturation", "hue")}
    config["data"] |= {
        "action_horizon": 16,
        "normalization": "bounds_q99",
        "image_size": (224, 224),
        "skip_unlabeled": True,
    }
    config["optimizer"] |= {
        "learning_rate": 1e-4,
        "learning_rates": {"backbone": 1e-5},
        "warmup_steps": 1000,
        "decay_steps": 60_000,
        "final_learning_rate": 1e-6,
        "b2": 0.95,
        "clip_norm": 1.0,
    }
    return config


def _ecot_lara() -> dict:
    """The values of LaRA-VLA's release where a configuration can say them: docs/ecot.md has what it cannot.

    The order of the components is that of its launchers and its prompt; its stages count from 1.
    """
    config = _ecot() | {"batch_size": 128, "num_steps": 50_000}
    config["backbone"]["position_mode"] = "linear"
    config["prompt"]["base_prompt"] = (
        "Robot task reasoning: first output the Subtask to preform next, then output the BBox of target object, "
        "then generate the Motion Reasoning. Instruction:"
    )
    config["prompt"]["lower_case_instruction"] = False
    config["curriculum"] |= {
        "component_set": "lara",
        "component_order": ("SUBTASK", "BBOX", "REASON"),
        "schedule": ((0, 0), (10_000, 1), (15_000, 2), (20_000, 3)),
        "uniform_stage_probability": 0.0,
        "reasoning_dropout": 0.0,
        "slots_for_missing": False,
    }
    config["agent_kwargs"] |= {"language_loss_weight": 1.0, "hide_words": 0.0}
    config["agent_kwargs"]["action_head"] |= {"repeated_diffusion_steps": 4, "t_clamp": None}
    config["augment"] = AUGMENT | {"order": ()}
    config["data"]["image_size"] = (256, 256)
    config["optimizer"] |= {
        "learning_rate": 3e-5,
        "learning_rates": {"backbone": 1e-5, "action_head": 1e-4},
        "warmup_steps": 5000,
        "decay_steps": 50_000,
        "final_learning_rate": 5e-7,
        "weight_decay": 1e-8,
    }
    return config


def _ecot_tiny() -> dict:
    config = _small(_ecot(), 1200, 64) | {"log_interval": 50, "eval_batches": 8, "ema_decay": 0.99}
    config["backbone"] |= {"preset": "tiny", "dtype": "float32", "remat": "none"}
    config["prompt"]["base_prompt"] = ""
    config["curriculum"] |= {
        "component_order": ("SUBTASK REASONING", "SUBTASK", "MOVE", "GRIPPER POSITION"),
        "schedule": ((0, 0), (150, 1), (180, 2), (210, 3), (240, 4)),
        "uniform_stage_probability": 0.0,
    }
    config["agent_kwargs"] |= {"context_hidden": "post_norm", "latent_hidden": "post_norm", "max_new_tokens": 160}
    config["agent_kwargs"]["action_head"] |= {
        "size": "dit_tiny",
        "num_layers": 2,
        "output_dim": 128,
        "hidden_size": 128,
        "use_state": True,
        "dropout": 0.0,
        "num_future_tokens": 4,
        "repeated_diffusion_steps": 4,
        "dtype": "float32",
    }
    config["optimizer"] |= {"learning_rates": {}, "final_learning_rate": 0.0}
    return config


def _backbone_tiny() -> dict:
    """The words alone, on all that can be seen: how the backbone of preset `tiny` was trained, from noise."""
    config = _ecot_tiny() | {"num_steps": 3500, "eval_interval": 500, "save_interval": 250, "ema_decay": 0.998}
    config["backbone"]["preset"] = "tiny_random"
    config["agent_kwargs"] |= {"training_mode": "reasoning_only", "inference": "explicit", "max_new_tokens": 256}
    parts = ("VISIBLE OBJECTS", "GRIPPER POSITION", "SUBTASK REASONING", "SUBTASK", "MOVE REASONING", "MOVE")
    config["curriculum"] |= {"component_order": parts, "schedule": ((0, 0),), "tag_dropout": 0.5}
    config["curriculum"]["reasoning_dropout"] = 0.0
    # All parts at once are twice as long, and most samples hold about half of them.
    config["prompt"] |= {"max_suffix_length": 112, "on_overflow": "truncate"}
    config["checkpoint"]["best_metric"] = "lm_loss"
    config["optimizer"] |= {"learning_rate": 2e-3, "warmup_steps": 200, "decay_steps": 3500}
    return config


PRESETS = {
    "gc_bc": _gc_bc,
    "gc_bc_tiny": _gc_bc_tiny,
    "lc_bc": _lc_bc,
    "lc_bc_tiny": _lc_bc_tiny,
    "gc_ddpm_bc": _gc_ddpm_bc,
    "gc_ddpm_bc_tiny": _gc_ddpm_bc_tiny,
    "gc_iql": _gc_iql,
    "gc_iql_tiny": _gc_iql_tiny,
    "contrastive_rl_td": _contrastive_rl_td,
    "contrastive_rl_td_tiny": _contrastive_rl_td_tiny,
    "ecot": _ecot,
    "ecot_lara": _ecot_lara,
    "ecot_tiny": _ecot_tiny,
    "backbone_tiny": _backbone_tiny,
}


def get_config(name: str = "") -> ConfigDict:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ValueError(f"no training config named {name!r}; there are: {', '.join(PRESETS)}")
    return ConfigDict(PRESETS[name]())
