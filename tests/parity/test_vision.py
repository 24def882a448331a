import jax.numpy as jnp
import numpy as np
import pytest
from models.vision import tower_cases

from jaxvla.models.vision.dinov2_weights import resize_positions

pytestmark = pytest.mark.parity

TIMM = "needs timm, which `make parity` installs"


@pytest.mark.parametrize("name", tower_cases.CASES)
def test_features_and_every_gradient(name):
    case = tower_cases.CASES[name]
    if case.names == "timm":
        pytest.importorskip("timm", reason=TIMM)
    from parity.vision_torch import torch_result

    found, expected = tower_cases.jax_result(case), torch_result(case)
    assert found.keys() == expected.keys()
    for key, error in tower_cases.errors(found, expected).items():
        assert error < (1e-4 if key.startswith("gradient/") else 1e-5), f"{key} is off by {error:.1e}"


@pytest.mark.parametrize("name", ["timm_registers", "timm_classic", "transformers_registers"])
@pytest.mark.parametrize("side", [2, 5])
def test_positions_of_other_sizes(name, side):
    case = tower_cases.CASES[name]
    if case.names == "timm":
        pytest.importorskip("timm", reason=TIMM)
    from parity.vision_torch import torch_positions

    table = tower_cases.seeded_params(case)["position_embedding"]["embedding"]
    found = resize_positions(jnp.asarray(table), side, int(case.config.class_position))
    np.testing.assert_allclose(found, torch_positions(case, side), atol=2e-6)
