"""What a checkpoint folder holds, and how to read it.

    <run>/checkpoints/<step>/
        params/            the agent's parameters (Orbax)
        train/             optimizer state, step and random key (Orbax)
        data/data.json     the position of the data iterator of every process
        assets/assets.json what a robot, or a later run, needs beside the parameters (`Assets`)

A folder of this name is complete: it is written under another name and renamed when all of it is on disk. Serving
reads params and assets only, and nothing outside the folder.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxvla
from jaxvla.config import from_mapping
from jaxvla.data.actions import ActionConvention
from jaxvla.data.normalization import Normalizer, Statistics
from jaxvla.data.schema import BatchSpec, InstructionSpec, TextSpec
from jaxvla.errors import CheckpointError, ConfigError
from jaxvla.parallel.sharding import path_string

ARRAY_ITEMS = ("params", "train")
JSON_ITEMS = ("data", "assets")
FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Everything beside the parameters that rebuilds the agent and speaks to the robot in its units.

    Attributes:
        agent: name of the method, such as "gc_bc".
        agent_kwargs: its keyword arguments, plain values.
        spec: sizes of the batches that it was trained on.
        statistics: of the training data, in robot units.
        action_normalization: kind of `Normalizer` of the actions.
        proprio_normalization: kind of `Normalizer` of the proprio.
        action_mask: which action dimensions are normalized; empty for all.
        train_config: the whole training configuration, as plain values.
        data_config: the whole data configuration, as plain values.
        text: how prompts become tokens (`reasoning.texts.Wording.to_json`); None where the agent reads none.
        language: how instructions are encoded (`agents.language.Language.to_json`); None where the agent follows none.
        actions: what the numbers of an action are; None where the checkpoint is too old to say.
        version: of jaxvla.
    """

    agent: str
    agent_kwargs: Mapping[str, Any]
    spec: BatchSpec
    statistics: Statistics
    action_normalization: str
    proprio_normalization: str
    action_mask: tuple[bool, ...]
    train_config: Mapping[str, Any]
    data_config: Mapping[str, Any]
    text: Mapping[str, Any] | None = None
    language: Mapping[str, Any] | None = None
    actions: ActionConvention | None = None
    version: str = jaxvla.__version__

    def action_normalizer(self) -> Normalizer:
        """Between robot units and the actions of a batch."""
        ends = () if self.actions is None else self.actions.gripper
        return Normalizer(self.action_normalization, self.statistics.actions, self.action_mask or None, ends)

    def proprio_normalizer(self) -> Normalizer:
        """Between robot units and the proprio of a batch."""
        return Normalizer(self.proprio_normalization, self.statistics.proprio)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; tuples become lists, and limits that there are not, for which JSON has no number, null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        spec = dataclasses.asdict(self.spec)
        spec["action_limits"] = [[x if math.isfinite(x) else None for x in pair] for pair in self.spec.action_limits]
        actions = None if self.actions is None else dataclasses.asdict(self.actions)
        fields |= {"spec": spec, "statistics": self.statistics.to_json(), "actions": actions}
        return json.loads(json.dumps(fields))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Assets":
        """The inverse of `to_json`; lists inside the configurations stay lists."""
        spec = {key: tuple(value) if isinstance(value, list) else value for key, value in values["spec"].items()}
        text, instruction = spec.pop("text", None), spec.pop("instruction", None)
        limits = (
            (-math.inf if low is None else low, math.inf if high is None else high)
            for low, high in spec.pop("action_limits", ())
        )
        actions = values.get("actions")
        return cls(
            **{
                **values,
                "spec": BatchSpec(
                    **spec,
                    action_limits=tuple(limits),
                    text=None if text is None else TextSpec(**text),
                    instruction=None if instruction is None else InstructionSpec(**instruction),
                ),
                "statistics": Statistics.from_json(values["statistics"]),
                "action_mask": tuple(values["action_mask"]),
                "actions": None if actions is None else from_mapping(ActionConvention, actions, "actions"),
            }
        )


