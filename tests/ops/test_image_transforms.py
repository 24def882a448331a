import dataclasses
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.transform_cases import MOVES, VALUES, pictures

from jaxvla.errors import ConfigError
from jaxvla.ops import image_transforms
from jaxvla.ops.augmentation import AugmentConfig, augment_batch, augment_images
from jaxvla.ops.image_transforms import TRANSFORMS, Affine, ImageTransformsConfig, Jitter, turn_and_move

ALL = AugmentConfig(transforms=ImageTransformsConfig(enable=True))
SHUFFLED = AugmentConfig(transforms=ImageTransformsConfig(enable=True, random_order=True))
jitted_images = jax.jit(augment_images, static_argnums=2)
jitted_batch = jax.jit(augment_batch, static_argnums=2)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(__file__).parent / "golden" / "image_transforms.npz"))


def to_planes(images_bohwc):
    return jnp.asarray(images_bohwc, jnp.float32).transpose(0, 4, 1, 2, 3) / 255


def from_planes(x_bcohw):
    return np.asarray(x_bcohw.transpose(0, 2, 3, 4, 1))


def ours(name):
    """The transform at the parameters of the cases, as float32 [5, 2, 13, 11, 3]."""
    if name == "affine":
        return from_planes(jax.jit(turn_and_move)(to_planes(pictures()), *jnp.asarray(MOVES, jnp.float32).T))
    # A draw between 0 and 1 is its own value.
    values, identity = jnp.asarray(VALUES[name]), Jitter(1.0, (0.0, 1.0))
    changed = jax.jit(lambda x: jnp.clip(TRANSFORMS[name](x, values[None], identity), 0, 1))
    return from_planes(changed(to_planes(pictures())))


def assert_same(result, expected):
    assert (abs(result - expected) < 3e-6).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pixels_are_those_of_torchvision(golden, name):
    assert_same(ours(name), golden[name])


def only(name, **settings):
    """A configuration that draws this one alone."""
    config = ImageTransformsConfig(enable=True, max_num_transforms=1)
    changes = {other: dataclasses.replace(getattr(config, other), weight=0.0) for other in TRANSFORMS if other != name}
    changes[name] = dataclasses.replace(getattr(config, name), **settings)
    return AugmentConfig(transforms=dataclasses.replace(config, **changes))


def chances(weights, count):
    """How probable it is that each of `weights` is among `count` draws without putting back."""
    chances = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), count):
        left, chance = sum(weights), 1.0
        for i in order:
            chance, left = chance * weights[i] / left, left - weights[i]
        chances[list(order)] += chance
    return chances


@pytest.mark.parametrize(
    ("weights", "count"), [((1,) * 6, 3), ((1, 2, 3, 0, 5, 0.5), 3), ((1, 4, 1, 1, 1, 1), 1), ((1, 0, 0, 0, 2, 0), 6)]
)
def test_transforms_are_drawn_by_weight(weights, count):
    number = 20_000
    changes = {
        name: dataclasses.replace(getattr(ImageTransformsConfig(), name), weight=float(weight))
        for name, weight in zip(TRANSFORMS, weights)
    }
    config = ImageTransformsConfig(enable=True, max_num_transforms=count, **changes)
    weights = [weight for weight in weights if weight]
    count = min(count, len(weights))
    u_nb = jax.random.uniform(jax.random.key(0), (len(weights), number))
    expected = chances(weights, count)
    tolerance = 4 * np.sqrt(expected * (1 - expected) / number) + 1e-9
    in_order = np.asarray(image_transforms._choose(u_nb, config))
    shuffled = np.asarray(image_transforms._choose(u_nb, dataclasses.replace(config, random_order=True)))
    assert in_order.shape == (1, len(weights), number)
    assert shuffled.shape == (count, len(weights), number)
    assert (in_order.sum(1) == count).all()
    assert (shuffled.sum(1) == 1).all(), "one in each pass"
    assert (shuffled.any(0) == in_order[0]).all(), "another order of the same"
    assert (abs(in_order[0].mean(1) - expected) < tolerance).all()
    first = np.asarray(weights) / sum(weights)
    assert (abs(shuffled[0].mean(1) - first) < 4 * np.sqrt(first * (1 - first) / number) + 1e-9).all()


