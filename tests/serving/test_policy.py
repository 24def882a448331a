import dataclasses
import shutil

import jax
import numpy as np
import pytest
from agents import openvla_cases
from serving.policies import GC_BC, Echo, gray, save
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC, make_assets

from jaxvla import agents
from jaxvla.agents.language import LanguageConfig, open_language
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.images import resize
from jaxvla.errors import CheckpointError, ConfigError, PolicyError
from jaxvla.models.quantization import num_bytes
from jaxvla.serving.policy import load_policy


@pytest.fixture(autouse=True)
def known_agents(monkeypatch):
    monkeypatch.setitem(agents.agents, "linear", lambda kwargs, spec: LinearAgent(spec))
    monkeypatch.setitem(agents.agents, "echo", lambda kwargs, spec: Echo(spec))


def echo(folder, obs_horizon=1):
    save(folder, "echo", {}, dataclasses.replace(SPEC, obs_horizon=obs_horizon), values=(1, 1))
    return load_policy(folder)


def test_actions_are_in_robot_units(tmp_path):
    policy = echo(tmp_path)
    statistics = make_assets().statistics
    proprio = np.array([0.3, 0, 0, 0])
    actions = policy.act({"images0": gray(51), "proprio": proprio}, {"goals": {"images0": gray(255)}})
    normalized = np.array([[0.2, 0.2], [1.0, (0.3 - statistics.proprio.mean[0]) / statistics.proprio.std[0]]])
    np.testing.assert_allclose(actions, normalized * statistics.actions.std + statistics.actions.mean, rtol=1e-5)
    assert (actions.dtype, actions.shape) == (np.float32, (2, 2))


def seen(policy, value):
    """(oldest, newest) frame that the policy sees when it is shown `value`, in pixel values."""
    observation = {"images0": gray(value), "proprio": np.zeros(4, np.float32)}
    actions = policy.act(observation, {"images0": gray(0)})
    return [round(float(x) * 255) for x in make_assets().action_normalizer().forward(actions)[0]]


def test_history_is_kept_and_starts_with_repeats(tmp_path):
    policy = echo(tmp_path, obs_horizon=3)
    assert [seen(policy, value) for value in (10, 20, 30, 40)] == [[10, 10], [10, 20], [10, 30], [20, 40]]
    policy.reset()
    assert seen(policy, 50) == [50, 50]
    policy.observe({"images0": gray(60), "proprio": np.zeros(4)})
    assert seen(policy, 70) == [50, 70]


def test_warming_up_leaves_no_trace(tmp_path):
    policy = echo(tmp_path, obs_horizon=2)
    assert policy.warm_up() > 0
    assert seen(policy, 10) == [10, 10]


def test_images_of_any_size_are_resized_as_the_loader_does(tmp_path):
    params, assets = save(tmp_path, "linear", {}, SPEC)
    rng = np.random.default_rng(2)
    image, goal = (rng.integers(0, 256, (33, 21, 3), dtype=np.uint8) for _ in range(2))
    proprio = rng.normal(size=4).astype(np.float32)
    actions = load_policy(tmp_path).act({"images0": image, "proprio": proprio}, {"goals": {"images0": goal}})
    observations = {
        "images0": resize(image[None], (8, 8))[None],
        "proprio": assets.proprio_normalizer().forward(proprio)[None, None],
    }
    expected = LinearAgent(SPEC).act(params, observations, {"goals": {"images0": resize(goal[None], (8, 8))}})
    np.testing.assert_allclose(actions, assets.action_normalizer().inverse(np.asarray(expected[0])), rtol=1e-5)


def test_gc_bc_needs_only_what_it_reads(tmp_path):
    spec = BatchSpec(("images0",), (16, 16), proprio_dim=4, action_dim=2, action_horizon=2)
    params, assets = save(tmp_path, "gc_bc", GC_BC, spec)
    policy = load_policy(tmp_path)
    assert policy.needed == {"observation": ("images0",), "goals": ("images0",)}
    rng = np.random.default_rng(3)
    views = [{name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in spec.cameras} for _ in range(2)]
    agent = agents.make_agent("gc_bc", GC_BC, spec)
    observations = {name: x[None, None] for name, x in views[0].items()} | {"proprio": np.ones((1, 1, 4), np.float32)}
    goals = {name: x[None] for name, x in views[1].items()} | {"proprio": np.ones((1, 4), np.float32)}
    expected = jax.jit(agent.act)(params, observations, {"goals": goals})
    actions = policy.act(*views)
    np.testing.assert_allclose(
        actions, assets.action_normalizer().inverse(np.asarray(expected[0])), rtol=1e-4, atol=1e-6
    )


