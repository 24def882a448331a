"""What a standardization is: a small function from the features of a dataset's steps to standard actions and states."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxvla.data.oxe.registry import Variant


class Rows(NamedTuple):
    """What a standardization makes of an episode of n steps.

    Attributes:
        actions: [s, d] of the s steps that are kept, or [s - 1, d] where they lead from one of them to the next.
        states: the parts of the state that it `makes`, each [n, k].
        steps: int [s], those that are kept; None for all.
        taught: bool, whether a policy is to learn each action; None for all.
    """

    actions: np.ndarray
    states: tuple[np.ndarray, ...] = ()
    steps: np.ndarray | None = None
    taught: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Standardization:
    """A standardization.

    Attributes:
        reads: the features that it needs, below `steps`.
        function: takes them in this order, each float [n, k], and the variant where there are two.
        makes: the keys of the parts of the state that it makes; others are stored.
        default: the variant that is taken where none is asked for; None where Octo and OpenVLA agree, or one of them
            alone knows the dataset.
    """

    reads: tuple[str, ...]
    function: Callable[..., Rows]
    makes: tuple[str, ...] = ()
    default: Variant | None = None

    def __call__(self, features: Sequence[np.ndarray], variant: Variant | None = None) -> Rows:
        """Applies it to the features that it `reads`; `variant` None takes the default."""
        return self.function(*features, *((variant or self.default,) if self.default else ()))


def reads(
    *paths: str, makes: tuple[str, ...] = (), default: Variant | None = None
) -> Callable[[Callable[..., Rows]], Standardization]:
    """Makes a standardization of a function; the arguments are those of `Standardization`."""
    return lambda function: Standardization(paths, function, makes, default)


def columns(*parts: np.ndarray) -> np.ndarray:
    """Parts [n, k] side by side."""
    return np.concatenate(parts, axis=1)


def zeros(like: np.ndarray, width: int) -> np.ndarray:
    """[n, width] zeros, for n rows as `like` has."""
    return np.zeros((len(like), width), np.float32)
