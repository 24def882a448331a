import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agents.rl_cases import random_params
from agents.smolvla_cases import MODEL, agent_kwargs, quick_jit
from flax import traverse_util
from models.smolvla import lerobot_files

from jaxvla.agents import make_agent, start_of
from jaxvla.agents.agent import Agent
from jaxvla.data.schema import NO_TOKEN, BatchSpec, InstructionSpec
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.flow_matching import Guide, draw_known
from jaxvla.models.module import bind
from jaxvla.models.smolvla.config import LORA_TARGETS, VISION_KEYS, SmolVLAConfig
from jaxvla.models.smolvla.model import draw_time, prepare_images
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state

SPEC = BatchSpec(
    ("images0", "images1"),
    (8, 12),
    5,
    3,
    action_horizon=4,
    instruction=InstructionSpec(5, 24),
    several_action_dims=True,
    camera_sizes=(("images1", (16, 16)),),
)
RNG = jax.random.key(0)
PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"))["get_config"]
EXPERT = {"expert", "state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"}


@functools.cache
def make(spec=SPEC, draws=1, most=0, **changes):
    own = {"repeated_diffusion_steps": draws, "max_delay": most}
    return make_agent("smolvla", agent_kwargs(**changes) | own, spec)


@functools.cache
def case():
    """Parameters, and a batch with a padded slot, a dimension that a row lacks, and instructions of several lengths."""
    batch = SPEC.fake_batch(3, make().batch_keys, np.random.default_rng(0))
    batch["action_pad_mask"][1, 2:] = False
    batch["action_dim_mask"][2, 1] = False
    batch["instruction"][1, 2:] = NO_TOKEN
    batch["instruction"][2] = NO_TOKEN
    return random_params(make()), batch


@functools.cache
def differentiate(agent):
    return quick_jit(jax.value_and_grad(agent.loss, has_aux=True))


@functools.cache
def acting(agent):
    return quick_jit(agent.act)


@quick_jit
def errors_by_hand(params, batch, rng):
    """The squared errors of the model, from the keys that the agent draws with."""
    agent = make()
    noise_rng, time_rng = jax.random.split(rng)
    model, seen = bind(agent.graphdef, params), batch["observations"]
    images = [prepare_images(seen[camera][:, 0], agent.config.model) for camera in SPEC.cameras]
    tokens = batch["instruction"]
    state = jnp.pad(seen["proprio"][:, 0], ((0, 0), (0, 1)))
    there = jnp.ones((3, 2), bool)
    context = model.look(jnp.stack(images, 1), there, jnp.maximum(tokens, 0), tokens >= 0, state)
    actions = jnp.pad(batch["actions"] * batch["action_dim_mask"][:, None], ((0, 0), (0, 0), (0, 1)))
    return model.errors(context, actions, jax.random.normal(noise_rng, actions.shape), draw_time(time_rng, 3))


def test_it_is_an_agent():
    agent, (params, _) = make(), case()
    assert isinstance(agent, Agent)
    again = make_agent("smolvla", agent_kwargs() | {"repeated_diffusion_steps": 1}, SPEC)
    assert (again, hash(again)) == (agent, hash(agent))
    assert agent.batch_keys == ("observations", "actions", "action_pad_mask", "action_dim_mask", "instruction")
    drawn = quick_jit(agent.init)(RNG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), drawn)


def errors_of_draws(draws):
    """The mean of the squared errors over so many draws of noise and time."""
    keys = jax.random.split(jax.random.split(RNG)[0], draws)
    return np.mean([np.asarray(errors_by_hand(*case(), key), np.float64) for key in keys], axis=0)


def test_the_loss_against_numpy_in_both_reductions():
    """The second with several draws, which share what was read."""
    params, batch = case()
    errors = errors_of_draws(1)
    assert errors.shape == (3, 4, 4)
    learned = [
        errors[b, a, d]
        for b, a, d in np.ndindex(3, 4, 3)
        if batch["action_pad_mask"][b, a] and batch["action_dim_mask"][b, d]
    ]
    assert len(learned) == 4 * 3 + 2 * 3 + 4 * 2
    everything = errors_of_draws(3).mean()
    for agent, expected in ((make(), np.mean(learned)), (make(draws=3, loss_reduction="all"), everything)):
        (loss, metrics), _ = differentiate(agent)(params, batch, RNG)
        np.testing.assert_allclose([loss, metrics["flow_loss"]], expected, rtol=1e-5)


def test_what_is_masked_changes_neither_loss_nor_gradient():
    params, batch = case()
    shown = batch["action_pad_mask"][..., None] & batch["action_dim_mask"][:, None]
    other = batch | {"actions": np.where(shown, batch["actions"], 1e3).astype(np.float32)}
    both = [differentiate(make())(params, each, RNG) for each in (batch, other)]
    assert np.isfinite(both[0][0][0])
    jax.tree.map(np.testing.assert_array_equal, *both)
    lacking = batch | {"action_dim_mask": np.array([[True, False, True]] * 3)}
    kernel = np.asarray(differentiate(make())(params, lacking, RNG)[1]["action_out_proj"]["kernel"])
    assert kernel.any(0).tolist() == [True, False, True, False]


