"""What every method is trained with unless its preset says otherwise, and what makes a preset small. Values only."""

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
    "transforms": {
        "enable": False,
        "max_num_transforms": 3,
        "random_order": False,
        "brightness": {"weight": 1.0, "range": (0.8, 1.2)},
        "contrast": {"weight": 1.0, "range": (0.8, 1.2)},
        "saturation": {"weight": 1.0, "range": (0.5, 1.5)},
        "hue": {"weight": 1.0, "range": (-0.05, 0.05)},
        "sharpness": {"weight": 1.0, "range": (0.5, 1.5)},
        "affine": {"weight": 1.0, "degrees": (-5.0, 5.0), "translate": (0.05, 0.05)},
    },
}

_REALTIME = {
    "enabled": False,
    "schedule": "exp",
    "max_guidance_weight": 5.0,
    "by": "guidance",
    "least_delay": 0,
}

_ROLLOUT = {
    "world": "",  # none
    "level": "full",
    "tasks": (),
    "episodes": 20,
    "last_episodes": 50,
    "interval": 5000,
    "parallel": 10,
    "camera_size": 0,  # as the data is stored
    "dataset": "",  # the only one
}


def _runtime() -> dict:
    """What is done about faults, and looked at."""
    return {
        "on_nan": "raise",
        "max_bad_steps": 10,
        "watchdog": {"factor": 20.0, "at_least_s": 60.0, "end": False},
        "profile": {"start": 0, "steps": 3},
    }


def base() -> dict:
    """The values of all methods."""
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
        "policy": {"path": ""},  # of LeRobot, to start from
        "data": {
            "relabel_actions": placeholder(bool),  # as the dataset says
            "goal_relabeling": {"strategy": "uniform", "reached_proportion": 0.0, "discount": 0.98, "delta": (0, 24)},
            "obs_horizon": 1,
            "action_horizon": 1,
            "normalization": "normal",
            "image_size": (),
            "camera_sizes": {},
            "resize": "lanczos",
            "skip_unlabeled": False,
            "filters": {"max_action": 0.0, "max_proprio": 0.0, "max_steps": 0},
            "tasks": {"drop_language": 0.0, "drop_goal": 0.0, "rephrase": 0.0, "paraphrases": ""},
            "learn_padding": False,
            "num_threads": 2,
            "prefetch": 4,
        },
        "augment": AUGMENT,
        "optimizer": {
            "learning_rate": 3e-4,
            "warmup_steps": 2000,
            "decay_steps": 2_000_000,
            "final_learning_rate": 0.0,
            "cosine": "after_warmup",
            "learning_rates": {},
            "undecayed": (),
            "b2": 0.999,
            "moments": "float32",
            "weight_decay": 0.0,
            "clip_norm": 0.0,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "execution": {
            "execute_steps": 0,
            "ensemble": placeholder(float),
            "ensemble_by": "age",
            "ensemble_last": 0,
            "realtime": dict(_REALTIME),
        },
        "checkpoint": {"keep_last": 3, "keep_best": 1, "best_metric": "mse"},
        "rollout": dict(_ROLLOUT),
        **_runtime(),
        "wandb": {"enabled": False, "project": "jaxvla", "entity": ""},
    }


def small(config: dict, num_steps: int, batch_size: int) -> dict:
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
