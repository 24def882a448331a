import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from jaxvla.agents import make_agent, start_of
from jaxvla.agents.act import table_of
from jaxvla.agents.agent import Agent
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.act.model import ACT, Sizes
from jaxvla.models.module import bind
from jaxvla.models.resnet import Architecture
from jaxvla.models.safetensors_io import HostTensor, write_safetensors
from jaxvla.models.vision import frozen_resnet
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer

SMALL = "resnet-small"
SPEC = BatchSpec(("images0", "images1"), (8, 12), 5, 3, action_horizon=4, several_action_dims=True)
TRANSFORMER = {
    "width": 8,
    "num_heads": 2,
    "mlp_dim": 12,
    "num_encoder_layers": 2,
    # The only layer of a decoder has nothing to attend to but equal values: its queries and keys have no gradient.
    "num_decoder_layers": 2,
    "num_latent_layers": 1,
    "latent_dim": 3,
    "dropout_rate": 0.1,
}
RNG = jax.random.key(0)
PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"))["get_config"]

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", autouse=True)
def small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(frozen_resnet.ARCHITECTURES, SMALL, Architecture((2,), num_filters=4))
        yield


def make(spec=SPEC, encoder=SMALL, path="", **changes):
    kwargs = {"encoder": {"name": encoder, "path": path}, "transformer": TRANSFORMER, "kl_weight": 2.0}
    return make_agent("act", kwargs | changes, spec)


def make_params(agent):
    config, spec = agent.config, agent.spec
    sizes = Sizes(spec.cameras, spec.image_size, spec.proprio_dim, spec.action_horizon, spec.action_dim)
    params = random_params(
        lambda rngs: ACT(config.encoder, config.transformer, sizes, use_latent=True, dtype=jnp.float32, rngs=rngs)
    )
    # Variances near 1.
    return jax.tree_util.tree_map_with_path(lambda path, x: x + 1 if path[-1].key == "var" else x, params)


@pytest.fixture(scope="module")
def case(small_encoder):
    """An agent, its parameters, and a batch with a padded slot and a dimension that a row lacks."""
    agent = make()
    batch = SPEC.fake_batch(3, agent.batch_keys, np.random.default_rng(0))
    batch["action_pad_mask"][1, 2:] = False
    batch["action_dim_mask"][2, 1] = False
    return agent, make_params(agent), batch


@functools.cache
def differentiate(agent):
    return quick_jit(jax.value_and_grad(agent.loss, has_aux=True))


@functools.cache
def act(agent):
    return quick_jit(agent.act)


def test_it_is_an_agent(case):
    agent, params, _ = case
    assert isinstance(agent, Agent)
    assert make() == agent
    assert hash(make()) == hash(agent)
    assert agent.batch_keys == ("observations", "actions", "action_pad_mask", "action_dim_mask")
    shapes = jax.eval_shape(agent.init, RNG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_the_loss_against_numpy(case):
    agent, params, batch = case
    latent_rng, encoder_rng, dropout_rng = jax.random.split(RNG, 3)

    @quick_jit
    def parts(params, batch):
        model, seen = bind(agent.graphdef, params), batch["observations"]
        present = batch["actions"] * batch["action_dim_mask"][:, None]
        mean, log_var = model.latent_encoder(seen["proprio"][:, 0], present, batch["action_pad_mask"], encoder_rng)
        latent = mean + jnp.exp(log_var / 2) * jax.random.normal(latent_rng, mean.shape)
        return mean, log_var, model(seen, latent, dropout_rng)

    mean, log_var, actions = (np.asarray(x, np.float64) for x in parts(params, batch))
    errors = [
        abs(actions[b, a, d] - batch["actions"][b, a, d])
        for b, a, d in np.ndindex(3, 4, 3)
        if batch["action_pad_mask"][b, a] and batch["action_dim_mask"][b, d]
    ]
    assert len(errors) == 4 * 3 + 2 * 3 + 4 * 2
    l1 = sum(errors) / len(errors)
    variance = np.exp(log_var)
    kld = np.sum((variance + mean**2 - 1 - np.log(variance)) / 2) / 3
    (loss, metrics), _ = differentiate(agent)(params, batch, RNG)
    np.testing.assert_allclose([metrics["l1_loss"], metrics["kld_loss"], loss], [l1, kld, l1 + 2 * kld], rtol=1e-5)


def test_what_is_masked_changes_neither_loss_nor_gradient(case):
    agent, params, batch = case
    shown = batch["action_pad_mask"][..., None] & batch["action_dim_mask"][:, None]
    other = batch | {"actions": np.where(shown, batch["actions"], 1e3).astype(np.float32)}
    assert np.isfinite(differentiate(agent)(params, batch, RNG)[0][0])
    jax.tree.map(np.testing.assert_array_equal, *(differentiate(agent)(params, each, RNG) for each in (batch, other)))


def test_gradients_reach_all_that_is_not_frozen(case):
    agent, params, batch = case
    _, gradient = differentiate(agent)(params, batch, RNG)
    optimizer = make_optimizer(OptimizerConfig(1e-3, learning_rates={"backbone": 1e-4}), agent.frozen_modules)
    trained, frozen = optimizer.split(gradient)
    for path, leaf in jax.tree_util.tree_flatten_with_path(trained)[0]:
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    # Of the stem, of the two convolutions of the first block, and of those of the stacked second one.
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(frozen)]
    assert len(names) == 4 * (1 + 2 + 2)
    assert all(name.startswith("backbone/") and name.split("/")[-2] == "norm" for name in names)
    assert optimizer.rate_of("backbone/stem/kernel") == 1e-4


