"""Other words for instructions, in a JSON file: {"pick up the cup": ["grasp the cup", ...], ...}."""

import dataclasses
import json
from collections.abc import Collection, Mapping

from jaxvla.config import local_path
from jaxvla.data.files import reading
from jaxvla.errors import DataError

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Paraphrases:
    """By instruction, letter by letter, its different paraphrases; and the file that they are from."""

    path: str
    of: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: str) -> "Paraphrases":
        """Those of a file.

        Raises:
            DataError: the file cannot be read, or is no object of lists of texts.
        """
        place = local_path(path, "config.data.tasks.paraphrases")
        with reading(place):
            content = place.read_bytes()
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is no JSON ({error}): it must be {{instruction: [paraphrases]}}") from error
        if not isinstance(values, dict) or not values:
            raise DataError(f"{place} holds no object of instructions: it must be {{instruction: [paraphrases]}}")
        for instruction, texts in values.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise DataError(f"{place}: the paraphrases of {instruction!r} are no list of texts: {texts!r:.60}")
        return cls(str(place), {instruction: tuple(dict.fromkeys(texts)) for instruction, texts in values.items()})

    def describe(self, annotations: Collection[str]) -> tuple[str, ...]:
        """Lines that say how many different annotations of the data have paraphrases, and which of the file's match
        none."""
        used = sum(text in self.of for text in annotations)
        lines = (f"paraphrases  of {used} of {len(annotations)} instructions, {self.path}",)
        unused = [text for text in self.of if text not in annotations]
        if unused:
            examples = ", ".join(map(repr, unused[:_SHOWN]))
            lines += (f"             {len(unused)} instructions of the file match none here, such as {examples}",)
        return lines
