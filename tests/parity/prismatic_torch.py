"""The flow of OpenVLA's published code in float64: timm's towers, transformers' Llama, our parameters by their names.

PYTHONPATH=tests python tests/parity/prismatic_torch.py  writes tests/models/prismatic/golden/*.npz (torch, timm needed)
"""

import pathlib

import numpy as np
import torch
import transformers
from models.prismatic import cases
from parity.vision_torch import gradients_of, timm_tower
from torch import nn
from torch.nn import functional

from jaxvla.models.prismatic.weight_table import weight_table
from jaxvla.models.weights import host_tensors
from jaxvla.ops.losses import IGNORE

GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "prismatic" / "golden"


class OpenVLA(nn.Module):
    """Modules by the names of the published folder."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_backbone = nn.Module()
        self.runs = []
        for name, tower in zip(("featurizer", "fused_featurizer"), config.towers.values()):
            module, run = timm_tower(tower)
            for block in module.blocks:
                for scale in (block.ls1, block.ls2):
                    if isinstance(scale, nn.Identity):
                        continue
                    scale.scale_factor = scale.gamma
                    scale.forward = lambda x, scale=scale: x * scale.scale_factor
                    del scale.gamma
            setattr(self.vision_backbone, name, module)
            self.runs.append(run)
        dims = config.projector_dims
        self.projector = nn.Module()
        for i in range(1, len(dims)):
            setattr(self.projector, f"fc{i}", nn.Linear(dims[i - 1], dims[i]))
        text = config.text
        llama = transformers.LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            attn_implementation="eager",
        )
        assert llama.rms_norm_eps == text.rms_norm_eps
        self.language_model = transformers.LlamaForCausalLM(llama)

    def features(self, images):
        parts = []
        for (name, tower), run in zip(self.config.towers.items(), self.runs):
            scale = getattr(self.config, f"{name}_pixels")
            mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (scale.mean, scale.std))
            tokens = run((images / 255 - mean) / std)
            parts.append(tokens[:, tower.num_prefix :] if name == "dino" else tokens)
        return torch.cat(parts, -1)

    def project(self, features):
        x = self.projector.fc1(features)
        for i in range(2, len(self.config.projector_dims)):
            x = getattr(self.projector, f"fc{i}")(functional.gelu(x))
        return x

    def logits(self, tokens, images, mask):
        x = self.language_model.get_input_embeddings()(tokens)
        x = torch.cat([x[:, :1], images, x[:, 1:]], 1)
        ones = torch.ones(len(x), images.shape[1], dtype=mask.dtype)
        mask = torch.cat([mask[:, :1], ones, mask[:, 1:]], 1)
        # The published code leaves position_ids out: they count on through everything.
        places = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return self.language_model(inputs_embeds=x, attention_mask=mask, position_ids=places).logits * mask[..., None]


def make_model(config):
    model = OpenVLA(config)
    tensors = host_tensors(cases.seeded_params(config), weight_table(config))
    state = {name: torch.tensor(tensor.make().copy()) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=True)
    return model.double().eval()


def torch_result(config):
    """See `models.prismatic.cases`; "tokens" are what greedy decoding says behind the second sample's prompt."""
    model, batch = make_model(config), cases.make_batch(config)
    images = torch.tensor(batch["images"][:, 0].transpose(0, 3, 1, 2).astype(np.float64))
    tokens = torch.tensor(batch["tokens"]).long()
    mask = (torch.arange(tokens.shape[1]) < torch.tensor(batch["stop"])[:, None]).long()
    features = model.features(images)
    projected = model.project(features)
    logits = model.logits(tokens, projected, mask)
    labels = torch.tensor(batch["labels"]).long()
    filled = torch.full((len(labels), projected.shape[1]), IGNORE)
    labels = torch.cat([labels[:, :1], filled, labels[:, 1:]], 1)
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    loss.backward()
    result = {"features": features, "images": projected, "logits": logits, "loss": loss}
    result = {name: value.detach().numpy() for name, value in result.items()}
    named = dict(model.named_parameters())
    result |= {f"gradient/{path}": x for path, x in gradients_of(weight_table(config), named).items()}
    result = {name: np.asarray(value, np.float32) for name, value in result.items()}
    return result | {"tokens": _greedy(model, tokens, projected, batch["stop"])}


def _greedy(model, tokens, images, stop):
    rows = []
    for i, length in enumerate(stop):
        row = tokens[i : i + 1, :length]
        for _ in range(cases.NEW_TOKENS):
            logits = model.logits(row, images[i : i + 1], torch.ones_like(row))
            row = torch.cat([row, logits[:, -1:].argmax(-1)], 1)
        rows.append(row[0, length:].numpy())
    return np.stack(rows).astype(np.int32)


def main() -> None:
    """Writes a file per configuration: everything but gradients, of which there is that of one kernel of each part."""
    GOLDEN.mkdir(exist_ok=True)
    kept = ("gradient/projector/fc1/kernel", "gradient/llm/layers/self_attn/q_proj/kernel", "gradient/llm/norm/scale")
    for name, config in cases.CONFIGS.items():
        result = torch_result(config)
        some = {key: value for key, value in result.items() if key in kept or not key.startswith("gradient/")}
        some |= {key: value for key, value in result.items() if key.endswith("patch_embedding/kernel")}
        np.savez_compressed(GOLDEN / f"{name}.npz", **some)


if __name__ == "__main__":
    main()
