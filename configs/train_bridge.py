"""The methods of BridgeData V2, with their own values, and small. Values only."""

from train_base import base, small


def _gc_bc() -> dict:
    config = base() | {
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
    return small(config, num_steps, 32)


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
}
