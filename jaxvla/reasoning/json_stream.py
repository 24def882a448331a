"""Walks through the nested objects of a JSON file that is larger than memory.

Python's own scanner reads the values, so that what Python wrote is read back, NaN included (which JSON proper, and the
usual streaming parsers, refuse).
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from jaxvla.data.files import reading
from jaxvla.errors import DataError

_CHUNK = 1 << 20  # characters read at a time
_LONGEST = 1 << 27  # no value is longer: damage must not draw the whole file into memory
_SPACE = " \t\n\r"

Advance = Callable[[int], object]


def members(path: str | os.PathLike, depth: int, advance: Advance) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values `depth` objects down in a JSON file, in order, each with the names that lead to it.

    Args:
        path: a file that holds one JSON object.
        depth: 1 for the members of that object, 2 for the members of its members, and so on. A value that lies higher,
            because it is no object, is given with the fewer names that lead to it.
        advance: is told of progress, in bytes read since the last call.

    Raises:
        DataError: the file cannot be read, is cut off, or holds no JSON object; names the position.
    """
    with reading(path), open(path, encoding="utf-8", errors="replace") as file:
        cursor = _Cursor(file, os.fspath(path), advance)
        if cursor.peek() != "{":
            raise cursor.damaged("it does not begin with an object")
        yield from _walk(cursor, depth, ())
        if cursor.peek():
            raise cursor.damaged("something follows the object that should be all of it")


def _walk(cursor: "_Cursor", depth: int, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    cursor.take("{")
    if cursor.peek() == "}":
        cursor.take("}")
        return
    while True:
        if cursor.peek() != '"':
            raise cursor.damaged("a name is missing")
        path = (*names, cursor.value())
        cursor.take(":")
        if len(path) < depth and cursor.peek() == "{":
            yield from _walk(cursor, depth, path)
        else:
            yield path, cursor.value()
        if cursor.take(",}") == "}":
            return


class _Cursor:
    """A position in the file, and the text from there on that has been read."""

    def __init__(self, file: TextIO, name: str, advance: Advance) -> None:
        self._file, self._name, self._advance = file, name, advance
        self._decoder = json.JSONDecoder()
        self._text, self._at = "", 0
        self._passed = 0  # characters before `_text`
        self._read = 0  # bytes of the file
        self._more()

    def _more(self) -> bool:
        """Reads on, as much again as is waiting; False at the end of the file."""
        self._passed += self._at
        self._text, self._at = self._text[self._at :], 0
        chunk = self._file.read(max(_CHUNK, len(self._text)))
        self._text += chunk
        position = self._file.buffer.tell()
        self._advance(position - self._read)
        self._read = position
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, choices: str) -> str:
        """Steps over the next character, which must be one of `choices`."""
        found = self.peek()
        if not found or found not in choices:
            raise self.damaged(f"{' or '.join(choices)} is missing")
        self._at += 1
        return found

    def value(self) -> Any:
        """Reads the next value, of any kind."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                what, position = str(error), self._passed + self._at
                if isinstance(error, json.JSONDecodeError):
                    what, position = error.msg, self._passed + error.pos
                if len(self._text) - self._at > _LONGEST or not self._more():
                    raise self.damaged(what, position) from None
                continue
            # A number may go on behind the end of the text, so a value that ends there is read again with more.
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def damaged(self, what: str, position: int | None = None) -> DataError:
        """An error at a character of the file, by default at the next one."""
        where = f"character {self._passed + self._at if position is None else position}"
        return DataError(f"{self._name}: is cut off or no valid JSON near {where} ({what}); download or make it again")
