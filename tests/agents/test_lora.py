"""LoRA in an agent with a backbone: what trains, what it costs, and that evaluation and serving know no dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.ecot_cases import BACKBONE, HEAD, PAD, SPEC, STOP, agent, batch, params, quick_jit
from flax import traverse_util
from jax.sharding import PartitionSpec

from jaxvla.agents import make_agent
from jaxvla.agents.backbone import merge_adapters
from jaxvla.errors import ConfigError
from jaxvla.models.qwen3_vl.config import preset
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state

KWARGS = {"backbone": dataclasses.asdict(BACKBONE), "action_head": HEAD, "stop_token": STOP, "pad_token": PAD}
LORA = {"rank": 2, "targets": "text/layers/.*(q|down)_proj/kernel", "dropout": 0.3}
KEY = jax.random.key(7)


def adapted(**changes):
    return make_agent("ecot", KWARGS | {"lora": LORA} | changes, SPEC)


@functools.cache
def adapted_params(seed=0):
    """Those of `params`, with adapters that change something."""
    shapes = jax.eval_shape(adapted().init, KEY)["backbone"]["lora"]
    rng = np.random.default_rng(seed)
    lora = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes)
    return {**params(), "backbone": {**params()["backbone"], "lora": lora}}


def test_dropout_is_drawn_in_training_alone():
    loss = quick_jit(adapted().loss)
    values = [float(loss(adapted_params(), batch(), jax.random.key(seed))[1]["lm_loss"]) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]

    evaluate = quick_jit(adapted().evaluate)
    first, second = (evaluate(adapted_params(), batch(), jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # As merged parameters do without adapters: what a checkpoint is served with.
    kwargs, merged = merge_adapters(KWARGS | {"lora": LORA}, adapted_params())
    assert kwargs == KWARGS
    assert jax.tree.structure(merged) == jax.tree.structure(params())
    plain = quick_jit(agent().evaluate)
    served = plain(merged, batch(), KEY)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), first, served)
    assert not np.allclose(served["lm_loss"], plain(params(), batch(), KEY)["lm_loss"], rtol=1e-3)


@pytest.mark.parametrize(
    ("mode", "trained"),
    [("full", {"backbone/lora", "action_head"}), ("reasoning_only", {"backbone/lora"}), ("action_only", None)],
)
def test_training_modes_train_adapters(mode, trained):
    made = adapted(training_mode=mode)
    optimizer = make_optimizer(OptimizerConfig(1e-3), made.frozen_modules)
    paths = traverse_util.flatten_dict(optimizer.split(jax.eval_shape(made.init, KEY))[0], sep="/")
    modules = {"backbone/lora" if path.startswith("backbone/lora/") else path.split("/")[0] for path in paths}
    assert modules == (trained or {"backbone/lora", "action_head"})


def test_state_of_the_2b_preset_holds_moments_of_adapters_and_head_alone():
    """By the byte; and the base in bfloat16, in shards, the layers of a stack together."""
    backbone = dataclasses.replace(preset("qwen3_vl_2b"), dtype="bfloat16")
    kwargs = KWARGS | {"backbone": dataclasses.asdict(backbone), "lora": {"rank": 16, "dropout": 0.1}}
    spec = dataclasses.replace(SPEC, image_size=(224, 224))
    made = make_agent("ecot", kwargs | {"action_head": {"size": "dit_tiny", "hidden_size": 64}}, spec)
    optimizer = make_optimizer(OptimizerConfig(1e-3, clip_norm=1.0), made.frozen_modules)
    state = abstract_state(made, optimizer, make_mesh(MeshConfig(data=1, fsdp=8)), ema=True)
    base = {name: part for name, part in state.params["backbone"].items() if name != "lora"}
    trained = {"backbone": {"lora": state.params["backbone"]["lora"]}, "action_head": state.params["action_head"]}

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    count = sum(x.size for x in jax.tree.leaves(trained))
    assert {x.dtype for x in jax.tree.leaves(base)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype(jnp.float32)}
    assert size(base) == 2 * 2_127_532_032
    assert size(state.ema) == 4 * count
    assert size(state.opt_state) == 8 * count + 8  # and two counters
    # Of 28 layers: q, k, v, o with 16 heads and 8 of keys of 128 dimensions, gate, up and down.
    assert size(trained["backbone"]) == 4 * 28 * 16 * (4 * 2048 + 2048 + 2 * 1024 + 2048 + 3 * (2048 + 6144))
    flat = traverse_util.flatten_dict(state.params["backbone"], sep="/")
    assert flat["text/layers/mlp/up_proj/kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert flat["lora/text/layers/mlp/up_proj/lora_b"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    for path, leaf in flat.items():
        assert "layers/" not in path or not leaf.sharding.spec or leaf.sharding.spec[0] is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("text/layers/nothing", "lora.targets: no parameter path matches 'text/layers/nothing'"),
        ("text/layers/.*_proj", None),
        ("text/embed_tokens", r"matches text/embed_tokens/embedding \(1008, 96\), but LoRA adapts kernels"),
        ("_layernorm", r"matches text/layers/input_layernorm/scale \(2, 96\), but LoRA adapts kernels"),
    ],
)
def test_targets_are_looked_at_when_the_agent_is_made(targets, message):
    if message is None:
        adapted(lora={"rank": 1, "targets": targets})
        return
    with pytest.raises(ConfigError, match=message):
        adapted(lora={"rank": 1, "targets": targets})


def test_an_agent_without_a_backbone_takes_no_adapters():
    with pytest.raises(ConfigError, match=r"unknown key config\.agent_kwargs\.lora"):
        make_agent("gc_bc", {"encoder": {"name": "resnetv1-tiny"}, "lora": LORA}, SPEC)
