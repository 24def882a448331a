"""OpenVLA-OFT's published flow in float64, a sample at a time, our parameters by the names of its files.

PYTHONPATH=tests python tests/parity/openvla_oft_torch.py  writes tests/agents/golden/openvla_oft.npz (torch, timm)
"""

import pathlib

import numpy as np
import torch
from agents import openvla_cases, openvla_oft_cases
from flax import traverse_util
from parity.prismatic_torch import OpenVLA
from parity.vision_torch import gradients_of
from torch import nn
from torch.nn import functional

from jaxvla.data.schema import NO_TOKEN
from jaxvla.models.prismatic.weight_table import component_tables, weight_table
from jaxvla.models.weights import host_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "agents" / "golden" / "openvla_oft.npz"
TOKENS = openvla_cases.TOKENS


class ResidualBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x):
        return x + self.ffn(x)


class MLPResNet(nn.Module):
    def __init__(self, dim, action_dim):
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(dim * action_dim), nn.Linear(dim * action_dim, dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(dim) for _ in range(2))
        self.layer_norm2, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, action_dim)

    def forward(self, x):
        x = functional.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class Parts(nn.Module):
    """What the files beside the folder hold."""

    def __init__(self, model, head):
        super().__init__()
        dim = model.config.text.hidden_size
        self.action_head, self.proprio_projector = nn.Module(), nn.Module()
        self.action_head.model = MLPResNet(dim, head.action_dim)
        self.proprio_projector.fc1 = nn.Linear(head.proprio_dim, dim)
        self.proprio_projector.fc2 = nn.Linear(dim, dim)
        self.words = None
        for name in ("featurizer", "fused_featurizer"):
            tower = getattr(model.vision_backbone, name)
            for block in tower.blocks:
                block.scale, block.shift = (nn.Linear(dim, tower.embed_dim) for _ in range(2))
                block.forward = lambda x, block=block: self.modulated(block, x)

    def modulated(self, block, x):
        x = x + block.ls1(block.attn(block.norm1(x)))
        x = x * (1 + block.scale(self.words)) + block.shift(self.words)
        return x + block.ls2(block.mlp(block.norm2(x)))

    def project(self, state):
        return self.proprio_projector.fc2(functional.gelu(self.proprio_projector.fc1(state)))


def state_of(params, table):
    flat = traverse_util.flatten_dict(params, sep="/")
    own = traverse_util.unflatten_dict({weight.path: flat[weight.path] for weight in table}, sep="/")
    return {name: torch.tensor(tensor.make().copy()) for name, tensor in host_tensors(own, table).items()}


def make_models(agent):
    config, params = agent.config.model, openvla_oft_cases.seeded_params(agent)
    model, tables = OpenVLA(config), component_tables(config)
    model.load_state_dict(state_of(params, weight_table(config)), strict=True)
    parts = Parts(model, config.head)
    for name in ("action_head", "proprio_projector"):
        getattr(parts, name).load_state_dict(state_of(params, tables[name]), strict=True)
    # There, a block lies one below the layers that modulate it.
    vision = {name.replace(".block.", "."): x for name, x in state_of(params, tables["vision_backbone"]).items()}
    model.vision_backbone.load_state_dict(
        {name.removeprefix("vision_backbone."): x for name, x in vision.items()}, strict=True
    )
    return model.double().eval(), parts.double().eval()


def act(model, parts, images, state, prompt, horizon, action_dim):
    """The actions [a, d] of one sample."""
    embed = model.language_model.get_input_embeddings()
    ids = [TOKENS["first"], *prompt, TOKENS["space"]]
    before, end = embed(torch.tensor(ids)), embed(torch.tensor([TOKENS["end"]]))
    parts.words = torch.cat([before, end]).mean(0)
    patches = [model.project(model.features(image[None]))[0] for image in images]
    slots = torch.zeros(horizon * action_dim, before.shape[1], dtype=torch.float64)
    x = torch.cat([before[:1], *patches, parts.project(state)[None], before[1:], slots, end])
    mask = torch.zeros(1, 1, len(x), len(x), dtype=torch.float64)
    places = torch.arange(len(x))[None]
    hidden = model.language_model.model(inputs_embeds=x[None], attention_mask=mask, position_ids=places)
    hidden = hidden.last_hidden_state[0]
    first = len(x) - len(slots) - 2  # one before the first slot
    return parts.action_head.model(hidden[first : first + len(slots)].reshape(horizon, -1))


def torch_result(agent):
    """ "actions", "loss", and a "gradient/PATH" of each parameter."""
    (model, parts), batch = make_models(agent), openvla_oft_cases.make_batch()
    spec, seen = agent.spec, batch["observations"]
    actions = []
    for i, prompt in enumerate(batch["instruction"]):
        images = [torch.tensor(seen[name][i, 0].transpose(2, 0, 1).astype(np.float64)) for name in spec.cameras]
        state = torch.tensor(seen["proprio"][i, 0]).double()
        words = [int(token) for token in prompt if token != NO_TOKEN]
        actions.append(act(model, parts, images, state, words, spec.action_horizon, spec.action_dim))
    actions = torch.stack(actions)
    shown = torch.tensor(batch["action_pad_mask"])
    loss = (actions - torch.tensor(batch["actions"]).double()).abs()[shown].mean()
    loss.backward()
    gradients = gradients_of(weight_table(agent.config.model), dict(model.named_parameters()))
    tables = component_tables(agent.config.model)
    for name in ("action_head", "proprio_projector"):
        gradients |= gradients_of(tables[name], dict(getattr(parts, name).named_parameters()))
    film = [weight for weight in tables["vision_backbone"] if weight.path.startswith("film/")]
    gradients |= gradients_of(film, dict(model.named_parameters()))
    result = {"actions": actions.detach().numpy(), "loss": loss.detach().numpy()}
    result |= {f"gradient/{path}": value for path, value in gradients.items()}
    return {name: np.asarray(value, np.float32) for name, value in result.items()}


def main() -> None:
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **torch_result(openvla_oft_cases.make()))


if __name__ == "__main__":
    main()
