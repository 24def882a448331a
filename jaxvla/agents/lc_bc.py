"""Language-conditioned behavioural cloning: the lc_bc of BridgeData V2 (Walke et al., 2023), for chunks of actions.

The instruction reaches every residual block of the image encoder by FiLM. It comes as token ids, which an encoder of
the agent reads and learns to read, or as a vector that was computed before, see `jaxvla.agents.language`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Key, Num

from jaxvla.agents.gaussian_actor import GaussianBC, check_actor, check_loss, make_actor, make_gaussian_bc
from jaxvla.agents.goal_vision import view_shape
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.goal_encoder import ConditionedFrames
from jaxvla.models.instruction_encoder import InstructionEncoder, InstructionEncoderConfig
from jaxvla.models.module import compute_dtype
from jaxvla.models.policy_head import PolicyConfig
from jaxvla.models.resnet import EncoderConfig


@dataclasses.dataclass(frozen=True)
class LCBCConfig:
    """The `agent_kwargs` of lc_bc.

    Attributes:
        encoder: of the images, one with FiLM.
        instruction_encoder: of token ids; instructions that come as vectors have none.
        use_proprio: proprio of the observations joins the features.
        hidden_dims: layers between features and actions.
        dropout_rate: in these layers, in [0, 1).
        policy: distribution of the actions.
        loss: "likelihood" of the actions, or "l1" or "huber" of the errors of its modes, for a fixed deviation.
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters and loss stay float32.

    Raises:
        ConfigError: a value out of range, or a loss that leaves the deviation unlearned.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=lambda: EncoderConfig("resnetv1-34-bridge-film"))
    instruction_encoder: InstructionEncoderConfig = dataclasses.field(default_factory=InstructionEncoderConfig)
    use_proprio: bool = False
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    dropout_rate: float = 0.1
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    loss: str = "likelihood"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_actor(self.hidden_dims, self.dropout_rate, self.dtype)
        check_loss(self.loss, self.policy)


class LanguageConditionedPolicy(nnx.Module):
    """Instruction encoder where instructions are token ids, image encoder, and policy head."""

    def __init__(self, config: LCBCConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        dtype, instruction = compute_dtype(config.dtype), spec.instruction
        sizes = (config.instruction_encoder, instruction.vocab_size, instruction.length)
        self.instruction_encoder = (
            InstructionEncoder(*sizes, dtype=dtype, rngs=rngs) if instruction.vocab_size else None
        )
        cond_dim = instruction.length if self.instruction_encoder is None else self.instruction_encoder.out_dim
        shape = view_shape(spec, config.use_proprio)
        self.encoder = ConditionedFrames(config.encoder, shape, cond_dim=cond_dim, dtype=dtype, rngs=rngs)
        self.policy = make_actor(self.encoder.out_dim, config, spec, rngs)

    def __call__(
        self, observations: Mapping[str, Any], instruction: Num[Array, "b l"], rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b a d"], Float[Array, "b a d"]]:
        """(mean, log_std) of the action chunk; without `rng`, dropout is off."""
        cond_bk = instruction if self.instruction_encoder is None else self.instruction_encoder(instruction)
        return self.policy(self.encoder(observations, cond_bk), rng)


def make_lc_bc(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> GaussianBC:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: the batches have no instructions; or see `LCBCConfig` and the models that it configures.
    """
    if spec.instruction is None:
        raise ConfigError("lc_bc follows instructions, but nothing says how they are encoded: give config.language")
    config = from_mapping(LCBCConfig, agent_kwargs, "config.agent_kwargs")
    return make_gaussian_bc(config, spec, LanguageConditionedPolicy, "instruction")