def test_actions_are_those_of_no_noise_or_of_drawn_noise():
    params, batch = case()
    agent, task = make(), {"instruction": batch["instruction"]}
    seen = batch["observations"]
    likeliest = np.asarray(acting(agent)(params, seen, task))
    assert likeliest.shape == (3, 4, 3)
    drawn = np.asarray(acting(agent)(params, seen, task, RNG, 1.0))
    assert np.abs(drawn - likeliest).max() > 1e-3
    np.testing.assert_allclose(acting(agent)(params, seen, task, RNG, 0.0), likeliest, atol=1e-5)
    alone = [
        acting(agent)(params, *jax.tree.map(lambda x, i=i: np.repeat(x[i : i + 1], 3, 0), (seen, task)))
        for i in range(3)
    ]
    np.testing.assert_allclose(np.stack([x[0] for x in alone]), likeliest, atol=1e-5)
    told = np.asarray(acting(agent)(params, seen, {"instruction": np.roll(batch["instruction"], 1, 0)}))
    assert np.abs(told - likeliest).max(axis=(1, 2)).min() > 1e-5


def test_validation_is_of_each_example():
    params, batch = case()
    found = quick_jit(make().evaluate)(params, batch, RNG)
    actions = np.asarray(acting(make())(params, batch["observations"], batch))
    error = (actions - batch["actions"])[2][:, [0, 2]]
    np.testing.assert_allclose(found["mse"][2], (error**2).sum(-1).mean(), rtol=1e-5)
    errors = np.asarray(errors_by_hand(params, batch, RNG))
    np.testing.assert_allclose(found["flow_loss"][1], errors[1, :2, :3].mean(), rtol=1e-4)
    np.testing.assert_allclose(found["flow_loss"][2], errors[2][:, [0, 2]].mean(), rtol=1e-4)


def test_pixels_of_a_camera_that_is_not_there_change_nothing():
    params, batch = case()
    seen = dict(batch["observations"])
    mask = np.array([[[True, False]], [[True, True]], [[False, True]]])
    first, other = (
        np.asarray(acting(make())(params, seen | {"camera_mask": mask, "images1": x}, batch))
        for x in (seen["images1"], 255 - seen["images1"])
    )
    np.testing.assert_array_equal(first[0], other[0])
    assert np.abs(first - other)[1:].max(axis=(1, 2)).min() > 0
    whole = acting(make())(params, seen | {"camera_mask": np.ones_like(mask)}, batch)
    np.testing.assert_allclose(whole, acting(make())(params, seen, batch), atol=1e-6)


def trained_modules(agent):
    """The modules that have moments in a training state, and the dtypes in which all are held."""
    optimizer = make_optimizer(OptimizerConfig(1e-3, clip_norm=1.0), agent.frozen_modules)
    state = abstract_state(agent, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    mu, nu = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
    assert mu.keys() == nu.keys()
    dtypes = {name: {x.dtype.name for x in jax.tree.leaves(part)} for name, part in state.params.items()}
    return set(mu), dtypes


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"train_expert_only": True, "freeze_vision_encoder": True}, EXPERT),
        ({"train_expert_only": True, "train_state_proj": False}, EXPERT - {"state_proj"}),
        ({"freeze_vision_encoder": True}, EXPERT | {"text", "connector"}),
        ({}, EXPERT | {"text", "connector", "vision"}),
    ],
)
def test_what_is_frozen_has_no_optimizer_state_and_is_held_in_the_compute_dtype(changes, trained):
    found, dtypes = trained_modules(make(dtype="bfloat16", **changes))
    assert found == trained
    narrow = {"vision", "connector", "text"} - trained
    assert {name for name, kinds in dtypes.items() if kinds == {"bfloat16"}} == narrow
    assert all(kinds == {"float32"} for name, kinds in dtypes.items() if name not in narrow)


def test_gradients_reach_all_that_is_trained():
    params, batch = case()
    _, gradient = differentiate(make())(params, batch, RNG)
    for path, leaf in traverse_util.flatten_dict(gradient, sep="/").items():
        if path.startswith("text/layers/"):  # stacked; of the last one nothing is trained
            assert np.abs(leaf[0]).max() > 0, path
            assert not np.any(leaf[1]), path
        elif not path.endswith("k_proj/bias"):  # which moves all keys alike
            assert np.abs(leaf).max() > 0, path
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    lacks = make(train_expert_only=True)
    frozen = quick_jit(lambda params: make_optimizer(OptimizerConfig(1.0), lacks.frozen_modules).split(params)[0])
    assert set(jax.eval_shape(frozen, shapes)) == EXPERT


