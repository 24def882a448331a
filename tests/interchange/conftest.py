import pytest

from jaxvla.models.resnet import Architecture
from jaxvla.models.vision import frozen_resnet


@pytest.fixture(scope="package", autouse=True)
def small_resnet():
    """A ResNet-18 of a block a stage and few channels: what its 11 million parameters hold is of no interest here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(frozen_resnet.ARCHITECTURES, "resnet18", Architecture((1, 1, 1, 1), num_filters=4))
        yield
