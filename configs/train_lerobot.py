"""Methods as LeRobot trains them, and small. Values only."""

from train_base import AUGMENT, base, small


def _act() -> dict:
    config = base() | {
        "agent": "act",
        "agent_kwargs": {
            "encoder": {"name": "resnet18", "path": ""},
            "transformer": {
                "width": 512,
                "num_heads": 8,
                "mlp_dim": 3200,
                "num_encoder_layers": 4,
                "num_decoder_layers": 1,
                "num_latent_layers": 4,
                "latent_dim": 32,
                "dropout_rate": 0.1,
            },
            "use_proprio": True,
            "use_latent": True,
            "kl_weight": 10.0,
            "dtype": "float32",
        },
        "batch_size": 8,
        "num_steps": 100_000,
        "eval_interval": 20_000,
        "save_interval": 20_000,
        "augment": AUGMENT | {"order": ()},
    }
    config["data"]["action_horizon"] = 100
    config["optimizer"] |= {
        "learning_rate": 1e-5,
        "learning_rates": {"backbone": 1e-5},
        "warmup_steps": 0,
        "decay_steps": 0,
        "weight_decay": 1e-4,
        "clip_norm": 10.0,
    }
    return config


def _act_tiny() -> dict:
    config = small(_act(), 3000, 32)
    # Without weights of ImageNet at hand, norms that learn.
    config["agent_kwargs"]["encoder"]["name"] = "resnetv1-tiny"
    config["agent_kwargs"]["transformer"] |= {
        "width": 64,
        "num_heads": 4,
        "mlp_dim": 256,
        "num_encoder_layers": 2,
        "num_latent_layers": 2,
        "latent_dim": 8,
        "dropout_rate": 0.0,
    }
    config["optimizer"] |= {"learning_rate": 5e-4, "learning_rates": {}}
    return config


PRESETS = {"act": _act, "act_tiny": _act_tiny}
