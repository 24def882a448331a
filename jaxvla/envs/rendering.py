"""Pictures of the tabletop in numpy and Pillow: flat-shaded polygons, painted from far to near, with cast shadows."""

import dataclasses
import functools

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
class Faces:
    """All faces of several bodies in world axes: vertices [v, 3]; per face its vertices, and the rest [f, 3]."""

    vertices: np.ndarray
    polygons: list[tuple[int, ...]]
    centers: np.ndarray
    normals: np.ndarray
    anchors: np.ndarray
    colors: np.ndarray

    @classmethod
    def of(cls, bodies: list[Body]) -> "Faces":
        """Moves every body to its place."""
        vertices, polygons, centers, normals, anchors, colors = [], [], [], [], [], []
        start = 0
        for body in bodies:
            mesh = body.mesh
            vertices.append(mesh.vertices @ body.turn.T + body.position)
            polygons.extend(tuple(start + k for k in face) for face in mesh.faces)
            start += len(mesh.vertices)
            centers.append(mesh.centers @ body.turn.T + body.position)
            normals.append(mesh.normals @ body.turn.T)
            anchors.append(centers[-1] if body.anchor is None else np.broadcast_to(body.anchor, centers[-1].shape))
            colors.append(np.broadcast_to(np.array(body.color, float), centers[-1].shape))
        arrays = (np.concatenate(parts) for parts in (centers, normals, anchors, colors))
        return cls(np.concatenate(vertices), polygons, *arrays)


class Renderer:
    """Draws both cameras of one table; what does not move in an episode is drawn once, in `reset`."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._backgrounds: dict[str, Image.Image] = {}

    def reset(self, containers: list[Item]) -> None:
        """Paints the table, the floors of the containers and their shadows."""
        walls, floors = Faces.of(_containers(containers, "walls")), Faces.of(_containers(containers, "floor"))
        for name, camera in CAMERAS.items():
            picture = _table(camera, self.image_size * SUPERSAMPLE).copy()
            _cast_shadows(picture, camera, walls)
            _paint(picture, camera, floors)
            self._backgrounds[name] = picture

    def render(self, solids: list[Item], containers: list[Item], state: np.ndarray) -> dict[str, np.ndarray]:
        """One uint8 image [image_size, image_size, 3] per camera, of the gripper in `state` [7] among the items."""
        standing = [Body(SOLIDS[s.kind].mesh, s.turn, s.position, COLORS[s.color], s.position) for s in solids]
        standing += _gripper(state)
        shadowing, drawn = Faces.of(standing), Faces.of(standing + _containers(containers, "walls"))
        images = {}
        for name, camera in CAMERAS.items():
            picture = self._backgrounds[name].copy()
            _cast_shadows(picture, camera, shadowing)
            _paint(picture, camera, drawn)
            images[name] = np.array(picture.reduce(SUPERSAMPLE))
        return images


def _containers(containers: list[Item], part: str) -> list[Body]:
    return [Body(getattr(VESSELS[c.kind], part), c.turn, c.position, COLORS[c.color], None) for c in containers]


def _gripper(state: np.ndarray) -> list[Body]:
    turn = geometry.rotation(*state[3:6])
    gap = MAX_OPENING * state[6] / 2

    def part(mesh: Mesh, color: tuple[int, int, int], y: float, height: float, anchor_height: float) -> Body:
        center, anchor = (state[:3] + turn @ (0.0, y, z) for z in (height, anchor_height))
        return Body(mesh, turn, center, color, anchor)

    bodies = []
    for side in (-1.0, 1.0):
        # A finger sorts by its tip, so that the far one goes behind what is held and the near one in front.
        y = side * (gap + FINGER_OFFSET)
        bodies.append(part(FINGER, FINGER_COLOR, y, FINGER_HEIGHT, PAD_HEIGHT))
        bodies.append(part(PAD, PAD_COLOR, side * gap, PAD_HEIGHT, PAD_HEIGHT))
        bodies.append(part(CARRIAGE, CARRIAGE_COLOR, y, CARRIAGE_HEIGHT, CARRIAGE_HEIGHT))
    bodies.append(part(RAIL, RAIL_COLOR, 0.0, RAIL_HEIGHT, RAIL_HEIGHT))
    bodies.append(part(WRIST, WRIST_COLOR, 0.0, WRIST_HEIGHT, WRIST_HEIGHT))
    return bodies


def _paint(picture: Image.Image, camera: Camera, faces: Faces) -> None:
    """Draws the faces that look at the camera, the farthest first."""
    position = np.asarray(camera.position)
    to_camera = position - faces.centers
    to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
    halfway = to_camera + LIGHT
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    shade = AMBIENT + DIFFUSE * np.maximum(faces.normals @ LIGHT, 0)
    shine = SPECULAR * np.maximum((faces.normals * halfway).sum(1), 0) ** SHININESS
    fills = np.clip(faces.colors * shade[:, None] + shine[:, None], 0, 255).astype(int).tolist()

    points = list(map(tuple, camera.project(faces.vertices, picture.width)[0].tolist()))
    farthest_first = np.argsort((position - faces.anchors) @ camera.axes[2], kind="stable")
    visible = (faces.normals * to_camera).sum(1) > 0
    draw = ImageDraw.Draw(picture)
    for i in farthest_first[visible[farthest_first]].tolist():
        draw.polygon([points[k] for k in faces.polygons[i]], fill=tuple(fills[i]))


def _cast_shadows(picture: Image.Image, camera: Camera, faces: Faces) -> None:
    """Darkens the table where the faces keep the light away."""
    ground = faces.vertices - faces.vertices[:, 2:] * (LIGHT / LIGHT[2])
    points = list(map(tuple, camera.project(ground, picture.width)[0].tolist()))
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    for i in np.flatnonzero(faces.normals @ LIGHT > 0).tolist():
        draw.polygon([points[k] for k in faces.polygons[i]], fill=round(255 * SHADOW_OPACITY))
    soft = mask.reduce(2).filter(ImageFilter.BoxBlur(picture.width / 256)).resize(picture.size)
    picture.paste(SHADOW_COLOR, mask=soft)


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
