import numpy as np
import pytest
from models.prismatic import cases
from parity.test_vision import TIMM

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_features_logits_loss_and_every_gradient(name):
    pytest.importorskip("timm", reason=TIMM)
    from parity.prismatic_torch import torch_result

    found, expected = cases.jax_result(cases.CONFIGS[name], gradients=True), torch_result(cases.CONFIGS[name])
    del expected["tokens"]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        error = cases.relative(found[key], value)
        assert error < (1e-4 if key.startswith("gradient/") else 2e-5), f"{key} is off by {error:.1e}"
        assert np.any(value) or not np.any(found[key]), f"{key} has a gradient"
