"""Where policies come from: a checkpoint, a folder that was exported from one, or a policy of LeRobot."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax

from jaxvla.agents import make_agent
from jaxvla.assets import Assets
from jaxvla.checkpoint import check_whole, find_checkpoint, read_assets, restore
from jaxvla.config import local_path
from jaxvla.errors import CheckpointError
from jaxvla.interchange import native, playing
from jaxvla.interchange.kinds import KINDS
from jaxvla.interchange.policy_folder import is_policy_folder, read_policy
from jaxvla.models.module import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A policy that can be loaded.

    Attributes:
        path: of the checkpoint, or of the other folder.
        assets: of one dataset, or of all that it was trained on.
        step: of the checkpoint; 0 where nobody says.
        read: the parameters, those of adapters apart, on the first device of this process.
    """

    path: pathlib.Path
    assets: Assets
    step: int
    read: Callable[[], Params]


def open_stored(folder: str | os.PathLike, step: int | None = None, dataset: str | None = None) -> Stored:
    """Finds out what a folder is, and reads all of it but the parameters.

    Args:
        folder: of a run, a checkpoint, an export, or a policy of LeRobot.
        step: which checkpoint of a run folder; None for the latest.
        dataset: of which of several statistics a policy of LeRobot takes its units.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged; or a step of a folder that has none.
        WeightsError: a policy of LeRobot cannot be read.
    """
    path = local_path(folder).absolute()
    try:
        exported, foreign = native.is_export(path), is_policy_folder(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    if not (exported or foreign):
        return _of_checkpoint(find_checkpoint(folder, step, ("params", "assets")))
    if exported:
        assets, saved = native.read_native_assets(path)
        stored = Stored(path, assets, saved, lambda: native.read_native(path, assets))
    else:
        policy = read_policy(path, KINDS)
        foreign_assets = playing.assets_of(policy, dataset)
        stored = Stored(path, foreign_assets, 0, lambda: playing.params_of(policy, foreign_assets))
    if step not in (None, stored.step):
        raise CheckpointError(f"{path} is no run folder, so step {step} cannot be chosen in it")
    return stored


def _of_checkpoint(path: pathlib.Path) -> Stored:
    assets = read_assets(path)
    return Stored(path, assets, int(path.name), lambda: read_params(path, assets))


def read_params(path: pathlib.Path, assets: Assets) -> Params:
    """The parameters of a checkpoint, those of adapters apart, on the first device of this process.

    Args:
        path: from `find_checkpoint`.
        assets: of the checkpoint.

    Raises:
        CheckpointError: they are damaged, or not those of the agent.
    """
    check_whole(path, ("params",))
    agent = make_agent(assets.agent, assets.agent_kwargs, assets.spec)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    return restore(path, {"params": abstract})["params"]
