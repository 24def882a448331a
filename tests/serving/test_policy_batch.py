"""One policy for several robots."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.ecot_cases import BACKBONE, HEAD
from reasoning.text_cases import thinking_tokenizer
from serving.policies import GC_BC, Echo, gray, save
from training.positional_batches import SPEC, make_assets

from jaxvla import agents
from jaxvla.data.schema import BatchSpec
from jaxvla.data.text.tokenizer import IM_END
from jaxvla.errors import PolicyError
from jaxvla.reasoning.curriculum import Curriculum, CurriculumConfig
from jaxvla.reasoning.prompt import PromptBuilder, PromptConfig
from jaxvla.reasoning.texts import TextSpec, Wording
from jaxvla.serving.policy import Policy, load_policy


def echo(robots, obs_horizon=1, agent=Echo, rows=()):
    spec = dataclasses.replace(SPEC, obs_horizon=obs_horizon)
    assets = dataclasses.replace(make_assets(), spec=spec)
    return Policy(agent(spec), {"scale": jnp.ones(())}, assets, robots=robots, rows=rows)


def shown(value):
    return {"images0": gray(value), "proprio": np.zeros(4, np.float32)}


def seen(policy, values, robots=None, goals=None):
    """(oldest frame, newest frame, goal) that each robot sees when it is shown its value, in pixel values."""
    tasks = [{"goals": {"images0": gray(value)}} for value in goals or [0] * len(values)]
    actions = policy.act_batch([shown(value) for value in values], tasks, robots).actions_nad
    assert (actions.dtype, actions.shape) == (np.float32, (len(values), 2, 2))
    pixels = make_assets().action_normalizer().forward(actions).reshape(-1, 4)[:, :3] * 255
    return pixels.round().astype(int).tolist()


def test_every_robot_has_its_own_history_and_task():
    policy = echo(robots=3, obs_horizon=2)
    assert seen(policy, (10, 20, 30), goals=[1, 2, 3]) == [[10, 10, 1], [20, 20, 2], [30, 30, 3]]
    assert seen(policy, (40, 50), robots=[2, 0], goals=[4, 5]) == [[30, 40, 4], [10, 50, 5]]
    policy.observe_batch([shown(60)], [1])
    policy.reset([2])
    assert seen(policy, (11, 12, 13)) == [[50, 11, 0], [60, 12, 0], [13, 13, 0]]
    policy.reset()
    assert seen(policy, (14,), robots=[1]) == [[14, 14, 0]]
    policy.observe(shown(15))
    assert seen(policy, (16,), robots=[0]) == [[15, 16, 0]]


@pytest.mark.parametrize("rows", [(), (1, 2)])
def test_any_number_of_robots_is_one_computation(rows):
    traced = []

    class Counted(Echo):
        def act(self, *args):
            traced.append(len(args[1]["images0"]))
            return super().act(*args)

    policy = echo(robots=4, agent=Counted, rows=rows)
    policy.warm_up()
    for count in (4, 1, 3, 2):
        assert seen(policy, range(count)) == [[value, value, 0] for value in range(count)]
    # Once to find out what it reads, once to compile for each number of rows.
    assert traced == [1, *rows, 4]


@pytest.mark.parametrize("rows", [(0,), (5,), (1, -1)])
def test_rows_that_cannot_be(rows):
    with pytest.raises(PolicyError, match=r"a computation for 4 robots has 1 to 4 rows, not \("):
        echo(robots=4, rows=rows)


@pytest.mark.parametrize(
    ("observations", "tasks", "robots", "message"),
    [
        (2, 1, None, r"^2 observations came with 1 tasks; give one for each robot$"),
        (3, 3, None, r"robots \[0, 1, 2\], but this policy drives robots 0 to 1: .*load_policy\(folder, robots="),
        (1, 1, [-1], r"robots \[-1\], but this policy drives robots 0 to 1"),
        (2, 2, [0], r"^2 observations came for robots \[0\]; give one for each robot$"),
        (2, 2, [1, 1], r"^2 observations came for robots \[1, 1\]; give one for each robot$"),
        (0, 0, None, r"^0 observations came for robots \[\]; give one for each robot$"),
    ],
)
def test_calls_that_do_not_fit(observations, tasks, robots, message):
    policy = echo(robots=2)
    with pytest.raises(PolicyError, match=message):
        policy.act_batch([shown(0)] * observations, [{"goals": shown(0)}] * tasks, robots)


def test_a_refused_observation_is_named_and_leaves_every_history_as_it_was():
    policy = echo(robots=2, obs_horizon=2)
    seen(policy, (10, 20))
    with pytest.raises(PolicyError, match=r"^observation 1\['images0'\] is uint8\[8, 8\]; expected"):
        policy.observe_batch([shown(30), shown(0) | {"images0": gray(0)[:, :, 0]}])
    assert seen(policy, (40, 50)) == [[10, 40, 0], [20, 50, 0]]
    with pytest.raises(PolicyError, match="at least 1 robot, not 0"):
        echo(robots=0)


def ecot(temperature):
    """A policy that reasons in words, with random weights."""
    tokenizer = thinking_tokenizer()
    builder = PromptBuilder(tokenizer, PromptConfig("Act."), (1,))
    wording = Wording(builder, Curriculum(CurriculumConfig()), (TextSpec(40, 0, 8),))
    spec = BatchSpec(("images0",), (32, 32), 4, 2, action_horizon=3, text=wording.specs[0])
    kwargs = {
        "backbone": dataclasses.asdict(BACKBONE),
        "action_head": HEAD,
        "stop_token": tokenizer.id_of(IM_END),
        "pad_token": tokenizer.pad_id,
        "inference": "explicit",
        "max_new_tokens": 4,
    }
    agent = agents.make_agent("ecot", kwargs, spec)
    assets = dataclasses.replace(make_assets(), agent="ecot", spec=spec, text=wording.to_json())
    return Policy(agent, random_params(agent), assets, robots=3, temperature=temperature)


def random_params(agent):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


def random_views(count, size):
    rng = np.random.default_rng(4)
    return [{"images0": rng.integers(0, 256, (size, size, 3), dtype=np.uint8)} for _ in range(count)]


def check_independence(together, alone, observations, tasks):
    """Three robots together do and say what each does alone; returns what they said."""
    seeds = [5, 6, 7]
    together.reset(seeds=seeds)
    decided = together.act_batch(observations, tasks)
    actions = []
    for i, (observation, task) in enumerate(zip(observations, tasks)):
        alone.reset([0], seeds[i : i + 1])
        actions.append(alone.act(observation, task))
        np.testing.assert_allclose(decided.actions_nad[i], actions[i], rtol=1e-4, atol=1e-5)
        assert decided.words[i] == alone.words
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(actions, 2)) > 1e-3
    together.reset([0, 2], seeds[:0:-1])
    again = together.act_batch(observations[:0:-1], tasks[:0:-1], robots=[0, 2])
    np.testing.assert_allclose(again.actions_nad, decided.actions_nad[:0:-1], rtol=1e-4, atol=1e-5)
    assert again.words == decided.words[:0:-1]
    return decided.words


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_gc_bc_does_depends_on_no_other_robot(tmp_path, temperature):
    spec = BatchSpec(("images0",), (16, 16), proprio_dim=4, action_dim=2, obs_horizon=2, action_horizon=2)
    save(tmp_path, "gc_bc", GC_BC, spec, values=(-1, 1))
    tasks = [{"goals": view} for view in random_views(6, 16)[3:]]
    together, alone = (load_policy(tmp_path, robots=robots, temperature=temperature) for robots in (3, 1))
    words = check_independence(together, alone, random_views(3, 16), tasks)
    assert words == ("", "", "")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_reasoning_policy_does_and_says_depends_on_no_other_robot(temperature):
    tasks = [{"language": text} for text in ("put the red cube in the bowl", "go", "move the blue ball left")]
    policy = ecot(temperature)
    # One computation serves for both: rows that nobody needs are filled with the one that somebody does.
    words = check_independence(policy, policy, random_views(3, 32), tasks)
    assert len(set(words)) == 3
    assert all(words)
