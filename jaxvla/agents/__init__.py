"""The methods, by the name that a configuration gives them."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxvla.agents import act, openvla_start, smolvla
from jaxvla.agents.agent import Agent, Start
from jaxvla.agents.contrastive_rl import make_contrastive_rl
from jaxvla.agents.ecot import ECoT, make_ecot
from jaxvla.agents.gc_bc import make_gc_bc
from jaxvla.agents.gc_ddpm_bc import make_gc_ddpm_bc
from jaxvla.agents.gc_iql import make_gc_iql
from jaxvla.agents.lc_bc import make_lc_bc
from jaxvla.agents.openvla import make_openvla
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.module import Params
from jaxvla.models.partition import match_paths
from jaxvla.models.quantization import quantize

__all__ = ["Agent", "Start", "agents", "check_takes_guide", "make_agent", "quantized", "start_of"]

agents: dict[str, Callable[[Mapping[str, Any], BatchSpec], Agent]] = {
    "gc_bc": make_gc_bc,
    "lc_bc": make_lc_bc,
    "gc_ddpm_bc": make_gc_ddpm_bc,
    "gc_iql": make_gc_iql,
    "contrastive_rl_td": make_contrastive_rl,
    "ecot": make_ecot,
    "act": act.make_act,
    "smolvla": smolvla.make_smolvla,
    "openvla": make_openvla,
}

# Of the methods whose settings can name files of weights.
_STARTS: dict[str, Callable[[Any], Start | None]] = {
    "act": act.start_of,
    "smolvla": smolvla.start_of,
    "openvla": openvla_start.start_of,
}

# Of the methods around a language model, whose kernels are held in fewer bits: those of `jaxvla.models.layers.Linear`,
# but not the few rows with which actions and states come in.
QUANTIZED = {
    "ecot": r"^backbone/.*/kernel$",
    "smolvla": r"^(?!action_|state_).*/kernel$",
    "openvla": r"^(vision|projector|llm)/.*/kernel$",
}


def make_agent(name: str, agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> Agent:
    """The agent called `name`.

    Args:
        name: a key of `agents`.
        agent_kwargs: its settings, see the configuration dataclass of its module.
        spec: the sizes of its batches.

    Raises:
        ConfigError: an unknown name, or settings that the agent refuses.
    """
    if name not in agents:
        raise ConfigError(f"no agent named {name!r}; there are: {', '.join(agents)}")
    return agents[name](agent_kwargs, spec)


def start_of(name: str, agent: Agent) -> Start | None:
    """The parameters that the settings of the agent called `name` say training starts from; None where all are drawn.

    Raises:
        ConfigError, WeightsError: the files are no local ones, are missing or damaged, or hold another model.
    """
    return _STARTS[name](agent) if name in _STARTS else None


def quantized(name: str, params: Params, mode: str) -> Params:
    """Parameters of the agent called `name` with the kernels of its language model and towers in fewer bits.

    Args:
        name: a key of `agents`.
        params: its parameters, without adapters.
        mode: see `jaxvla.models.quantization.MODES`; empty to leave them as they are.

    Raises:
        ConfigError: an unknown mode, or an agent that has nothing to quantize.
    """
    if not mode:
        return params
    if name not in QUANTIZED:
        raise ConfigError(f"{name} cannot be quantized to {mode}, which {', '.join(QUANTIZED)} can: leave it out")
    return quantize(params, match_paths(params, QUANTIZED[name]), mode)


def check_takes_guide(name: str, agent: Agent, by: str) -> None:
    """Whether the actions of the agent called `name` are made by flow matching: then its `act` takes a `Guide`.

    Args:
        name: of the agent.
        agent: itself.
        by: what `Guide` is to have, see `jaxvla.contract.RealTime`.

    Raises:
        ConfigError: they are not, so real-time chunking has nothing to draw towards the chunk of before; or it is to go
            on from actions that are given, and has not learned to.
    """
    flows, most = False, 0
    if isinstance(agent, smolvla.SmolVLAAgent):
        flows, most = True, agent.config.max_delay
    if isinstance(agent, ECoT):
        flows, most = agent.config.action_head.kind == "flow_matching", agent.config.action_head.max_delay
    if not flows:
        raise ConfigError(
            f"execution.realtime is for actions that are made by flow matching, which those of this {name} are not: "
            "set execution.realtime.enabled to False"
        )
    if by != "guidance" and not most:
        raise ConfigError(
            f"execution.realtime.by={by} is for policies that have learned to go on from given actions, which this "
            f"{name} has not: train it with max_delay above 0, or set execution.realtime.by to guidance"
        )
