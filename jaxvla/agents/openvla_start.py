"""The weights that openvla starts from: a folder of OpenVLA, or of OpenVLA-OFT."""

import dataclasses

from flax import traverse_util

from jaxvla.agents.agent import Start
from jaxvla.agents.language import check_tokens
from jaxvla.agents.openvla import OpenVLA
from jaxvla.config import local_path
from jaxvla.errors import ConfigError
from jaxvla.models.lora import read_base
from jaxvla.models.module import Params, compute_dtype
from jaxvla.models.prismatic.components import find_components, load_components
from jaxvla.models.prismatic.config import PrismaticConfig
from jaxvla.models.prismatic.weight_table import component_tables, param_shapes
from jaxvla.models.prismatic.weights import load_hf, read_hf
from jaxvla.models.torch_file import SUFFIX


def start_of(agent: OpenVLA) -> Start | None:
    """The weights that `path` names; None where it is empty.

    Raises:
        ConfigError, WeightsError, CheckpointError: it is no local path, there are no weights of this model, or prompts
            are in the tokens of another one.
    """
    if not agent.config.path:
        return None
    path, model = local_path(agent.config.path, "config.agent_kwargs.path"), agent.config.model
    # What a checkpoint of the original training holds is not said there; its training has this epsilon.
    trained = dataclasses.replace(model, text=dataclasses.replace(model.text, rms_norm_eps=1e-5))
    found = trained if path.suffix == SUFFIX else read_hf(path)
    components = find_components(path, model)
    # The one value that is a choice: the published folder runs at another than it was trained at.
    text = dataclasses.replace(found.text, rms_norm_eps=model.text.rms_norm_eps)
    for part, own in (("text", text), ("dino", found.dino), ("siglip", found.siglip), ("projector", found.projector)):
        if own != getattr(model, part):
            raise ConfigError(f"config.agent_kwargs.model.{part} is {getattr(model, part)}, but {path} has {own}")
    check_tokens(path, agent.spec)
    shapes = param_shapes(model.published)
    # Where adapters alone are trained, no wider copy is made on the way.
    dtype = compute_dtype(model.dtype) if agent.config.lora.rank else "float32"

    def load(shardings: Params) -> Params:
        added = tuple({weight.path.split("/")[0] for name in components for weight in component_tables(model)[name]})

        def read(at: Params) -> Params:
            base = {name: at[name] for name in shapes}
            flat = traverse_util.flatten_dict(load_hf(path, model, base, dtype), sep="/")
            # Those of the files beside it take the place of the towers of before their training.
            flat |= traverse_util.flatten_dict(load_components(components, model, at), sep="/")
            return agent.narrowed(traverse_util.unflatten_dict(flat, sep="/"))

        own = {name: shardings[name] for name in {*shapes, *added}}
        return read_base(read, own, agent.config.lora)

    beside = [f"{name} from {file.name}" for name, file in components.items()]
    drawn = [f"{name} drawn, {path} has none" for name in component_tables(model) if name not in components]
    return Start(load, (f"OpenVLA from {path}", *beside, *drawn, *_differing(found, model)))


def _differing(found: PrismaticConfig, model: PrismaticConfig) -> tuple[str, ...]:
    """Lines on settings that change what the folder computes, though its weights fit."""
    settings = {
        "text.rms_norm_eps": (found.text.rms_norm_eps, model.text.rms_norm_eps),
        **{
            f"{name}_pixels": (getattr(found, f"{name}_pixels"), getattr(model, f"{name}_pixels"))
            for name in model.towers
        },
    }
    return tuple(
        f"config.agent_kwargs.model.{name} is {own}, where the weights have {theirs}"
        for name, (theirs, own) in settings.items()
        if theirs != own
    )
