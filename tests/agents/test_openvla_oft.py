"""OpenVLA-OFT, whole chunks in one pass, against the published flow from tests/parity/openvla_oft_torch.py."""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
import pytest
from agents import openvla_oft_cases
from agents.openvla_cases import LORA, WHAT, agent_kwargs, check_frozen, flatten, quick_jit
from agents.openvla_oft_cases import SPEC
from models.prismatic.cases import relative

from jaxvla.agents import make_agent
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.errors import ConfigError
from jaxvla.models.prismatic.config import HeadConfig, preset
from jaxvla.models.prismatic.weight_table import component_tables, param_shapes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "openvla_oft.npz"
RNG = jax.random.key(0)


@functools.cache
def make():
    return openvla_oft_cases.make()


@functools.cache
def result_of(agent):
    """Of seeded parameters "actions", "loss", and a "gradient/PATH" of each parameter."""
    params, batch = openvla_oft_cases.seeded_params(agent), openvla_oft_cases.make_batch()

    def run(params, batch):
        (loss, metrics), gradients = jax.value_and_grad(agent.loss, has_aux=True)(params, batch, RNG)
        actions = agent.act(params, batch["observations"], batch)
        evaluated = agent.evaluate(params, batch, RNG)
        return {"actions": actions, "loss": loss, "metrics": metrics, "evaluated": evaluated}, gradients

    result, gradients = jax.tree.map(np.asarray, quick_jit(run)(params, batch))
    return result | {f"gradient/{path}": value for path, value in flatten(gradients).items()}


def check_against(expected, found):
    """Of what "loss" differs by 1e-5, a gradient by 1e-4, and both have the same parameters."""
    assert {key for key in found if key not in ("metrics", "evaluated")} == set(expected)
    for key, value in expected.items():
        error = relative(found[key], value)
        assert error < (1e-4 if key.startswith("gradient/") else 1e-5), f"{key} is off by {error:.1e}"
        assert np.any(value) or not np.any(found[key]), f"{key} has a gradient"


def test_actions_loss_and_every_gradient():
    with np.load(GOLDEN) as golden:
        expected = dict(golden)
    check_against(expected, result_of(make()))
    silent = {path for path, value in expected.items() if not np.any(value)}
    paths = flatten(jax.eval_shape(make().init, RNG))
    assert silent == {f"gradient/{path}" for path in paths if path.startswith(make().frozen_modules)}


@pytest.mark.parametrize("what", WHAT)
def test_what_is_frozen_stays_bit_for_bit(what):
    """What is added trains in every mode; the output head, which computes nothing, in none."""
    lora = LORA | {"targets": LORA["targets"].replace("unread/", "unread/|lm_head/")}
    agent = openvla_oft_cases.make(train_what=what, **({"lora": lora} if what == "lora" else {}))
    modules = WHAT[what] - {"llm", "llm/lm_head"} | {"film", "action_head", "proprio_projector"}
    modules |= {"llm/embed_tokens", "llm/layers", "llm/norm"} if "llm" in WHAT[what] else set()
    check_frozen(agent, openvla_oft_cases.make_batch(), modules)


def test_metrics_and_validation_count_what_lies_within_the_episode():
    result, batch = result_of(make()), openvla_oft_cases.make_batch()
    errors = np.abs(result["actions"] - batch["actions"])
    shown = batch["action_pad_mask"]
    assert result["actions"].shape == (3, SPEC.action_horizon, SPEC.action_dim)
    found = [result["metrics"][name] for name in ("l1_loss", "first_l1")]
    np.testing.assert_allclose(found, [errors[shown].mean(), errors[:, 0].mean()], rtol=1e-6)
    evaluated = result["evaluated"]
    assert set(evaluated) == {"mse", "l1_loss"}
    rows = [errors[i][shown[i]] for i in range(3)]
    np.testing.assert_allclose(evaluated["l1_loss"], [row.mean() for row in rows], rtol=1e-6)
    np.testing.assert_allclose(evaluated["mse"], [(row**2).sum(-1).mean() for row in rows], rtol=1e-5)


