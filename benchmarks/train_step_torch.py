"""The training step of ecot in torch: what benchmarks/train_step.py times beside jaxvla's.

As somebody would write it with the libraries that there are: the backbone is transformers' Qwen3-VL with sdpa
attention, fed the prefix, then one slot after the other behind a growing cache, then the suffix. The head is the same
diffusion transformer, whose cross-attention shares the keys of the context among all draws of noise. Weights are
random. Parameters and AdamW's moments are float32, products bfloat16 by autocast where the backbone computes so. Rows,
columns, slots, draws, layers, heads and the vocabulary are those of the plan; nothing is padded.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, Qwen3VLForConditionalGeneration
from transformers import Qwen3VLConfig as HFConfig

from jaxvla.errors import ConfigError
from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.action_head.dit import TIME_CHANNELS
from jaxvla.models.qwen3_vl.config import to_hf
from jaxvla.training.sketch import Sketch


class Attention(nn.Module):
    """Heads of queries over keys that are given."""

    def __init__(self, config: ActionHeadConfig, key_dim: int) -> None:
        super().__init__()
        dim, self.heads = config.dit.inner_dim, (config.dit.num_heads, config.dit.head_dim)
        self.q_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k_proj, self.v_proj = nn.Linear(key_dim, dim), nn.Linear(key_dim, dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """What the queries find, [m, s, d]; the rows of a sample share its keys."""
        b = len(context)
        split = lambda y: y.reshape(b, -1, *self.heads).transpose(1, 2)  # noqa: E731
        keys = split(self.k_proj(context)), split(self.v_proj(context))
        out = F.scaled_dot_product_attention(split(self.q_proj(x)), *keys)
        return self.o_proj(out.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Attention, whose norm the time modulates, and an MLP."""

    def __init__(self, config: ActionHeadConfig, key_dim: int) -> None:
        super().__init__()
        dim, self.dropout = config.dit.inner_dim, config.dropout
        self.modulation, self.attention = nn.Linear(dim, 2 * dim), Attention(config, key_dim)
        self.norm, self.mlp_norm = (nn.LayerNorm(dim, elementwise_affine=False) for _ in range(2))
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """The tokens after this block, [m, s, d]."""
        scale, shift = self.modulation(time).chunk(2, -1)
        normed = self.norm(x) * (1 + scale) + shift
        x = x + F.dropout(self.attention(normed, normed if context is None else context), self.dropout)
        hidden = F.dropout(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"), self.dropout)
        return x + F.dropout(self.down(hidden), self.dropout)


class Head(nn.Module):
    """The flow-matching head of ecot."""

    def __init__(
        self, config: ActionHeadConfig, context_dim: int, action_dim: int, horizon: int, state_dim: int
    ) -> None:
        super().__init__()
        dim, self.config = config.dit.inner_dim, config
        two = lambda inner, middle, outer, act: nn.Sequential(nn.Linear(inner, middle), act(), nn.Linear(middle, outer))  # noqa: E731
        self.time, self.action = two(TIME_CHANNELS, dim, dim, nn.SiLU), nn.Linear(action_dim, dim)
        self.mix, self.mixed = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(horizon, dim))
        self.future = nn.Parameter(0.02 * torch.randn(config.num_future_tokens, dim))
        self.state = two(state_dim, config.hidden_size, dim, nn.ReLU) if config.use_state else None
        self.blocks = nn.ModuleList(Block(config, (context_dim, dim)[index % 2]) for index in range(config.depth))
        self.out_norm, self.out_modulation = nn.LayerNorm(dim, 1e-6, False), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, config.output_dim)
        self.decoder = two(config.output_dim, config.hidden_size, action_dim, nn.ReLU)

    def forward(self, context: torch.Tensor, actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The action loss."""
        draws = self.config.repeated_diffusion_steps
        actions = actions.repeat_interleave(draws, 0)
        m, horizon, _ = actions.shape
        noise, t = torch.randn_like(actions), torch.rand(m, 1, 1, device=actions.device)
        time = self.time(waves(t[:, 0], TIME_CHANNELS)[:, None])
        token = self.action((1 - t) * noise + t * actions)
        wave = waves(t[:, 0], token.shape[-1])[:, None].expand(-1, horizon, -1)
        token = self.mixed(F.silu(self.mix(torch.cat([token, wave], -1)))) + self.positions
        tokens = [self.future.expand(m, -1, -1), token]
        if self.state is not None:
            tokens.insert(0, self.state(state)[:, None].repeat_interleave(draws, 0))
        x, active = torch.cat([y.to(token.dtype) for y in tokens], 1), F.silu(time)
        for index, block in enumerate(self.blocks):
            x = block(x, active, None if index % 2 else context)
        shift, scale = self.out_modulation(active).chunk(2, -1)
        out = self.decoder(self.out(self.out_norm(x[:, -horizon:]) * (1 + scale) + shift))
        return F.mse_loss(out.float(), actions - noise)


def waves(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoids of a time in thousandths."""
    steps = torch.arange(dim // 2, device=t.device) / (dim // 2)
    angles = 1000 * t * torch.exp(-9.21 * steps)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Policy(nn.Module):
    """Backbone and head; the loss of a batch."""

    def __init__(self, run: Sketch) -> None:
        super().__init__()
        config, spec = run.agent.config, run.agent.spec
        self.backbone = Qwen3VLForConditionalGeneration._from_config(
            HFConfig.from_dict(to_hf(config.backbone)), attn_implementation="sdpa", dtype=torch.float32
        )
        state = spec.proprio_dim if config.action_head.use_state else 0
        width = config.backbone.text.hidden_size
        self.head = Head(config.action_head, width, spec.action_dim, spec.action_horizon, state)
        self.weight, self.slots = config.language_loss_weight, spec.text.num_slots

    def forward(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch."""
        model, cache = self.backbone.model, DynamicCache()
        out = model(**batch["prefix"], past_key_values=cache, use_cache=True)
        states, place = [out.last_hidden_state], batch["prefix"]["input_ids"].shape[1] + model.rope_deltas
        rows = len(batch["actions"])
        for slot in range(self.slots):
            out = self._go_on(states[-1][:, -1:], place + slot, rows, cache)
            states.append(out)
        embedded = model.get_input_embeddings()(batch["suffix"])
        states.append(self._go_on(embedded, place + self.slots, rows, cache))
        hidden = torch.cat(states, 1)
        predictors = hidden[:, -batch["suffix"].shape[1] - 1 : -1]
        logits = self.backbone.lm_head(predictors)
        language = F.cross_entropy(logits.flatten(0, 1).float(), batch["suffix"].flatten())
        return self.head(hidden, batch["actions"], batch["state"]) + self.weight * language

    def _go_on(self, embedded: torch.Tensor, place: torch.Tensor, rows: int, cache: DynamicCache) -> torch.Tensor:
        steps = place.reshape(-1, 1)[:1] + torch.arange(embedded.shape[1], device=embedded.device)
        positions = steps.expand(3, rows, -1)
        return self.backbone.model.language_model(
            inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state


def make_batch(run: Sketch, device: str) -> dict[str, Any]:
    """Random tensors of the sizes of a batch."""
    config, spec, rows = run.agent.config.backbone, run.agent.spec, run.config.batch_size
    merge = config.vision.spatial_merge_size
    ids = []
    for height, width in run.agent.grids:
        image = [config.image_token_id] * (height * width // merge**2)
        ids += [config.vision_start_token_id, *image, config.vision_end_token_id]
    rest = spec.text.prefix_length - len(ids)
    if rest < 1:
        raise ConfigError(
            f"the images take {len(ids)} of the prefix's {spec.text.prefix_length} columns: raise --columns"
        )
    prefix = torch.tensor(ids + [1] * rest).expand(rows, -1).to(device)
    patches = rows * sum(height * width for height, width in run.agent.grids)
    grid = torch.tensor([(1, *grid) for grid in run.agent.grids] * rows)
    return {
        "prefix": {
            "input_ids": prefix,
            "mm_token_type_ids": (prefix == config.image_token_id).int(),
            "pixel_values": torch.randn(patches, config.vision.patch_dim, device=device),
            "image_grid_thw": grid.to(device),
        },
        "suffix": torch.randint(2, 100, (rows, spec.text.suffix_length), device=device),
        "actions": torch.randn(rows, spec.action_horizon, spec.action_dim, device=device),
        "state": torch.randn(rows, spec.proprio_dim, device=device),
    }


def torch_step(run: Sketch, compiled: bool) -> Callable[[], float]:
    """A function that takes one step and waits for its loss.

    Raises:
        ConfigError: no agent of this kind.
    """
    if run.config.agent != "ecot" or run.agent.config.lora.rank:
        raise ConfigError(f"--torch has a twin of ecot without adapters, not of {run.config.agent}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    policy, narrow = Policy(run).to(device).train(), run.agent.config.backbone.dtype == "bfloat16"
    if run.agent.config.backbone.remat != "none":
        policy.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-5, fused=device == "cuda")
    batch, forward = make_batch(run, device), torch.compile(policy) if compiled else policy

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=narrow):
            loss = forward(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
