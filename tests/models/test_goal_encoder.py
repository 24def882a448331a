import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.random_params import random_params

from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.goal_encoder import CameraEncoder, EarlyFusion, LateFusion, ViewShape
from jaxvla.models.module import bind, graph_of, params_of
from jaxvla.models.resnet import ARCHITECTURES, Architecture, EncoderConfig

SIZE = (24, 16)
FEATURES = 8
PROPRIO = 5
CAMERAS = {1: ("images0",), 2: ("wrist", "images0")}
FUSIONS = {
    "early": EarlyFusion,
    "late, shared": functools.partial(LateFusion, shared=True),
    "late, apart": functools.partial(LateFusion, shared=False),
}


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", Architecture((1,), num_filters=FEATURES))
    monkeypatch.setitem(ARCHITECTURES, "small-film", Architecture((1,), num_filters=FEATURES, film=True))


def make_fusion(fusion, shape, rngs):
    return FUSIONS[fusion](EncoderConfig("small"), shape, dtype=jnp.float32, rngs=rngs)


def make_encoder(fusion, shape):
    def make(rngs):
        return make_fusion(fusion, shape, rngs)

    return bind(graph_of(make), random_params(make))


def make_views(shape, batch_size=2):
    spec = BatchSpec(shape.cameras, SIZE, PROPRIO, 7, shape.obs_horizon)
    batch = spec.fake_batch(batch_size, ("observations", "goals"), np.random.default_rng(0))
    return batch["observations"], batch["goals"]


@pytest.mark.parametrize("fusion", ["early", "late, shared"])
def test_cameras_may_be_of_different_sizes(fusion):
    shape = ViewShape(CAMERAS[2], SIZE, 1, 0, (("wrist", (12, 20)),))
    spec = BatchSpec(shape.cameras, SIZE, PROPRIO, 7, camera_sizes=shape.camera_sizes)
    batch = spec.fake_batch(2, ("observations", "goals"), np.random.default_rng(0))
    assert [batch["goals"][camera].shape[1:3] for camera in CAMERAS[2]] == [(12, 20), SIZE]
    encode = jax.jit(make_encoder(fusion, shape))
    features = np.asarray(encode(batch["observations"], batch["goals"]))
    other = {**batch["observations"], "wrist": 255 - batch["observations"]["wrist"]}
    assert (np.asarray(encode(other, batch["goals"])) != features).any(1).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_features_of_a_missing_camera_are_zero(fusion):
    shape = ViewShape(CAMERAS[2], SIZE, 2, PROPRIO)
    observations, goals = make_views(shape)
    masks = np.array([[True, False], [True, True]])
    views = {**observations, "camera_mask": np.repeat(masks[:, None], 2, 1)}, {**goals, "camera_mask": masks}
    encode = jax.jit(make_encoder(fusion, shape))
    features, plain = np.asarray(encode(*views)), np.asarray(encode(observations, goals))
    # Of each frame those of wrist and images0, then the proprio of both, then the goal's.
    absent = [slice(FEATURES, 2 * FEATURES), slice(3 * FEATURES, 4 * FEATURES), slice(-FEATURES, None)]
    hidden = np.zeros(features.shape[1], bool)
    for part in absent[: 2 if fusion == "early" else 3]:
        hidden[part] = True
    np.testing.assert_array_equal(features, np.where(hidden & ~masks[:, 1:], 0, plain))
    other = [
        {**x, "images0": np.where(masks[:, 1:].reshape(2, *[1] * (x["images0"].ndim - 1)), x["images0"], 7)}
        for x in views
    ]
    np.testing.assert_array_equal(encode(*other), features)


def test_the_goal_of_a_camera_that_only_the_goal_lacks_is_black():
    shape = ViewShape(CAMERAS[1], SIZE, 1, 0)
    observations, goals = make_views(shape)
    encode = jax.jit(make_encoder("early", shape))
    there, absent = np.ones((2, 1, 1), bool), np.zeros((2, 1), bool)
    found = encode({**observations, "camera_mask": there}, {**goals, "camera_mask": absent})
    np.testing.assert_array_equal(found, encode(observations, {"images0": goals["images0"] * 0}))