def is_run_folder(path: str | pathlib.Path) -> bool:
    """Whether `path` is the folder of a run, not of one checkpoint."""
    return (pathlib.Path(path).expanduser() / FOLDER).is_dir()


def saved_steps(run: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints of a run folder, ascending."""
    return sorted(int(path.name) for path in (run / FOLDER).glob("*") if path.name.isdigit())


def find_checkpoint(
    path: str | pathlib.Path, step: int | None = None, items: Sequence[str] = ARRAY_ITEMS + JSON_ITEMS
) -> pathlib.Path:
    """The folder of one checkpoint.

    Args:
        path: a run folder, or the folder of one of its checkpoints.
        step: which checkpoint of a run folder; None for the latest.
        items: what it must hold.

    Raises:
        CheckpointError: there is none, or it is incomplete.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if is_run_folder(path):
        steps = saved_steps(path)
        if not steps:
            raise CheckpointError(f"{path / FOLDER} holds no complete checkpoint: train longer than save_interval")
        if step is not None and step not in steps:
            raise CheckpointError(f"{path / FOLDER} has no step {step}; there are {', '.join(map(str, steps))}")
        path = path / FOLDER / str(steps[-1] if step is None else step)
    elif step is not None and path.name != str(step):
        raise CheckpointError(f"{path} is no run folder, so step {step} cannot be chosen in it")
    missing = [item for item in items if not (path / item).is_dir()]
    if len(missing) == len(items):
        raise CheckpointError(
            f"{path} is no checkpoint: looked in it for {FOLDER}/STEP (a run folder) and for {', '.join(items)} "
            "(the folder of one checkpoint)"
        )
    if missing or not path.name.isdigit():
        lacks = f"it lacks {', '.join(missing)}" if missing else "its writing was interrupted"
        raise CheckpointError(f"checkpoint {path} is incomplete: {lacks}; use another step")
    return path


def read_json(folder: pathlib.Path, item: str) -> Any:
    """The JSON item `item` of a checkpoint folder.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = folder / item / f"{item}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); use another step") from error


def read_assets(folder: pathlib.Path) -> Assets:
    """The assets of a checkpoint folder.

    Raises:
        CheckpointError: missing, damaged, or of another version of jaxvla.
    """
    values = read_json(folder, "assets")
    try:
        return Assets.from_json(values)
    except (KeyError, TypeError, ConfigError) as error:
        version = values.get("version", "unknown")
        raise CheckpointError(
            f"{folder / 'assets'} was written by jaxvla {version} and does not fit {jaxvla.__version__} ({error})"
        ) from error


def restore(folder: pathlib.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads array items straight onto their devices.

    Args:
        folder: of one checkpoint.
        abstract: item name to a pytree of `jax.ShapeDtypeStruct`s that carry the shardings wanted, which need not be
            those of the run that saved.

    Raises:
        CheckpointError: an array is missing, unexpected, of another shape, or cannot be read.
    """
    handler = ocp.StandardCheckpointHandler()
    restored = {}
    for item, tree in abstract.items():
        try:
            _check_tree(folder / item, handler.metadata(folder / item), tree)
            restored[item] = handler.restore(folder / item, args=ocp.args.StandardRestore(tree))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / item} cannot be read ({first_line(error)}); use another step") from error
    return restored


def _check_tree(where: pathlib.Path, saved: Any, wanted: Any) -> None:
    saved_shapes, wanted_shapes = _shapes(saved), _shapes(wanted)
    for path in sorted(saved_shapes.keys() | wanted_shapes.keys()):
        if saved_shapes.get(path) != wanted_shapes.get(path):
            have, want = saved_shapes.get(path, "no such array"), wanted_shapes.get(path, "no such array")
            raise CheckpointError(f"{where} does not fit the agent: {path} is {have} there, {want} here")


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_string(path): f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
