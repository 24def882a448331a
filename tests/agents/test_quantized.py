"""Agents with kernels in fewer bits: served so, and as what adapters stand on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents import ecot_cases, openvla_cases, smolvla_cases
from agents.rl_cases import random_params
from flax import nnx, traverse_util

from jaxvla.agents import QUANTIZED, make_agent, quantized
from jaxvla.agents.backbone import merge_adapters
from jaxvla.agents.openvla_settings import LORA_TARGETS
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.errors import ConfigError
from jaxvla.models.layers import Linear
from jaxvla.models.lora import read_base
from jaxvla.models.module import bind
from jaxvla.models.partition import combine, match_paths
from jaxvla.models.quantization import MODES, is_quantized, num_bytes
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer

SPEC = BatchSpec(("images0",), (8, 8), 4, 3, action_horizon=2, instruction=InstructionSpec(5, 14))
SMOLVLA = dataclasses.replace(SPEC, image_size=(16, 16), action_horizon=4)
RNG = jax.random.key(0)
quick_jit = openvla_cases.quick_jit


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def plain(params):
    """With the kernels that quantized ones stand for."""
    return jax.tree.map(lambda x: x.matrix(x.dtype) if is_quantized(x) else x, params, is_leaf=is_quantized)


@functools.cache
def made(name, base=""):
    lora = {"rank": 2, "base": base} if base else {"rank": 0}
    if name == "openvla":
        train_what = {"train_what": "lora"} if base else {}
        kwargs = openvla_cases.agent_kwargs(lora=lora | {"targets": LORA_TARGETS}, **train_what)
        return make_agent(name, kwargs, SPEC), kwargs
    kwargs = ecot_cases.agent_kwargs() | {"lora": lora}
    return make_agent(name, kwargs, ecot_cases.SPEC), kwargs


def batch_of(name):
    if name == "ecot":
        return ecot_cases.batch()
    return SPEC.fake_batch(3, made(name)[0].batch_keys, np.random.default_rng(0))


@functools.cache
def held(name, base):
    """Random parameters of an agent with adapters, whose kernels are quantized."""
    agent = made(name, base)[0]
    shapes = jax.eval_shape(agent.init, RNG)
    params = random_params(made(name)[0])
    lora = (shapes["backbone"] if name == "ecot" else shapes)["lora"]
    rng = np.random.default_rng(3)
    lora = {"lora": jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), lora)}

    def own(tree, base_params):
        return read_base(lambda _: base_params, jax.tree.map(lambda _: jax.devices()[0], tree), agent.config.lora)

    if name == "ecot":
        return params | {"backbone": own(shapes["backbone"], params["backbone"]) | lora}
    return own(shapes, params) | lora


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("openvla", lambda: made("openvla")[0]),
        ("ecot", lambda: made("ecot")[0]),
        ("smolvla", lambda: make_agent("smolvla", smolvla_cases.agent_kwargs(), SMOLVLA)),
    ],
)
def test_what_can_be_quantized_are_linear_layers(name, agent):
    agent = agent()
    params = jax.eval_shape(agent.init, RNG)
    graphs = {"backbone/": agent.backbone} if name == "ecot" else {"": agent.graphdef}
    linear = set()
    for prefix, graph in graphs.items():
        model = bind(graph, params["backbone"] if prefix else params)
        layers = {path for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
        linear |= {prefix + "/".join([*map(str, path), "kernel"]) for path in layers}
    assert set(match_paths(params, QUANTIZED[name])) <= linear
    assert set(QUANTIZED) == {"openvla", "ecot", "smolvla"}
    few = jax.eval_shape(lambda params: quantized(name, params, "int4"), params)
    rng = np.random.default_rng(0)
    batch = ecot_cases.batch() if name == "ecot" else agent.spec.fake_batch(2, agent.batch_keys, rng)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    actions = jax.eval_shape(agent.act, few, batch["observations"], batch)
    assert actions.shape[1:] == (agent.spec.action_horizon, agent.spec.action_dim)


@pytest.mark.parametrize(("name", "base"), [("openvla", "int8"), ("openvla", "int4"), ("ecot", "int4")])
def test_adapters_on_a_quantized_base_train_as_on_what_it_stands_for(name, base):
    """Loss and gradients, through latent thinking's own backward pass too; and the base has none."""
    agent, params, batch = made(name, base)[0], held(name, base), batch_of(name)
    assert sum(map(is_quantized, flatten(params).values())) > 5
    optimizer = make_optimizer(OptimizerConfig(1e-3), agent.frozen_modules)

    def differentiate(params):
        run = jax.value_and_grad(lambda part, frozen, batch: agent.loss(combine(part, frozen), batch, RNG)[0])
        return quick_jit(run)(*optimizer.split(params), batch)

    (loss, grads), (expected, expected_grads) = differentiate(params), differentiate(plain(params))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not any("kernel" in path for path in flatten(grads) if "action_head" not in path)
    largest = max(float(abs(grad).max()) for grad in flatten(expected_grads).values())
    for path, grad in flatten(grads).items():
        np.testing.assert_allclose(grad, flatten(expected_grads)[path], rtol=1e-3, atol=1e-5 * largest, err_msg=path)


def test_merged_it_is_plain_and_acts_alike():
    params, batch = held("openvla", "int4"), batch_of("openvla")
    kwargs, merged = merge_adapters(made("openvla", "int4")[1], params)
    assert "lora" not in kwargs
    assert not any(map(is_quantized, flatten(merged).values()))
    served = make_agent("openvla", kwargs | {"train_what": "full"}, SPEC)
    actions = [
        quick_jit(agent.act)(tree, batch["observations"], batch)
        for agent, tree in ((made("openvla", "int4")[0], params), (served, merged))
    ]
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("mode", MODES)
def test_served_in_fewer_bits(mode):
    """It acts as what the integers stand for, and holds less."""
    agent, batch, params = made("openvla")[0], batch_of("openvla"), random_params(made("openvla")[0])
    few = quantized("openvla", params, mode)
    act = quick_jit(agent.act)
    actions = [act(tree, batch["observations"], batch) for tree in (few, plain(few))]
    np.testing.assert_array_equal(*actions)
    kernels = {path: leaf for path, leaf in flatten(few).items() if is_quantized(leaf)}
    assert set(kernels) == {path for path in flatten(params) if path.endswith("/kernel") and "lm_head" not in path}
    assert num_bytes(few) < num_bytes(params)
    assert quantized("openvla", params, "") is params


def test_what_cannot_be_quantized():
    with pytest.raises(ConfigError, match="gc_bc cannot be quantized to int8, which ecot, smolvla, openvla can"):
        quantized("gc_bc", {}, "int8")
    with pytest.raises(ConfigError, match=r"lora\.base must be empty or one of int8, int4, not 'nf4'"):
        make_agent("openvla", openvla_cases.agent_kwargs(train_what="lora", lora={"rank": 2, "base": "nf4"}), SPEC)
    with pytest.raises(ConfigError, match=r"lora\.base 'int8' holds adapted kernels, and there are none"):
        make_agent("openvla", openvla_cases.agent_kwargs(lora={"base": "int8"}), SPEC)
