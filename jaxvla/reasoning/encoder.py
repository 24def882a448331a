"""Texts of people and models to token ids, each word of the language once.

Splitting a text into pieces by a regular expression takes most of a tokenizer's time. In annotations the same words
come again and again, so their ids are remembered.
"""

import dataclasses
import itertools
import re
import reprlib
from collections.abc import Callable, Sequence

import numpy as np

from jaxvla.data.text.tokenizer import Tokenizer
from jaxvla.errors import DataError

# Qwen's pieces hold a space as their first sign only, or among other spaces, and no composed sign begins with one: no
# token reaches across a space that stands alone.
_LONE_SPACE = re.compile(r"(?<=\S) (?=\S)")
# Words that are remembered, at some 250 bytes each.
_MEMORY = 1 << 17


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """Encodes texts as `tokenizer` does, and refuses control signs in them. Can be pickled; thread-safe."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        is_added = np.zeros(self.tokenizer.vocab_size, bool)
        is_added[list(self.tokenizer.added_tokens.values())] = True
        object.__setattr__(self, "_is_added", is_added)
        object.__setattr__(self, "_memory", {})

    def encode(self, texts: Sequence[str], name: Callable[[int], str]) -> list[np.ndarray]:
        """The ids of n texts, each with one space before it; int32 [t] each.

        Args:
            texts: none of them empty, and none starts or ends with a space or a line break.
            name: says for an error whose text number i is.

        Raises:
            DataError: a text holds the name of an added token, which would become a control sign, or is not valid
                Unicode.
        """
        if len(self._memory) > _MEMORY:
            # Not emptied, since another thread may be reading it.
            object.__setattr__(self, "_memory", {})
        memory: dict[str, list[int]] = self._memory
        split, missing = [], {}
        for i, text in enumerate(texts):
            words = text.split(" ")
            new = [word for word in words if word not in memory]
            if any(not word or word != word.strip() for word in new):
                words = _LONE_SPACE.split(text)
                new = [word for word in words if word not in memory]
            split.append(words)
            missing |= dict.fromkeys(new, i)
        if missing:
            memory.update(self._encode_words(list(missing), lambda word: _quote(texts, missing[word], name)))
        return [np.array([*itertools.chain.from_iterable(map(memory.__getitem__, words))], np.int32) for words in split]

    def _encode_words(self, words: Sequence[str], quote: Callable[[str], str]) -> dict[str, list[int]]:
        for word in words:
            if any("\ud800" <= sign <= "\udfff" for sign in word):
                raise DataError(f"{quote(word)} holds half a surrogate pair; mend the text")
        encodings = self.tokenizer.backend.encode_batch_fast([f" {word}" for word in words], add_special_tokens=False)
        ids = {word: encoding.ids for word, encoding in zip(words, encodings)}
        for word, row in ids.items():
            added = np.flatnonzero(self._is_added[row])
            if len(added):
                token = self.tokenizer.decode([row[added[0]]])
                raise DataError(
                    f"{quote(word)} holds {token!r}, which the model reads as a control sign; mend the text"
                )
        return ids


def _quote(texts: Sequence[str], i: int, name: Callable[[int], str]) -> str:
    return f"{name(i)}: {reprlib.repr(texts[i])}"
