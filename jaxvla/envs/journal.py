"""The episodes of an evaluation that goes on, one line each, so that one that was killed goes on where it was."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxvla.envs.rollout import Result
from jaxvla.errors import DataError


class Journal:
    """A file that lies beside the report until that is written.

    Args:
        path: of the file; None to keep nothing.
        stamp: all that results follow from. A file of another stamp is begun anew.

    Raises:
        DataError: it cannot be read or written.
    """

    def __init__(self, path: pathlib.Path | None, stamp: Mapping[str, Any]) -> None:
        self._path = path
        self._results: dict[str, dict[int, Result]] = {}
        if path is None:
            return
        first = json.dumps(dict(stamp), sort_keys=True)
        try:
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            if not lines or lines[0] != first + "\n":
                path.write_text(first + "\n")
                return
            whole = [line for line in lines[1:] if line.endswith("\n")]  # the last may be half of one
            for mode, values in map(json.loads, whole):
                result = Result.of(values)
                self._results.setdefault(mode, {})[result.number] = result
            if len(whole) < len(lines) - 1:
                path.write_text("".join([lines[0], *whole]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: cannot go on with it: {error}; remove it") from error

    def results(self, mode: str) -> dict[int, Result]:
        """Those of a mode so far, by their numbers."""
        return dict(self._results.get(mode, {}))

    def add(self, mode: str, result: Result) -> None:
        """Keeps a result; it is on the disk when this returns."""
        self._results.setdefault(mode, {})[result.number] = result
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(json.dumps([mode, dataclasses.asdict(result)]) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Removes the file: the report is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
