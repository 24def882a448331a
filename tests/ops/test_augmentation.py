import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.errors import ConfigError
from jaxvla.ops import augmentation, colours
from jaxvla.ops.augmentation import AugmentConfig, augment_batch, augment_images

FULL = AugmentConfig(order=("random_resized_crop", "brightness", "contrast", "saturation", "hue"))
# A geometric operation and one of colours show which draws are shared, and compile fast.
PAIR = AugmentConfig(order=("random_resized_crop", "brightness"))
jitted_batch = jax.jit(augment_batch, static_argnums=2)
jitted_images = jax.jit(augment_images, static_argnums=2)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(__file__).parent / "golden" / "augmentation.npz"))


def to_planes(images_bhwc):
    return jnp.asarray(images_bhwc, jnp.float32).transpose(0, 3, 1, 2)[:, :, None] / 255


def from_planes(x_bcohw):
    return np.asarray(x_bcohw[:, :, 0].transpose(0, 2, 3, 1))


def test_crop_is_that_of_tensorflow(golden):
    top, left, bottom, right = jnp.asarray(golden["boxes"]).T
    cropped = jax.jit(augmentation.crop_and_resize)(to_planes(golden["images"]), top, left, bottom - top, right - left)
    np.testing.assert_allclose(from_planes(cropped), golden["crop"], atol=2e-6)


@pytest.mark.parametrize(("name", "values"), [("contrast", "factors"), ("saturation", "factors"), ("hue", "turns")])
def test_colours_are_those_of_tensorflow(golden, name, values):
    adjust = jax.jit(getattr(colours, f"adjust_{name}"))
    adjusted = adjust(to_planes(golden["images"]), jnp.asarray(golden[values]))
    np.testing.assert_allclose(from_planes(adjusted), golden[name], atol=2e-6)


def make_batch(batch_size=6, horizon=2, seed=0):
    """Observations, next observations and goals that show the same random picture per example and camera."""
    rng = np.random.default_rng(seed)
    pictures = {
        name: rng.integers(0, 256, (batch_size, 1, 10, 12, 3), dtype=np.uint8) for name in ("images0", "images1")
    }
    history = {name: np.repeat(picture, horizon, axis=1) for name, picture in pictures.items()}
    proprio = rng.standard_normal((batch_size, horizon, 7), dtype=np.float32)
    return {
        "observations": {**history, "proprio": proprio},
        "next_observations": {**history, "proprio": proprio + 1},
        "goals": {**{name: picture[:, 0] for name, picture in pictures.items()}, "proprio": proprio[:, 0]},
        "actions": rng.standard_normal((batch_size, 1, 7), dtype=np.float32),
    }


def test_images_change_and_nothing_else_does():
    batch = make_batch()
    before = jax.tree.map(np.copy, batch)
    augmented = jitted_batch(batch, jax.random.key(0), PAIR)
    assert jax.tree.structure(augmented) == jax.tree.structure(batch)
    for (path, old), (_, new), (_, kept) in zip(
        *(jax.tree_util.tree_leaves_with_path(tree) for tree in (batch, augmented, before))
    ):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert (old == kept).all(), "the input stays as it was"
        assert (old == new).all() == ("images" not in jax.tree_util.keystr(path))


def test_one_key_gives_one_result():
    batch = make_batch()
    once, again, other = (jitted_batch(batch, jax.random.key(seed), FULL)["goals"]["images0"] for seed in (3, 3, 4))
    assert (once == again).all()
    assert all((a != b).any() for a, b in zip(once, other))


def test_views_of_an_example_share_their_draws():
    augmented = jitted_batch(make_batch(), jax.random.key(0), PAIR)
    for camera in ("images0", "images1"):
        frames = augmented["observations"][camera]
        assert (frames[:, 0] == frames[:, 1]).all()
        assert (frames == augmented["next_observations"][camera]).all()
        assert (frames[:, 0] == augmented["goals"][camera]).all()


def test_views_differ_on_request():
    config = dataclasses.replace(PAIR, goals_differ=True)
    augmented = jitted_batch(make_batch(), jax.random.key(0), config)
    views = [augmented[view]["images0"] for view in ("observations", "next_observations")]
    views = [view[:, 0] for view in views] + [augmented["goals"]["images0"]]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert all((a != b).any() for a, b in zip(views[i], views[j]))
    assert (augmented["observations"]["images0"][:, 0] == augmented["observations"]["images0"][:, 1]).all()


def test_a_view_is_augmented_alike_whatever_stands_beside_it():
    batch = make_batch()
    for config in (PAIR, dataclasses.replace(PAIR, goals_differ=True)):
        full = jitted_batch(batch, jax.random.key(0), config)
        alone = jitted_batch({"goals": batch["goals"]}, jax.random.key(0), config)
        assert (full["goals"]["images0"] == alone["goals"]["images0"]).all()


def test_cameras_and_examples_draw_separately():
    picture = np.random.default_rng(0).integers(0, 256, (1, 10, 12, 3), dtype=np.uint8)
    pictures = np.repeat(picture, 6, axis=0)
    augmented = jitted_batch({"goals": {"images0": pictures, "images1": pictures}}, jax.random.key(0), PAIR)["goals"]
    results = [np.asarray(image) for camera in augmented.values() for image in camera]
    assert len({image.tobytes() for image in results}) == 12


def test_no_operation_no_change():
    batch = make_batch()
    assert augment_batch(batch, jax.random.key(0), AugmentConfig()) == batch


