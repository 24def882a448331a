"""The things on the table: their shapes, sizes and colours, and one item of a scene."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from jaxvla.envs import geometry
from jaxvla.envs.geometry import Mesh

COLORS = {
    "red": (206, 44, 40),
    "orange": (240, 132, 30),
    "yellow": (242, 208, 44),
    "green": (52, 158, 66),
    "blue": (38, 92, 206),
    "purple": (126, 58, 172),
    "pink": (240, 138, 186),
    "white": (240, 240, 236),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an object or obstacle looks like, and how an object can be handled; lengths in m.

    Attributes:
        make_mesh: builds the mesh, centred on the origin.
        half_height: from the centre to the table below.
        radius: of the footprint's circumscribed circle.
        grip_width: between the fingers when they hold it.
        yaw_period: the turn (rad) after which it fits the fingers again; 0 where every turn fits.
        flat_top: whether another object can rest on it.
    """

    make_mesh: Callable[[], Mesh]
    half_height: float
    radius: float
    grip_width: float
    yaw_period: float
    flat_top: bool

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh, built once."""
        return self.make_mesh()


@dataclasses.dataclass(frozen=True)
class Vessel:
    """What a container looks like; lengths in m. `preposition` is how things get there ("in", "on")."""

    sides: int
    bottom_radius: float
    top_radius: float
    height: float
    floor_height: float
    preposition: str

    @functools.cached_property
    def floor(self) -> Mesh:
        """The floor alone, which lies below everything inside; built once."""
        return geometry.disc(self.sides, self.bottom_radius, self.floor_height, self._phase)

    @functools.cached_property
    def walls(self) -> Mesh:
        """Outside, rim and inside, standing on the origin; built once."""
        rings = [
            (self.bottom_radius, 0.0),
            (self.top_radius, self.height),
            (0.9 * self.top_radius, self.height),
            (self.bottom_radius, self.floor_height),
        ]
        return geometry.tube(self.sides, rings, self._phase)

    @property
    def _phase(self) -> float:
        """Turns the sides, not the corners, of a box towards x and y."""
        return math.pi / self.sides

    @property
    def inner_radius(self) -> float:
        """Of the circle within which a dropped object ends up inside."""
        return self.top_radius * math.cos(math.pi / self.sides)

    @property
    def floor_radius(self) -> float:
        """Of the largest circle on the floor."""
        return self.bottom_radius * math.cos(math.pi / self.sides)


SHAPES = {
    "cube": Shape(functools.partial(geometry.box, 0.0225, 0.0225, 0.0225), 0.0225, 0.032, 0.045, math.pi / 2, True),
    "brick": Shape(functools.partial(geometry.box, 0.034, 0.018, 0.019), 0.019, 0.038, 0.036, math.pi, True),
    "cylinder": Shape(functools.partial(geometry.frustum, 16, 0.023, 0.023, 0.05), 0.025, 0.023, 0.046, 0.0, True),
    "ball": Shape(functools.partial(geometry.ball, 0.0245), 0.0245, 0.0245, 0.049, 0.0, False),
    "pyramid": Shape(
        functools.partial(geometry.frustum, 4, 0.04, 0.004, 0.05, math.pi / 4), 0.025, 0.04, 0.03, math.pi / 2, False
    ),
}

# What stands in the way; nothing moves it.
OBSTACLES = {
    "post": Shape(functools.partial(geometry.frustum, 16, 0.03, 0.03, 0.15), 0.075, 0.03, 0.06, 0.0, False),
}

# All that stands about its centre, unlike containers, whose position is that of their foot.
SOLIDS = SHAPES | OBSTACLES

VESSELS = {
    "plate": Vessel(20, 0.040, 0.060, 0.010, 0.004, "on"),
    "bowl": Vessel(20, 0.040, 0.058, 0.034, 0.005, "in"),
    "box": Vessel(4, 0.066, 0.074, 0.034, 0.004, "in"),
}


def bearing(x: float, y: float) -> float:
    """The yaw (rad) that faces away from the robot's base at (x, y): how the gripper is turned by the waist alone."""
    return math.atan2(y, x)


@dataclasses.dataclass(eq=False)
class Item:
    """One object, obstacle or container of a scene.

    Attributes:
        kind: a key of `SHAPES`, `OBSTACLES` or `VESSELS`.
        color: a key of `COLORS`.
        position: float64 [3]; the centre of an object or obstacle, the centre of the foot of a container.
        yaw: rad.
        support: what it rests on: "table", the name of another item, or "gripper".
    """

    kind: str
    color: str
    position: np.ndarray
    yaw: float
    support: str = "table"

    @property
    def name(self) -> str:
        """Such as "red cube"; unique in a scene."""
        return f"{self.color} {self.kind}"

    @property
    def radius(self) -> float:
        """Of the footprint's circumscribed circle, m."""
        return VESSELS[self.kind].top_radius if self.kind in VESSELS else SOLIDS[self.kind].radius

    @property
    def turn(self) -> np.ndarray:
        """The matrix [3, 3] of its yaw."""
        return geometry.rotation(0.0, 0.0, self.yaw)

    def vertices(self) -> np.ndarray:
        """The corners of its mesh in the world, [n, 3]."""
        mesh = VESSELS[self.kind].walls if self.kind in VESSELS else SOLIDS[self.kind].mesh
        return mesh.vertices @ self.turn.T + self.position