def test_there_is_nothing_to_draw():
    agent, batch = make(), openvla_oft_cases.make_batch()
    params = openvla_oft_cases.seeded_params(agent)
    draw = quick_jit(functools.partial(agent.act, temperature=3.0))
    found = [draw(params, batch["observations"], batch, key) for key in (RNG, jax.random.key(1))]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("spec", "parallel", "expected"),
    [
        (BatchSpec(("a", "b"), (224, 224), 8, 7, 1, 8, instruction=InstructionSpec(64, 32001)), {}, 278_764_295),
        (
            BatchSpec(("a", "b", "c"), (224, 224), 14, 14, 1, 25, instruction=InstructionSpec(64, 32001)),
            {"film": True},
            852_557_326,
        ),
    ],
)
def test_trained_parameters_are_as_many_as_published(spec, parallel, expected):
    """Of LIBERO, and of ALOHA with FiLM: adapters, head, state, and FiLM; also of blocks that compute nothing."""
    model = dataclasses.asdict(preset("openvla_7b"))
    for name in ("last_layer_apart", "head", "film"):
        del model[name]
    kwargs = {"model": model | {"dtype": "bfloat16"}, "num_cameras": len(spec.cameras)}
    agent = make_agent("openvla", kwargs | {"parallel": {"enabled": True} | parallel}, spec)
    shapes = flatten(jax.eval_shape(agent.init, RNG))
    added = {path: leaf for path, leaf in shapes.items() if path.split("/")[0] not in ("vision", "projector", "llm")}
    assert sum(math.prod(leaf.shape) for leaf in added.values()) + 110_828_288 == expected
    drawn = {path: leaf.shape for path, leaf in shapes.items()}
    stated = flatten(param_shapes(agent.config.model))
    assert drawn == {path: leaf.shape for path, leaf in stated.items()}


def test_the_files_beside_the_folder_have_the_published_names_and_shapes():
    config = dataclasses.replace(preset("openvla_7b"), head=HeadConfig(7, 8), film=True)
    tables = component_tables(config)
    names = {
        file: {name: weight.hf_shape for weight in table for name in weight.hf_names} for file, table in tables.items()
    }
    wide = 7 * 4096
    expected = {
        "layer_norm1": (wide,),
        "fc1": (4096, wide),
        **{f"mlp_resnet_blocks.{i}.ffn.{j}": (4096,) * (1 + j) for i in (0, 1) for j in (0, 1)},
        "layer_norm2": (4096,),
        "fc2": (7, 4096),
    }
    assert names["action_head"] == {
        f"model.{layer}.{part}": shape if part == "weight" else shape[:1]
        for layer, shape in expected.items()
        for part in ("weight", "bias")
    }
    assert names["proprio_projector"] == {
        "fc1.weight": (4096, 8),
        "fc1.bias": (4096,),
        "fc2.weight": (4096, 4096),
        "fc2.bias": (4096,),
    }
    film = {name: shape for name, shape in names["vision_backbone"].items() if ".scale." in name or ".shift." in name}
    assert (len(film), sum(map(math.prod, film.values()))) == (204, 456_241_920)
    # With the 422 tensors of adapters that are not merged there it is 1,311.
    assert len(names["vision_backbone"]) + 2 * (4 * 24 + 1 + 4 * 27 + 1 + 5) == 1311
    assert film["vision_backbone.fused_featurizer.blocks.26.scale.weight"] == (1152, 4096)
    assert names["vision_backbone"]["vision_backbone.featurizer.blocks.0.block.attn.qkv.weight"] == (3072, 1024)
    assert names["vision_backbone"]["vision_backbone.featurizer.norm.weight"] == (1024,)


def test_bad_settings():
    without = dataclasses.replace(SPEC, proprio_dim=0)
    parallel = {"enabled": True}
    for spec, changes, words in (
        (without, {"parallel": parallel}, "parallel.proprio reads the robot's state, and the data has none: set it to"),
        (SPEC, {"parallel": parallel, "num_cameras": 3}, "num_cameras is 3, and the data has images0, wrist: name"),
        (SPEC, {"model": agent_kwargs()["model"] | {"film": True}}, "parallel decides on model.head and model.film"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_agent("openvla", agent_kwargs(**({"num_cameras": 2} | changes)), spec)
    make_agent("openvla", agent_kwargs(num_cameras=2, parallel=parallel | {"proprio": False}), without)
