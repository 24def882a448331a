"""Frames that lie in files of their own beside an indexed one: in videos, or as pictures in Parquet files."""

import os
from collections.abc import Sequence

import numpy as np

from jaxvla.data.formats import parquet, video

FILE_BITS = 40  # a trillion frames for a file, eight million files
_IN_FILE = (1 << FILE_BITS) - 1


def locate(beside: str, files: Sequence[str], offset: int, first: int = 0) -> tuple[str, int]:
    """The path of the file that a frame lies in, and its number there.

    Args:
        beside: the indexed file.
        files, offset: see `Frames`.
        first: which of `files` is the first one of the indexed file.
    """
    name = files[first + (offset >> FILE_BITS)]
    return os.path.normpath(os.path.join(os.path.dirname(beside), name)), offset & _IN_FILE


def read_frame(path: str, camera: str, number: int) -> bytes | np.ndarray:
    """The pixels of a video's frame, uint8 [h, w, 3], or the encoded picture of a row.

    Args:
        path: of the file; which kind it is says its suffix.
        camera: the column of a Parquet file.
        number: of the frame or row.

    Raises:
        DataError: see `video.read_frame` and `parquet.read_picture`.
        OSError: the file cannot be read.
    """
    if path.endswith(".parquet"):
        return parquet.read_picture(path, camera, number)
    return np.ascontiguousarray(video.read_frame(path, number))  # FFmpeg fills rows up