@pytest.mark.parametrize("name", [name for name in augmentation.OPERATIONS if "flip" not in name])
def test_empty_ranges_leave_every_pixel(name):
    config = AugmentConfig((name,), (1.0, 1.0), (1.0, 1.0), 0.0, (1.0, 1.0), (1.0, 1.0), 0.0, 0.0)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert (jitted_images(images, jax.random.key(0), config) == images).all()


def test_flip_mirrors_half_of_the_examples():
    images = np.random.default_rng(0).integers(0, 256, (400, 2, 4, 6, 3), dtype=np.uint8)
    flipped = np.asarray(jitted_images(images, jax.random.key(0), AugmentConfig(("random_flip_left_right",))))
    mirrored = (flipped == images[:, :, :, ::-1]).all((1, 2, 3, 4))
    kept = (flipped == images).all((1, 2, 3, 4))
    assert (mirrored | kept).all()
    assert 160 < mirrored.sum() < 240, "within four standard deviations"


def spread(values, low, high):
    """Whether `values` fill [low, high] as a uniform draw of 500 does."""
    gap = 0.03 * (high - low)
    assert low - 0.01 <= values.min() < low + gap
    assert high - gap < values.max() <= high + 0.01
    assert abs(values.mean() - (low + high) / 2) < 0.06 * (high - low)


def test_crops_fill_their_ranges_and_are_independent():
    rows, columns = np.mgrid[0:64, 0:64] / 63
    ramp = np.stack([rows, columns, 0 * rows], -1)
    images = np.repeat(np.round(ramp * 255).astype(np.uint8)[None], 500, axis=0)
    config = AugmentConfig(("random_resized_crop",), crop_scale=(0.3, 0.6), crop_ratio=(0.8, 1.25))
    cropped = np.asarray(jitted_images(images, jax.random.key(1), config)) / 255
    top, left = cropped[:, 0, 0, 0], cropped[:, 0, 0, 1]
    height, width = cropped[:, -1, -1, 0] - top, cropped[:, -1, -1, 1] - left
    scale, log_ratio = height * width, np.log(width / height)
    spread(scale, 0.3, 0.6)
    spread(log_ratio, np.log(0.8), np.log(1.25))
    spread(top / (1 - height), 0, 1)
    spread(left / (1 - width), 0, 1)
    draws = np.stack([scale, log_ratio, top / (1 - height), left / (1 - width)])
    correlation = np.corrcoef(draws) - np.eye(4)
    assert abs(correlation).max() < 0.18, "four standard deviations of 500 independent draws"


def test_a_crop_never_leaves_the_image():
    config = AugmentConfig(("random_resized_crop",), crop_scale=(0.9, 1.0), crop_ratio=(0.5, 2.0))
    images = np.full((200, 16, 16, 3), 200, np.uint8)
    assert (jitted_images(images, jax.random.key(0), config) == 200).all()


def test_shifts_move_by_whole_pixels_and_repeat_the_edge():
    images = np.random.default_rng(0).integers(0, 256, (200, 10, 12, 3), dtype=np.uint8)
    config = AugmentConfig(order=("random_shift",), shift=0.2)
    moved = np.asarray(jitted_images(images, jax.random.key(0), config))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    seen = set()
    for number, image in enumerate(moved):
        found = [(y, x) for y in range(5) for x in range(5) if (padded[number, y : y + 10, x : x + 12] == image).all()]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25, "every move of up to 2 pixels, in both directions apart"


def test_colour_draws_fill_their_ranges_and_are_independent():
    # Columns: a grey level, whose shift is the brightness; two greys, whose distance is the contrast.
    images = np.full((500, 8, 8, 3), 128, np.uint8)
    images[:, :, ::2] = 96
    config = AugmentConfig(("brightness", "contrast"), brightness=0.2, contrast=(0.8, 1.2))
    changed = np.asarray(jitted_images(images, jax.random.key(2), config)).astype(float)
    contrast = (changed[:, 0, 1, 0] - changed[:, 0, 0, 0]) / 32
    brightness = (changed[:, 0].mean((1, 2)) - 112) / 255
    assert (changed == changed[:, :1, :, :1]).all()
    assert abs(contrast.mean() - 1) < 0.02
    assert contrast.min() >= 0.78
    assert contrast.max() <= 1.22
    spread(brightness, -0.2, 0.2)
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.18


def test_extremes_are_clipped_not_wrapped():
    images = np.zeros((40, 8, 8, 3), np.uint8)
    images[:, :4] = 255
    changed = np.asarray(jitted_images(images, jax.random.key(0), AugmentConfig(("brightness",), brightness=0.2)))
    assert (changed[:, :4] >= 204).all()
    assert (changed[:, 4:] <= 51).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"order": ("random_crop",)}, "random_crop"),
        ({"order": ("hue", "hue")}, "twice"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.8, 1.1)}, "crop_scale"),
        ({"crop_ratio": (1.1, 0.9)}, "crop_ratio"),
        ({"contrast": (-0.1, 1.0)}, "contrast"),
        ({"saturation": (1.0, 0.5)}, "saturation"),
        ({"brightness": 1.5}, "brightness"),
        ({"hue": 0.6}, "hue"),
        ({"hue": float("nan")}, "hue"),
        ({"shift": 0.6}, "shift"),
    ],
)
def test_bad_configurations(change, named):
    with pytest.raises(ConfigError, match=named):
        AugmentConfig(**change)
