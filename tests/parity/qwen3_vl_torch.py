"""Qwen3-VL in transformers, on the parameters and batches of tests/models/qwen3_vl/cases.py.

PYTHONPATH=tests python tests/parity/qwen3_vl_torch.py    writes tests/models/qwen3_vl/golden/*.npz (needs torch)
"""

import functools
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from models.qwen3_vl import cases

from jaxvla.models.qwen3_vl.weight_table import weight_table
from jaxvla.models.qwen3_vl.weights import save_hf

GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "qwen3_vl" / "golden"


@functools.cache
def hf_model(config):
    """The model of transformers with the seeded parameters, in float32 with plain attention."""
    with tempfile.TemporaryDirectory() as folder:
        save_hf(cases.seeded_params(config), config, pathlib.Path(folder) / "model")
        transformers.utils.logging.disable_progress_bar()
        return transformers.Qwen3VLForConditionalGeneration.from_pretrained(
            f"{folder}/model", attn_implementation="eager", dtype=torch.float32
        )


def hf_inputs(case, batch):
    """The batch as transformers wants it."""
    tokens = torch.from_numpy(batch["tokens"]).long()
    inputs = {"input_ids": tokens, "attention_mask": torch.from_numpy(cases.valid_mask(batch)).long()}
    inputs["mm_token_type_ids"] = (tokens == case.config.image_token_id).int() + 2 * (
        tokens == case.config.video_token_id
    ).int()
    if case.grids:
        patches = torch.from_numpy(batch["patches"].reshape(-1, case.config.vision.patch_dim))
        if case.video:
            inputs["pixel_values_videos"] = patches
            inputs["video_grid_thw"] = torch.tensor([(len(case.grids), *case.grids[0])] * len(tokens))
        else:
            inputs["pixel_values"] = patches
            inputs["image_grid_thw"] = torch.tensor([(1, *grid) for _ in tokens for grid in case.grids])
    return inputs


def hf_labels(batch):
    """transformers shifts labels itself: entry t is token t."""
    labels = np.roll(batch["labels"], 1, axis=1)
    return torch.from_numpy(labels).long()


def torch_result(case, gradients=False):
    """The result of transformers, as `cases.jax_result` gives it."""
    model, batch = hf_model(case.config), cases.make_batch(case)
    inputs, mask = hf_inputs(case, batch), cases.valid_mask(batch)
    handed_on = []
    # hidden_states of transformers lack the DeepStack features, so read what the next layer is given.
    receivers = [*model.model.language_model.layers[1:], model.model.language_model.norm]
    hooks = [receiver.register_forward_pre_hook(lambda _, args: handed_on.append(args[0])) for receiver in receivers]
    with torch.set_grad_enabled(gradients):
        output = model(**inputs, labels=hf_labels(batch), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    result = {
        "layers": torch.stack(handed_on).detach().numpy() * mask[..., None],
        "hidden": output.hidden_states[-1].detach().numpy() * mask[..., None],
        "logits": output.logits.detach().numpy() * mask[..., None],
        "loss": output.loss.detach().numpy(),
    }
    result["positions"] = hf_positions(model, inputs)[0]
    if case.grids:
        result |= _image_features(model, inputs, len(mask))
    if gradients:
        model.zero_grad()
        output.loss.backward()
        result |= {f"gradient/{path}": value for path, value in _gradients(model, case.config).items()}
    return result


def hf_positions(model, inputs):
    """Positions, and by how much the next one differs from the number of tokens so far."""
    grids = inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
    positions, deltas = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], *grids, inputs["attention_mask"]
    )
    return positions.numpy(), deltas[:, 0].numpy()


def hf_generate(case):
    """Greedy continuations [b, m], with 0 after each sample's end."""
    inputs, stop_tokens = hf_inputs(case, cases.make_batch(case)), list(cases.STOP_TOKENS)
    tokens = hf_model(case.config).generate(
        **inputs, do_sample=False, max_new_tokens=cases.NEW_TOKENS, eos_token_id=stop_tokens, pad_token_id=0
    )
    return tokens[:, inputs["input_ids"].shape[1] :].numpy()


@torch.no_grad()
def _image_features(model, inputs, batch_size):
    if "pixel_values" in inputs:
        images = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    else:
        images = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    stacked = [torch.cat(images.pooler_output), *(torch.cat(tuple(x)) for x in images.deepstack_features)]
    features, *deepstack = (x.reshape(batch_size, -1, x.shape[-1]).numpy() for x in stacked)
    return {"features": features} | ({"deepstack": np.stack(deepstack)} if deepstack else {})


def _gradients(model, config):
    """By the paths of jaxvla's parameters."""
    named = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    found = {}
    for weight in weight_table(config):
        layers = [named[name] for name in weight.hf_names]
        layers = [x.reshape(len(x), -1).T if weight.transposed else x for x in layers]
        found[weight.path] = np.stack(layers) if weight.stacked else layers[0]
    return found


def main():
    """Writes the golden vectors."""
    np.savez_compressed(GOLDEN / "left_padding.npz", **torch_result(cases.CASES["left_padding"]))
    np.savez_compressed(GOLDEN / "untied.npz", **torch_result(cases.CASES["untied"], gradients=True))
    np.savez_compressed(GOLDEN / "generated.npz", tokens=hf_generate(cases.PROMPTS))


if __name__ == "__main__":
    main()
