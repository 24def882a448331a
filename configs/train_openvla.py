"""OpenVLA and OpenVLA-OFT as their authors train and fine-tune them, and small. Values only."""

from train_base import AUGMENT, base, small

_LORA_TARGETS = r"^(vision|projector|llm)/(?!.*unread/).*kernel$"


def _model() -> dict:
    """The sizes of the published folder, whose Llama runs at an epsilon of 1e-6; it was trained at 1e-5."""
    tower = {"image_size": 224, "patch_size": 14, "num_channels": 3, "layer_norm_eps": 1e-6}
    return {
        "text": {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
        },
        "dino": {
            **tower,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_register_tokens": 4,
            "class_position": False,
            "layer_scale": 1e-5,
            "read_layers": 23,
        },
        "siglip": {
            **tower,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "read_layers": 26,
            "exact_gelu": True,
            "joint_qkv": True,
            "attention_pool": True,
        },
        "projector": "fused_gelu_mlp",
        "dino_pixels": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        "siglip_pixels": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        "dtype": "bfloat16",
        "remat": "block",
        "scan_layers": True,
        "attention": "xla",
    }


def _openvla() -> dict:
    """Full fine-tuning."""
    config = base() | {
        "agent": "openvla",
        "agent_kwargs": {
            "model": _model(),
            "tokens": {"first": 1, "space": 29871, "end": 2, "actions_end": 32000},
            "num_cameras": 1,
            "train_what": "full",
            "path": "",
            "initializer_range": 0.02,
            "lora": {"rank": 0, "alpha": 16.0, "targets": _LORA_TARGETS, "dropout": 0.0, "base": ""},
            "parallel": {"enabled": False, "proprio": True, "film": False},
        },
        "language": {"encoder": "openvla", "path": "", "max_length": 64, "on_overflow": "error"},
        "batch_size": 256,
        "num_steps": 100_000,
        "augment": AUGMENT | {"crop_scale": (0.9, 0.9), "crop_ratio": (1.0, 1.0), "hue": 0.05},
    }
    config["data"] |= {"normalization": "bounds_q99", "image_size": (224, 224), "skip_unlabeled": True}
    config["optimizer"] |= {"learning_rate": 2e-5, "warmup_steps": 0, "decay_steps": 0, "clip_norm": 1.0}
    return config


def _openvla_lora() -> dict:
    config = _openvla() | {"batch_size": 16, "num_steps": 200_000}
    config["agent_kwargs"]["train_what"] = "lora"
    config["agent_kwargs"]["lora"]["rank"] = 32
    config["optimizer"] |= {"learning_rate": 5e-4, "weight_decay": 0.01, "clip_norm": 0.0}
    return config


def _openvla_oft() -> dict:
    """Chunks of 8 actions, from two cameras and the state, by adapters: LIBERO's values."""
    config = _openvla_lora() | {"batch_size": 64, "num_steps": 150_000}
    config["agent_kwargs"]["parallel"]["enabled"] = True
    config["agent_kwargs"]["num_cameras"] = 2
    # The output head computes nothing here.
    config["agent_kwargs"]["lora"]["targets"] = _LORA_TARGETS.replace("unread/", "unread/|lm_head/")
    config["data"]["action_horizon"] = 8
    config["optimizer"] |= {"decay_steps": 150_000, "final_learning_rate": 5e-5}
    return config


def _openvla_tiny() -> dict:
    """Drawn at random, it takes more steps than the other small presets."""
    config = small(_openvla(), 12_000, 32)
    model = config["agent_kwargs"]["model"]
    # The package's small tokenizer has 1000 tokens; those of actions and what stands around them come behind.
    model["text"] |= {
        "vocab_size": 1280,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    }
    tower = {"image_size": 64, "patch_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "read_layers": 2}
    model["dino"] |= tower | {"hidden_size": 64, "intermediate_size": 256, "layer_scale": 1.0}
    model["siglip"] |= tower | {"hidden_size": 48, "intermediate_size": 192}
    model |= {"dtype": "float32", "remat": "none"}
    config["agent_kwargs"]["tokens"] = {"first": 1256, "space": 1257, "end": 1258, "actions_end": 1256}
    config["agent_kwargs"]["initializer_range"] = 0.1
    config["agent_kwargs"]["num_cameras"] = 0  # all that there are
    # Published is 1.
    config["data"]["action_horizon"] = 4
    return config


def _openvla_oft_tiny() -> dict:
    """Half of every chunk is played, as by the other small presets."""
    config = small(_openvla_tiny(), 16_000, 32)
    config["agent_kwargs"]["parallel"]["enabled"] = True
    return config


PRESETS = {
    "openvla": _openvla,
    "openvla_lora": _openvla_lora,
    "openvla_oft": _openvla_oft,
    "openvla_tiny": _openvla_tiny,
    "openvla_oft_tiny": _openvla_oft_tiny,
}
