"""Pictures of the tabletop in numpy and Pillow: flat-shaded polygons, painted from far to near, with cast shadows."""

import dataclasses
import functools
import itertools
import operator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxvla.envs import geometry
from jaxvla.envs.geometry import Camera, Mesh
from jaxvla.envs.items import COLORS, SOLIDS, VESSELS, Item

# images0 looks over the robot's shoulder, images1 from its left side.
CAMERAS = {
    "images0": Camera(position=(-0.11, 0.12, 0.52), target=(0.31, 0.0, 0.042), field_of_view=0.70),
    "images1": Camera(position=(0.40, 0.60, 0.42), target=(0.30, 0.0, 0.055), field_of_view=0.66),
}

# Gap between the fingers at opening 1, m.
MAX_OPENING = 0.074

SUPERSAMPLE = 2
AMBIENT, DIFFUSE, SPECULAR, SHININESS = 0.50, 0.55, 45.0, 24
SHADOW_COLOR, SHADOW_OPACITY = (20, 18, 24), 0.45
LIGHT = np.array([-0.22, 0.30, 1.0]) / np.linalg.norm([-0.22, 0.30, 1.0])

WOOD_LIGHT, WOOD_DARK = np.array([206.0, 196.0, 180.0]), np.array([176.0, 163.0, 144.0])
TABLE_LOW, TABLE_HIGH = np.array([-0.3, -0.42]), np.array([0.62, 0.42])
FLOOR_COLOR = np.array([92.0, 98.0, 108.0])

# The gripper: half extents of its parts and the height of their centres above the point between the fingertips, m.
# The carriages slide along the rail with the fingers, so that the opening shows from above too.
PAD, PAD_HEIGHT, PAD_COLOR = geometry.box(0.009, 0.0015, 0.010), 0.0, (28, 205, 195)
FINGER, FINGER_HEIGHT, FINGER_COLOR = geometry.box(0.010, 0.005, 0.025), 0.015, (84, 88, 98)
CARRIAGE, CARRIAGE_HEIGHT, CARRIAGE_COLOR = geometry.box(0.013, 0.009, 0.010), 0.048, (52, 56, 64)
RAIL, RAIL_HEIGHT, RAIL_COLOR = geometry.box(0.009, 0.056, 0.005), 0.063, (30, 32, 38)
WRIST, WRIST_HEIGHT, WRIST_COLOR = geometry.frustum(14, 0.018, 0.020, 0.045), 0.0905, (132, 138, 148)
FINGER_OFFSET = 0.007

