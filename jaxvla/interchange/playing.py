"""A policy of LeRobot that acts here: what a checkpoint of ours would say of it."""

import jax
import numpy as np
from flax import traverse_util

from jaxvla.agents import Agent, make_agent
from jaxvla.agents.language import LanguageConfig, open_language
from jaxvla.assets import Assets
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.normalization import FieldStatistics, Normalizer, Statistics
from jaxvla.interchange.kinds import KINDS
from jaxvla.interchange.policy_folder import ACTION, STATE, PolicyFolder, camera_name
from jaxvla.models.lerobot import load_table
from jaxvla.models.module import Params


def assets_of(policy: PolicyFolder, dataset: str | None = None) -> Assets:
    """The assets of a policy, in whose units it acts. Its cameras have the names of its features, without `IMAGES`.

    Args:
        policy: the folder.
        dataset: of which of several statistics, see `PolicyFolder.field`.

    Raises:
        WeightsError: a variant that the agent does not have, or statistics that are missing or foreign.
        ConfigError, CheckpointError: sizes that the agent refuses, or a tokenizer that is missing or damaged.
    """
    actions = policy.field(ACTION, dataset)
    proprio = policy.field(STATE, dataset) if policy.proprio_dim else FieldStatistics(*[np.zeros(0, np.float32)] * 6)
    count = max((int(own["count"][0]) for own in policy.statistics.values() if "count" in own), default=0)
    kinds = {kind: policy.normalization(kind) for kind in ("ACTION", "STATE")}
    sizes = {camera_name(name): policy.inputs[name].shape[1:] for name in policy.cameras.values()}
    first, told = next(iter(sizes.values())), KINDS[policy.type].read_language(policy, "")
    language = open_language(from_mapping(LanguageConfig, told, str(policy.config_path)), ()) if told else None
    spec = BatchSpec(
        cameras=tuple(sizes),
        image_size=first,
        proprio_dim=policy.proprio_dim,
        action_dim=policy.action_dim,
        action_horizon=policy.values["chunk_size"],
        instruction=None if language is None else language.spec,
        action_limits=Normalizer(kinds["ACTION"], actions).limits(),
        camera_sizes=tuple((name, size) for name, size in sizes.items() if size != first),
    )
    return Assets(
        agent=policy.type,
        agent_kwargs=KINDS[policy.type].read_kwargs(policy),
        spec=spec,
        statistics=Statistics(actions, proprio, count, 0),
        action_normalization=kinds["ACTION"],
        proprio_normalization=kinds["STATE"],
        action_mask=(),
        train_config={},
        data_config={"data_path": str(policy.path), **({"name": dataset} if dataset else {})},
        language=None if language is None else language.to_json(),
        execution=policy.execution,
    )


def params_of(policy: PolicyFolder, assets: Assets) -> Params:
    """The parameters of a policy, on the default device.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    kind, agent = KINDS[policy.type], make_agent(assets.agent, assets.agent_kwargs, assets.spec)
    return as_held(agent, load_table(policy.path, kind.table(agent), kind.why_unused(agent))[0])


def as_held(agent: Agent, params: Params) -> Params:
    """Some of an agent's parameters in the dtypes in which it holds them: those that are frozen may be narrower."""
    flat = traverse_util.flatten_dict(jax.eval_shape(agent.init, jax.random.key(0)), sep="/")
    own = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({path: x.astype(flat[path].dtype) for path, x in own.items()}, sep="/")