def test_bfloat16_computes_over_float32():
    params, batch = case()
    (wide, _), _ = differentiate(make())(params, batch, RNG)
    (narrow, _), gradient = differentiate(make(dtype="bfloat16"))(params, batch, RNG)
    np.testing.assert_allclose(narrow, wide, rtol=2e-2)
    assert narrow != wide
    assert {x.dtype.name for x in jax.tree.leaves(gradient)} == {"float32"}


@pytest.mark.parametrize("preset", ["smolvla", "smolvla_tiny"])
def test_presets_name_every_setting(preset):
    config = PRESETS(preset).to_dict()
    horizon, language = config["data"]["action_horizon"], config["language"]
    tokens = InstructionSpec(language["max_length"], load_tokenizer(TINY).vocab_size)
    spec = BatchSpec(("images0",), (64, 64), 7, 7, action_horizon=horizon, instruction=tokens)
    agent = make_agent(config["agent"], config["agent_kwargs"], spec)
    assert agent.config.model.chunk_size == horizon
    assert set(vars(agent.config)) == set(config["agent_kwargs"])
    assert set(vars(agent.config.lora)) == set(config["agent_kwargs"]["lora"])
    model = config["agent_kwargs"]["model"]
    assert {field.name for field in dataclasses.fields(SmolVLAConfig)} == {*model, "chunk_size"}
    assert set(vars(agent.config.model.text)) == set(model["text"])
    assert set(VISION_KEYS) == set(model["vision"])


def test_the_published_shape_trains_its_expert():
    config = PRESETS("smolvla").to_dict()
    spec = BatchSpec(("images0",), (64, 64), 6, 6, action_horizon=50, instruction=InstructionSpec(48, 49280))
    agent = make_agent("smolvla", config["agent_kwargs"], spec)
    optimizer = make_optimizer(OptimizerConfig(1e-4), agent.frozen_modules)
    trained, frozen = optimizer.split(jax.eval_shape(agent.init, RNG))
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (trained, frozen)]
    # Of the published 450,046,176 an output head of 47,308,800 and a norm of 960 compute nothing.
    assert sum(sizes) == 450_046_176 - 47_308_800 - 960
    assert sizes[0] == 99_880_992
    assert agent.config.lora.targets == LORA_TARGETS
    assert {x.dtype.name for x in jax.tree.leaves(frozen)} == {"bfloat16"}


def other(**changes):
    return dataclasses.replace(SPEC, **changes)


@pytest.mark.parametrize(
    ("spec", "changes", "named"),
    [
        (other(obs_horizon=2), {}, "config.data.obs_horizon to 1, not 2"),
        (other(cameras=()), {}, "at least one camera"),
        (other(instruction=None), {}, "config.language.encoder to 'tokens'"),
        (other(instruction=InstructionSpec(8)), {}, "config.language.encoder to 'tokens'"),
        (other(instruction=InstructionSpec(8, 1000)), {}, "has 1000 tokens, more than the 24 that"),
        (other(proprio_dim=7), {}, "the state of the data has 7 values, but this model takes 6 at most"),
        (other(action_dim=5), {}, "the action of the data has 5 values, but this model takes 4 at most"),
        (SPEC, {"chunk_size": 50}, "chunk_size is 50, but config.data.action_horizon 4: leave"),
        (SPEC, {"vision": MODEL["vision"] | {"joint_qkv": True}}, "vision.joint_qkv is False in this model: leave it"),
        (SPEC, {"loss_reduction": "mean"}, "loss_reduction must be one of valid, all"),
        (SPEC, {"hidden_size": 8}, "unknown key config.agent_kwargs.model.hidden_size"),
    ],
)
def test_bad_settings(spec, changes, named):
    with pytest.raises(ConfigError, match=named):
        make_agent("smolvla", agent_kwargs(**changes), spec)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"repeated_diffusion_steps": 0}, "repeated_diffusion_steps must be at least 1"),
        ({"max_delay": 4}, r"max_delay must lie in \[0, 4\), the chunk, not 4"),
        ({"lora": {"rank": 2, "targets": "norm"}}, "lora.targets 'norm' matches"),
        ({"model": 3}, "config.agent_kwargs.model must be SmolVLAConfig, not int 3"),
    ],
)
def test_bad_settings_of_the_agent(changes, named):
    with pytest.raises(ConfigError, match=named):
        make_agent("smolvla", agent_kwargs() | changes, SPEC)


def write_vlm(folder):
    """A small SmolVLM2: the tensors of a policy without what a policy adds, under their own names."""
    prefix = lerobot_files.VLM_PREFIX

    def bare(tensors):
        for name in list(tensors):
            values = tensors.pop(name)
            if name.startswith(prefix):
                tensors[name.removeprefix(prefix)] = values

    return lerobot_files.write_folder(folder, bare)


