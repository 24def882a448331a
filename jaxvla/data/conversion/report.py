"""What a conversion did: counted while it runs, printed as one table at its end."""

import collections
import dataclasses

from jaxvla.errors import DataError

_EXAMPLES = 5


class UnusableError(DataError):
    """A trajectory, or a file of them, that is left out of the converted data.

    Args:
        reason: the kind of fault, the same words for all that share it.
        detail: the path, and what exactly is wrong with it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclasses.dataclass
class Report:
    """Counts of one run. `skipped` are trajectories, `ignored` other files and folders; both by reason."""

    tasks: int = 0
    tasks_there: int = 0
    converted: dict[str, int] = dataclasses.field(default_factory=lambda: {"train": 0, "val": 0})
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    ignored: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    notes: list[str] = dataclasses.field(default_factory=list)
    bytes_written: int = 0

    def table(self, seconds: float) -> str:
        """The summary, several lines."""
        count = sum(self.converted.values())
        megabytes = self.bytes_written / 1e6
        there = f", {self.tasks_there} more already there" if self.tasks_there else ""
        lines = [
            f"task folders   {self.tasks} converted{there}",
            f"trajectories   {count} converted: {self.converted['train']} train, {self.converted['val']} val",
        ]
        if count:
            rate = f"{count / seconds:.1f} trajectories/s, {megabytes / seconds:.1f} MB/s"
            lines.append(f"written        {megabytes:.1f} MB in {seconds:.1f} s ({rate})")
        lines += _listing("skipped", "trajectories", self.skipped)
        lines += _listing("ignored", "files and folders", self.ignored)
        lines += [f"note           {note}" for note in self.notes]
        return "\n".join(lines)

    def check(self) -> None:
        """Fails where there was something to convert and nothing could be.

        Raises:
            DataError: names the commonest reason and one example of it.
        """
        if self.skipped and not any(self.converted.values()):
            reason, details = max(self.skipped.items(), key=lambda item: len(item[1]))
            total = sum(map(len, self.skipped.values()))
            raise DataError(f"all {total} trajectories were skipped, {len(details)} for: {reason}, as {details[0]}")


def _listing(title: str, unit: str, reasons: dict[str, list[str]]) -> list[str]:
    if not reasons:
        return []
    lines = [f"{title:<15}{sum(map(len, reasons.values()))} {unit}"]
    for reason, details in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"  {len(details)}  {reason}")
        lines += [f"       {detail}" for detail in sorted(details)[:_EXAMPLES]]
        if len(details) > _EXAMPLES:
            lines.append(f"       and {len(details) - _EXAMPLES} more")
    return lines
