"""LeRobot's own reading, writing and playing of policy folders."""

import contextlib
import types
from unittest import mock

import torch
import transformers
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors


def load(folder):
    """A policy that fits its folder tensor by tensor, and its processors."""
    config = PreTrainedConfig.from_pretrained(folder)
    with _without_hub() if config.type == "smolvla" else contextlib.nullcontext():
        policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    return policy, *make_pre_post_processors(config, str(folder))


@contextlib.contextmanager
def _without_hub():
    """SmolVLA without the processor of pictures, of which it reads two tokens and uses none."""
    from lerobot.policies.smolvla import smolvlm_with_expert
    from parity import smolvla_torch

    processor = types.SimpleNamespace(tokenizer=types.SimpleNamespace(fake_image_token_id=1, global_image_token_id=3))
    made = smolvlm_with_expert.SmolVLMWithExpertModel.__init__

    def make(self, *args, **kwargs):
        made(self, *args, **kwargs)
        if int(transformers.__version__.split(".")[0]) < 5:
            smolvla_torch.place_rows(self.vlm.model.vision_model.embeddings)

    with (
        mock.patch.object(smolvlm_with_expert.AutoProcessor, "from_pretrained", return_value=processor),
        mock.patch.object(smolvlm_with_expert.SmolVLMWithExpertModel, "__init__", make),
    ):
        yield


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
