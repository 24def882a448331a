"""The reasoning store: the annotations of a whole dataset in one SQLite file, read at random in constant memory.

    meta      name, value        `metadata`, a JSON object; `counts`, as those of an episode, of the whole store
    episodes  id, key; num_steps, NULL where it is not known; last_step, the last that is annotated; instruction, ""
              where it is not known; counts, int32 [1 + number of components]: annotated steps, and those that have each
              component
    steps     id, reasoning      id is episode * 2^20 + step; reasoning is the JSON of `Reasoning.to_json`

The file is written once and never changes, so readers open it as immutable: no locks, any number of processes.
"""

import json
import os
import pathlib
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvla.data.conversion.workers import replacing
from jaxvla.data.files import reading
from jaxvla.errors import DataError
from jaxvla.reasoning.record import COMPONENTS, Episode, Reasoning

_APPLICATION_ID = 0x6A765253  # in SQLite's header, tells the file from other databases
_VERSION = 2
_STEP_BITS = 20
_MEND = "make it with data_processing/reasoning_to_store.py"

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
CREATE TABLE meta (name TEXT PRIMARY KEY, value);
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, num_steps INTEGER, last_step INTEGER NOT NULL,
    instruction TEXT NOT NULL, counts BLOB NOT NULL);
CREATE TABLE steps (id INTEGER PRIMARY KEY, reasoning TEXT NOT NULL);
BEGIN;
"""


class EpisodeFacts(NamedTuple):
    """What annotations say of an episode itself, see `Episode`; `last_step` is the last that is annotated."""

    num_steps: int | None
    last_step: int
    instruction: str


def write_store(path: str | os.PathLike, episodes: Iterable[Episode], metadata: Mapping[str, Any]) -> np.ndarray:
    """Writes a store, aside, and puts it at `path` when it is whole; holds one episode in memory.

    Args:
        path: the file; one that is there is replaced.
        episodes: those without any annotated step are left out.
        metadata: what the store was made from, as values that json can write.

    Returns:
        The counts of the whole store: int64 [2 + number of components]; episodes, steps, and the steps that have each
        of `COMPONENTS`.

    Raises:
        DataError: a key comes twice, no episode has any step, or the file cannot be written.
    """
    path = pathlib.Path(path)
    with replacing(path, path.with_name(f".{path.name}.partial")) as partial:
        partial.unlink(missing_ok=True)
        connection = sqlite3.connect(partial, isolation_level=None)
        try:
            connection.executescript(_SCHEMA)
            counts = _write_episodes(connection, episodes)
            if not counts[0]:
                raise DataError(f"{path}: there is no annotated step to write; check the format of the annotations")
            meta = [("metadata", json.dumps(dict(metadata))), ("counts", counts[1:].astype("<i8").tobytes())]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be written: {error}") from error
        finally:
            connection.close()
    return counts


def _write_episodes(connection: sqlite3.Connection, episodes: Iterable[Episode]) -> np.ndarray:
    total = np.zeros(2 + len(COMPONENTS), np.int64)
    for episode in episodes:
        key, steps = episode.key, episode.steps
        if not steps:
            continue
        if not 0 <= min(steps) <= max(steps) < 1 << _STEP_BITS:
            raise DataError(f"episode {key!r} has steps {min(steps)} to {max(steps)}, outside 0 to 2^{_STEP_BITS}")
        number = int(total[0])
        present = [{*step.components()} for step in steps.values()]
        counts = np.array([len(steps), *(sum(name in names for names in present) for name in COMPONENTS)], "<i4")
        row = (number, key, episode.num_steps, max(steps), episode.instruction, counts.tobytes())
        try:
            connection.execute("INSERT INTO episodes VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise DataError(f"episode {key!r} comes twice in the annotations: remove one") from None
        rows = ((number << _STEP_BITS | step, _dumps(steps[step])) for step in sorted(steps))
        connection.executemany("INSERT INTO steps VALUES (?, ?)", rows)
        total += (1, *counts)
    return total


def _dumps(reasoning: Reasoning) -> str:
    return json.dumps(reasoning.to_json(), ensure_ascii=False, separators=(",", ":"))


class _Connection:
    """An open store, closed when its thread ends or the store is let go of."""

    def __init__(self, path: str) -> None:
        address = f"{pathlib.Path(path).absolute().as_uri()}?mode=ro&immutable=1"
        # The last reference may be dropped, and the connection closed, by another thread than the one that used it.
        self.sqlite = sqlite3.connect(address, uri=True, check_same_thread=False)

    def __del__(self) -> None:
        if hasattr(self, "sqlite"):
            self.sqlite.close()


class ReasoningStore:
    """The episodes of one store, numbered 0 to len - 1. Picklable; every thread that reads has its own connection.

    Attributes:
        path: the file.
        metadata: what the store was made from.
        counts: int64 [1 + number of components], the annotated steps and those that have each of `COMPONENTS`.

    Raises:
        DataError: no such file, or it is no whole store of this version.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        with reading(self.path):
            if not pathlib.Path(self.path).is_file():
                raise DataError(f"no reasoning store {self.path}: {_MEND}")
            open(self.path, "rb").close()  # SQLite would not say why it cannot
        self._local = threading.local()
        if self._one("PRAGMA application_id") != (_APPLICATION_ID,):
            raise DataError(f"{self.path} is no reasoning store: {_MEND}")
        (version,) = self._one("PRAGMA user_version")
        if version != _VERSION:
            raise DataError(
                f"{self.path} is a reasoning store of version {version}, not {_VERSION}: {_MEND} --overwrite"
            )
        size = self._one("PRAGMA page_size")[0] * self._one("PRAGMA page_count")[0]
        if os.path.getsize(self.path) != size:
            raise DataError(f"{self.path} has {os.path.getsize(self.path)} of {size} bytes, it is damaged: {_MEND}")
        try:
            self.metadata: dict[str, Any] = json.loads(self._meta("metadata"))
            self.counts = np.frombuffer(self._meta("counts"), "<i8").astype(np.int64)
            # The largest id, not a count of rows: it is found without a walk over the table.
            self._len = 1 + self._one("SELECT max(id) FROM episodes")[0]
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.path} is damaged ({error}): {_MEND}") from error

    def __reduce__(self) -> tuple[type["ReasoningStore"], tuple[str]]:
        return ReasoningStore, (self.path,)

    def __len__(self) -> int:
        return self._len

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """The episode of each of n join keys: int64 [n], -1 where the store has none."""
        rows = (self._one("SELECT id FROM episodes WHERE key = ?", key) for key in keys)
        return np.array([-1 if row is None else row[0] for row in rows], np.int64)

    def key(self, episode: int) -> str:
        """The join key of one episode."""
        return self._one("SELECT key FROM episodes WHERE id = ?", episode)[0]

    def episode_counts(self, episodes: np.ndarray) -> np.ndarray:
        """How much is known of each of n episodes: int64 [n, 1 + number of components], zeros for episode -1.

        Column 0 counts the annotated steps, column 1 + i those that have component `COMPONENTS[i]`.
        """
        empty = bytes(4 * (1 + len(COMPONENTS)))
        rows = (self._one("SELECT counts FROM episodes WHERE id = ?", int(episode)) for episode in episodes)
        flat = np.frombuffer(b"".join(empty if row is None else row[0] for row in rows), "<i4")
        return flat.reshape(-1, 1 + len(COMPONENTS)).astype(np.int64)

    def facts(self, episode: int) -> EpisodeFacts:
        """What is known of one episode itself."""
        return EpisodeFacts(*self._one("SELECT num_steps, last_step, instruction FROM episodes WHERE id = ?", episode))

    def read(self, episodes: np.ndarray, steps: np.ndarray) -> list[Reasoning | None]:
        """One step of each of n episodes; thread-safe.

        Args:
            episodes: int [n], from `find`.
            steps: int [n], counted from 0.

        Returns:
            n records; None where the episode is -1 or the step is not annotated.

        Raises:
            DataError: the file was damaged after it was opened.
        """
        return [self._read(episode, step) for episode, step in zip(map(int, episodes), map(int, steps), strict=True)]

    def _read(self, episode: int, step: int) -> Reasoning | None:
        if episode < 0 or not 0 <= step < 1 << _STEP_BITS:
            return None
        row = self._one("SELECT reasoning FROM steps WHERE id = ?", episode << _STEP_BITS | step)
        try:
            return None if row is None else Reasoning.from_json(json.loads(row[0]))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{self.path} is damaged at step {step} of {self.key(episode)!r}: {_MEND}") from error

    def _meta(self, name: str) -> Any:
        return self._one("SELECT value FROM meta WHERE name = ?", name)[0]

    def _one(self, query: str, *values: Any) -> tuple | None:
        """The first row that the query gives, if any."""
        try:
            if not hasattr(self._local, "connection"):
                self._local.connection = _Connection(self.path)
            return self._local.connection.sqlite.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise DataError(f"{self.path} is no reasoning store, or a damaged one ({error}): {_MEND}") from error


class JoinedStores:
    """Several stores as one: their episodes are numbered end to end. Picklable, and thread-safe as they are.

    Args:
        stores: at least one.

    Attributes:
        starts: int64 [stores], the number of the first episode of each.
    """

    def __init__(self, stores: Sequence[ReasoningStore]) -> None:
        self._stores = tuple(stores)
        counts = [len(store) for store in stores]
        self.starts = np.cumsum(counts) - np.array(counts)

    def read(self, episodes: np.ndarray, steps: np.ndarray) -> list[Reasoning | None]:
        """See `ReasoningStore.read`."""
        store_n = np.where(episodes < 0, -1, np.searchsorted(self.starts, episodes, side="right") - 1)
        found: list[Reasoning | None] = [None] * len(episodes)
        for number, (store, start) in enumerate(zip(self._stores, self.starts)):
            rows = np.flatnonzero(store_n == number)
            for row, known in zip(rows.tolist(), store.read(episodes[rows] - start, steps[rows])):
                found[row] = known
        return found