def test_the_latent_is_zero_when_it_acts(case):
    agent, params, batch = case
    chosen = act(agent)(params, batch["observations"], {})
    zeros = jnp.zeros((3, 3))
    expected = quick_jit(lambda params: bind(agent.graphdef, params)(batch["observations"], zeros))(params)
    np.testing.assert_allclose(chosen, expected, atol=1e-5)
    forgotten = params | {"latent_encoder": jax.tree.map(jnp.zeros_like, params["latent_encoder"])}
    np.testing.assert_array_equal(act(agent)(forgotten, batch["observations"], {}), chosen)
    drawn = quick_jit(agent.act)(params, batch["observations"], {}, RNG)
    assert np.abs(drawn - chosen).max() > 1e-3


def test_validation_is_of_each_example(case):
    agent, params, batch = case
    found = quick_jit(agent.evaluate)(params, batch, RNG)
    actions = np.asarray(act(agent)(params, batch["observations"], {}))
    error = (actions - batch["actions"])[2][:, [0, 2]]
    np.testing.assert_allclose(found["mse"][2], (error**2).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["l1_loss"][2], np.abs(error).mean(), rtol=1e-5)


def test_without_a_latent_there_is_no_divergence():
    agent = make(use_latent=False, encoder="resnetv1-tiny")
    shapes = jax.eval_shape(agent.init, RNG)
    assert "latent_encoder" not in shapes
    assert agent.frozen_modules == ()
    _, metrics = jax.eval_shape(agent.loss, shapes, SPEC.fake_batch(2, agent.batch_keys, np.random.default_rng(0)), RNG)
    assert set(metrics) == {"l1_loss", "kld_loss", "mse"}
    with pytest.raises(WeightsError, match=r"resnet18 or resnet34.*, not through resnetv1-tiny"):
        table_of(agent)


