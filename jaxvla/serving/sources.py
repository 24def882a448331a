"""Where policies that are played in a world come from: a folder, or a server."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.contract import Contract
from jaxvla.errors import ConfigError
from jaxvla.serving.policy import Policy, load_policy
from jaxvla.serving.served import ServedPolicy
from jaxvla.serving.stored import open_stored
from jaxvla.serving.terms import Terms, Wishes, agree, check_chunkings
from jaxvla_client.client import Client


@dataclasses.dataclass(frozen=True)
class Source:
    """A policy that can be had.

    Attributes:
        said: what it is, for people.
        stamp: what its decisions follow from, as JSON values.
        plays: the ways in which it is to be played.
        make: (mode of inference or None, one of the ways, how many robots) to the policy.
    """

    said: str
    stamp: Mapping[str, Any]
    plays: Sequence[Terms]
    make: Callable[[str | None, Terms, int], Policy | ServedPolicy]

    def to_json(self) -> dict[str, Any]:
        """What is played, and how, as JSON values."""
        return {
            "checkpoint": self.said,
            "contract": self.plays[0].contract.to_json(),
            "executions": {play.chunking or "checkpoint": dataclasses.asdict(play.execution) for play in self.plays},
            "deviations": [dataclasses.asdict(each) for play in self.plays for each in play.deviations],
        }


@dataclasses.dataclass(frozen=True)
class Place:
    """Of the world that it is played in, what terms are agreed on by.

    Attributes:
        cameras, control_frequency: as those of the world's spec.
        usual_size: pixels a side where nobody knows the size of the frames of training.
    """

    cameras: Sequence[str]
    control_frequency: float
    usual_size: int

    def agree(
        self,
        contract: Contract,
        wishes: Wishes,
        chunkings: Sequence[str] = (),
        std_d: np.ndarray | None = None,
    ) -> list[Terms]:
        """Terms for each way of --chunking, or for the checkpoint's own; see `terms.agree`.

        Raises:
            ConfigError: it cannot be played so, or a wish is for chunks in real time, and there are none.
        """
        world, alone = (self.cameras, self.control_frequency, self.usual_size), len(chunkings) <= 1
        plays = [agree(contract, *world, wishes, way, alone, std_d) for way in chunkings or [""]]
        if wishes.least_delay is not None and not any(play.execution.realtime.enabled for play in plays):
            raise ConfigError("--least_delay is for chunks in real time: add --chunking realtime, prefix or both")
        return plays


def stored(
    place: Place,
    wishes: Wishes,
    chunkings: Sequence[str],
    folder: str,
    step: int | None,
    dataset: str | None,
    temperature: float,
    quantize: str,
) -> Source:
    """The policy of a folder; see `load_policy` for what it is loaded with, and for the errors.

    Raises:
        ConfigError: there is no such way of --chunking.
    """
    found = open_stored(folder, step, dataset)
    assets = found.assets.of(dataset)
    check_chunkings(chunkings)
    plays = place.agree(assets.contract(), wishes, chunkings, assets.statistics.actions.std)

    def make(mode: str | None, play: Terms, robots: int) -> Policy:
        return load_policy(found.path, None, mode, robots, temperature, play.whole, dataset, quantize=quantize)

    return Source(str(found.path), {"checkpoint": str(found.path)}, plays, make)


def served(place: Place, wishes: Wishes, connect: Callable[[], Client]) -> Source:
    """The policy of a server, which plays it as its checkpoint says; see `ServedPolicy` for the errors."""
    with contextlib.closing(ServedPolicy(connect, 1)) as first:
        address, contract = first.address, first.contract
    stamp = {"server": address, "contract": contract.to_json()}
    plays = place.agree(contract, wishes)
    return Source(f"served at {address}", stamp, plays, lambda mode, play, robots: ServedPolicy(connect, robots))