def test_training_starts_from_a_folder_of_the_language_model(tmp_path):
    small = {
        "text": {
            "vocab_size": 64,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        "vision": MODEL["vision"]
        | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 512, "patch_size": 16},
        "scale_factor": 4,
    }
    folder = write_vlm(tmp_path / "vlm")

    def starting(path=folder, **changes):
        kwargs = agent_kwargs(**small, **changes) | {"vlm_path": str(path)}
        return make_agent("smolvla", kwargs, SPEC)

    agent = starting(freeze_vision_encoder=True, dtype="bfloat16")
    start = start_of("smolvla", agent)
    assert start.report[0] == f"SmolVLM2 from {folder}"
    assert "2 were not used" in start.report[1]
    shapes = jax.eval_shape(agent.init, RNG)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = start.load(jax.tree.map(lambda _: place, shapes))
    assert set(loaded) == {"vision", "connector", "text"}
    expected = {name: shapes[name] for name in loaded}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), loaded) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert start_of("smolvla", make()) is None

    load_tokenizer(TINY).save(folder)
    message = rf"come with a tokenizer of 1000 tokens, but config.language has one of 24: .*path={folder}"
    with pytest.raises(ConfigError, match=message):
        start_of("smolvla", agent)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="truncated"):
        start_of("smolvla", agent)
    with pytest.raises(WeightsError, match="nowhere"):
        start_of("smolvla", starting(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="is no local path"):
        start_of("smolvla", starting("gs://bucket/vlm"))


def test_actions_are_drawn_towards_a_chunk_of_before_in_their_own_dimensions():
    params, batch = case()
    agent, seen, task = make(), batch["observations"], {"instruction": batch["instruction"]}
    plain = np.asarray(acting(agent)(params, seen, task))
    weight = np.array([[1, 1, 0.5, 0], [1, 0.2, 0, 0], [0, 0, 0, 0]], np.float32)[..., None] * [1, 1, 0]
    target = plain + 0.3
    guide = Guide(jnp.asarray(target), jnp.asarray(weight, jnp.float32), jnp.full(3, 5.0))
    drawn = np.asarray(quick_jit(lambda *given: agent.act(*given, guide=guide))(params, seen, task))
    assert drawn.shape == plain.shape
    assert (np.abs(drawn - target)[weight > 0.9] < np.abs(plain - target)[weight > 0.9]).all()
    np.testing.assert_allclose(drawn[2], plain[2], atol=1e-5)
    nothing = guide._replace(limit_b=jnp.zeros(3))
    still = quick_jit(lambda *given: agent.act(*given, guide=nothing))(params, seen, task)
    np.testing.assert_allclose(still, plain, atol=1e-5)


def test_given_actions_carry_no_loss_and_come_out_as_they_are():
    """Nothing of what the model says of them counts, and what it says of the others goes by them and their time."""
    params, batch = case()
    agent, seen, task = make(most=2), batch["observations"], {"instruction": batch["instruction"]}
    rng = jax.random.split(jax.random.split(RNG)[0], 1)[0]
    known = np.asarray(draw_known(jax.random.fold_in(rng, 2), 3, 4, 2))
    assert known.any()
    loss = float(differentiate(agent)(params, batch, RNG)[0][0])
    unmasked = batch | {"action_pad_mask": batch["action_pad_mask"] | known}
    np.testing.assert_array_equal(differentiate(agent)(params, unmasked, RNG)[0][0], loss)
    hidden = batch | {"action_pad_mask": batch["action_pad_mask"] & ~known}
    without = float(differentiate(make())(params, hidden, RNG)[0][0])
    assert abs(loss - without) > 1e-4 * without
    given = np.random.default_rng(2).standard_normal((2, 3, 4, 3)).astype(np.float32)
    given[1, :, 2:] = given[0, :, 2:]
    prefix = np.arange(4) < np.array([[0], [1], [3]])

    def go_on(agent):
        act = quick_jit(lambda *own: agent.act(*own[:3], guide=own[3]))
        guides = [Guide(jnp.asarray(each), jnp.zeros((3, 4, 3)), None, jnp.asarray(prefix)) for each in given]
        return [np.asarray(act(params, seen, task, guide)) for guide in guides]

    found, other = go_on(agent)
    plain = np.asarray(acting(make())(params, seen, task))
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
    for row, count in enumerate((0, 1, 2)):  # no more than training gave
        np.testing.assert_array_equal(found[row, :count], given[0, row, :count])
        assert bool((np.abs(found[row, count:] - other[row, count:]).max(-1) > 1e-6).all()) == (count > 0)
    with pytest.raises(ConfigError, match="max_delay 0 a network has not learned to go on"):
        go_on(make())
