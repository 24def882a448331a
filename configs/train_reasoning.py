"""Policies that reason before they act. Values only."""

from train_base import AUGMENT, base, small

_LORA_TARGETS = r"^text/layers/(self_attn|mlp)/\w+_proj/kernel$"


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
            "lora": {"rank": 0, "alpha": 16.0, "targets": _LORA_TARGETS, "dropout": 0.0, "base": ""},
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
    config = base() | _reasoning()
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
            "max_delay": 0,
            "dtype": "bfloat16",
            "remat": "dots",
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
    config = small(_ecot(), 1200, 64) | {"log_interval": 50, "eval_batches": 8, "ema_decay": 0.99}
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
        "remat": "none",
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
    "ecot": _ecot,
    "ecot_lara": _ecot_lara,
    "ecot_tiny": _ecot_tiny,
    "backbone_tiny": _backbone_tiny,
}
