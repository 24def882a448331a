"""Policies for Meta-World; what they are evaluated by is in jaxvla/envs/metaworld/protocols.py. Values only."""

import train_bridge
import train_reasoning

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)


def _on_metaworld(config: dict, horizon: int, steps: int) -> dict:
    """A preset that plays `steps` of `horizon` actions a decision: a second has 80."""
    config["data"]["action_horizon"] = horizon
    config["execution"]["execute_steps"] = steps
    half = config["num_steps"] // 2
    played = {"world": "metaworld", "level": "starvla", "tasks": MT10, "parallel": 4, "interval": half}
    config["rollout"] |= played | {"episodes": 20, "last_episodes": 50}
    return config


def _metaworld_lc_bc() -> dict:
    """lc_bc for two CPU cores, on ten tasks.

    Pucks and handles are a few pixels large, and a gripper closes or does not: so the last feature map is fine, and
    errors count by their size, which the mean of two ways does not make small.
    """
    config = train_bridge.PRESETS["lc_bc_tiny"]() | {"num_steps": 12000, "eval_interval": 3000, "save_interval": 1000}
    config["agent_kwargs"]["encoder"]["name"] = "resnetv1-tiny-fine-film"
    config["agent_kwargs"] |= {"loss": "l1", "dropout_rate": 0.0}
    config["optimizer"]["decay_steps"] = 12000
    return _on_metaworld(config, 16, 8)


def _metaworld_ecot_tiny() -> dict:
    """ecot_tiny for two CPU cores, on ten tasks."""
    config = train_reasoning.PRESETS["ecot_tiny"]() | {"num_steps": 2400, "eval_interval": 600, "save_interval": 600}
    config["optimizer"]["decay_steps"] = 2400
    return _on_metaworld(config, 16, 8)


def _metaworld_ecot() -> dict:
    """Qwen3-VL-2B on all fifty tasks; needs --config.backbone.path. Rollouts are left to eval.py."""
    config = _on_metaworld(train_reasoning.PRESETS["ecot"](), 16, 8)
    config["agent_kwargs"]["action_head"]["use_state"] = True
    config["rollout"]["world"] = ""
    return config


PRESETS = {
    "metaworld_lc_bc": _metaworld_lc_bc,
    "metaworld_ecot_tiny": _metaworld_ecot_tiny,
    "metaworld_ecot": _metaworld_ecot,
}
