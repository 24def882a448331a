import pathlib

import numpy as np
import pytest
from ops import test_image_transforms as here
from parity.environment import lerobot_command

from jaxvla.ops.image_transforms import TRANSFORMS, ImageTransformsConfig

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torchvision():
    pytest.importorskip("torchvision", reason=lerobot_command(pathlib.Path(__file__).name), exc_type=ImportError)
    from parity.transforms_torch import transformed

    return transformed()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pixels(torchvision, name):
    here.assert_same(here.ours(name), torchvision[name])


def test_values_and_their_order_are_those_of_lerobot():
    why = lerobot_command(pathlib.Path(__file__).name)
    transforms = pytest.importorskip("lerobot.datasets.transforms", reason=why, exc_type=ImportError)
    theirs, config = transforms.ImageTransformsConfig(), ImageTransformsConfig()
    for key in ("enable", "max_num_transforms", "random_order"):
        assert getattr(config, key) == getattr(theirs, key)
    assert list(theirs.tfs) == list(TRANSFORMS)
    for name, transform in theirs.tfs.items():
        mine = vars(getattr(config, name)) | {}
        assert mine.pop("weight") == transform.weight
        values = {name: mine["range"]} if "range" in mine else mine
        assert {key: tuple(np.ravel(value)) for key, value in transform.kwargs.items()} == values
