"""OpenVLA (Kim et al., 2024): a Prismatic model that says actions as tokens; see `jaxvla.models.prismatic.model`.

And OpenVLA-OFT (Kim et al., 2025), which regresses a whole chunk of them in one pass. Prompts come as token ids,
`jaxvla.agents.language` makes them; the tokens around them are put in here, see `jaxvla.agents.openvla_text`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Key

from jaxvla.agents.executed import mask_keys
from jaxvla.agents.openvla_actions import Regressed, Spoken
from jaxvla.agents.openvla_settings import FROZEN, OpenVLAConfig, check, with_head
from jaxvla.config import from_mapping
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.layers import cast_matrices, rescaled
from jaxvla.models.lora import LORA, adapt, adapted_paths, add_lora
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.prismatic.model import Prismatic
from jaxvla.models.prismatic.weight_table import param_shapes


@dataclasses.dataclass(frozen=True)
class OpenVLA:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_openvla`. Its parameters are those of the model."""

    targets: ClassVar[None] = None

    config: OpenVLAConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, prompts, and actions with their masks."""
        return ("observations", "actions", "action_pad_mask", *mask_keys(self.spec), "instruction")

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """What `train_what` leaves as it is, and what computes nothing."""
        config = self.config
        unread = [f"vision/{name}/unread" for name in config.model.towers]
        unread += [f"film/{name}/unread" for name in config.model.towers if config.model.film]
        return (*FROZEN[config.train_what], *unread, *self._actions.unused)

    @property
    def _actions(self) -> Spoken | Regressed:
        """How it comes to actions."""
        way = Spoken if self.config.model.head is None else Regressed
        return way(self.config.tokens, self.spec)

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters. Those that are frozen are held in the compute dtype."""
        params = init_params(lambda rngs: Prismatic(self.config.model, rngs), rng)
        drawn = {name: rescaled(params[name], self.config.initializer_range) for name in ("vision", "llm")}
        params = self.narrowed(params | drawn)
        return add_lora(jax.random.fold_in(rng, 1), params, self.config.lora)

    def narrowed(self, params: Params) -> Params:
        """Parameters as training holds them, see `init`."""
        dtype, flat = compute_dtype(self.config.model.dtype), traverse_util.flatten_dict(params, sep="/")
        frozen = tuple(f"{module}/" for module in self.frozen_modules)
        flat = {path: leaf.astype(dtype) if path.startswith(frozen) else leaf for path, leaf in flat.items()}
        return traverse_util.unflatten_dict(flat, sep="/")

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss and the metrics of `Spoken` or of `Regressed`; `rng` draws adapters' dropout."""
        return self._actions.loss(self._model(params, rng), batch)

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """ "mse" of the actions of `act`, and what `Spoken` or `Regressed` has besides."""
        return self._actions.evaluate(self._model(params), batch)

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks for task["instruction"].

        One token after the other, the likeliest without `rng`. As published, all tokens can be said: see
        `jaxvla.ops.action_tokens.to_actions`. There are always as many as actions have values, whatever they are.
        Actions that are regressed come in one pass, and are never drawn.
        """
        return self._actions.act(self._model(params), observations, task["instruction"], rng, temperature)

    def _model(self, params: Params, rng: Key[Array, ""] | None = None) -> Prismatic:
        """The model with its adapters, whose dropout `rng` draws in training."""
        if rng is None:  # to act, where a loop would read kernels in float32 at every step
            params = params | cast_matrices(
                {name: part for name, part in params.items() if name != LORA}, compute_dtype(self.config.model.dtype)
            )
        return bind(self.graphdef, adapt(params, self.config.lora, rng))


def make_openvla(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> OpenVLA:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `OpenVLAConfig` and the model that it configures; another number of cameras, images of another
            size, no prompts or ones that are no token ids of its vocabulary, no states where they are read, a history
            of observations, or adapters of what is no kernel.
    """
    config = from_mapping(OpenVLAConfig, dict(agent_kwargs), "config.agent_kwargs")
    if LORA in agent_kwargs and config.train_what == LORA and not config.lora.rank:
        raise ConfigError("train_what 'lora' trains adapters, and there are none: set config.agent_kwargs.lora.rank")
    check(config, spec)
    config = with_head(config, spec)
    if config.lora.rank:
        adapted_paths(param_shapes(config.model), config.lora)
    return OpenVLA(config, spec, graph_of(lambda rngs: Prismatic(config.model, rngs)))
