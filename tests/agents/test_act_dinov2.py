import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.test_act import RNG, act, differentiate, make, make_params
from models.random_params import random_params

from jaxvla.agents import start_of
from jaxvla.agents.act import table_of
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.act.backbones import PatchMap
from jaxvla.models.act.config import FeatureEncoderConfig
from jaxvla.models.module import bind, graph_of
from jaxvla.models.safetensors_io import write_safetensors
from jaxvla.models.vision import dinov2
from jaxvla.models.vision.dinov2_weights import weight_table
from jaxvla.models.weights import host_tensors
from jaxvla.ops.patches import cut_patches
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer

SPEC = BatchSpec(("images0", "images1"), (28, 28), 5, 3, action_horizon=4, several_action_dims=True)


@pytest.fixture(scope="module", autouse=True)
def small_tower():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dinov2._SIZES, "small", (16, 2, 2))
        yield


def make_dinov2(path=""):
    return make(SPEC, "dinov2_small", path)


@pytest.fixture(scope="module")
def case(small_tower):
    agent = make_dinov2()
    return agent, make_params(agent), SPEC.fake_batch(3, agent.batch_keys, np.random.default_rng(0))


def test_the_feature_map_holds_patches_in_their_places(case):
    _, params, batch = case
    images = jnp.asarray(batch["observations"]["images0"][:, 0])
    seen = bind(graph_of(lambda rngs: PatchMap(tower_config(), dtype=jnp.float32, rngs=rngs)), params["backbone"])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = jnp.asarray((images / 255 - mean) / std, jnp.float32)
    expected = seen.tower(cut_patches(pixels, 14)).patches_bpd
    made = seen(images)
    assert made.shape == (3, 2, 2, 16)
    for y, x in np.ndindex(2, 2):
        np.testing.assert_allclose(made[:, y, x], expected[:, 2 * y + x], rtol=1e-4, atol=1e-5)


def tower_config():
    return FeatureEncoderConfig("dinov2_small").tower((28, 28))


def test_all_of_it_learns_at_a_rate_of_its_own(case):
    agent, params, batch = case
    assert agent.frozen_modules == ()
    (loss, _), gradient = differentiate(agent)(params, batch, RNG)
    assert np.isfinite(loss)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    optimizer = make_optimizer(OptimizerConfig(1e-3, learning_rates={"backbone": 1e-4}), agent.frozen_modules)
    assert optimizer.rate_of("backbone/tower/patch_embedding/kernel") == 1e-4
    assert act(agent)(params, batch["observations"], {}).shape == (3, 4, 3)


@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_training_starts_from_a_file_of_another_size(names, tmp_path):
    path = tmp_path / "tower.safetensors"
    config = dinov2.preset("small", image_size=42)
    stored = random_params(lambda rngs: dinov2.Dinov2Tower(config, dtype=jnp.float32, rngs=rngs))
    write_safetensors(path, host_tensors(stored, weight_table(config, names)))
    agent = make_dinov2(str(path))
    start = start_of("act", agent)
    assert start.report[0] == f"dinov2_small from {path}"
    shapes = jax.eval_shape(agent.init, RNG)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = start.load(jax.tree.map(lambda _: place, shapes))
    assert jax.tree.map(jnp.shape, loaded["backbone"]) == jax.tree.map(jnp.shape, shapes["backbone"])
    tower = loaded["backbone"]["tower"]
    jax.tree.map(np.testing.assert_array_equal, tower["layers"], stored["layers"])
    assert tower["position_embedding"]["embedding"].shape == (1 + 4, 16), "of 2 x 2 patches, not of 3 x 3"


def test_weights_of_something_else_are_refused(tmp_path):
    path = tmp_path / "tower.safetensors"
    with pytest.raises(WeightsError, match="holds no weights"):
        start_of("act", make_dinov2(str(path)))
    deeper = dinov2.Dinov2Config(16, 64, 3, 2, image_size=28)
    stored = random_params(lambda rngs: dinov2.Dinov2Tower(deeper, dtype=jnp.float32, rngs=rngs))
    write_safetensors(path, host_tensors(stored, weight_table(deeper)))
    with pytest.raises(WeightsError, match=r"left over \(blocks.2."):
        start_of("act", make_dinov2(str(path)))


@pytest.mark.parametrize("size", [(28, 42), (480, 640), (8, 8)])
def test_pictures_that_it_does_not_see(size):
    message = (
        rf"dinov2_small sees squares .* of 14 pixels, not {size[0]} x {size[1]}: .*image_size to one, such as \(224"
    )
    with pytest.raises(ConfigError, match=message):
        make(BatchSpec(("images0",), size, 2, 2), "dinov2_small")


def test_lerobot_has_none(case):
    with pytest.raises(WeightsError, match=r"not through dinov2_small: no weights .* --format safetensors"):
        table_of(case[0])