@pytest.mark.parametrize(
    ("fusion", "horizon", "proprio", "cameras"),
    list(itertools.product(FUSIONS, (1, 2), (0, PROPRIO), (1, 2))),
)
def test_every_combination_sees_every_input(fusion, horizon, proprio, cameras):
    shape = ViewShape(CAMERAS[cameras], SIZE, horizon, proprio)
    observations, goals = make_views(shape)
    encoder = make_encoder(fusion, shape)
    encode = jax.jit(encoder)
    features = np.asarray(encode(observations, goals))
    goal_width = 0 if fusion == "early" else cameras * FEATURES
    assert features.shape == (2, horizon * (cameras * FEATURES + proprio) + goal_width)
    assert features.shape[1] == encoder.out_dim

    def changes(observations, goals):
        return (np.asarray(encode(observations, goals)) != features).any(1).tolist()

    for camera in shape.cameras:
        for frame in range(horizon):
            images = observations[camera].copy()
            images[0, frame] = 255 - images[0, frame]
            assert changes({**observations, camera: images}, goals) == [True, False]
        images = goals[camera].copy()
        images[1] = 255 - images[1]
        assert changes(observations, {**goals, camera: images}) == [False, True]
    for frame in range(horizon):
        state = observations["proprio"].copy()
        state[0, frame] += 1
        assert changes({**observations, "proprio": state}, goals) == [proprio > 0, False]


def test_late_features_are_frames_then_proprio_then_goal():
    shape = ViewShape(CAMERAS[1], SIZE, 2, PROPRIO)
    observations, goals = make_views(shape)
    encoder = make_encoder("late, shared", shape)
    features = jax.jit(encoder)(observations, goals)
    split = shape.obs_horizon * FEATURES
    np.testing.assert_allclose(features[:, split : split + 2 * PROPRIO], observations["proprio"].reshape(2, -1))
    of_frames, of_goal = features[:, : -encoder.goal_dim], features[:, -encoder.goal_dim :]
    np.testing.assert_allclose(of_frames, jax.jit(encoder.encode_observations)(observations), atol=1e-5)
    np.testing.assert_allclose(of_goal, jax.jit(encoder.encode_goals)(goals), atol=1e-5)
    as_frames = {**observations, "images0": np.stack([goals["images0"]] * 2, axis=1)}
    goal_encoded = jax.jit(encoder.encode_observations)(as_frames)[:, FEATURES : 2 * FEATURES]
    np.testing.assert_allclose(goal_encoded, of_goal, atol=1e-5)


def test_shared_and_separate_parameters():
    shape = ViewShape(CAMERAS[2], SIZE, 1, 0)
    sizes = {
        fusion: sum(leaf.size for leaf in jax.tree.leaves(params_of(make_fusion(fusion, shape, nnx.Rngs(0)))))
        for fusion in FUSIONS
    }
    assert sizes["late, apart"] == 2 * sizes["late, shared"]
    # Early fusion has three more input channels in the 7 x 7 stem of each camera.
    assert sizes["early"] == sizes["late, shared"] + 2 * 7 * 7 * 3 * FEATURES
    params = params_of(make_fusion("late, apart", shape, nnx.Rngs(0)))
    kernels = [
        np.asarray(encoder["resnets"][camera]["stem"]["kernel"])
        for encoder in (params["encoder"], params["goal_encoder"])
        for camera in shape.cameras
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == 4


def test_conditioning_reaches_every_frame():
    shape = ViewShape(CAMERAS[1], SIZE, 3, 0)

    def make(rngs):
        config = EncoderConfig("small-film")
        return CameraEncoder(config, shape, cond_dim=4, dtype=jnp.float32, rngs=rngs)

    encode = jax.jit(bind(graph_of(make), random_params(make)))
    observations, _ = make_views(shape)
    cond = jax.random.normal(jax.random.key(1), (2, 4))
    features, other = encode(observations, cond), encode(observations, cond.at[1].add(1.0))
    assert features.shape == (2, 3, FEATURES)
    np.testing.assert_allclose(features[0], other[0], rtol=1e-5)
    assert (features[1] != other[1]).any(-1).all()


def test_a_feature_map_is_no_vector():
    shape = ViewShape(CAMERAS[1], SIZE, 1, 0)
    with pytest.raises(ConfigError, match="pooling 'none'"):
        EarlyFusion(EncoderConfig("small", pooling="none"), shape, dtype=jnp.float32, rngs=nnx.Rngs(0))
