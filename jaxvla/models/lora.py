"""Low-rank adapters (Hu et al., 2021) on kernels of a frozen model: x kernel + alpha / rank * (x a) b.

    params = add_lora(rng, params, config)      {"text": ..., "visual": ..., "lora": {"text": ...}}; "lora" trains
    model = bind(graphdef, adapt(params, config, rng))      inside the step
    params = merge(params, config)              plain parameters, to serve or export

`adapt` puts every adapter beside its kernel, so that a scan over layers slices both, and linear layers apply the two
factors one after the other: neither a merged kernel nor the gradient of one is ever computed. What LoRA saves is
gradients, optimizer state and, since the frozen kernels need no precision for small updates, their width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key

from jaxvla.errors import ConfigError
from jaxvla.models.adapter import AdaptedKernel
from jaxvla.models.module import Params
from jaxvla.models.partition import match_paths
from jaxvla.models.quantization import check_mode, is_quantized, quantize

# The module of a model's parameters that holds its adapters.
LORA = "lora"
# All linear layers of Qwen3-VL's text decoder.
PROJECTIONS = r"^text/layers/(self_attn|mlp)/\w+_proj/kernel$"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how; the keys of `lora` in the settings of a backbone or an agent.

    Attributes:
        rank: of every adapter; 0 for none.
        alpha: the product of an adapter is scaled by alpha / rank.
        targets: regex searched in the paths of the model's parameters, such as "self_attn/(q|v)_proj/kernel$".
        dropout: of what adapters are fed, in training.
        base: how adapted kernels are held: as other frozen parameters are where it is empty; or quantized, one of
            `jaxvla.models.quantization.MODES`, as in QLoRA (Dettmers et al., 2023).

    Raises:
        ConfigError: a value out of range, an unknown base, or dropout or a base without adapters.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = PROJECTIONS
    dropout: float = 0.0
    base: str = ""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"lora.rank must be 0 (no adapters) or more, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha must be positive, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout must lie in [0, 1), not {self.dropout}")
        if self.dropout and not self.rank:
            raise ConfigError(f"lora.dropout {self.dropout} has no effect at rank 0: set lora.rank=16, or dropout=0")
        check_mode(self.base, "lora.base")
        if self.base and not self.rank:
            raise ConfigError(f"lora.base {self.base!r} holds adapted kernels, and there are none: set lora.rank=16")

    @property
    def scale(self) -> float:
        """What the product of an adapter is multiplied with."""
        return self.alpha / self.rank


def add_lora(rng: Key[Array, ""], params: Params, config: LoraConfig) -> Params:
    """`params` with adapters of the kernels that `config.targets` names, as the module "lora"; as they are at rank 0.

    Adapters change nothing yet: a is uniform in +-1 / sqrt(in), as in the reference implementation, b is zero. The
    kernels below them are quantized where there is a `config.base`.

    Args:
        rng: draws a.
        params: of the model, or their shapes (`jax.eval_shape`).
        config: which kernels, and the rank.

    Returns:
        Adapters are float32 "lora_a" [in, rank] and "lora_b" [rank, out] at the path of their kernel's layer, with the
        leading layer axis of stacked ones: {"lora": {"text": {"layers": {"self_attn": {"q_proj": {"lora_a": ...}}}}}}.

    Raises:
        ConfigError: the regex matches nothing, or a parameter that is no kernel of a linear layer.
    """
    if not config.rank:
        return params
    flat = traverse_util.flatten_dict(params, sep="/")
    adapters = {}
    paths = adapted_paths(params, config)
    for path, key in zip(paths, jax.random.split(rng, len(paths))):
        *layers, in_dim, out_dim = flat[path].shape
        module, bound = path.rpartition("/")[0], 1 / math.sqrt(in_dim)
        adapters[f"{module}/lora_a"] = jax.random.uniform(
            key, (*layers, in_dim, config.rank), minval=-bound, maxval=bound
        )
        adapters[f"{module}/lora_b"] = jnp.zeros((*layers, config.rank, out_dim))
    held = quantize(params, paths, config.base) if config.base else params
    return {**held, LORA: traverse_util.unflatten_dict(adapters, sep="/")}


def read_base(read: Callable[[Params], Params], shardings: Params, config: LoraConfig) -> Params:
    """Parameters from files, held and placed as training holds them; adapters are not among them.

    Args:
        read: from the shardings of plain parameters to these.
        shardings: of parameters, nested as those of `add_lora`; where a kernel is to be quantized, a quantized one.
        config: says how.
    """
    base = {name: part for name, part in shardings.items() if name != LORA}
    paths = [path for path, at in traverse_util.flatten_dict(base, sep="/").items() if is_quantized(at)]
    if not paths:
        return read(base)
    # The integers have the axes of the kernel.
    plain = jax.tree.map(lambda at: at.values if is_quantized(at) else at, base, is_leaf=is_quantized)
    return jax.device_put(quantize(read(plain), paths, config.base), base)


def adapted_paths(params: Params, config: LoraConfig) -> list[str]:
    """The kernels among `params`, or their shapes, that `config.targets` names.

    Raises:
        ConfigError: the regex matches nothing, or a parameter that is no kernel of a linear layer.
    """
    try:
        paths = match_paths(params, config.targets)
    except ConfigError as error:
        raise ConfigError(f"lora.targets: {error}") from error
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in paths:
        shape = tuple(flat[path].shape)
        if path.rpartition("/")[2] != "kernel" or len(shape) not in (2, 3):
            raise ConfigError(
                f"lora.targets {config.targets!r} matches {path} {shape}, but LoRA adapts kernels [in, out] or "
                "[layers, in, out]: end it in /kernel$"
            )
    return paths


def adapt(params: Params, config: LoraConfig, rng: Key[Array, ""] | None = None) -> Params:
    """Parameters for `bind`: an `AdaptedKernel` at every kernel that has an adapter among `params["lora"]`.

    Args:
        params: of `add_lora`; without "lora" they are returned as they are.
        config: gives scale and dropout.
        rng: draws dropout, in training; None for none.

    Raises:
        ConfigError: an adapter without a kernel of its shape.
    """
    if LORA not in params:
        return params
    base = traverse_util.flatten_dict({name: part for name, part in params.items() if name != LORA}, sep="/")
    adapters = traverse_util.flatten_dict(params[LORA], sep="/")
    modules = sorted({path.rpartition("/")[0] for path in adapters})
    for i, module in enumerate(modules):
        kernel = base.get(f"{module}/kernel")
        a, b = adapters[f"{module}/lora_a"], adapters[f"{module}/lora_b"]
        if kernel is None or kernel.shape != (*a.shape[:-1], b.shape[-1]):
            found = "there is none" if kernel is None else f"the kernel is {kernel.shape}"
            raise ConfigError(f"the adapter of {module} is for {(*a.shape[:-1], b.shape[-1])}, but {found}")
        key = None
        if rng is not None and config.dropout:
            key = jax.random.fold_in(rng, i)
            key = key if a.ndim == 2 else jax.random.split(key, len(a))
        base[f"{module}/kernel"] = AdaptedKernel(kernel, a, b, key, config.scale, config.dropout)
    return traverse_util.unflatten_dict(base, sep="/")


def merge(params: Params, config: LoraConfig, dtype: jax.typing.DTypeLike | None = None) -> Params:
    """Plain parameters of the adapted model, for serving and export.

    Args:
        params: of `add_lora`.
        config: gives the scale.
        dtype: of the merged kernels; None for that of each kernel.

    Raises:
        ConfigError: an adapter without a kernel of its shape.
    """
    flat = traverse_util.flatten_dict(adapt(params, config), sep="/")
    plain = {
        path: _merged(leaf, dtype or leaf.kernel.dtype) if isinstance(leaf, AdaptedKernel) else leaf
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(plain, sep="/")


@functools.partial(jax.jit, static_argnames="dtype")
def _merged(kernel: AdaptedKernel, dtype: jax.typing.DTypeLike) -> Array:
    return kernel.merged().astype(dtype)