def test_a_policy_needs_neither_optimizer_nor_data_position(tmp_path):
    save(tmp_path / "run", "echo", {}, SPEC, steps=(3, 4))
    for item in ("train", "data"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "3" / item)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "3", tmp_path / "robot" / "3")
    assert load_policy(tmp_path / "robot" / "3").spec == SPEC
    assert load_policy(tmp_path / "run", step=3).spec == SPEC
    with pytest.raises(CheckpointError, match="has no step 5; there are 3, 4"):
        load_policy(tmp_path / "run", step=5)


GOOD = {"images0": gray(0), "proprio": np.zeros(4, np.float32)}


@pytest.mark.parametrize(
    ("observation", "goals", "message"),
    [
        ({"proprio": np.zeros(4)}, GOOD, r"observation lacks 'images0'; it holds 'proprio', and needs images0 uint8"),
        ({"images0": gray(0)}, GOOD, r"observation lacks 'proprio'.* proprio float32\[4\] in robot units"),
        (GOOD, {}, r"goals lacks 'images0'; it holds nothing, and needs images0 uint8\[height, width, 3\]$"),
        (GOOD | {"images0": np.zeros((8, 8, 3))}, GOOD, r"observation\['images0'\] is float64\[8, 8, 3\]; expected"),
        (GOOD | {"images0": gray(0)[..., :1]}, GOOD, r"is uint8\[8, 8, 1\]; expected .* three times the same"),
        (GOOD | {"images0": gray(0)[None]}, GOOD, r"observation\['images0'\] is uint8\[1, 8, 8, 3\]; expected"),
        (GOOD | {"images0": gray(0, (0, 8))}, GOOD, r"observation\['images0'\] is uint8\[0, 8, 3\]; expected"),
        (
            GOOD | {"proprio": np.zeros(3)},
            GOOD,
            r"observation\['proprio'\] is float64\[3\]; expected float32\[4\] in robot units$",
        ),
        (
            GOOD | {"proprio": [0, 0, float("nan"), 0]},
            GOOD,
            r"'proprio'\] holds a value that is not finite: \[0.0, 0.0, nan",
        ),
        (GOOD, {"images0": gray(0)[:, 0]}, r"goals\['images0'\] is uint8\[8, 3\]; expected uint8"),
    ],
)
def test_observations_that_do_not_fit(tmp_path_factory, observation, goals, message):
    policy = echo(tmp_path_factory.mktemp("echo"))
    with pytest.raises(PolicyError, match=message):
        policy.act(observation, {"goals": goals})


def test_kernels_are_held_in_fewer_bits(tmp_path):
    language, model = open_language(LanguageConfig("openvla"), ()), openvla_cases.MODEL
    kwargs = openvla_cases.agent_kwargs(model=model | {"text": model["text"] | {"vocab_size": 1000}})
    spec = dataclasses.replace(SPEC, image_size=(8, 8), instruction=language.spec)
    save(tmp_path, "openvla", kwargs, spec, language=language.to_json())
    plain, few = (load_policy(tmp_path, quantize=mode) for mode in ("", "int8"))
    kernel, held = (policy.params["llm"]["layers"]["mlp"]["up_proj"]["kernel"] for policy in (plain, few))
    np.testing.assert_allclose(held.matrix(np.float32), kernel, atol=0.01)
    assert num_bytes(few.params) < num_bytes(plain.params)
    save(tmp_path / "other", "echo", {}, SPEC)
    with pytest.raises(ConfigError, match="echo cannot be quantized to int8, which ecot, smolvla, openvla can"):
        load_policy(tmp_path / "other", quantize="int8")
