import collections

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from models.prismatic import cases
from models.qwen3_vl import hf_files
from models.torch_files import prismatic
from parity.test_vision import TIMM

from jaxvla.errors import WeightsError
from jaxvla.models.prismatic.weights import load_hf, save_hf

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


def test_the_checkpoint_that_torch_writes(tmp_path):
    """Of the published layout, with parameters and buffers, an optimizer's state beside them; and one that is code."""
    torch = pytest.importorskip("torch", reason="needs torch: run `make parity`")
    config = cases.CONFIGS["fused"]
    params = cases.seeded_params(config)
    save_hf(params, config, tmp_path / "folder")
    tensors = hf_files.read_files(tmp_path / "folder")
    groups = prismatic(lambda array: torch.nn.Parameter(torch.tensor(array, dtype=torch.bfloat16)), tensors, 2)
    groups["model"] = {name: collections.OrderedDict(group) for name, group in groups["model"].items()}
    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(linear.parameters(), foreach=False)
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(groups | {"optimizer": optimizer.state_dict(), "other": linear.state_dict()}, tmp_path / "a.pt")
    found = traverse_util.flatten_dict(load_hf(tmp_path / "a.pt", config, dtype=ml_dtypes.bfloat16), sep="/")
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(found[path], leaf.astype(ml_dtypes.bfloat16), path)
    torch.save(groups | {"module": linear}, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"its pickle names torch\.nn\.modules\.linear\.Linear"):
        load_hf(tmp_path / "b.pt", config)
    transposed = torch.tensor(tensors["language_model.lm_head.weight"]).T.contiguous().T
    torch.save({"model": {"x": transposed}}, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=r"holds model\.x as a view with strides"):
        load_hf(tmp_path / "c.pt", config)
