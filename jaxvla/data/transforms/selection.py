"""Which trajectories of the indexed files a split uses: those that fit the cameras and each other, held out or not."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxvla.data.formats.index import OTHER_KIND, Index, compare_kinds, most_common
from jaxvla.data.skipping import Skipped
from jaxvla.errors import ConfigError, DataError


def usable(
    paths: Sequence[str], indices: Sequence[Index], cameras: Mapping[str, str]
) -> tuple[list[Index], list[Skipped]]:
    """The trajectories of each file that can be used, and all others: those skipped by the indices among them.

    Args:
        paths: the files.
        indices: theirs.
        cameras: by its name in batches, the stored name of each camera that is used.

    Raises:
        DataError: a camera that no file has.
    """
    filled = [(path, index) for path, index in zip(paths, indices) if len(index.lengths)]
    for name, stored in cameras.items():
        there = sorted({camera for _, index in filled for camera in index.frames})
        if filled and stored not in there:
            raise DataError(
                f"{filled[0][0]}: no camera {stored!r}, it has {', '.join(there) or 'none'}: "
                f"set bridgedata_config.cameras.{name}"
            )
    kind = most_common(index.kind for _, index in filled for _ in index.keys)
    kept, skipped = [], []
    for path, index in zip(paths, indices):
        wrong = _wrong(index, kind, cameras.values()) if len(index.lengths) else {}
        skipped += index.skipped
        skipped += [(reason, f"{path}: trajectory {index.keys[i]!r}{what}") for i, (reason, what) in wrong.items()]
        keep = np.ones(len(index.lengths), bool)
        keep[[*wrong]] = False
        kept.append(index.select(keep))
    return kept, skipped


def _wrong(index: Index, kind: tuple[int, int, int], cameras: Collection[str]) -> dict[int, tuple[str, str]]:
    """By trajectory of a file that cannot be used: why, and what exactly is wrong with it."""
    every = range(len(index.lengths))
    if index.kind != kind:
        return dict.fromkeys(every, (OTHER_KIND, f": {compare_kinds(index.kind, kind)}"))
    for camera in cameras:
        if camera not in index.frames:
            return dict.fromkeys(every, (f"no camera {camera!r}", ""))
    return {
        i: (f"camera {camera!r} cannot be used", f": {what}") for i, camera, what in index.faults if camera in cameras
    }


def hold_out(indices: Sequence[Index], share: float, split: str) -> list[Index]:
    """The part of the trajectories that is `split`: about `share` of them are "val", the others "train".

    Which is decided by a hash of a trajectory's key and actions: neither by the order of files nor by what else there
    is, but that one trajectory is held out at least. Keys alone would not do, for some datasets give the same to many.

    Raises:
        ConfigError: nothing would be left in the split.
    """
    shares = [np.array([_hash(key, part) for key, part in zip(index.keys, _parts(index))]) for index in indices]
    least = min((own.min() for own in shares if len(own)), default=0)
    masks = [(own < share) | (own == least) for own in shares]
    kept = [index.select(mask if split == "val" else ~mask) for index, mask in zip(indices, masks)]
    if not any(len(index.lengths) for index in kept):
        total = sum(map(len, shares))
        raise ConfigError(
            f"bridgedata_config.validation_share={share} of {total} trajectories leaves none for training: lower it, "
            "or add data"
        )
    return kept


def _parts(index: Index) -> list[np.ndarray]:
    return np.split(index.actions, np.cumsum(index.lengths)[:-1]) if len(index.lengths) else []


def _hash(key: str, actions: np.ndarray) -> float:
    """A number in [0, 1) that follows from these alone."""
    digest = hashlib.sha256(key.encode() + b"\0" + np.ascontiguousarray(actions).tobytes()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
