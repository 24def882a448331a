"""Names of cameras in BridgeData (`images0`, `images1`, ...), and which of them a conversion takes."""

import re
from collections.abc import Iterable, Sequence

from jaxvla.data.skipping import UnusableError
from jaxvla.errors import ConfigError

_NAME = re.compile(r"images[0-9]+")


def is_camera(name: str) -> bool:
    """Whether `name` is that of a camera; `depth_images0` is not."""
    return _NAME.fullmatch(name) is not None


def named_cameras(texts: Sequence[str]) -> tuple[str, ...]:
    """The value of --cameras; empty stands for all cameras.

    Raises:
        ConfigError: a name of another form, or one given twice.
    """
    for text in texts:
        if not is_camera(text) or texts.count(text) > 1:
            raise ConfigError(f"--cameras takes different names like images0,images1, not {','.join(texts)}")
    return tuple(texts)


def select(there: Iterable[str], cameras: Sequence[str], needed: Sequence[str], where: str) -> list[str]:
    """The cameras to take of a trajectory that has those `there`: the named `cameras`, or else all, by number.

    Raises:
        UnusableError: it lacks one of those named, or of those `needed` where none are.
    """
    there = sorted(there, key=lambda name: int(name.removeprefix("images")))
    for camera in cameras or needed:
        if camera not in there:
            found = ", ".join(there) or "none"
            raise UnusableError(f"no camera {camera}", f"{where}: there are {found}; --cameras chooses")
    return [camera for camera in there if not cameras or camera in cameras]