# Directions on the table [2, k] in which the corners of a shadow are looked for.
_SHADOW_DIRECTIONS = np.array([np.cos(_turns := np.arange(24) * (np.pi / 12)), np.sin(_turns)])


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """A mesh in the world.

    Attributes:
        turn, position: [3, 3] and [3], from the mesh's axes to the world's.
        color: RGB, 0 to 255.
        anchor: world point [3] whose depth sorts all its faces; None sorts each face by its own centre, for meshes
            that are not convex.
    """

    mesh: Mesh
    turn: np.ndarray
    position: np.ndarray
    color: tuple[int, int, int]
    anchor: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Meshes:
    """Several meshes end to end, each in axes of its own; what of them does not change from frame to frame.

    Attributes:
        vertices [v, 3], centers [f, 3], normals [f, 3]: of all vertices and faces.
        corners: per face a function that picks its vertices from a list of those of all.
        mesh_of_vertex [v], mesh_of_face [f]: which mesh each belongs to.
        starts: int [n + 1], where the vertices of each mesh begin, and their number.
    """

    vertices: np.ndarray
    centers: np.ndarray
    normals: np.ndarray
    corners: tuple[operator.itemgetter, ...]
    mesh_of_vertex: np.ndarray
    mesh_of_face: np.ndarray
    starts: tuple[int, ...]

    @classmethod
    @functools.lru_cache(maxsize=512)
    def of(cls, *meshes: Mesh) -> "Meshes":
        """Puts meshes end to end."""
        counts, faces = [len(mesh.vertices) for mesh in meshes], [len(mesh.faces) for mesh in meshes]
        starts = (0, *np.cumsum(counts).tolist())
        return cls(
            *(np.concatenate([getattr(m, name) for m in meshes]) for name in ("vertices", "centers", "normals")),
            tuple(operator.itemgetter(*(start + k for k in f)) for start, m in zip(starts, meshes) for f in m.faces),
            np.repeat(np.arange(len(meshes)), counts),
            np.repeat(np.arange(len(meshes)), faces),
            starts,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Faces:
    """All faces of several bodies in world axes: vertices [v, 3]; per face its vertices, and the rest [f, 3]."""

    meshes: Meshes
    vertices: np.ndarray
    centers: np.ndarray
    normals: np.ndarray
    anchors: np.ndarray
    colors: np.ndarray

    @classmethod
    def of(cls, bodies: list[Body]) -> "Faces":
        """Moves every body to its place."""
        meshes = Meshes.of(*(body.mesh for body in bodies))
        turns, positions = np.array([body.turn for body in bodies]), np.array([body.position for body in bodies])
        face, vertex = meshes.mesh_of_face, meshes.mesh_of_vertex
        centers = _turned(turns[face], meshes.centers) + positions[face]
        anchored = np.array([body.anchor is not None for body in bodies])
        anchors = np.array([body.position if body.anchor is None else body.anchor for body in bodies])
        return cls(
            meshes,
            _turned(turns[vertex], meshes.vertices) + positions[vertex],
            centers,
            _turned(turns[face], meshes.normals),
            np.where(anchored[face, None], anchors[face], centers),
            np.array([body.color for body in bodies], float)[face],
        )


def _turned(turns_n33: np.ndarray, vectors_n3: np.ndarray) -> np.ndarray:
    return (turns_n33 * vectors_n3[:, None]).sum(-1)


class Renderer:
    """Draws all cameras of one table; what does not move in an episode is drawn once, in `reset`."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._backgrounds: dict[str, Image.Image] = {}

    def reset(self, containers: list[Item]) -> None:
        """Paints the table, the floors of the containers and their shadows."""
        walls, floors = _containers(containers, "walls"), _containers(containers, "floor")
        for name, camera in CAMERAS.items():
            picture = _table(camera, self.image_size * SUPERSAMPLE).copy()
            if containers:
                _cast_shadows(picture, camera, _outlines(Faces.of(walls)))
                _paint(picture, camera, Faces.of(floors))
            self._backgrounds[name] = picture

    def render(self, solids: list[Item], containers: list[Item], state: np.ndarray) -> dict[str, np.ndarray]:
        """One uint8 image [image_size, image_size, 3] per camera, of the gripper in `state` [7] among the items."""
        standing = [Body(SOLIDS[s.kind].mesh, s.turn, s.position, COLORS[s.color], s.position) for s in solids]
        standing += _gripper(state)
        drawn = Faces.of(standing + _containers(containers, "walls"))
        outlines = _outlines(drawn)[: len(standing)]
        images = {}
        for name, camera in CAMERAS.items():
            picture = self._backgrounds[name].copy()
            _cast_shadows(picture, camera, outlines)
            _paint(picture, camera, drawn)
            images[name] = np.array(picture.reduce(SUPERSAMPLE))
        return images


def _containers(containers: list[Item], part: str) -> list[Body]:
    return [Body(getattr(VESSELS[c.kind], part), c.turn, c.position, COLORS[c.color], None) for c in containers]


def _gripper(state: np.ndarray) -> list[Body]:
    turn = geometry.rotation(*state[3:6])
    gap = MAX_OPENING * state[6] / 2
    parts: list[tuple[Mesh, tuple[int, int, int], float, float, float]] = []  # y, height of centre, height of anchor
    for side in (-1.0, 1.0):
        # A finger sorts by its tip, so that the far one goes behind what is held and the near one in front.
        y = side * (gap + FINGER_OFFSET)
        parts.append((FINGER, FINGER_COLOR, y, FINGER_HEIGHT, PAD_HEIGHT))
        parts.append((PAD, PAD_COLOR, side * gap, PAD_HEIGHT, PAD_HEIGHT))
        parts.append((CARRIAGE, CARRIAGE_COLOR, y, CARRIAGE_HEIGHT, CARRIAGE_HEIGHT))
    parts.append((RAIL, RAIL_COLOR, 0.0, RAIL_HEIGHT, RAIL_HEIGHT))
    parts.append((WRIST, WRIST_COLOR, 0.0, WRIST_HEIGHT, WRIST_HEIGHT))
    local = np.array([[(0.0, y, z), (0.0, y, anchor)] for _, _, y, z, anchor in parts])
    placed = local @ turn.T + state[:3]
    return [Body(mesh, turn, at, color, anchor) for (mesh, color, *_), (at, anchor) in zip(parts, placed)]


def _paint(picture: Image.Image, camera: Camera, faces: Faces) -> None:
    """Draws the faces that look at the camera, the farthest first."""
    position = np.asarray(camera.position)
    to_camera = position - faces.centers
    facing = np.flatnonzero((faces.normals * to_camera).sum(1) > 0)
    seen = facing[np.argsort((position - faces.anchors[facing]) @ camera.axes[2], kind="stable")]
    normals, to_camera = faces.normals[seen], _unit(to_camera[seen])
    shade = AMBIENT + DIFFUSE * np.maximum(normals @ LIGHT, 0)
    shine = SPECULAR * np.maximum((normals * _unit(to_camera + LIGHT)).sum(1), 0) ** SHININESS
    fills = np.clip(faces.colors[seen] * shade[:, None] + shine[:, None], 0, 255).astype(int).tolist()

    points = list(map(tuple, camera.project(faces.vertices, picture.width)[0].tolist()))
    corners, draw = faces.meshes.corners, ImageDraw.Draw(picture)
    for i, fill in zip(seen.tolist(), fills):
        draw.polygon(corners[i](points), fill=tuple(fill))


def _unit(vectors_n3: np.ndarray) -> np.ndarray:
    return vectors_n3 / np.sqrt((vectors_n3**2).sum(1, keepdims=True))


def _outlines(faces: Faces) -> list[np.ndarray]:
    """What each body keeps the light away from on the table: the corners [k, 3] of a convex polygon.

    They are the points of its shadow that lie farthest in each of k directions.
    """
    ground = faces.vertices - faces.vertices[:, 2:] * (LIGHT / LIGHT[2])
    reach = ground[:, :2] @ _SHADOW_DIRECTIONS
    return [ground[a + reach[a:b].argmax(0)] for a, b in itertools.pairwise(faces.meshes.starts)]


def _cast_shadows(picture: Image.Image, camera: Camera, outlines: list[np.ndarray]) -> None:
    """Darkens the table inside the outlines."""
    half = picture.width // 2
    points = camera.project(np.concatenate(outlines), half)[0].reshape(len(outlines), -1)
    mask = Image.new("L", (half, half))
    draw = ImageDraw.Draw(mask)
    for corners in points.tolist():
        draw.polygon(corners, fill=round(255 * SHADOW_OPACITY))
    soft = mask.filter(ImageFilter.BoxBlur(max(picture.width / 256, 0.7)))
    if found := soft.getbbox():
        # One more pixel all around, so that the edge fades out; the rest of the picture need not be looked at.
        left, top, right, bottom = max(found[0] - 1, 0), max(found[1] - 1, 0), found[2] + 1, found[3] + 1
        box = (left, top, min(right, half), min(bottom, half))
        size = (2 * (box[2] - left), 2 * (box[3] - top))
        picture.paste(SHADOW_COLOR, (2 * left, 2 * top), soft.crop(box).resize(size, Image.Resampling.BILINEAR))


@functools.lru_cache(maxsize=8)
def _table(camera: Camera, size: int) -> Image.Image:
    """The empty table on the floor, [size, size]."""
    rays = camera.rays(size)
    position = np.asarray(camera.position)
    xy = position[:2] + rays[..., :2] * (-position[2] / rays[..., 2:])
    on_table = ((xy > TABLE_LOW) & (xy < TABLE_HIGH)).all(-1, keepdims=True)
    picture = np.where(on_table, _wood(xy), FLOOR_COLOR)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _wood(xy: np.ndarray) -> np.ndarray:
    """Colours [..., 3] of boards that run along y."""
    board = np.floor(xy[..., 0] / 0.115)
    along = xy[..., 1] + 0.37 * board
    grain = np.sin(xy[..., 0] * 260 + 5 * np.sin(along * 7 + board) + 2 * np.sin(along * 23 + 2 * board))
    fine = np.sin(xy[..., 0] * 900 + 9 * np.sin(along * 11 + 3 * board))
    tone = 0.5 + 0.16 * np.sin(board * 2.4) + 0.16 * grain + 0.07 * fine
    seam = np.abs(xy[..., 0] / 0.115 - board - 0.5) > 0.485
    colors = WOOD_DARK + (WOOD_LIGHT - WOOD_DARK) * tone[..., None]
    return np.where(seam[..., None], 0.8 * colors, colors)
