"""What a conversion did: counted while it runs, printed as one table at its end."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError

_EXAMPLES = 5
_KINDS = 12


@dataclasses.dataclass
class Report:
    """Counts of one run, or of a piece of it.

    tasks, tasks_there   task folders converted, and left as they were
    there                trajectories in the inputs of the latter
    converted            trajectories written, by split
    cameras              of these, how many have each camera
    labelled             of these, how many have an instruction
    transitions          of these
    untaught             of these transitions, how many are marked as not to be taught
    skipped              where trajectories were left out, by reason
    lost                 how many, by reason; an unreadable file holds several
    unread               by kind: trajectories that were written without something that they have
    ignored              by kind: files and folders that were not looked at
    """

    tasks: int = 0
    tasks_there: int = 0
    there: int = 0
    converted: collections.Counter[str] = dataclasses.field(
        default_factory=lambda: collections.Counter({"train": 0, "val": 0})
    )
    cameras: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    labelled: int = 0
    transitions: int = 0
    untaught: int = 0
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    lost: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unread: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    ignored: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    notes: list[str] = dataclasses.field(default_factory=list)
    bytes_written: int = 0

    def skip(self, error: UnusableError, count: int = 1) -> None:
        """Counts `count` trajectories that are left out together."""
        self.skipped[error.reason].append(error.detail)
        self.lost[error.reason] += count

    def ignore(self, entries: Mapping[str, Sequence[pathlib.Path]]) -> None:
        """Counts files and folders that are not looked at, given by kind."""
        for kind, paths in entries.items():
            if paths:
                self.ignored[kind] += map(str, paths)

    def count(
        self, cameras: Iterable[str], language: Sequence[str], taught: np.ndarray, unread: Mapping[str, str]
    ) -> None:
        """Counts the content of a trajectory that is written; `taught` is bool [T], `unread` gives a place by kind."""
        self.cameras.update(list(cameras))
        self.labelled += any(language)
        self.transitions += len(taught)
        self.untaught += int((~taught).sum())
        for kind, where in unread.items():
            self.unread[kind].append(where)

    def add(self, piece: "Report") -> None:
        """Adds the counts of another piece of the run."""
        for field in dataclasses.fields(self):
            mine, more = getattr(self, field.name), getattr(piece, field.name)
            if isinstance(more, int):
                setattr(self, field.name, mine + more)
            elif isinstance(more, list):
                mine += more
            elif isinstance(more, collections.Counter):
                mine.update(more)
            else:
                for kind, details in more.items():
                    mine[kind] += details

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
            cameras = sorted(self.cameras.items(), key=lambda item: (len(item[0]), item[0]))
            of_all = ", ".join(f"{name} in {self._all_or(have)}" for name, have in cameras)
            lines.append(f"written        {megabytes:.1f} MB in {seconds:.1f} s ({rate})")
            lines.append(f"cameras        {of_all}")
            lines.append(f"instructions   in {self._all_or(self.labelled)}")
        if self.untaught:
            lines.append(f"not taught     {self.untaught} of {self.transitions} transitions")
        lines += _listing("skipped", "trajectories", self.skipped, self.lost)
        lines += _listing("not converted", "entries of trajectories", self.unread)
        lines += _listing("ignored", "files and folders", self.ignored)
        lines += [f"note           {note}" for note in self.notes[:_KINDS]]
        if len(self.notes) > _KINDS:
            lines.append(f"note           and {len(self.notes) - _KINDS} more, as the last one")
        return "\n".join(lines)

    def check(self, max_skipped: float) -> None:
        """Fails where nothing could be converted, or where too much was skipped; what is written stays.

        Args:
            max_skipped: the share of all trajectories, those already there included, that may be skipped.

        Raises:
            DataError: names the commonest reason and one example of it.
        """
        lost, converted = sum(self.lost.values()), sum(self.converted.values())
        total = lost + converted + self.there
        if not total:
            kind, paths = next(iter(self.ignored.items()), ("nothing else", ["nothing"]))
            raise DataError(f"no trajectories were found; ignored were {len(paths)} of the kind: {kind}, as {paths[0]}")
        if lost <= max_skipped * total and (converted or self.there or not lost):
            return
        reason, count = self.lost.most_common(1)[0]
        cause = f"{count} for: {reason}, as {self.skipped[reason][0]}"
        if not converted and not self.there:
            raise DataError(f"all {total} trajectories were skipped, {cause}")
        raise DataError(
            f"{lost} of {total} trajectories were skipped, more than --max_skipped {max_skipped:g}, {cause}; the "
            f"others are written: repair these and convert again with --overwrite, or raise --max_skipped"
        )

    def _all_or(self, count: int) -> str:
        total = sum(self.converted.values())
        return f"all {total}" if count == total else f"{count} of {total}"


def _listing(
    title: str, unit: str, reasons: Mapping[str, list[str]], counts: Mapping[str, int] | None = None
) -> list[str]:
    if not reasons:
        return []
    counts = counts or {reason: len(details) for reason, details in reasons.items()}
    lines = [f"{title:<15}{sum(counts.values())} {unit}"]
    ordered = sorted(reasons.items(), key=lambda item: (-counts[item[0]], item[0]))
    for reason, details in ordered[:_KINDS]:
        lines.append(f"  {counts[reason]}  {reason}")
        lines += [f"       {detail}" for detail in sorted(details)[:_EXAMPLES]]
        if len(details) > _EXAMPLES:
            lines.append(f"       and {len(details) - _EXAMPLES} more")
    if len(ordered) > _KINDS:
        lines.append(
            f"  {sum(counts[reason] for reason, _ in ordered[_KINDS:])}  of {len(ordered) - _KINDS} more kinds"
        )
    return lines
