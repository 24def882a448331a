import math

import numpy as np
import pytest

from jaxvla.envs import geometry
from jaxvla.envs.geometry import Camera
from jaxvla.envs.items import SHAPES, VESSELS
from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.tabletop import TabletopEnv

SIZE = 96


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Pixel coordinates [n, 2] (u, v) where two images differ clearly."""
    v, u = np.nonzero(np.abs(before.astype(int) - after).max(-1) > 40)
    return np.stack([u, v], axis=1)


def test_projection_is_that_of_a_pinhole():
    camera = Camera(position=(0.0, 0.0, 1.0), target=(1.0, 0.0, 0.0), field_of_view=math.pi / 2)
    points = np.array([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.0, 0.5]])
    pixels, depth = camera.project(points, 100)
    # With a right angle of view the focal length is half the image. The forward axis is (1, 0, -1) / sqrt 2.
    np.testing.assert_allclose(depth, [math.sqrt(2), math.sqrt(2), 1.5 / math.sqrt(2)])
    np.testing.assert_allclose(pixels[0], [50, 50], atol=1e-9)
    np.testing.assert_allclose(pixels[1], [50 - 50 * 0.5 / math.sqrt(2), 50], atol=1e-9)
    np.testing.assert_allclose(pixels[2], [50, 50 - 50 * 0.5 / 1.5], atol=1e-9)


@pytest.mark.parametrize("name", CAMERAS)
def test_rays_and_intrinsics_agree_with_projection(name):
    camera = CAMERAS[name]
    rays = camera.rays(8).reshape(-1, 3)
    pixels, _ = camera.project(np.asarray(camera.position) + 0.7 * rays, 8)
    expected = np.stack(np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(pixels, expected, atol=1e-9)
    homogeneous = (0.7 * rays @ camera.axes.T) @ camera.intrinsics(8).T
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], expected, atol=1e-9)


def test_euler_inverts_rotation():
    for angles in ([0.3, -0.4, 1.2], [-0.7, 0.2, -1.5], [0.0, 0.0, 0.0]):
        np.testing.assert_allclose(geometry.euler(geometry.rotation(*angles)), angles, atol=1e-12)
    turn = geometry.rotation(0.3, -0.4, 1.2)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_nearest_turn():
    assert geometry.nearest_turn(1.5, math.pi / 2) == pytest.approx(1.5 - math.pi / 2)
    assert geometry.nearest_turn(0.4, math.pi) == pytest.approx(0.4)
    assert geometry.nearest_turn(0.4, 0.0) == 0


@pytest.mark.parametrize("mesh", [s.mesh for s in SHAPES.values()])
def test_closed_meshes_face_outward(mesh):
    assert (mesh.normals * mesh.centers).sum(1).min() > 0
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1)


def test_vessels_have_an_outside_and_an_inside():
    for vessel in VESSELS.values():
        radial = (vessel.walls.normals[:, :2] * vessel.walls.centers[:, :2]).sum(1)
        assert (radial[: vessel.sides] > 0).all()
        assert (radial[2 * vessel.sides :] < 0).all()
        np.testing.assert_allclose(vessel.floor.normals, [[0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("camera", CAMERAS)
def test_boxes_frame_what_is_drawn(camera):
    env = TabletopEnv(image_size=SIZE)
    framed = 0
    for seed in range(6):
        env.reset(seed=seed)
        env.state[2] = 0.25
        for item in env.objects:
            item.color = "blue"
            before = env.observation()[camera]
            item.color = "yellow"
            pixels = changed(before, env.observation()[camera])
            left, top, right, bottom = env.box(item.name, camera)
            assert (pixels.min(0) >= [left - 1.5, top - 1.5]).all()
            assert (pixels.max(0) <= [right + 0.5, bottom + 0.5]).all()
            framed += len(pixels) > 0.4 * (right - left) * (bottom - top)
            item.color = item.kind  # a name of its own again, never drawn
            env.items.remove(item)
    assert framed >= 12


def test_objects_take_a_tenth_of_the_width():
    env = TabletopEnv(image_size=SIZE, render=False)
    widths = []
    for seed in range(40):
        env.reset(seed=seed)
        widths += [(right - left) / SIZE for left, _, right, _ in (env.box(o.name, "images0") for o in env.objects)]
    assert min(widths) > 0.07
    assert max(widths) < 0.19
    assert 0.09 < np.median(widths) < 0.14


@pytest.mark.parametrize("camera", CAMERAS)
def test_everything_stands_inside_the_image(camera):
    env = TabletopEnv(image_size=SIZE, render=False)
    for seed in range(40):
        env.reset(seed=seed)
        pixels = np.concatenate([env.project(item.vertices(), camera) for item in env.items])
        assert pixels.min() > 0
        assert pixels.max() < SIZE
        assert min(env.gripper_pixel(camera)) > 0
        assert max(env.gripper_pixel(camera)) < SIZE


def test_the_opening_of_the_gripper_shows_near_the_gripper_pixel():
    env = TabletopEnv(image_size=SIZE)
    env.reset(seed=0)
    env.state[:3] = [0.3, 0.0, 0.08]
    env.state[6] = 1
    before = env.observation()["images0"]
    env.state[6] = 0.5
    pixels = changed(before, env.observation()["images0"])
    assert len(pixels) > 20
    distances = np.linalg.norm(pixels - env.gripper_pixel("images0"), axis=1)
    assert np.median(distances) < 0.15 * SIZE


def test_left_is_left_and_up_is_up_in_the_first_camera():
    env = TabletopEnv(image_size=SIZE, render=False)
    here, left, up, away = env.project(
        np.array([[0.3, 0.0, 0.0], [0.3, 0.1, 0.0], [0.3, 0.0, 0.1], [0.4, 0.0, 0.0]]), "images0"
    )
    assert left[0] < here[0] - 10
    assert up[1] < here[1] - 10
    assert away[1] < here[1] - 10


def test_a_shadow_falls_below_the_gripper():
    env = TabletopEnv(image_size=SIZE)
    env.reset(seed=0)
    env.items = []
    env.state[:6] = [0.3, 0, 0.15, 0, 0, 0]
    high = env.observation()["images1"].astype(int)
    env.state[:3] = [0.3, 0, 0.24]
    higher = env.observation()["images1"].astype(int)
    ground = env.project(np.array([[0.32, -0.03, 0.0]]), "images1")[0].astype(int)
    patch = np.s_[ground[1] - 8 : ground[1] + 8, ground[0] - 8 : ground[0] + 8]
    assert np.abs(high[patch] - higher[patch]).max() > 15