def test_the_order_is_drawn_on_request_alone():
    # Brighter by half and clipped, then half as far from its mean; or the other way round.
    both = ImageTransformsConfig(
        enable=True,
        max_num_transforms=2,
        **{
            name: Jitter(0.0, getattr(ImageTransformsConfig(), name).range)
            for name in ("saturation", "hue", "sharpness")
        },
        brightness=Jitter(1.0, (1.5, 1.5)),
        contrast=Jitter(1.0, (0.5, 0.5)),
        affine=Affine(0.0),
    )
    images = np.zeros((100, 4, 4, 3), np.uint8)
    images[:, :2] = 240
    bright_first = np.where(images, 255 - 63.75, 63.75).round()
    contrast_first = np.where(images, 255, 90).round()
    in_order = np.asarray(jitted_images(images, jax.random.key(0), AugmentConfig(transforms=both)))
    assert (in_order == bright_first).all()
    shuffled = np.asarray(
        jitted_images(images, jax.random.key(0), AugmentConfig(transforms=dataclasses.replace(both, random_order=True)))
    )
    firsts = (shuffled == bright_first).all((1, 2, 3))
    assert (firsts | (shuffled == contrast_first).all((1, 2, 3))).all()
    assert 30 < firsts.sum() < 70, "within four standard deviations"


def test_factors_fill_their_ranges():
    images = np.full((500, 4, 4, 3), 100, np.uint8)
    factors = np.asarray(jitted_images(images, jax.random.key(0), only("brightness", range=(0.5, 1.5)))) / 100
    assert (factors == factors[:, :1, :1, :1]).all()
    assert 0.5 <= factors.min() < 0.52
    assert 1.48 < factors.max() <= 1.5
    assert abs(factors.mean() - 1) < 0.06


def test_moves_are_whole_pixels_on_black():
    images = np.random.default_rng(0).integers(1, 256, (300, 20, 60, 3), dtype=np.uint8)
    moved = np.asarray(jitted_images(images, jax.random.key(0), only("affine", degrees=(0.0, 0.0))))
    padded = np.pad(images, ((0, 0), (1, 1), (3, 3), (0, 0)))
    seen = set()
    for number, image in enumerate(moved):
        found = [(y, x) for y in range(3) for x in range(7) if (padded[number, y : y + 20, x : x + 60] == image).all()]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 21, "5 % of either side, both ways, apart"


@pytest.mark.parametrize("config", [ALL, SHUFFLED], ids=["in order", "shuffled"])
def test_frames_share_their_draws_and_examples_and_cameras_do_not(config):
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 10, 12, 3), dtype=np.uint8)
    views = {"images0": np.repeat(np.repeat(picture, 8, 0), 2, 1), "images1": np.repeat(picture, 8, 0)}
    views["proprio"] = np.ones((8, 2, 3), np.float32)
    augmented = jitted_batch({"observations": views}, jax.random.key(0), config)["observations"]
    assert (augmented["proprio"] == views["proprio"]).all()
    first, second = np.asarray(augmented["images0"]), np.asarray(augmented["images1"])
    assert (first[:, 0] == first[:, 1]).all()
    assert len({image.tobytes() for image in (*first[:, 0], *second[:, 0])}) == 16
    again = jitted_batch({"observations": views}, jax.random.key(0), config)["observations"]["images0"]
    assert (again == first).all()


def test_they_follow_the_other_operations():
    images = np.full((50, 4, 4, 3), 100, np.uint8)
    config = AugmentConfig(("brightness",), brightness=0.2, transforms=only("brightness", range=(0.0, 0.0)).transforms)
    assert (jitted_images(images, jax.random.key(0), config) == 0).all(), "what is brighter is multiplied by 0"


def test_tiny_pictures_stay_sharp():
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 3), dtype=np.uint8)
    assert (jitted_images(images, jax.random.key(0), only("sharpness")) == images).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_num_transforms": 0}, "max_num_transforms must be at least 1"),
        ({"hue": Jitter(1.0, (-0.6, 0.1))}, "hue.range must rise within .-0.5, 0.5"),
        ({"contrast": Jitter(1.0, (1.2, 0.8))}, "contrast.range"),
        ({"sharpness": Jitter(-1.0, (0.5, 1.5))}, "sharpness.weight must be 0 or more, not -1.0"),
        ({"brightness": Jitter(float("nan"), (0.5, 1.5))}, "brightness.weight"),
        ({"affine": Affine(degrees=(5.0, -5.0))}, "affine.degrees"),
        ({"affine": Affine(translate=(0.1, 1.1))}, "affine.translate"),
    ],
)
def test_bad_configurations(change, named):
    with pytest.raises(ConfigError, match=named):
        ImageTransformsConfig(**change)


def test_nothing_to_draw():
    weightless = {name: dataclasses.replace(getattr(ImageTransformsConfig(), name), weight=0.0) for name in TRANSFORMS}
    with pytest.raises(ConfigError, match=r"enabled, and every weight is 0"):
        ImageTransformsConfig(enable=True, **weightless)
    assert not ImageTransformsConfig(**weightless).drawn
