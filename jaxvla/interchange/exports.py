"""What all exports share: weights, objects of JSON and a card, written aside and put in their place at once."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxvla.config import local_path
from jaxvla.errors import WeightsError
from jaxvla.models.safetensors_io import HostTensor, write_checkpoint
from jaxvla.models.weights import check_empty, written_aside

CARD = "README.md"


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """The content of a folder.

    Attributes:
        tensors: of model.safetensors.
        objects: JSON files by name.
        card: the text of README.md.
        write: writes what else there is into the folder; None for nothing.
    """

    tensors: Mapping[str, HostTensor]
    objects: Mapping[str, Mapping[str, Any]]
    card: str
    write: Callable[[pathlib.Path], None] | None = None


def check_target(folder: str | os.PathLike) -> pathlib.Path:
    """The folder to write; raises WeightsError if it is not empty, ConfigError if it is no local path."""
    path = local_path(folder, "--output_path")
    check_empty(path)
    return path


def write_export(folder: str | os.PathLike, export: Export) -> None:
    """Writes a folder under another name, and renames it when all of it is on disk.

    Raises:
        WeightsError: the folder is not empty or cannot be written.
    """
    path = check_target(folder)
    try:
        with written_aside(path) as partial:
            write_checkpoint(partial, export.tensors, sum(tensor.nbytes for tensor in export.tensors.values()))
            for name, values in export.objects.items():
                (partial / name).write_text(json.dumps(values, indent=4) + "\n")
            (partial / CARD).write_text(export.card)
            if export.write is not None:
                export.write(partial)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error
