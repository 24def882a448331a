"""Sizes and options of the action head."""

import dataclasses
from typing import NamedTuple

from jaxvla.errors import ConfigError
from jaxvla.models.diffusion import DiffusionConfig
from jaxvla.models.module import compute_dtype
from jaxvla.models.stack import check_remat

KINDS = ("flow_matching", "ddpm")
_POSITIVE = (
    "output_dim",
    "hidden_size",
    "max_seq_len",
    "repeated_diffusion_steps",
    "num_inference_steps",
    "num_timestep_buckets",
    "beta_alpha",
    "beta_beta",
    "noise_s",
)


class DiTSize(NamedTuple):
    """Widths of the transformer, and its depth where the configuration names none."""

    inner_dim: int
    num_heads: int
    head_dim: int
    num_layers: int


# GR00T N1's sizes, which LaRA-VLA took over, and one for tests and small data.
SIZES = {
    "dit_b": DiTSize(768, 12, 64, 16),
    "dit_l": DiTSize(1536, 32, 48, 16),
    "dit_tiny": DiTSize(128, 4, 32, 4),
}


@dataclasses.dataclass(frozen=True)
class ActionHeadConfig:
    """A diffusion transformer that turns noise to a chunk of actions, given hidden states of a backbone.

    Attributes:
        kind: "flow_matching", or "ddpm" for the same transformer trained to predict noise.
        size: one of `SIZES`.
        num_layers: of the transformer, even, since cross-attention and self-attention alternate; None for the size's.
        output_dim: width of what the transformer hands to the decoder.
        hidden_size: of the decoder of actions and the encoder of the state.
        dropout: in the blocks of the transformer, in [0, 1).
        num_future_tokens: learned tokens before those of the actions.
        max_seq_len: rows of the table of action positions.
        use_state: a token of the robot's state stands first.
        repeated_diffusion_steps: draws of noise and time per sample and training step.
        num_inference_steps: of sampling by flow matching; that of "ddpm" is in `diffusion`.
        num_timestep_buckets: flow times in [0, 1), and noise levels of "ddpm", are told to the transformer as whole
            numbers below this.
        beta_alpha, beta_beta, noise_s: training draws the flow time (s - x) / s with x from Beta(alpha, beta).
        t_clamp: these times are held within [0, t_clamp]; None for as drawn, which is how LaRA-VLA was trained.
        max_delay: of flow matching, for chunks that go on where others were (arXiv 2512.05964): training gives up to
            so many first actions of a chunk as they are, at their own time, 1, and without a loss; how many is drawn
            for each draw of noise, all numbers alike. 0 gives none, and the head learns nothing of it.
        diffusion: noise levels and sampler of "ddpm".
        dtype: compute dtype, "float32" or "bfloat16"; parameters, noise, times, norms, softmax and loss are float32.
        remat: what the forward pass keeps, see `jaxvla.models.stack.REMAT_POLICIES`.
        scan_layers: run pairs of layers in a loop; False writes them out one by one.

    Raises:
        ConfigError: an unknown option, or a value out of range.
    """

    kind: str = "flow_matching"
    size: str = "dit_b"
    num_layers: int | None = None
    output_dim: int = 1024
    hidden_size: int = 1024
    dropout: float = 0.2
    num_future_tokens: int = 32
    max_seq_len: int = 1024
    use_state: bool = False
    repeated_diffusion_steps: int = 4
    num_inference_steps: int = 4
    num_timestep_buckets: int = 1000
    beta_alpha: float = 1.5
    beta_beta: float = 1.0
    noise_s: float = 0.999
    t_clamp: float | None = 0.999
    max_delay: int = 0
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"action_head.kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.size not in SIZES:
            raise ConfigError(f"action_head.size must be one of {', '.join(SIZES)}, not {self.size!r}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"action_head.{name} must be positive, not {getattr(self, name)}")
        if self.depth < 2 or self.depth % 2:
            raise ConfigError(f"action_head.num_layers must be even (cross, self, cross, ...), not {self.depth}")
        if self.num_future_tokens < 0:
            raise ConfigError(f"action_head.num_future_tokens must be at least 0, not {self.num_future_tokens}")
        if self.max_delay < 0 or (self.max_delay and self.kind == "ddpm"):
            raise ConfigError(
                f"action_head.max_delay must be 0, or more with kind flow_matching, not {self.max_delay} of {self.kind}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"action_head.dropout must lie in [0, 1), not {self.dropout}")
        if self.t_clamp is not None and not 0 < self.t_clamp <= 1:
            raise ConfigError(f"action_head.t_clamp must lie in (0, 1], not {self.t_clamp}; None clamps nothing")
        compute_dtype(self.dtype)
        check_remat(self.remat)

    @property
    def dit(self) -> DiTSize:
        """The widths that `size` names."""
        return SIZES[self.size]

    @property
    def depth(self) -> int:
        """Layers of the transformer."""
        return self.dit.num_layers if self.num_layers is None else self.num_layers

    def with_steps(self, num_steps: int) -> "ActionHeadConfig":
        """The same with so many steps of sampling.

        Raises:
            ConfigError: sampling cannot take `num_steps` steps.
        """
        if self.kind == "ddpm":
            return dataclasses.replace(
                self, diffusion=dataclasses.replace(self.diffusion, num_inference_steps=num_steps)
            )
        return dataclasses.replace(self, num_inference_steps=num_steps)
