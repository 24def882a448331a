import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxvla.errors import ConfigError
from jaxvla.models.vision.siglip import SiglipConfig, SiglipTower

CONFIG = SiglipConfig(8, 12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 10}, "vision.image_size 10 is not a multiple of patch_size 4"),
        ({"num_attention_heads": 3}, "vision.hidden_size 8 is not a multiple of num_attention_heads 3"),
        ({"num_hidden_layers": 0}, "vision.num_hidden_layers must be positive, not 0"),
    ],
)
def test_sizes_that_contradict_each_other(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **change)


def test_patches_of_images_of_another_size():
    tower = SiglipTower(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="are not those of images of 8 pixels, which have 4 of 48 values"):
        tower(jnp.zeros((1, 9, 48)))
