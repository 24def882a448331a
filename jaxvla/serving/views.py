"""One time step as cameras and a robot give it, made into the images and the proprio of a batch."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.data.schema import CAMERA_MASK, PROPRIO, BatchSpec
from jaxvla.data.transforms.images import as_stored, enlarges, resize, size_text
from jaxvla.data.transforms.normalization import Normalizer
from jaxvla.errors import PolicyError
from jaxvla.serving.simulator import Simulator


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """Checks, resizes and normalizes; what the agent does not read and nobody gives is blank.

    Pixels take the path of training: from the camera's size to the stored one, and from there to that of the batches.

    Attributes:
        spec: of the batches of training.
        robot: of what the robot gives, see `Assets.robot_spec`; what batches have beyond it is blank.
        normalizer: of the proprio.
        needed: the names that must be given.
        stored_sizes, resize: of `Assets`.
        simulator: whose pictures are given; None for pictures as the data has them.
    """

    spec: BatchSpec
    robot: BatchSpec
    normalizer: Normalizer
    needed: tuple[str, ...]
    stored_sizes: Mapping[str, tuple[int, int]]
    resize: str = "lanczos"
    simulator: Simulator | None = None
    _warned: set[str] = dataclasses.field(default_factory=set, init=False)

    def prepare(self, given: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
        """{camera: uint8 [h, w, 3], ..., "proprio": float32 [p]} of the sizes of training, and the mask of cameras.

        Args:
            given: {camera: uint8 [H, W, 3] of any size, "proprio": [p] in robot units}; other names are not looked at.
            what: what an error calls it.

        Raises:
            PolicyError: a value is missing, or not of the dtype or shape expected.
        """
        missing = [name for name in self.needed if name not in given]
        if missing:
            held = ", ".join(map(repr, given)) or "nothing"
            expected = ", ".join(f"{name} {self._kind(name)}" for name in self.needed)
            raise PolicyError(f"{what} lacks {missing[0]!r}; it holds {held}, and needs {expected}")
        prepared: dict[str, np.ndarray] = {PROPRIO: np.zeros(self.spec.proprio_dim, np.float32)}
        if self.spec.several_camera_sets:
            prepared[CAMERA_MASK] = np.array([camera in self.robot.cameras for camera in self.spec.cameras])
        for name in [name for name in (*self.robot.cameras, PROPRIO) if name in given]:
            value = np.asarray(given[name])
            self._check(name, value, what)
            if name == PROPRIO:
                prepared[name][: self.robot.proprio_dim] = self.normalizer.forward(value)
            else:
                prepared[name] = self._resize(name, value, what)
        for camera in [camera for camera in self.spec.cameras if camera not in prepared]:
            prepared[camera] = np.zeros((*self.spec.size_of(camera), 3), np.uint8)
        return prepared

    def _resize(self, camera: str, value: np.ndarray, what: str) -> np.ndarray:
        size, simulator = self.spec.size_of(camera), self.simulator
        value = value if simulator is None else simulator.upright(value)
        stored = self.stored_sizes.get(camera, size)
        if camera not in self._warned and enlarges(value.shape, stored):
            self._warned.add(camera)
            logging.getLogger(__name__).warning(
                "%s[%r] is of %s pixels, smaller than the frames of training, %s: enlarged, which blurs what the "
                "policy sees; set the camera to at least that size",
                *(what, camera, size_text(value.shape[:2]), size_text(stored)),
            )
        pixels = as_stored(value[None], stored) if camera in self.stored_sizes else value[None]
        seen = resize(pixels, size, self.resize)[0]
        return seen if simulator is None else simulator.seen(seen)

    def _check(self, name: str, value: np.ndarray, what: str) -> None:
        fits = self._is_proprio(value) if name == PROPRIO else _is_image(value)
        if not fits:
            gray = name != PROPRIO and value.dtype == np.uint8 and value.shape[2:] in ((), (1,)) and value.ndim > 1
            mend = " (of grayscale, three times the same channel, as the loader reads it)" if gray else ""
            raise PolicyError(
                f"{what}[{name!r}] is {value.dtype}{list(value.shape)}; expected {self._kind(name)}{mend}"
            )
        if name == PROPRIO and not np.isfinite(value).all():
            raise PolicyError(f"{what}[{name!r}] holds a value that is not finite: {value.tolist()}")

    def _is_proprio(self, value: np.ndarray) -> bool:
        return value.shape == (self.robot.proprio_dim,) and np.issubdtype(value.dtype, np.number)

    def _kind(self, name: str) -> str:
        return f"float32[{self.robot.proprio_dim}] in robot units" if name == PROPRIO else "uint8[height, width, 3]"


def _is_image(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3 and value.size > 0