@pytest.mark.parametrize(
    ("spec", "changes", "named"),
    [
        ({"obs_horizon": 2}, {}, "config.data.obs_horizon to 1, not 2"),
        ({"cameras": ()}, {}, "at least one camera"),
        ({}, {"encoder": "resnet19"}, "encoder.name 'resnet19'"),
        ({}, {"encoder": "resnetv1-34-bridge-film"}, "none that act looks through"),
        ({}, {"encoder": "resnetv1-tiny", "path": "x"}, "has GroupNorm and learns from scratch"),
        ({}, {"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({}, {"transformer": {"width": 10}}, "transformer.width 10"),
        ({}, {"transformer": {"num_encoder_layers": 0}}, "num_encoder_layers must be at least 1"),
        ({}, {"transformer": {"dropout_rate": 1.0}}, "dropout_rate must lie in"),
    ],
)
def test_bad_settings(spec, changes, named):
    sizes = {"cameras": ("images0",), "obs_horizon": 1} | spec
    with pytest.raises(ConfigError, match=named):
        make(BatchSpec(sizes["cameras"], (8, 8), 2, 2, obs_horizon=sizes["obs_horizon"]), **changes)


@pytest.mark.parametrize("preset", ["act", "act_dinov2", "act_tiny"])
def test_presets_name_every_setting(preset):
    config = PRESETS(preset).to_dict()
    spec = dataclasses.replace(SPEC, image_size=config["data"]["image_size"] or (8, 12))
    agent = make_agent(config["agent"], config["agent_kwargs"], spec)
    assert set(vars(agent.config)) == set(config["agent_kwargs"])
    for part in ("encoder", "transformer"):
        assert set(vars(getattr(agent.config, part))) == set(config["agent_kwargs"][part])


def torchvision_file(path, left_out=()):
    """The small ResNet as torchvision would write it, with a classifier and counters."""
    rng = np.random.default_rng(0)
    shapes = {name: weight.hf_shape for weight in frozen_resnet.weight_table(SMALL) for name in weight.hf_names}
    shapes |= {"fc.weight": (7, 4), "fc.bias": (7,)}
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items() if n not in left_out}
    tensors["bn1.num_batches_tracked"] = np.asarray(3)
    write_safetensors(path, {n: HostTensor(x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()})
    return tensors


def test_training_starts_from_a_file_of_torchvision(tmp_path):
    path = tmp_path / "resnet.safetensors"
    tensors = torchvision_file(path)
    agent = make(path=str(path))
    start = start_of("act", agent)
    assert "25 tensors were read, 3 were not used" in start.report
    assert "fc.bias is not used: the classifier of ImageNet's classes" in start.report
    shapes = jax.eval_shape(agent.init, RNG)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = start.load(jax.tree.map(lambda _: place, shapes))
    assert jax.tree.map(jnp.shape, loaded["backbone"]) == jax.tree.map(jnp.shape, shapes["backbone"])
    kernel = loaded["backbone"]["stages"]["stage0"]["rest"]["branch"]["conv1"]["kernel"][0].reshape(4, 3, 3, 4)
    np.testing.assert_array_equal(kernel.transpose(3, 0, 1, 2), tensors["layer1.1.conv2.weight"])
    np.testing.assert_array_equal(loaded["backbone"]["stem"]["norm"]["var"], tensors["bn1.running_var"])
    assert start_of("act", make()) is None


def test_weights_of_another_resnet_are_named(tmp_path):
    path = tmp_path / "resnet.safetensors"
    torchvision_file(path, left_out=("layer1.0.conv1.weight",))
    with pytest.raises(WeightsError, match=r"1 missing \(layer1.0.conv1.weight\)"):
        start_of("act", make(path=str(path)))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="truncated"):
        start_of("act", make(path=str(path)))
    with pytest.raises(WeightsError, match="holds no weights"):
        start_of("act", make(path=str(tmp_path / "nowhere")))


def test_pixels_of_a_camera_that_is_not_there_change_nothing(case):
    agent, params, batch = case
    seen = dict(batch["observations"])
    mask = np.array([[[True, False]], [[True, True]], [[True, False]]])
    act = quick_jit(lambda observations: agent.act(params, observations, {}))
    first, other = (
        np.asarray(act(seen | {"camera_mask": mask, "images1": x})) for x in (seen["images1"], 255 - seen["images1"])
    )
    np.testing.assert_array_equal(first[[0, 2]], other[[0, 2]])
    assert np.abs(first[1] - other[1]).max() > 0
    np.testing.assert_allclose(act(seen | {"camera_mask": np.ones_like(mask)}), act(seen), rtol=1e-5, atol=1e-6)


def test_cameras_of_several_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"empty config.data.camera_sizes, now \{'images1': \(4, 4\)\}"):
        make(dataclasses.replace(SPEC, camera_sizes=(("images1", (4, 4)),)))
