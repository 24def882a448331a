"""Policies that were trained on several datasets drive the robot of one of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from serving.policies import Echo, gray, save
from serving.two_datasets import assets

from jaxvla import agents
from jaxvla.errors import ConfigError, PolicyError
from jaxvla.serving.policy import load_policy


@dataclasses.dataclass(frozen=True)
class Shows(Echo):
    """Says what it saw: the first action is (first state, whether there is a second dimension of actions), the second
    (last state, wrist camera)."""

    batch_keys: tuple[str, ...] = ("observations", "actions", "action_dim_mask")

    def act(self, params, observations, task, rng=None, temperature=1.0):
        states, wrist = observations["proprio"][:, -1], observations["wrist"][:, -1].mean((1, 2, 3)) / 255
        numbers = jnp.stack([states[:, 0], task["action_dim_mask"][:, 1], states[:, 3], wrist], axis=-1)
        return numbers.reshape(-1, 2, 2) * params["scale"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(agents.agents, "shows", lambda kwargs, spec: Shows(spec))
    both = assets()
    own = ("statistics", "datasets", "data_config")
    save(tmp_path, "shows", {}, both.spec, values=(1, 1), **{name: getattr(both, name) for name in own})
    return tmp_path


def test_it_acts_in_the_units_of_the_dataset(run):
    """Mean and deviation are 1, 2 and 2, 2 of the arm's actions, 9 and 2 of the base's; of states likewise."""
    arm = load_policy(run, dataset="arm")
    assert (arm.spec.action_dim, arm.spec.proprio_dim, arm.spec.cameras) == (2, 4, ("images0",))
    assert arm.needed["observation"] == ("proprio",)
    acted = arm.act({"proprio": np.array([3.0, 0, 0, 8.0])}, {})
    np.testing.assert_allclose(acted, [[1 + 2 * 1, 2 + 2 * 1], [1 + 2 * 2, 2 + 2 * 0]], rtol=1e-6)
    base = load_policy(run, dataset="base")
    assert set(base.needed["observation"]) == {"proprio", "wrist"}
    acted = base.act({"proprio": np.array([7.0, 0, 0]), "wrist": gray(51)}, {})
    np.testing.assert_allclose(acted, [[9 + 2 * -1], [9 + 2 * 0]], rtol=1e-6)
    assert base.contract.control_frequency == 10
    with pytest.raises(PolicyError, match=r"float64\[4\]; expected float32\[3\] in robot units"):
        base.act({"proprio": np.zeros(4), "wrist": gray(51)}, {})


@dataclasses.dataclass(frozen=True)
class ShowsMask(Echo):
    """Says which cameras it is told there are, in both actions: first the last frame's, then the goal's."""

    def act(self, params, observations, task, rng=None, temperature=1.0):
        masks = observations["camera_mask"][:, -1], task["goals"]["camera_mask"]
        return jnp.stack(masks, axis=1) * params["scale"]


def test_cameras_that_its_dataset_lacks_are_masked(tmp_path, monkeypatch):
    monkeypatch.setitem(agents.agents, "shows_mask", lambda kwargs, spec: ShowsMask(spec))
    both = assets()
    spec = dataclasses.replace(both.spec, several_camera_sets=True, several_action_dims=False)
    own = {"statistics": None, "datasets": {"arm": both.datasets["arm"]}, "data_config": both.data_config}
    save(tmp_path, "shows_mask", {}, spec, values=(1, 1), **own)
    arm = load_policy(tmp_path, dataset="arm")
    assert (arm.needed, arm.warm_up() > 0) == ({"observation": (), "goals": ()}, True)
    acted = arm.act({}, {"goals": {}})
    np.testing.assert_allclose(acted, [[1 + 2 * 1, 2 + 2 * 0]] * 2, rtol=1e-6)


def test_the_dataset_must_be_known(run):
    with pytest.raises(ConfigError, match=r"of 2 datasets .*; there are: arm, base$"):
        load_policy(run)
    with pytest.raises(ConfigError, match=r"no dataset 'leg'; there are: arm, base$"):
        load_policy(run, dataset="leg")
