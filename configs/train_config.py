"""How to train: `--config train_config.py:NAME`. Values only; each is read once, into the dataclasses of jaxvla.

    python experiments/train.py --config train_config.py:gc_bc --bridgedata_config data_config.py:bdv2_local

Names: gc_bc (BridgeData V2's preset: ResNet-34, batch 256, 2 M steps), gc_bc_tiny (trains on two CPU cores in minutes);
ecot (a Qwen3-VL that reasons, needs --config.backbone.path), ecot_lara (with the values of LaRA-VLA), ecot_tiny (random
weights, trains on two CPU cores in minutes).
"""

from ml_collections import ConfigDict

AUGMENT = {
    "order": ("random_resized_crop", "brightness", "contrast", "saturation", "hue"),
    "crop_scale": (0.8, 1.0),
    "crop_ratio": (0.9, 1.1),
    "brightness": 0.2,
    "contrast": (0.8, 1.2),
    "saturation": (0.8, 1.2),
    "hue": 0.1,
    "goals_differ": False,
}


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
            "relabel_actions": True,
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
            "b2": 0.999,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "checkpoint": {"keep_last": 3, "keep_best": 1, "best_metric": "mse"},
        "wandb": {"enabled": False, "project": "jaxvla", "entity": ""},
    }


def _gc_bc() -> dict:
    return _base() | {
        "agent": "gc_bc",
        "agent_kwargs": {
            "encoder": {
                "name": "resnetv1-34-bridge",
                "pooling": "avg",
                "add_coordinates": True,
                "activation": "swish",
            },
            "early_goal_concat": True,
            "shared_goal_encoder": True,
            "use_proprio": False,
            "hidden_dims": (256, 256, 256),
            "dropout_rate": 0.1,
            "policy": {"std": "fixed", "fixed_std": 1.0, "tanh": False},
            "dtype": "float32",
        },
    }


def _gc_bc_tiny() -> dict:
    config = _gc_bc() | {
        "batch_size": 64,
        "num_steps": 1200,
        "log_interval": 100,
        "eval_interval": 300,
        "save_interval": 300,
    }
    config["agent_kwargs"]["encoder"]["name"] = "resnetv1-tiny"
    config["optimizer"] |= {"learning_rate": 1e-3, "warmup_steps": 100, "decay_steps": 1200}
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
    """The values of LaRA-VLA's release where they can be told by a configuration; its stages count from 1."""
    config = _ecot() | {"batch_size": 128, "num_steps": 50_000}
    config["backbone"]["position_mode"] = "linear"
    config["prompt"]["base_prompt"] = (
        "Robot task reasoning: first output the Subtask to preform next, then output the BBox of target object, "
        "then generate the Motion Reasoning. Instruction:"
    )
    config["curriculum"] |= {
        "component_set": "lara",
        "schedule": ((0, 0), (10_000, 1), (15_000, 2), (20_000, 3)),
        "uniform_stage_probability": 0.0,
        "reasoning_dropout": 0.0,
        "slots_for_missing": False,
    }
    config["agent_kwargs"] |= {"language_loss_weight": 1.0, "hide_words": 0.0}
    config["agent_kwargs"]["action_head"] |= {"repeated_diffusion_steps": 4, "t_clamp": None}
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
    config = _ecot() | {
        "batch_size": 32,
        "num_steps": 1600,
        "log_interval": 50,
        "eval_interval": 200,
        "eval_batches": 8,
        "save_interval": 200,
    }
    config["backbone"] |= {"preset": "tiny", "dtype": "float32", "remat": "none"}
    config["curriculum"] |= {
        "component_order": ("SUBTASK REASONING", "SUBTASK", "MOVE", "GRIPPER POSITION"),
        "schedule": ((0, 0), (300, 2), (400, 4)),
        "uniform_stage_probability": 0.0,
    }
    config["agent_kwargs"] |= {"context_hidden": "post_norm", "latent_hidden": "post_norm", "max_new_tokens": 128}
    config["agent_kwargs"]["action_head"] |= {
        "size": "dit_tiny",
        "use_state": True,
        "dropout": 0.0,
        "num_future_tokens": 4,
        "repeated_diffusion_steps": 4,
        "dtype": "float32",
    }
    config["data"] |= {"action_horizon": 4, "image_size": (128, 128)}
    config["optimizer"] |= {"learning_rate": 1e-3, "learning_rates": {}, "warmup_steps": 100, "decay_steps": 1600}
    return config


PRESETS = {
    "gc_bc": _gc_bc,
    "gc_bc_tiny": _gc_bc_tiny,
    "ecot": _ecot,
    "ecot_lara": _ecot_lara,
    "ecot_tiny": _ecot_tiny,
}


def get_config(name: str = "") -> ConfigDict:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ValueError(f"no training config named {name!r}; there are: {', '.join(PRESETS)}")
    return ConfigDict(PRESETS[name]())
