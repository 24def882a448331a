"""Methods as LeRobot trains them, and small. Values only."""

from train_base import AUGMENT, base, small

_LORA_TARGETS = (
    r"^expert/layers/(joint|cross)/self_attn/(q|v)_proj/kernel$"
    r"|^(state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)/kernel$"
)


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


def _act_dinov2() -> dict:
    config = _act()
    config["agent_kwargs"]["encoder"]["name"] = "dinov2_small"
    config["data"]["image_size"] = (224, 224)
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


def _smolvla_model() -> dict:
    """The sizes and switches of the published model."""
    return {
        "text": {
            "vocab_size": 49280,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 16,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
        },
        "vision": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
            "num_channels": 3,
            "layer_norm_eps": 1e-6,
        },
        "scale_factor": 4,
        "expert_width_multiplier": 0.75,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "num_steps": 10,
        "min_period": 4e-3,
        "max_period": 4.0,
        "freeze_vision_encoder": True,
        "train_expert_only": True,
        "train_state_proj": True,
        "loss_reduction": "valid",
        "dtype": "bfloat16",
        "remat": "none",
        "scan_layers": True,
        "attention": "xla",
    }


def _smolvla() -> dict:
    config = base() | {
        "agent": "smolvla",
        "agent_kwargs": {
            "model": _smolvla_model(),
            "max_delay": 0,
            "repeated_diffusion_steps": 1,
            "vlm_path": "",
            "lora": {"rank": 0, "alpha": 8.0, "targets": _LORA_TARGETS, "dropout": 0.0, "base": ""},
        },
        "language": {"encoder": "tokens", "path": "", "max_length": 48, "on_overflow": "truncate"},
        "batch_size": 64,
        "num_steps": 20_000,
        "augment": AUGMENT | {"order": ()},
    }
    config["data"] |= {"action_horizon": 50, "skip_unlabeled": True}
    config["optimizer"] |= {
        "learning_rate": 1e-4,
        "warmup_steps": 1000,
        "decay_steps": 30_000,
        "final_learning_rate": 2.5e-6,
        "cosine": "start",
        "b2": 0.95,
        "weight_decay": 1e-10,
        "clip_norm": 10.0,
    }
    return config


def _smolvla_tiny() -> dict:
    config = small(_smolvla(), 3000, 32)
    model = config["agent_kwargs"]["model"]
    model["text"] |= {
        "vocab_size": 1000,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    model["vision"] |= {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    # What is drawn at random is trained; and the fewer dimensions only fill up, the less noise there is to see through.
    model |= {"freeze_vision_encoder": False, "train_expert_only": False, "dtype": "float32"}
    model |= {"scale_factor": 2, "max_state_dim": 8, "max_action_dim": 8}
    config["agent_kwargs"]["repeated_diffusion_steps"] = 4
    config["language"] |= {"max_length": 24, "on_overflow": "error"}
    config["optimizer"] |= {"final_learning_rate": 0.0, "cosine": "after_warmup", "clip_norm": 1.0}
    return config


PRESETS = {
    "act": _act,
    "act_dinov2": _act_dinov2,
    "act_tiny": _act_tiny,
    "smolvla": _smolvla,
    "smolvla_tiny": _smolvla_tiny,
}
