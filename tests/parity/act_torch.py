"""LeRobot's ACT in torch, with random weights, and what it computes of a batch of jaxvla's."""

import contextlib
from unittest import mock

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy, ACTTemporalEnsembler

from jaxvla.models.safetensors_io import HostTensor, write_checkpoint
from jaxvla.models.vision.frozen_resnet import MEAN, STD


def make_policy(spec, transformer, seed=0):
    """A policy of these sizes; its norms are as of a ResNet that was trained."""
    torch.manual_seed(seed)
    images = {f"observation.images.{camera}": (3, *spec.image_size) for camera in spec.cameras}
    inputs = {name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in images.items()}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (spec.proprio_dim,))
    policy = ACTPolicy(
        ACTConfig(
            input_features=inputs,
            output_features={"action": PolicyFeature(FeatureType.ACTION, (spec.action_dim,))},
            device="cpu",
            pretrained_backbone_weights=None,
            chunk_size=spec.action_horizon,
            n_action_steps=spec.action_horizon,
            dim_model=transformer["width"],
            n_heads=transformer["num_heads"],
            dim_feedforward=transformer["mlp_dim"],
            n_encoder_layers=transformer["num_encoder_layers"],
            n_decoder_layers=transformer["num_decoder_layers"],
            n_vae_encoder_layers=transformer["num_latent_layers"],
            latent_dim=transformer["latent_dim"],
            dropout=0.0,
        )
    )
    for name, buffer in policy.model.backbone.named_buffers():
        low, high = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.5, 0.5)
        buffer.uniform_(low, high)
    for name, parameter in policy.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def write_weights(folder, tensors):
    """Named tensors in a folder, as LeRobot writes them."""
    folder.mkdir()
    arrays = {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in tensors.items()}
    hosts = {name: HostTensor(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}
    write_checkpoint(folder, hosts, 10**9)


def torch_batch(batch, cameras):
    """A batch of jaxvla's as LeRobot's processors give it to the policy."""
    found = {}
    for camera in cameras:
        pixels = torch.tensor(batch["observations"][camera][:, 0]) / 255
        normalized = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
        found[f"observation.images.{camera}"] = normalized.permute(0, 3, 1, 2)
    found["observation.state"] = torch.tensor(batch["observations"]["proprio"][:, 0])
    found["action"] = torch.tensor(batch["actions"])
    found["action_is_pad"] = ~torch.tensor(batch["action_pad_mask"])
    return found


def losses(policy, batch, noise):
    """(loss, l1, kld) and every gradient by name, with the L1 reduction of LeRobot 0.6: over what is no padding."""
    policy.train()
    images = [batch[key] for key in policy.config.image_features]
    with _noise(noise):
        actions, (mean, log_var) = policy.model({**batch, "observation.images": images})
    valid = ~batch["action_is_pad"][..., None]
    l1 = ((actions - batch["action"]).abs() * valid).sum() / (valid.sum() * actions.shape[-1])
    kld = (-0.5 * (1 + log_var - mean**2 - log_var.exp())).sum(-1).mean()
    loss = l1 + policy.config.kl_weight * kld
    policy.zero_grad()
    loss.backward()
    tensors = policy.state_dict()
    named = dict(policy.named_parameters())
    grads = {
        n: named[n].grad if n in named and named[n].grad is not None else torch.zeros_like(tensors[n]) for n in tensors
    }
    return [x.item() for x in (loss.detach(), l1.detach(), kld.detach())], grads


def own_loss(policy, batch, noise):
    """LeRobot's own loss, which is the same where nothing is padding."""
    policy.train()
    with _noise(noise), torch.no_grad():
        return float(policy(batch)[0])


def act(policy, batch):
    """The chunk of latent 0."""
    return policy.predict_action_chunk({k: v for k, v in batch.items() if k.startswith("observation")}).numpy()


def ensembled(chunks, coefficient):
    """What LeRobot plays of chunks that are decided at every step, [t, b, a, d]."""
    ensembler = ACTTemporalEnsembler(coefficient, chunks.shape[2])
    return np.stack([ensembler.update(torch.tensor(chunk)).numpy() for chunk in chunks])


@contextlib.contextmanager
def _noise(noise):
    with mock.patch("torch.randn_like", return_value=torch.tensor(noise)):
        yield
