"""A very small OpenVLA-OFT with all that it can have, for tests of it and for the comparison with torch."""

import jax
import numpy as np
from agents.openvla_cases import agent_kwargs

from jaxvla.agents import make_agent
from jaxvla.data.schema import NO_TOKEN, BatchSpec, InstructionSpec

SPEC = BatchSpec(("images0", "wrist"), (8, 8), 4, 3, action_horizon=2, instruction=InstructionSpec(5, 14))


def make(**changes):
    """The agent; FiLM is on unless `parallel` says otherwise."""
    kwargs = {"num_cameras": 2, "parallel": {"enabled": True, "film": True}} | changes
    return make_agent("openvla", agent_kwargs(**kwargs), SPEC)


def seeded_params(agent, scale=0.3):
    """Random parameters, the same in every version of numpy and of the drawing of parameters."""
    random = np.random.RandomState(0)

    def fill(path, shape):
        noise = scale * random.standard_normal(shape.shape)
        return (noise + ("scale" in jax.tree_util.keystr(path[-1:], simple=True))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(agent.init, jax.random.key(0)))


def make_batch():
    """Three samples with prompts of several lengths, the second of which ends behind its first action."""
    random = np.random.RandomState(1)
    prompts = random.randint(0, 14, (3, 5)).astype(np.int32)
    prompts[1, 2:], prompts[2] = NO_TOKEN, NO_TOKEN
    images = {name: random.randint(0, 256, (3, 1, 8, 8, 3)).astype(np.uint8) for name in SPEC.cameras}
    state = random.standard_normal((3, 1, SPEC.proprio_dim)).astype(np.float32)
    actions = np.tanh(random.standard_normal((3, 2, SPEC.action_dim))).astype(np.float32)
    return {
        "observations": {**images, "proprio": state},
        "instruction": prompts,
        "actions": actions,
        "action_pad_mask": np.array([[True, True], [True, False], [True, True]]),
    }
