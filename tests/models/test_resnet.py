import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import resnet_cases
from models.random_params import random_params

from jaxvla.errors import ConfigError
from jaxvla.models import resnet
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.models.resnet import ARCHITECTURES, EncoderConfig, ResNet

TINY = "resnetv1-tiny"
GOLDEN = pathlib.Path(__file__).parent / "golden"


def random_images(channels=3, size=(32, 32), batch_size=2):
    shape = (batch_size, *size, channels)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def maker(image_size=(32, 32), **options):
    config = EncoderConfig(**{"name": TINY} | {k: v for k, v in options.items() if k not in ("dtype", "cond_dim")})
    options = {k: v for k, v in options.items() if k in ("dtype", "cond_dim")}
    return lambda rngs: ResNet(config, image_size, rngs=rngs, **options)


def forward(make, *inputs):
    return jax.jit(bind(graph_of(make), random_params(make)))(*inputs)


def unflatten(arrays):
    tree = {}
    for path, leaf in arrays.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


@pytest.mark.parametrize("name", resnet_cases.SMALL)
def test_maps_and_gradients_are_those_of_torch(monkeypatch, name):
    monkeypatch.setitem(ARCHITECTURES, name, resnet_cases.SMALL[name])
    golden = unflatten(np.load(GOLDEN / f"resnet_{name}.npz"))
    inputs, expected = jax.tree.map(jnp.asarray, golden["inputs"]), golden["result"]
    resnet_cases.assert_close(resnet_cases.jax_result(name, inputs), expected, 1e-5, 1e-4)
    model = bind(graph_of(lambda rngs: resnet_cases.make(name, rngs)), inputs["params"])
    pooled = jax.jit(model)(inputs["images"], inputs["cond"] if name.endswith("film") else None)
    np.testing.assert_allclose(pooled, expected["map"].mean((1, 2)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnetv1-18", 11_176_512), ("resnetv1-34", 21_284_672), ("resnetv1-50", 23_508_032)]
)
def test_as_many_parameters_as_torchvision_without_its_classifier(name, parameters):
    make = maker(name=name, add_coordinates=False)
    shapes = jax.eval_shape(lambda rng: init_params(make, rng), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_registered_encoder_gives_features(name):
    cond_dim = 5 if name.endswith("film") else None
    make = maker(name=name, cond_dim=cond_dim)
    cond = None if cond_dim is None else jnp.zeros((2, cond_dim))
    shapes = jax.eval_shape(lambda rng: make(nnx.Rngs(rng))(random_images(), cond), jax.random.key(0))
    width = 64 if "tiny" in name else 2048 if "50" in name else 512
    assert (shapes.shape, shapes.dtype) == ((2, width), jnp.float32)


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [
        ("avg", (2, 64)),
        ("max", (2, 64)),
        ("none", (2, 3, 2, 64)),
        ("spatial_softmax", (2, 128)),
        ("spatial_learned_embeddings", (2, 512)),
    ],
)
def test_poolings(pooling, shape):
    make = maker((40, 24), pooling=pooling)
    features = forward(make, random_images(size=(40, 24)))
    assert features.shape == shape
    assert features.shape[-1] == make(nnx.Rngs(0)).out_dim
    assert jnp.isfinite(features).all()
    if pooling in ("avg", "max"):
        features_map = forward(maker((40, 24), pooling="none"), random_images(size=(40, 24)))
        expected = features_map.mean((1, 2)) if pooling == "avg" else features_map.max((1, 2))
        np.testing.assert_allclose(features, expected, rtol=1e-5)


def test_learned_embeddings_weigh_every_place():
    make = maker(pooling="spatial_learned_embeddings")
    params = random_params(make)
    embeddings = np.zeros((2, 2, 64, 8), np.float32)
    embeddings[1, 0, 5, 3] = 2
    params["embeddings"] = jnp.asarray(embeddings)
    model = bind(graph_of(make), params)
    pixels = random_images() / jnp.float32(127.5) - 1
    features = np.asarray(jax.jit(model)(random_images())).reshape(2, 64, 8)
    np.testing.assert_allclose(features[:, 5, 3], 2 * jax.jit(model.feature_map)(pixels)[:, 1, 0, 5], rtol=1e-5)
    assert np.count_nonzero(features) == 2


def test_film_starts_as_the_network_without_it_and_then_conditions():
    film = maker(name="resnetv1-tiny-film", cond_dim=4)
    cond = jax.random.normal(jax.random.key(1), (2, 4))
    params = jax.jit(lambda rng: init_params(film, rng))(jax.random.key(0))
    plain = jax.tree.map(lambda x: x, params)
    for stage in plain["stages"].values():
        del stage["first"]["film"]

    @jax.jit
    def conditioned(params, cond):
        return bind(graph_of(film), params)(random_images(), cond)

    expected = jax.jit(bind(graph_of(maker()), plain))(random_images())
    np.testing.assert_allclose(conditioned(params, cond), expected, atol=1e-5)
    params = random_params(film)
    assert (conditioned(params, cond) != conditioned(params, cond + 1)).all()


def test_examples_do_not_see_each_other():
    make = maker()
    model = jax.jit(bind(graph_of(make), random_params(make)))
    images = random_images()
    changed = model(images.at[1].set(0))
    np.testing.assert_allclose(changed[0], model(images)[0], rtol=1e-5)
    assert (changed[1] != model(images)[1]).any()


def test_bfloat16_computes_in_it_and_stays_near():
    exact, rounded = (forward(maker(dtype=dtype), random_images()) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05


def test_blocks_of_a_stage_differ():
    make = maker(name="resnetv1-18")
    params = jax.jit(lambda rng: init_params(make, rng))(jax.random.key(0))
    kernels = params["stages"]["stage0"]
    first, rest = (kernels[part]["branch"]["conv1"]["kernel"] for part in ("first", "rest"))
    assert (first.shape, rest.shape) == ((3, 3, 64, 64), (1, 3, 3, 64, 64))
    assert (first != rest[0]).any()
    assert abs(rest.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.05, "kaiming normal"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "resnetv1-101"}, "resnetv1-101"),
        ({"pooling": "mean"}, "mean"),
        ({"activation": "sine"}, "sine"),
        ({"cond_dim": 3}, "takes no conditioning vector"),
        ({"name": "resnetv1-34-bridge-film"}, "needs a conditioning vector"),
    ],
)
def test_bad_configurations(options, named):
    with pytest.raises(ConfigError, match=named):
        maker(**options)(nnx.Rngs(0))


def test_groups_divide_every_width():
    assert all(a.num_filters % resnet.NUM_GROUPS == 0 for a in ARCHITECTURES.values())


@pytest.mark.parametrize(("name", "side"), [("resnetv1-tiny-film", 3), ("resnetv1-tiny-fine-film", 5)])
def test_a_fine_encoder_keeps_the_map_of_the_stage_before(name, side):
    """Of 40 pixels, which stem, max pool and the stages with a stride halve."""
    for pooling, shape in {"none": (2, side, side, 64), "spatial_learned_embeddings": (2, 512)}.items():
        make = maker((40, 40), name=name, pooling=pooling, cond_dim=3)
        features = forward(make, random_images(size=(40, 40)), jnp.ones((2, 3)))
        assert features.shape == shape
