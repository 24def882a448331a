"""Brings an episode of any dataset in the registry to one form: the same actions, states and language for all.

    episode = {
        "action": np.zeros((6, 7), np.float32),
        "observation": {"state": np.zeros((6, 7), np.float32)},
        "language_instruction": np.array([b"close the drawer"] * 6, object),
    }
    standard = standardize("bridge_orig", episode)
    standard["actions"]                       # float32 [4, 7]: five states are kept, four movements lie between them
    proprio("bridge_orig", standard)          # float32 [5, 8]
    standard["instruction"][0]                # "close the drawer"
    standard["steps"]                         # [1, 2, 3, 4, 5], whose pictures belong to the states

Gripper actions are absolute, 1 open and 0 closed; states keep the dataset's sense. Pictures are not looked at.

Octo and OpenVLA share nearly all of this. `variant` chooses between them where they differ: in BridgeData, whose first
step OpenVLA leaves out; in `berkeley_mvp` and `berkeley_rpt`, which it passes on as they are; and in twelve datasets
whose instructions Octo replaces by empty ones (`OXEDataset.uninformative`). Without it BridgeData and the instructions
are OpenVLA's, and the other two Octo's. For datasets that one of them alone knows it makes no difference.
"""

import zlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypedDict

import numpy as np

from jaxvla.data.formats.standard import paths
from jaxvla.data.oxe import flat_actions, recomputed_actions, structured_actions
from jaxvla.data.oxe.encodings import ActionEncoding, StateEncoding
from jaxvla.data.oxe.registry import OXEDataset, check_variant, find
from jaxvla.data.oxe.standard import Standardization
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError


class Standard(TypedDict):
    """An episode in the standard form: s states, and actions between them.

    actions      float32 [s, d], or [s - 1, d] where they are differences of the states; action i leads from state i on,
                 so of s actions the last leads nowhere
    proprio      the parts of the state by their keys, each float32 [s, k]; the function `proprio` joins them
    instruction  str [s]; empty where there is none
    steps        int64 [s], the step of the episode that each state, and its pictures, come from
    taught       bool, as many as actions; False where a policy is not to learn one
    """

    actions: np.ndarray
    proprio: dict[str, np.ndarray]
    instruction: np.ndarray
    steps: np.ndarray
    taught: np.ndarray


def _of(module: ModuleType) -> dict[str, Standardization]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Standardization)}


STANDARDIZATIONS = _of(structured_actions) | _of(flat_actions) | _of(recomputed_actions)


def features(name: str) -> tuple[str, ...]:
    """The step features that `standardize` reads of a dataset, below `steps`: numbers first, the language last.

    Raises:
        ConfigError: no such dataset.
    """
    dataset = find(name)
    return (*_numeric(dataset), dataset.language)


def standardize(name: str, trajectory: Mapping[str, Any], variant: str | None = None) -> Standard:
    """Brings one episode to the standard form.

    Args:
        name: of its dataset.
        trajectory: its step features, each [n, ...], by their paths ("observation/state") or in nested mappings. Texts
            are str or bytes; numbers may be byte strings that hold compressed float32 values, as TFDS encodes some.
        variant: whose way is taken where "octo" and "openvla" differ; None for what the module docstring says.

    Raises:
        ConfigError: no such dataset or variant; names the nearest.
        DataError: a feature is missing, has another length than the rest, or holds something else than numbers, or
            texts; or the result has another width than the encodings of the dataset. An `UnusableError`, where the
            episode alone is at fault.
    """
    check_variant(variant)
    dataset = find(name)
    rule = STANDARDIZATIONS[dataset.standardization]
    numbers = {path: _numbers(dataset, path, trajectory) for path in _numeric(dataset)}
    texts = _texts(dataset, trajectory)
    n = _length(dataset, {**numbers, dataset.language: texts})
    rows = rule([numbers[path] for path in rule.reads], variant)
    steps = np.arange(n) if rows.steps is None else rows.steps
    made = dict(zip(rule.makes, rows.states))
    parts = {key: made[key] if key in made else numbers[_stored(key)] for key in dataset.state_keys if key is not None}
    if dataset.uninformative and variant == "octo":
        texts = np.full_like(texts, "")
    standard = Standard(
        actions=rows.actions.astype(np.float32),
        proprio={key: part[steps].astype(np.float32) for key, part in parts.items()},
        instruction=texts[steps],
        steps=steps.astype(np.int64),
        taught=np.ones(len(rows.actions), bool) if rows.taught is None else rows.taught,
    )
    _check_width(dataset, "action", dataset.action_encoding, standard["actions"])
    proprio(name, standard)
    return standard


