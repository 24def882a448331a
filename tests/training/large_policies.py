"""Large policies at small sizes, no two of which are alike, traced as for a GPU."""

import jax
import train_config
from training.gpu_programs import as_if_on_a_gpu

from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.sketch import Robot, sketch

# Nothing else is a multiple of these lengths. They are themselves ones of 8, so that no product is padded for cuBLAS.
ROWS, PREFIX, SLOTS, SUFFIX, WORDS = 40, 104, 8, 264, 328
CHUNK = SUFFIX // 3  # of the logits
CONTEXT = PREFIX + SLOTS + SUFFIX
ROBOT = Robot(1, 5, (64, 64), (PREFIX, SLOTS, SUFFIX))
# Images of 4 x 14 patches; tokens of the action head, and those of all draws of noise of a sample.
GRID, PATCHES, ACTION_TOKENS, DRAWS = (4, 14), 56, 152, 8
# Of OpenVLA: one beginning, 16 patches, 64 tokens of text, 7 of actions; and 16 patches behind five tokens of DINOv2's
# own, which are odd in number and get an entry more in the kernel.
TOKENS, TOWER = 1 + 16 + 64 + 7, 16 + 5


def settings_of(preset, **changes):
    return train_config.get_config(preset).to_dict() | {"batch_size": ROWS} | changes


def ecot():
    settings = settings_of("ecot")
    settings["backbone"] |= {"preset": "tiny", "attention": "cudnn"}
    settings["data"]["image_size"] = tuple(16 * size for size in GRID)
    widths = {"size": "dit_tiny", "num_layers": 2, "hidden_size": 136, "output_dim": 120}
    future = ACTION_TOKENS - 1 - settings["data"]["action_horizon"]
    settings["agent_kwargs"] |= {"inference": "explicit", "max_new_tokens": WORDS}
    settings["agent_kwargs"]["action_head"] |= widths | {"use_state": True, "num_future_tokens": future}
    assert settings["backbone"]["dtype"] == "bfloat16"
    return sketch(settings, ROBOT)


def openvla(base):
    """Fully trained, or, with a base, by adapters on it."""
    settings = settings_of("openvla_tiny")
    settings["data"]["action_horizon"] = 1
    model = settings["agent_kwargs"]["model"]
    model |= {"dtype": "bfloat16", "attention": "cudnn", "remat": "block"}
    model["siglip"]["num_attention_heads"] = 3  # of 16 values
    if base:
        settings["agent_kwargs"]["train_what"] = "lora"
        settings["agent_kwargs"]["lora"] |= {"rank": 4, "base": base}
    return sketch(settings, ROBOT)


def step(run, devices):
    """A training step, traced."""
    mesh = make_mesh(MeshConfig(1, 1, 1), devices)
    state = run.state(mesh)
    with as_if_on_a_gpu():
        return run.step(state, mesh).trace(state, run.batch(ROWS))


def decision(run, devices):
    """A decision, traced."""
    batch = run.batch(ROWS)
    arguments = jax.eval_shape(run.agent.init, jax.random.key(0)), batch["observations"], {"text": batch["text"]}
    place = jax.sharding.SingleDeviceSharding(devices[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    with as_if_on_a_gpu():
        return jax.jit(run.agent.act).trace(*placed)
