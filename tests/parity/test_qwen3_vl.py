import jax.numpy as jnp
import numpy as np
import pytest
from models.qwen3_vl import cases

from jaxvla.models.qwen3_vl.config import from_hf
from jaxvla.models.qwen3_vl.positions import num_image_tokens, token_layout

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from parity import qwen3_vl_torch

    return qwen3_vl_torch


@pytest.mark.parametrize("name", cases.CASES)
def test_every_layer(reference, name):
    case, gradients = cases.CASES[name], name in cases.WITH_GRADIENTS
    found, expected = cases.jax_result(case, gradients), reference.torch_result(case, gradients)
    for key, error in cases.errors(found, expected).items():
        assert error < (1e-4 if key.startswith("gradient/") else 1e-5), f"{key} is off by {error:.1e}"


def test_greedy_generation(reference):
    np.testing.assert_array_equal(cases.jax_generate(cases.PROMPTS).tokens_bm, reference.hf_generate(cases.PROMPTS))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("seed", range(5))
def test_positions_of_random_layouts(reference, padding, seed):
    random = np.random.RandomState(seed)
    grids = tuple(map(tuple, (2 * random.randint(1, 6, (random.randint(1, 4), 2))).tolist()))
    rows = []
    for _ in range(3):
        rows.append((random.randint(5), *(part for _ in grids for part in (cases.IMAGE, random.randint(5)))))
    case = cases.Case(cases.CONFIG, grids, tuple(rows), padding)
    batch = cases.make_batch(case)
    valid = cases.valid_mask(batch)
    layout = token_layout(jnp.asarray(batch["tokens"]), jnp.asarray(valid), grids, case.config)
    positions, deltas = reference.hf_positions(reference.hf_model(case.config), reference.hf_inputs(case, batch))
    np.testing.assert_array_equal(layout.positions_3bt, positions)
    np.testing.assert_array_equal(layout.next_position_b, deltas + valid.sum(1))
    is_image = batch["tokens"] == case.config.image_token_id
    count = num_image_tokens(grids, case.config.vision)
    np.testing.assert_array_equal(np.asarray(layout.image_index_bt)[is_image].reshape(3, -1), [np.arange(count)] * 3)


def test_config_round_trip(reference):
    for case in cases.CASES.values():
        assert from_hf(reference.hf_model(case.config).config.to_dict()) == case.config
