"""LeRobot's own reading, writing and playing of policy folders."""

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors


def load(folder):
    """A policy that fits its folder tensor by tensor, and its processors."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    return policy, *make_pre_post_processors(config, str(folder))


def save(folder, policy, before, after):
    """The same, as LeRobot's training saves it."""
    for each in (policy, before, after):
        each.save_pretrained(folder)


def play(loaded, images, state, task="", **noise):
    """A chunk in robot units [a, d], for uint8 images by the names of their features."""
    policy, before, after = loaded
    batch = {name: torch.tensor(pixels).permute(2, 0, 1) / 255 for name, pixels in images.items()}
    given = before(batch | {"observation.state": torch.tensor(state), "task": task})
    with torch.no_grad():
        return after(policy.predict_action_chunk(given, **noise))[0].numpy()
