"""Policies in the simulator of a benchmark: upside-down pictures, the middle of them, grippers that know two ends."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from serving.policies import Echo, make
from training.positional_batches import SPEC

from jaxvla import agents
from jaxvla.assets import Assets
from jaxvla.contract import CONVENTIONS
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.images import middle
from jaxvla.errors import ConfigError
from jaxvla.serving.policy import Policy
from jaxvla.serving.simulator import simulator_of

OF_LIBERO = {
    "data_config": {"data_path": "data", "standardization": "libero_goal_no_noops"},
    "train_config": {"augment": {"order": ["random_resized_crop", "hue"]}},
    "actions": ActionConvention(gripper=(1,), open=1.0, closed=0.0),
}


@dataclasses.dataclass(frozen=True)
class Corner(Echo):
    """Says how red the first pixel is, and half of it as a gripper."""

    batch_keys: tuple[str, ...] = ("observations", "actions")

    def act(self, params, observations, task, rng=None, temperature=1.0):
        red = observations["images0"][:, -1, 0, 0, 0] / 255 * params["scale"]
        action = jnp.stack([red, red], -1)
        return jnp.stack([action, action / 2], 1)


def assets_of(monkeypatch, **changes):
    monkeypatch.setitem(agents.agents, "corner", lambda kwargs, spec: Corner(spec))
    own = OF_LIBERO | {"action_normalization": "none", "proprio_normalization": "none"}
    return make("corner", {}, SPEC, (1.0, 1.0), **(own | changes))


def test_the_published_values():
    """Suite by suite: steps, tasks; and what they have in common."""
    steps = {name.split("_")[1]: (c.max_steps, c.tasks) for name, c in CONVENTIONS.items()}
    assert steps == {"spatial": (220, 10), "object": (280, 10), "goal": (300, 10), "10": (520, 10), "90": (400, 90)}
    for found in CONVENTIONS.values():
        assert (found.wait_steps, found.wait_action, found.episodes, found.seed) == (10, (0,) * 6 + (-1,), 50, 7)
        # 2 g - 1, its sign, negated: what is open at 1 and closed at 0 is open at -1 and closed at 1.
        assert (found.gripper, found.crop, found.upside_down) == ((1, -1), 0.9, True)


def test_a_contract_holds_those_of_the_data(monkeypatch):
    _, assets = assets_of(monkeypatch)
    contract = Assets.from_json(json.loads(json.dumps(assets.to_json()))).contract()
    assert contract.conventions == CONVENTIONS["libero_goal_no_noops"]
    assert json.loads(json.dumps(contract.to_json()))["conventions"]["max_steps"] == 300
    assert str(contract.conventions) == (
        "libero_goal: 50 episodes of 10 tasks, at most 300 steps after 10 of waiting, pictures turned by 180 degrees, "
        "middle 90% of their area, gripper 1 closed, -1 open"
    )
    _, assets = assets_of(monkeypatch, train_config={"augment": {"order": ["hue"]}})
    assert assets.contract().conventions.crop == 1
    data = {"datasets": {"a": {"standardization": "libero_10_no_noops"}}, "data_path": "data"}
    _, assets = assets_of(monkeypatch, data_config=data)
    assert assets.contract().conventions.benchmark == "libero_10"


def test_a_policy_plays_in_the_simulator_as_it_learned_from_the_data(monkeypatch):
    params, assets = assets_of(monkeypatch)
    policies = [Policy(Corner(SPEC), params, assets, simulator=simulator) for simulator in (False, True)]
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4, 0], pixels[4:, 4:, 0] = 204, 51
    data, simulator = (policy.act({"images0": pixels}, {}) for policy in policies)
    np.testing.assert_allclose(data, [[0.8, 0.8], [0.4, 0.4]], atol=1e-6)
    # The lower right corner is what the data has at the upper left; 0.2 and 0.1 are closed.
    np.testing.assert_allclose(simulator, [[0.2, 1.0], [0.1, 1.0]], atol=1e-6)
    (simulator,) = (policy.act({"images0": pixels[::-1, ::-1]}, {}) for policy in policies[1:])
    np.testing.assert_allclose(simulator, [[0.8, -1.0], [0.4, 1.0]], atol=1e-6)
    ends = [(p.action_convention.closed, p.action_convention.open, p.contract.actions.open) for p in policies]
    assert ends == [(0, 1, 1), (1, -1, -1)]


def test_the_middle_of_a_picture_is_enlarged_linearly():
    """By hand, pixel by pixel: corners on corners of a box whose sides are the root of the area."""
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    side, found = np.sqrt(0.9), middle(image[None], 0.9)[0]
    for row in range(6):
        for column in range(6):
            y, x = (((1 - side) / 2 + side * i / 5) * 5 for i in (row, column))
            top, left = int(y), int(x)
            near = image[top : top + 2, left : left + 2].astype(float)
            weights = np.outer([1 - (y - top), y - top], [1 - (x - left), x - left])
            expected = min(int((near * weights[..., None]).sum((0, 1))[0] / 255 * 255.5), 255)
            assert abs(int(found[row, column, 0]) - expected) <= 1
    white = np.full((1, 5, 5, 3), 255, np.uint8)
    np.testing.assert_array_equal(middle(white, 0.9), white)
    assert found.dtype == np.uint8


def test_where_there_is_no_simulator(monkeypatch):
    _, plain = assets_of(monkeypatch, data_config={"data_path": "data"})
    with pytest.raises(ConfigError, match="was not trained on the data of a benchmark whose conventions are known"):
        simulator_of(plain.contract())
    _, unsaid = assets_of(monkeypatch, actions=None)
    with pytest.raises(ConfigError, match="does not say which of its actions is a gripper: leave simulator out"):
        simulator_of(unsaid.contract())
