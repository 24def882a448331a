"""Splits and slices of them as TFDS writes them: `train`, `train[:95%]`, `train[-500:]`, `train[:4shard]`.

Source: https://www.tensorflow.org/datasets/splits and tensorflow_datasets/core/splits.py, whose rounding (`closest`)
and errors these are. Sums of splits, and `all`, are not read.
"""

import dataclasses
import re
from collections.abc import Sequence

from jaxvla.errors import ConfigError

_WHOLE = re.compile(r"(?P<split>[\w-]+)(?:\[(?P<slice>[^\]]+)\])?")
_BOUND = re.compile(r"(?P<value>-?\d[\d_]*(?:\.\d+)?)(?P<unit>%|shard)?")


@dataclasses.dataclass(frozen=True)
class SplitSlice:
    """A split, or a part of it.

    Attributes:
        split: its name.
        start, stop: from the end where they are negative; None for the beginning and the end.
        unit: what they count: "" episodes, "%" or "shard".
    """

    split: str
    start: float | None = None
    stop: float | None = None
    unit: str = ""

    @classmethod
    def parse(cls, text: str, option: str) -> "SplitSlice":
        """Reads a split as TFDS writes it; `option` is what gave it.

        Raises:
            ConfigError: it is none.
        """
        whole = _WHOLE.fullmatch(text.strip())
        if whole is None:
            raise ConfigError(f"{option}={text!r} is no split: write train, train[:95%], train[95%:] or train[:500]")
        if whole["slice"] is None:
            return cls(whole["split"])
        bounds = whole["slice"].split(":")
        found = [_BOUND.fullmatch(bound.strip()) if bound.strip() else None for bound in bounds]
        given = [match for match in found if match]
        units = {match["unit"] or "" for match in given}
        numbers = [None if match is None else float(match["value"]) for match in found]
        if len(bounds) == 1 and units == {"shard"} and numbers[0] is not None:
            after = numbers[0] + 1
            bounds, found, numbers = ["", ""], found * 2, [numbers[0], after or None]
        broken = len(bounds) != 2 or len(given) < sum(map(bool, (b.strip() for b in bounds))) or len(units) != 1
        if broken or any(number is not None and "%" not in units and number % 1 for number in numbers):
            raise ConfigError(
                f"{option}={text!r} is no split: a slice has one or two bounds of one unit, as [:95%], [95%:] or [:500]"
            )
        if "%" in units and any(abs(number or 0) > 100 for number in numbers):
            raise ConfigError(f"{option}={text!r}: percents go from -100 to 100")
        return cls(whole["split"], *numbers, units.pop())

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the split."""
        return self.start is None and self.stop is None

    def range(self, lengths: Sequence[int], where: str) -> range:
        """Which episodes of the split these are, counted through its shards.

        Args:
            lengths: episodes of each shard.
            where: the dataset, for messages.

        Raises:
            ConfigError: the split has not as many, or the part is empty.
        """
        total = sum(lengths)
        start, stop = (self._episode(bound, lengths) for bound in (self.start, self.stop))
        start, stop = 0 if start is None else start, total if stop is None else stop
        if abs(start) > total or abs(stop) > total:
            raise ConfigError(f"{where}: {self} is more than the split's {total} episodes: correct it")
        start, stop = (bound + total if bound < 0 else bound for bound in (start, stop))
        if start >= stop and not self.is_whole:
            raise ConfigError(f"{where}: {self} is no episode of the split's {total}: correct it")
        return range(start, stop)

    def _episode(self, bound: float | None, lengths: Sequence[int]) -> int | None:
        if bound is None:
            return None
        if self.unit == "%":
            return round(bound * sum(lengths) / 100.0)
        return sum(lengths[: int(bound)]) if self.unit == "shard" else int(bound)

    def __str__(self) -> str:
        if self.is_whole:
            return self.split
        start, stop = ("" if bound is None else f"{bound:g}{self.unit}" for bound in (self.start, self.stop))
        return f"{self.split}[{start}:{stop}]"
