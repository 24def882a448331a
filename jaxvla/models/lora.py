"""Low-rank adapters (Hu et al., 2021) on any kernels of a frozen model: kernel + alpha / rank * a @ b.

    lora = init_lora(rng, base, config)               what trains; all else stays frozen
    model = bind(graphdef, adapt(base, lora, config)) inside the step; no model knows of adapters
    params = merge(base, lora, config)                plain parameters, to serve or export

`bind` adds an adapter to its kernel where the kernel is about to be used, so kernels of a scanned stack are merged one
layer at a time: neither the merged stack nor its gradient is ever whole in memory when blocks are rematerialised. The
products of matrices cost what full training costs; what LoRA saves is gradients and optimizer state.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key

from jaxvla.errors import ConfigError
from jaxvla.models.adapter import AdaptedKernel, merge_adapters
from jaxvla.models.module import Params
from jaxvla.models.partition import match_paths


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how.

    Attributes:
        targets: regex searched in parameter paths, such as "text/layers/self_attn/(q|v)_proj/kernel".
        rank: of every adapter.
        alpha: the product of an adapter is scaled by alpha / rank.

    Raises:
        ConfigError: a rank below 1.
    """

    targets: str
    rank: int = 16
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"the rank of LoRA must be at least 1, not {self.rank}")

    @property
    def scale(self) -> float:
        """What the product of an adapter is multiplied with."""
        return self.alpha / self.rank


def init_lora(rng: Key[Array, ""], params: Params, config: LoraConfig) -> Params:
    """The adapters of the kernels that `config.targets` names. They change nothing yet: a is uniform in
    +-1 / sqrt(in), as in the reference implementation, b is zero.

    Args:
        rng: draws a.
        params: of the model, or their shapes (`jax.eval_shape`).
        config: which kernels, and the rank.

    Returns:
        float32 "lora_a" [in, rank] and "lora_b" [rank, out] beside the place of every kernel, with the leading layer
        axis of stacked ones: {"text": {"layers": {"self_attn": {"q_proj": {"lora_a": ..., "lora_b": ...}}}}}.

    Raises:
        ConfigError: the regex matches nothing, or a parameter that is no kernel of a linear layer.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    adapters = {}
    paths = match_paths(params, config.targets)
    for path, key in zip(paths, jax.random.split(rng, len(paths))):
        shape = flat[path].shape
        module, _, name = path.rpartition("/")
        if name != "kernel" or len(shape) not in (2, 3):
            raise ConfigError(
                f"LoRA adapts kernels [in, out] or [layers, in, out], but {config.targets!r} matches {path} {shape}"
            )
        *layers, in_dim, out_dim = shape
        bound = 1 / math.sqrt(in_dim)
        adapters[f"{module}/lora_a"] = jax.random.uniform(
            key, (*layers, in_dim, config.rank), minval=-bound, maxval=bound
        )
        adapters[f"{module}/lora_b"] = jnp.zeros((*layers, config.rank, out_dim))
    return traverse_util.unflatten_dict(adapters, sep="/")


def adapt(base: Params, lora: Params, config: LoraConfig) -> Params:
    """Parameters for `bind`: the tree `base` with an `AdaptedKernel` at every kernel that has an adapter in `lora`.

    Raises:
        ConfigError: an adapter without a kernel of its shape.
    """
    flat = traverse_util.flatten_dict(base, sep="/")
    adapters = traverse_util.flatten_dict(lora, sep="/")
    for module in sorted({path.rpartition("/")[0] for path in adapters}):
        kernel = flat.get(f"{module}/kernel")
        a, b = adapters[f"{module}/lora_a"], adapters[f"{module}/lora_b"]
        if kernel is None or kernel.shape != (*a.shape[:-1], b.shape[-1]):
            found = "there is none" if kernel is None else f"the kernel is {kernel.shape}"
            raise ConfigError(f"the adapter of {module} is for {(*a.shape[:-1], b.shape[-1])}, but {found}")
        flat[f"{module}/kernel"] = AdaptedKernel(kernel, a, b, config.scale)
    return traverse_util.unflatten_dict(flat, sep="/")


def merge(base: Params, lora: Params, config: LoraConfig) -> Params:
    """Plain parameters of the adapted model, in the dtypes of `base`, for serving and export.

    Raises:
        ConfigError: an adapter without a kernel of its shape.
    """
    merged = merge_adapters(adapt(base, lora, config), stacks=True)
    return jax.tree.map(lambda old, new: new.astype(old.dtype), base, merged)
