"""Which trajectories of the indexed files a split uses, and which of their transitions."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from jaxvla.data.formats.index import MIN_TRANSITIONS, OTHER_KIND, Index, compare_kinds, most_common
from jaxvla.data.skipping import Skipped
from jaxvla.errors import ConfigError, DataError

_HASHES = 1 << 48


def usable(
    paths: Sequence[str], indices: Sequence[Index], cameras: Mapping[str, str]
) -> tuple[list[np.ndarray], list[Skipped]]:
    """Which trajectories of each file can be used, bool [n], and all others: those skipped by the indices among them.

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
    masks, skipped = [], []
    for path, index in zip(paths, indices):
        wrong = _wrong(index, kind, cameras.values()) if len(index.lengths) else {}
        skipped += index.skipped
        skipped += [(reason, f"{path}: trajectory {index.keys[i]!r}{what}") for i, (reason, what) in wrong.items()]
        keep = np.ones(len(index.lengths), bool)
        keep[[*wrong]] = False
        masks.append(keep)
    return masks, skipped


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


def hold_out(indices: Sequence[Index], usable: Sequence[np.ndarray], share: float, split: str) -> list[np.ndarray]:
    """Which of the `usable` trajectories are `split`: about `share` of them are "val", the others "train".

    Which is decided by a hash of a trajectory's key and actions: neither by the order of files nor by what else there
    is, but that one trajectory is held out at least. Keys alone would not do, for some datasets give the same to many.

    Raises:
        ConfigError: nothing would be left in the split.
    """
    shares = [_shares(index, own) for index, own in zip(indices, usable)]
    least = min((own.min() for own in shares if len(own)), default=0)
    held_out = [(own < share) | (own == least) for own in shares]
    masks = [own & (out if split == "val" else ~out) for own, out in zip(usable, held_out)]
    if not any(mask.any() for mask in masks):
        total = sum(int(own.sum()) for own in usable)
        raise ConfigError(
            f"bridgedata_config.validation_share={share} of {total} trajectories leaves none for training: lower it, "
            "or add data"
        )
    return masks


def subset(
    indices: Sequence[Index], usable: Sequence[np.ndarray], most: int, share: float, seed: int
) -> list[np.ndarray]:
    """About `share` of the `usable` trajectories, and of these at most `most` (0 for all): one at least, where there is
    any.

    Which is decided by a hash, as in `hold_out`, of another seed each time: a smaller subset is part of a larger one.
    """
    shares = [_shares(index, own, f"subset {seed} ") for index, own in zip(indices, usable)]
    ranked = np.sort(np.concatenate([own[mask] for own, mask in zip(shares, usable)]))
    count = max(int((ranked < share).sum()), 1)
    count = min(count, most) if most else count
    limit = ranked[:count].max(initial=0.0)
    return [own <= limit for own in shares]


def drop(index: Index, steps: np.ndarray) -> tuple[Index, tuple[str, ...]]:
    """An index without the transitions where bool [sum T] is True, and the frames before them; and the keys of
    trajectories that are left out, since fewer than `MIN_TRANSITIONS` would be left of them.

    What led to a dropped transition leads to the one after it.
    """
    starts = np.cumsum(index.lengths) - index.lengths
    left = np.add.reduceat(~steps, starts, dtype=np.int64) if len(starts) else starts
    enough = left >= MIN_TRANSITIONS
    lost = tuple(index.keys[i] for i in np.flatnonzero(~enough).tolist())
    kept, keep = index.select(enough), ~steps[np.repeat(enough, index.lengths)]
    ends = np.cumsum(kept.lengths)
    frames = np.insert(keep, ends, True)  # the last frame of a trajectory has no transition
    dropped = dataclasses.replace(
        kept,
        lengths=left[enough],
        actions=kept.actions[keep],
        proprio=kept.proprio[frames],
        taught=kept.taught[keep],
        texts=kept.texts[keep],
        frames={camera: found.select(frames) for camera, found in kept.frames.items()},
        steps=kept.steps[frames],
    )
    return dropped, lost


def seeds(keys: Iterable[str], actions: Iterable[np.ndarray]) -> np.ndarray:
    """A number for each trajectory that follows from its key and its actions alone: uint64 [n]."""
    return np.array([_hash(f"seed {key}", own) * _HASHES for key, own in zip(keys, actions)], np.uint64)


def _shares(index: Index, usable: np.ndarray, salt: str = "") -> np.ndarray:
    """The hash of each trajectory, float64 [n]; inf where it is not usable."""
    found = np.full(len(usable), np.inf)
    ends = np.cumsum(index.lengths)
    for i in np.flatnonzero(usable).tolist():
        found[i] = _hash(salt + index.keys[i], index.actions[ends[i] - index.lengths[i] : ends[i]])
    return found


def _hash(key: str, actions: np.ndarray) -> float:
    """A number in [0, 1) that follows from these alone."""
    digest = hashlib.sha256(key.encode() + b"\0" + np.ascontiguousarray(actions).tobytes()).digest()
    return int.from_bytes(digest[:6], "big") / _HASHES
