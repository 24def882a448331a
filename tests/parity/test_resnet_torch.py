import pytest
from models import resnet_cases

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("resnetv1-tiny", (64, 64)),
        ("resnetv1-18-bridge", (75, 90)),
        ("resnetv1-34-bridge-film", (64, 64)),
        ("resnetv1-50-bridge-film", (64, 64)),
    ],
)
def test_maps_and_gradients(name, image_size):
    from parity.resnet_torch import torch_result

    inputs = resnet_cases.random_inputs(name, image_size)
    resnet_cases.assert_close(resnet_cases.jax_result(name, inputs), torch_result(inputs), 1e-5, 1e-4)
