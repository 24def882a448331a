"""What the comparisons of vision towers with timm and transformers share: small towers, random inputs, our results.

A result holds "patches" and, for DINOv2, "prefix"; "pixels", the gradient by the image of a weighted sum of them; and
one "gradient/PATH" for each parameter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvla.models.module import bind, graph_of
from jaxvla.models.vision import dinov2_weights, timm
from jaxvla.models.vision.dinov2 import Dinov2Config, Dinov2Tower
from jaxvla.models.vision.siglip import SiglipConfig, SiglipTower
from jaxvla.models.weights import Weight, expand
from jaxvla.ops.patches import cut_patches

_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 21, "patch_size": 7}


@dataclasses.dataclass(frozen=True)
class Case:
    """A tower, and whose names its tensors have: those of "timm" or of "transformers"."""

    config: Dinov2Config | SiglipConfig
    names: str

    @property
    def table(self) -> tuple[Weight, ...]:
        if isinstance(self.config, Dinov2Config):
            return dinov2_weights.weight_table(self.config, self.names)
        rows = timm.tower_rows("", "", self.config)
        return expand(rows, timm.tower_sizes(self.config), timm.tower_layers("", self.config))


_DINO = Dinov2Config(16, 64, **_SIZES)
CASES = {
    "timm_registers": Case(
        dataclasses.replace(_DINO, num_register_tokens=4, class_position=False, read_layers=2), "timm"
    ),
    "timm_classic": Case(_DINO, "timm"),
    "transformers_registers": Case(dataclasses.replace(_DINO, num_register_tokens=4), "transformers"),
    "transformers_classic": Case(_DINO, "transformers"),
    "timm_siglip": Case(
        SiglipConfig(16, 60, **_SIZES, read_layers=2, exact_gelu=True, joint_qkv=True, attention_pool=True), "timm"
    ),
}


def make(config, **options):
    """For `graph_of` and `init_params`."""
    tower = Dinov2Tower if isinstance(config, Dinov2Config) else SiglipTower
    return lambda rngs: tower(config, dtype=jnp.float32, rngs=rngs, **options)


def seeded_params(case):
    """Random parameters; the same in every version of numpy."""
    random = np.random.RandomState(0)
    flat = {}
    for weight in case.table:
        noise = 0.3 * random.standard_normal(weight.shape)
        flat[weight.path] = (noise + ("scale" in weight.path.split("/")[-1])).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def inputs(case):
    """Two images [b, h, w, 3], and what the features are multiplied by."""
    random, config = np.random.RandomState(1), case.config
    images = random.standard_normal((2, config.image_size, config.image_size, 3)).astype(np.float32)
    prefix = config.num_prefix if isinstance(config, Dinov2Config) else 0
    weights = random.standard_normal((2, prefix + config.num_patches, config.hidden_size)).astype(np.float32)
    return images, weights


def jax_result(case, **options):
    """Features and gradients of a tower with `seeded_params`."""
    graphdef = graph_of(make(case.config, **options))
    images, weights = inputs(case)

    def loss(params, images):
        features = bind(graphdef, params)(cut_patches(images, case.config.patch_size))
        result = {"patches": features}
        if isinstance(case.config, Dinov2Config):
            result = {"prefix": features.prefix_bkd, "patches": features.patches_bpd}
        return (jnp.concatenate(list(result.values()), axis=1) * weights).sum(), result

    (params, pixels), result = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(seeded_params(case), images)
    flat = traverse_util.flatten_dict(params, sep="/")
    result |= {"pixels": pixels} | {f"gradient/{path}": leaf for path, leaf in flat.items()}
    return {name: np.asarray(value) for name, value in result.items()}


def errors(result, expected):
    """The largest difference of each expected array, relative to its largest entry."""
    found = {}
    for name, value in expected.items():
        assert result[name].shape == value.shape, name
        scale = np.abs(value).max()
        found[name] = float(np.abs(result[name] - value).max() / max(scale, 1e-30))
        if not scale:
            assert not result[name].any(), f"{name} has a gradient"
    return found