def proprio(name: str, standard: Standard) -> np.ndarray:
    """The whole state, float32 [s, width of its encoding]: the parts in order, with zeros for those that are missing.

    Args:
        name: of its dataset.
        standard: what `standardize` made of an episode.

    Raises:
        DataError: the parts do not make up the encoding.
    """
    dataset = find(name)
    padding = np.zeros((len(standard["steps"]), 1), np.float32)
    parts = [padding if key is None else standard["proprio"][key] for key in dataset.state_keys]
    state = np.concatenate(parts, axis=1)
    _check_width(dataset, "state", dataset.state_encoding, state)
    return state


def _stored(key: str) -> str:
    """The feature of a part of the state that no standardization makes."""
    return f"observation/{key}"


def _numeric(dataset: OXEDataset) -> tuple[str, ...]:
    rule = STANDARDIZATIONS[dataset.standardization]
    stored = [_stored(key) for key in dataset.state_keys if key is not None and key not in rule.makes]
    return tuple(dict.fromkeys((*rule.reads, *stored)))


def _numbers(dataset: OXEDataset, path: str, trajectory: Mapping[str, Any]) -> np.ndarray:
    """A feature of numbers as float32, or float64 where it is stored so: [n, k], with k = 1 for one of each step."""
    values = np.asarray(_feature(dataset, path, trajectory))
    if values.dtype == object:
        values = _decompressed(dataset, path, values)
    if values.ndim not in (1, 2) or values.dtype.kind not in "biuf":
        raise DataError(f"{dataset.name}: {path!r} must be numbers [n, k], not {values.dtype} {list(values.shape)}")
    wide = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    return wide[:, None] if wide.ndim == 1 else wide


def _decompressed(dataset: OXEDataset, path: str, values: np.ndarray) -> np.ndarray:
    try:
        return np.stack([np.frombuffer(zlib.decompress(value), "<f4") for value in values])
    except (TypeError, ValueError, zlib.error) as error:
        raise DataError(f"{dataset.name}: {path!r} holds neither numbers nor compressed float32 values") from error


def _texts(dataset: OXEDataset, trajectory: Mapping[str, Any]) -> np.ndarray:
    """The instruction of each step, str [n]; numbers [n, k] are its characters, with 0 behind the last."""
    values = np.asarray(_feature(dataset, dataset.language, trajectory))
    if values.ndim == 2 and values.dtype.kind in "iu":
        texts = [row.tobytes().decode("utf-32-le", "replace").split("\0", 1)[0] for row in values.astype("<u4")]
    elif values.ndim == 1 and all(isinstance(value, str | bytes) for value in values):
        texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    else:
        raise DataError(
            f"{dataset.name}: {dataset.language!r} must be texts [n], not {values.dtype} {list(values.shape)}"
        )
    return np.array([text.strip() for text in texts], str)


def _feature(dataset: OXEDataset, path: str, trajectory: Mapping[str, Any]) -> Any:
    found = next(_lookup(trajectory, path), None)
    if found is None:
        raise DataError(
            f"{dataset.name}: no step feature {path!r}, there are {', '.join(paths(trajectory)) or 'none'}: is this "
            f"an episode of {dataset.folder}?"
        )
    return found


def _lookup(node: Mapping[str, Any], path: str) -> Iterator[Any]:
    """What lies at a path; a key may hold a slash itself, as some datasets' do."""
    if path in node and not isinstance(node[path], Mapping):
        yield node[path]
    for key, child in node.items():
        if isinstance(child, Mapping) and path.startswith(f"{key}/"):
            yield from _lookup(child, path.removeprefix(f"{key}/"))


def _length(dataset: OXEDataset, values: Mapping[str, np.ndarray]) -> int:
    """How many steps there are."""
    lengths = {path: len(array) for path, array in values.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} of {path!r}" for path, length in lengths.items())
        raise UnusableError("lengths disagree", f"{dataset.name}: steps are {told}")
    if 0 in lengths.values():
        raise UnusableError("no steps", f"{dataset.name}: an episode needs one at least")
    return next(iter(lengths.values()))


def _check_width(dataset: OXEDataset, what: str, encoding: StateEncoding | ActionEncoding, values: np.ndarray) -> None:
    if values.shape[1] != encoding.width:
        raise DataError(
            f"{dataset.name}: the standard {what} has {values.shape[1]} numbers, but {encoding.name} {encoding.width}: "
            f"is this an episode of {dataset.folder}?"
        )
