"""SmolVLA in LeRobot's own code, on the parameters and batches of tests/models/smolvla/cases.py.

PYTHONPATH=.:tests python tests/parity/smolvla_torch.py    writes tests/models/smolvla/golden/*.npz (needs LeRobot)
"""

import pathlib
import types
from unittest import mock

import numpy as np
import torch
import transformers
from lerobot.policies.smolvla import smolvlm_with_expert
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
from models.smolvla import cases
from transformers import SmolVLMConfig

from jaxvla.models.smolvla.weight_table import UNUSED, weight_table
from jaxvla.models.weights import host_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "smolvla" / "golden"
GRADIENTS = "missing_camera"


def vlm_config(config):
    """The sizes of the vision-language model, which LeRobot reads from a file of the hub."""
    text, vision = config.text, config.vision
    return SmolVLMConfig(
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers + 1,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": 100000.0,
            "pad_token_id": 2,
        },
        scale_factor=config.scale_factor,
        pad_token_id=2,
    )


def reference_model(config=cases.CONFIG):
    """LeRobot's model with the seeded parameters, in float32; what it freezes has no gradient."""
    ids = types.SimpleNamespace(fake_image_token_id=1, global_image_token_id=3)
    processor = types.SimpleNamespace(tokenizer=ids)
    settings = SmolVLAConfig(
        device="cpu",
        load_vlm_weights=False,
        num_vlm_layers=config.text.num_hidden_layers,
        chunk_size=config.chunk_size,
        n_action_steps=config.chunk_size,
        max_state_dim=config.max_state_dim,
        max_action_dim=config.max_action_dim,
        freeze_vision_encoder=config.freeze_vision_encoder,
        train_expert_only=config.train_expert_only,
    )
    values = vlm_config(config)
    with (
        mock.patch.object(smolvlm_with_expert.AutoConfig, "from_pretrained", return_value=values),
        mock.patch.object(smolvlm_with_expert.AutoProcessor, "from_pretrained", return_value=processor),
    ):
        model = VLAFlowMatching(settings)
    if int(transformers.__version__.split(".")[0]) < 5:
        place_rows(model.vlm_with_expert.vlm.model.vision_model.embeddings)
    tensors = host_tensors(cases.seeded_params(config), weight_table(config))
    state = {name.removeprefix("model."): torch.from_numpy(np.array(x.make())) for name, x in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert len(missing) == len(UNUSED), missing
    # The rule of LeRobot 0.6.1; in versions before it the names of these layers matched nothing.
    last = f"text_model.layers.{config.text.num_hidden_layers - 1}."
    for name, parameter in model.named_parameters():
        if last in name and not config.train_expert_only:
            parameter.requires_grad = False
    return model.eval()


def place_rows(embeddings):
    """Has the module give patches their positions row by row."""
    embeddings.forward = lambda pixel_values, **_: _embedded(embeddings, pixel_values)


def _embedded(embeddings, pixels):
    """Patches with the positions that bfloat16 and transformers 5 give them, row by row.

    Before, float32 rounded all but the first one down (transformers issue 41190, pull request 47133).
    """
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    return patches + embeddings.position_embedding(torch.arange(patches.shape[1]))


def reference_inputs(batch):
    """The batch as LeRobot's model wants it."""
    images = torch.from_numpy(batch["images"]).permute(1, 0, 4, 2, 3).contiguous()
    masks = torch.from_numpy(batch["present"]).T
    rest = [torch.from_numpy(batch[key]) for key in ("tokens", "token_mask", "state")]
    return list(images), list(masks), rest[0].long(), *rest[1:]


def torch_result(name, config=cases.CONFIG, gradients=False):
    """The result of LeRobot, as `cases.jax_result` gives it."""
    model, batch = reference_model(config), cases.make_batch(cases.CASES[name], config)
    inputs = reference_inputs(batch)
    actions, noise, time = (torch.from_numpy(batch[key]) for key in ("actions", "noise", "time"))
    core = model.vlm_with_expert
    seen = {"vision": [], "text_layers": [], "expert_layers": []}

    def note(key, value):
        seen[key].append(value.detach().clone())

    # The layers are not called as modules, so read what the next norm is given.
    streams = {"text_layers": core.vlm.model.text_model, "expert_layers": core.lm_expert}
    hooks = [core.vlm.model.vision_model.register_forward_hook(lambda *a: note("vision", a[2].last_hidden_state))]
    for key, stream in streams.items():
        receivers = [*(layer.input_layernorm for layer in stream.layers[1:]), stream.norm]
        hooks += [x.register_forward_pre_hook(lambda _, args, key=key: note(key, args[0])) for x in receivers]
    errors = model(*inputs, actions, noise=noise, time=time)
    for hook in hooks:
        hook.remove()
    valid = cases.valid_mask(batch, config)[..., None]
    result = {
        "vision": torch.stack(seen["vision"], dim=1).numpy(),
        "text_layers": torch.stack(seen["text_layers"]).numpy() * valid,
        "expert_layers": torch.stack(seen["expert_layers"]).numpy(),
        "errors": errors.detach().numpy(),
    }
    with torch.no_grad():
        result["prefix"] = model.embed_prefix(*inputs)[0].numpy() * valid
        result["actions"] = model.sample_actions(*inputs, noise=noise).numpy()
    if gradients:
        errors.mean().backward()
        result |= {f"gradient/{path}": value for path, value in _gradients(model, config).items()}
    return result


def _gradients(model, config):
    """By the paths of jaxvla's parameters; 0 where a parameter is frozen."""
    named = {
        f"model.{name}": np.zeros(tuple(x.shape), np.float32) if x.grad is None else x.grad.numpy()
        for name, x in model.named_parameters()
    }
    found = {}
    for weight in weight_table(config):
        layers = [named[name] for name in weight.hf_names]
        layers = [x.reshape(len(x), -1).T if weight.transposed else x for x in layers]
        found[weight.path] = np.stack(layers) if weight.stacked else layers[0]
    return found


def main():
    """Writes the golden vectors: all of one case, and the small gradients of it."""
    result = torch_result(GRADIENTS, gradients=True)
    small = {key: x for key, x in result.items() if not key.startswith("gradient/") or x.size < 700}
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / f"{GRADIENTS}.npz", **small)


if __name__ == "__main__":
    main()
