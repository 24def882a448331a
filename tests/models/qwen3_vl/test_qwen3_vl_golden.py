"""Hidden states, logits, loss, gradients and generated tokens of transformers, from tests/parity/qwen3_vl_torch.py."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from models.qwen3_vl import cases

from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.model import Qwen3VL

GOLDEN = pathlib.Path(__file__).parent / "golden"
HIDDEN_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as values:
        return dict(values)


def errors(name, gradients=False, params=None, **changes):
    case = cases.CASES[name]
    case = dataclasses.replace(case, config=dataclasses.replace(case.config, **changes))
    return cases.errors(cases.jax_result(case, gradients, params), golden(name))


def assert_equal(found):
    for key, error in found.items():
        tolerance = GRADIENT_TOLERANCE if key.startswith("gradient/") else HIDDEN_TOLERANCE
        assert error < tolerance, f"{key} is off by {error:.1e}"


def test_layers_and_loss():
    assert_equal(errors("left_padding"))


def test_gradients_with_remat_and_chunked_attention():
    assert_equal(errors("untied", gradients=True, remat="block", attention="chunked"))


def test_layers_written_out_equal_scanned_ones():
    assert_equal(errors("left_padding", scan_layers=False))


def test_deepstack_is_needed():
    params = cases.seeded_params(cases.CASES["left_padding"].config)
    last = params["visual"]["deepstack_mergers"]["linear_fc2"]
    last |= {name: np.zeros_like(value) for name, value in last.items()}
    found = errors("left_padding", params=params)
    assert found["features"] < HIDDEN_TOLERANCE
    assert min(found["layer0"], found["hidden"], found["logits"]) > 1e-2


def test_image_positions_are_needed():
    found = errors("left_padding", position_mode="linear")
    assert found["features"] < HIDDEN_TOLERANCE
    assert min(found["layer0"], found["hidden"], found["logits"]) > 1e-2


def test_exact_gelu_is_needed(monkeypatch):
    case, expected = cases.CASES["left_padding"], golden("left_padding")
    graph, params = graph_of(lambda rngs: Qwen3VL(case.config, rngs)), cases.seeded_params(case.config)
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=True))
    encode = cases.quick_jit(lambda params, patches: bind(graph, params).encode_images(patches, case.grids))
    features, deepstack = encode(params, jnp.asarray(cases.make_batch(case)["patches"]))
    assert cases.relative(features, expected["features"]) > 10 * HIDDEN_TOLERANCE
    assert cases.relative(deepstack, expected["deepstack"]) > 10 * HIDDEN_TOLERANCE


def test_bfloat16_stays_near():
    found = errors("left_padding", dtype="bfloat16")
    assert found["loss"] < 0.02
    assert 1e-4 < found["features"] < 0.03


def test_greedy_generation():
    expected = golden("generated")["tokens"]
    found = cases.jax_generate(cases.PROMPTS)
    np.testing.assert_array_equal(found.tokens_bm, expected)
    ended = np.isin(expected, cases.STOP_TOKENS)
    assert ended.any(axis=1).sum() not in (0, len(expected)), "some prompts end early and some do not"
    np.testing.assert_array_equal(found.length_b, np.where(ended.any(1), ended.argmax(1) + 1, cases.NEW_TOKENS))
