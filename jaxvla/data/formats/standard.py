"""The hook by which a dataset's own features become actions, states and instructions, while its files are indexed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.data.formats.index import ANY_TEXT, NO_TEXT
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError

_KEYS = ("actions", "proprio", "instruction")


@dataclasses.dataclass(frozen=True)
class Standardize:
    """A function of whole trajectories, and what it is called.

    Attributes:
        name: of the function. Indices that were made by it are kept under this name.
        function: takes the features of an episode of n steps as `Episode.trajectory` gives them, and gives, for s of
            these steps,

                actions      [s, d], or [s - 1, d]: the action of the last step leads nowhere
                proprio      [s, p]
                instruction  s texts, str; empty where there is none
                steps        int [s], ascending, which of the n steps they are; may be missing for all
                taught       bool, as many as actions, False where a policy is not to learn one; may be missing

            It may raise `UnusableError` to leave an episode out. Picklable: a function of a module, or a
            `functools.partial` of one.
        version: stands for what the function does. Indices of another version are made anew, so whoever changes what it
            does changes this, or the name.
    """

    name: str
    function: Callable[[dict[str, Any]], Mapping[str, Any]]
    version: str = ""

    def __repr__(self) -> str:
        return f"Standardize({self.name!r}, {self.version!r})"

    def __call__(self, trajectory: dict[str, Any], n: int, where: str) -> "Standardized":
        """Applies it to an episode of n steps.

        Raises:
            DataError: the result lacks a key, or is not of the form above; an `UnusableError` where the function itself
                refuses the episode. Both name the episode by `where`.
        """
        try:
            made = self.function(trajectory)
        except UnusableError as error:
            raise UnusableError(error.reason, f"{where}: {error.detail}") from error
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        missing = [key for key in _KEYS if key not in made]
        if missing:
            raise DataError(f"{where}: standardization {self.name!r} gives no {', '.join(missing)}; it must")
        steps = np.asarray(made.get("steps", np.arange(n)))
        if steps.ndim != 1 or (len(steps) and not (steps[0] >= 0 and steps[-1] < n and (np.diff(steps) > 0).all())):
            raise DataError(
                f"{where}: standardization {self.name!r} gives steps that are not ascending from 0 to {n - 1}"
            )
        actions = np.asarray(made["actions"])
        taught = np.asarray(made.get("taught", np.ones(len(actions), bool)), bool)
        texts = [str(text).strip() for text in made["instruction"]]
        lengths = {"proprio": len(made["proprio"]), "instruction": len(texts)}
        s = len(steps)
        if (
            any(length != s for length in lengths.values())
            or len(actions) not in (s, s - 1)
            or len(taught) != len(actions)
        ):
            told = ", ".join(f"{length} of {key}" for key, length in {**lengths, "actions": len(actions)}.items())
            raise DataError(
                f"{where}: standardization {self.name!r} gives {told} and {len(taught)} taught for {s} steps"
            )
        last = max(s - 1, 0)
        return Standardized(actions[:last], np.asarray(made["proprio"]), texts, steps, taught[:last])


@dataclasses.dataclass(frozen=True, eq=False)
class Standardized:
    """What `Standardize` makes of an episode: s steps, and s - 1 actions between them."""

    actions: np.ndarray
    proprio: np.ndarray
    texts: list[str]
    steps: np.ndarray
    taught: np.ndarray


def paths(trajectory: Mapping[str, Any], above: str = "") -> list[str]:
    """The features of an episode, groups joined by "/"."""
    found = []
    for key, child in sorted(trajectory.items()):
        found += paths(child, f"{above}{key}/") if isinstance(child, Mapping) else [f"{above}{key}"]
    return found


def annotations(texts: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, list[int]]:
    """The different texts, which of them each transition has (see `Index`), and the first step that has each."""
    texts = list(texts)
    first = {text: texts.index(text) for text in dict.fromkeys(texts) if text}
    numbers = {text: number for number, text in enumerate(first)} | {"": NO_TEXT}
    own = np.array([numbers[text] for text in texts], np.int32)
    if len(first) == 1 and not own.any():
        own = np.full_like(own, ANY_TEXT)
    return tuple(first), own, [*first.values()]
