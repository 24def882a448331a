"""The method that docs/architecture.md writes down is an agent."""

import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.agents.agent import Agent
from jaxvla.data.schema import BatchSpec

TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
SPEC = BatchSpec((), (8, 8), proprio_dim=5, action_dim=3, action_horizon=2)


def test_the_method_of_the_docs_learns(monkeypatch):
    code, preset = re.findall(r"```python\n(.*?)```", TEXT.partition("### A new method")[2], re.DOTALL)
    module = types.ModuleType("state_mse")
    monkeypatch.setitem(sys.modules, "state_mse", module)  # dataclasses look their module up
    exec(code, module.__dict__)
    values = {"_base": dict}
    exec(preset, values)
    agent = module.make_state_mse(values["_state_mse"]()["agent_kwargs"], SPEC)
    assert isinstance(agent, Agent)
    params = agent.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, agent.spec.fake_batch(4, agent.batch_keys, np.random.default_rng(0)))
    (loss, metrics), gradients = jax.value_and_grad(agent.loss, has_aux=True)(params, batch, jax.random.key(1))
    assert loss == metrics["mse"] > 0
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    actions = agent.act(params, batch["observations"], {})
    expected = ((actions - batch["actions"]) ** 2).sum(-1).mean(1)
    np.testing.assert_allclose(agent.evaluate(params, batch, jax.random.key(2))["mse"], expected, rtol=1e-5)
