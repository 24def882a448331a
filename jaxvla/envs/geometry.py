"""Rotations, a pinhole camera and small meshes. Axes as on the WidowX: x forward, y left, z up; metres and radians."""

import dataclasses
import functools
import math

import numpy as np

# The gripper that points straight down has zero roll, pitch and yaw (BridgeData's default rotation).
DEFAULT_ROTATION = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """The matrix [3, 3] of a turn about the fixed x, then y, then z axis."""
    cr, cp, cy = math.cos(roll), math.cos(pitch), math.cos(yaw)
    sr, sp, sy = math.sin(roll), math.sin(pitch), math.sin(yaw)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def euler(matrix: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw [3] of a rotation [3, 3]: the inverse of `rotation` for |pitch| < pi / 2."""
    m = matrix
    angles = (
        math.atan2(m[2, 1], m[2, 2]),
        math.atan2(-m[2, 0], math.hypot(m[0, 0], m[1, 0])),
        math.atan2(m[1, 0], m[0, 0]),
    )
    return np.array(angles) + 0.0


def nearest_turn(angle: float, period: float) -> float:
    """The angle nearest to zero that equals `angle` modulo `period`; zero where all angles are equal (period 0)."""
    return angle - period * round(angle / period) if period else 0.0


def free_share(start: np.ndarray, end: np.ndarray, center: np.ndarray, radius: float) -> float:
    """The share, 0 to 1, of the straight way between points [2] that lies before it enters a circle.

    From inside the circle, every way towards its centre has no share, and every other one all.
    """
    way, offset = end - start, start - center
    approach = float(way @ offset)
    if approach >= 0:
        return 1.0
    length, outside = float(way @ way), max(float(offset @ offset) - radius**2, 0.0)
    discriminant = approach**2 - length * outside
    return 1.0 if discriminant < 0 else min(1.0, (-approach - math.sqrt(discriminant)) / length)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera with a square image; positions in metres, `field_of_view` in radians across the image."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    field_of_view: float

    @functools.cached_property
    def axes(self) -> np.ndarray:
        """Rows [3, 3]: the directions of image right, image down and forward, in world axes."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def intrinsics(self, image_size: int) -> np.ndarray:
        """The matrix K [3, 3] for an image of `image_size` pixels a side."""
        focal = image_size / (2 * math.tan(self.field_of_view / 2))
        return np.array([[focal, 0, image_size / 2], [0, focal, image_size / 2], [0, 0, 1]])

    def project(self, points: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """World points [n, 3] to pixels [n, 2] (u right, v down, (0, 0) the upper left corner) and depths [n] in m."""
        local = (points - np.asarray(self.position)) @ self.axes.T
        focal = image_size / (2 * math.tan(self.field_of_view / 2))
        return local[:, :2] * (focal / local[:, 2:]) + image_size / 2, local[:, 2]

    def rays(self, image_size: int) -> np.ndarray:
        """World directions [image_size, image_size, 3] through the pixel centres; not of unit length."""
        centers = (np.arange(image_size) + 0.5) / image_size * 2 - 1
        u, v = np.meshgrid(centers, centers)
        slope = math.tan(self.field_of_view / 2)
        return np.stack([u * slope, v * slope, np.ones_like(u)], axis=-1) @ self.axes


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """Flat faces. Vertices [v, 3]; per face its corners, counter-clockwise from outside, normal and centre [f, 3]."""

    vertices: np.ndarray
    faces: tuple[tuple[int, ...], ...]
    normals: np.ndarray
    centers: np.ndarray

    @classmethod
    def of(cls, vertices: np.ndarray, faces: list[tuple[int, ...]]) -> "Mesh":
        """Computes normals and centres."""
        centers = np.stack([vertices[list(face)].mean(0) for face in faces])
        normals = []
        for face, center in zip(faces, centers):
            spokes = vertices[list(face)] - center
            normal = np.cross(spokes, np.roll(spokes, -1, axis=0)).sum(0)
            normals.append(normal / np.linalg.norm(normal))
        return cls(vertices, tuple(faces), np.stack(normals), centers)


def _ring(sides: int, radius: float, z: float, phase: float) -> np.ndarray:
    angles = phase + np.arange(sides) * (2 * math.pi / sides)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(sides, z)], axis=1)


def _band(sides: int, lower: int, upper: int) -> list[tuple[int, ...]]:
    """Quads between two rings that start at vertices `lower` and `upper`, facing away from the axis."""
    following = [(i + 1) % sides for i in range(sides)]
    return [(lower + i, lower + j, upper + j, upper + i) for i, j in enumerate(following)]


def box(x: float, y: float, z: float) -> Mesh:
    """A cuboid about the origin with half extents x, y, z."""
    signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    vertices = np.array([(sx * x, sy * y, sz * z) for sz in (-1, 1) for sx, sy in signs])
    return Mesh.of(vertices, [(3, 2, 1, 0), (4, 5, 6, 7), *_band(4, 0, 4)])


def frustum(sides: int, bottom: float, top: float, height: float, phase: float = 0.0) -> Mesh:
    """An upright prism about the origin whose corners lie on circles of radius `bottom` and `top`."""
    vertices = np.concatenate([_ring(sides, bottom, -height / 2, phase), _ring(sides, top, height / 2, phase)])
    ends = [tuple(reversed(range(sides))), tuple(range(sides, 2 * sides))]
    return Mesh.of(vertices, ends + _band(sides, 0, sides))


def ball(radius: float, sides: int = 18, rings: int = 10) -> Mesh:
    """A sphere about the origin, of quads and two caps."""
    latitudes = [(k / rings - 0.5) * math.pi for k in range(1, rings)]
    circles = [_ring(sides, radius * math.cos(a), radius * math.sin(a), 0.0) for a in latitudes]
    bands = [face for k in range(rings - 2) for face in _band(sides, k * sides, (k + 1) * sides)]
    last = (rings - 2) * sides
    caps = [tuple(reversed(range(sides))), tuple(range(last, last + sides))]
    return Mesh.of(np.concatenate(circles), caps + bands)


def disc(sides: int, radius: float, z: float, phase: float) -> Mesh:
    """A flat polygon at height `z` that faces up."""
    return Mesh.of(_ring(sides, radius, z, phase), [tuple(range(sides))])


def tube(sides: int, rings: list[tuple[float, float]], phase: float) -> Mesh:
    """Bands of quads through rings of given radius and height: rising they face outward, coming back down, inward."""
    vertices = np.concatenate([_ring(sides, radius, z, phase) for radius, z in rings])
    bands = [face for k in range(len(rings) - 1) for face in _band(sides, k * sides, (k + 1) * sides)]
    return Mesh.of(vertices, bands)
