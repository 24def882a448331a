"""How to train: `--config train_config.py:NAME`. Values only; each is read once, into the dataclasses of jaxvla.

    python experiments/train.py --config train_config.py:gc_bc --bridgedata_config data_config.py:bdv2_local

Names: gc_bc (BridgeData V2's preset: ResNet-34, batch 256, 2 M steps), gc_bc_tiny (trains on two CPU cores in minutes).
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


PRESETS = {"gc_bc": _gc_bc, "gc_bc_tiny": _gc_bc_tiny}


def get_config(name: str = "") -> ConfigDict:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ValueError(f"no training config named {name!r}; there are: {', '.join(PRESETS)}")
    return ConfigDict(PRESETS[name]())
