"""Adam with moments that take fewer bytes than the parameters that they are of."""

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Int, UInt

from jaxvla.models.module import Params

# Numbers of one scale, along the last axis of a parameter.
BLOCK = 256
# Parameters of fewer numbers, and vectors, keep moments of float32: together they are next to nothing, and they matter.
SMALL = 4096
_B1, _EPSILON = 0.9, 1e-8


class _Code(NamedTuple):
    """Numbers of a block as codes: 0, and steps of equal ratio below the largest magnitude of the block.

    Attributes:
        dtype: of the codes.
        top: the code of that magnitude.
        octave: steps by which it halves, so that a step is 2 ** (1 / octave).
        never_zero: what is not 0 does not become 0 either.
    """

    dtype: Any
    top: int
    octave: int
    never_zero: bool


# First moments have signs; 16 octaves in steps of 9 %. What is below is 0 or the least step, right on average.
_FIRST = _Code(jnp.int8, 127, 8, False)
# 21 octaves in steps of 6 %. An update is divided by the root of it, so it errs to the large side.
_SECOND = _Code(jnp.uint8, 255, 12, True)


class Adam8BitState(NamedTuple):
    """Of `scale_by_adam_8bit`.

    Attributes:
        count: updates so far, int32 [].
        mu, nu: at the paths of the parameters, int8 and uint8 of their shapes; float32 moments of small ones.
        mu_scales, nu_scales: by path, with dots, float32 [..., blocks]; so that no rule for a parameter takes them for
            it.
    """

    count: Any
    mu: Any
    nu: Any
    mu_scales: dict[str, Any]
    nu_scales: dict[str, Any]


def scale_by(moments: str, b2: float) -> optax.GradientTransformation:
    """The scaling of Adam, or of Adafactor, with the moments of `OptimizerConfig.moments`.

    Args:
        moments: one of `config.MOMENTS`.
        b2: decay of the second moment; Adafactor has a schedule of its own.
    """
    if moments == "int8":
        return scale_by_adam_8bit(b2)
    if moments == "factored":
        return scale_by_factored()
    return optax.scale_by_adam(b1=_B1, b2=b2, eps=_EPSILON, mu_dtype=None if moments == "float32" else jnp.bfloat16)


def scale_by_factored() -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern, 2018) as it is used in place of Adam: with a first moment, and no relative steps.

    The second moment of a matrix of 128 rows and columns or more is the outer product of one of its rows and one of its
    columns, decayed by 1 - t ** -0.8; updates are clipped to an RMS of 1; their average, in bfloat16, is the update.
    """
    return optax.chain(
        _by_dotted_paths(optax.scale_by_factored_rms()),
        optax.clip_by_block_rms(1.0),
        optax.ema(_B1, accumulator_dtype=jnp.bfloat16),
    )


def scale_by_adam_8bit(b2: float) -> optax.GradientTransformation:
    """Adam with both moments in a byte each, and a scale for each block of 256, as Dettmers et al. (2021) have it.

    Codes are rounded at random, by numbers that follow from path, place and count, so that moments are right on
    average, where rounding to the nearest would hold small changes back, and a resumed run makes the same ones.
    """

    def init(params: Params) -> Adam8BitState:
        flat = traverse_util.flatten_dict(params, sep="/")
        large = {path: x for path, x in flat.items() if _is_large(x)}

        def zeros(code: _Code) -> Params:
            own = {path: jnp.zeros(x.shape, code.dtype if path in large else jnp.float32) for path, x in flat.items()}
            return traverse_util.unflatten_dict(own, sep="/")

        def scales() -> dict[str, Array]:
            return {_dotted(path): jnp.zeros(_scale_shape(x.shape), jnp.float32) for path, x in large.items()}

        return Adam8BitState(jnp.zeros((), jnp.int32), zeros(_FIRST), zeros(_SECOND), scales(), scales())

    def update(updates: Params, state: Adam8BitState, _: Any = None) -> tuple[Params, Adam8BitState]:
        count = optax.safe_increment(state.count)
        correct1, correct2 = (1 - decay ** count.astype(jnp.float32) for decay in (_B1, b2))
        grads, mus, nus = (traverse_util.flatten_dict(tree, sep="/") for tree in (updates, state.mu, state.nu))
        mu_scales, nu_scales, steps = dict(state.mu_scales), dict(state.nu_scales), {}
        for path, grad in grads.items():
            grad, name, large = grad.astype(jnp.float32), _dotted(path), _is_large(grad)
            mu = decode(mus[path], mu_scales[name], _FIRST) if large else mus[path]
            nu = decode(nus[path], nu_scales[name], _SECOND) if large else nus[path]
            mu, nu = _B1 * mu + (1 - _B1) * grad, b2 * nu + (1 - b2) * grad * grad
            steps[path] = (mu / correct1) / (jnp.sqrt(nu / correct2) + _EPSILON)
            if large:
                mu, mu_scales[name] = encode(mu, _FIRST, uniform(mu.shape, count, f"mu/{path}"))
                nu, nu_scales[name] = encode(nu, _SECOND, uniform(nu.shape, count, f"nu/{path}"))
            mus[path], nus[path] = mu, nu
        steps, mus, nus = (traverse_util.unflatten_dict(flat, sep="/") for flat in (steps, mus, nus))
        return steps, Adam8BitState(count, mus, nus, mu_scales, nu_scales)

    return optax.GradientTransformation(init, update)


def encode(
    x: Float[Array, "*lead n"], code: _Code, uniform: Float[Array, "*lead n"]
) -> tuple[Int[Array, "*lead n"] | UInt[Array, "*lead n"], Float[Array, "*lead blocks"]]:
    """Codes of `x`, of which half go up and half go down by where `x` lies between two steps; and the scales of blocks.

    Args:
        x: the numbers.
        code: how they are coded.
        uniform: random numbers from 0 to 1, which decide.
    """
    n = x.shape[-1]
    padded = jnp.pad(jnp.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, -n % BLOCK)])
    scales = padded.reshape(*x.shape[:-1], -1, BLOCK).max(-1)
    share = jnp.abs(x) / jnp.maximum(_spread(scales, n), jnp.finfo(jnp.float32).tiny)
    position = code.top + code.octave * jnp.log2(jnp.maximum(share, 2.0 ** (-code.top / code.octave - 1)))
    below = jnp.clip(jnp.floor(position), 0, code.top - 1)
    low, high = _magnitude(below, code), _magnitude(below + 1, code)
    codes = below + (uniform * (high - low) < share - low)
    if code.never_zero:
        codes = jnp.where((share > 0) & (codes == 0), 1, codes)
    return (jnp.sign(x) * codes).astype(code.dtype), scales


def decode(
    codes: Int[Array, "*lead n"] | UInt[Array, "*lead n"], scales: Float[Array, "*lead blocks"], code: _Code
) -> Float[Array, "*lead n"]:
    """The numbers of `codes`."""
    signed = codes.astype(jnp.float32)
    return jnp.sign(signed) * _magnitude(jnp.abs(signed), code) * _spread(scales, codes.shape[-1])


def uniform(shape: tuple[int, ...], count: Int[Array, ""], name: str) -> Float[Array, "..."]:
    """Numbers from 0 to 1 that follow from the place in an array, `count` and `name`: MurmurHash3's mixing of them."""
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    places = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(s) for axis, s in enumerate(strides))
    seed = count.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + jnp.uint32(zlib.crc32(name.encode()))
    bits = functools.reduce(jnp.add, places) ^ _mixed(seed)
    return (_mixed(bits) >> 8).astype(jnp.float32) * 2.0**-24


def _mixed(bits: UInt[Array, "..."]) -> UInt[Array, "..."]:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _magnitude(steps: Float[Array, "..."], code: _Code) -> Float[Array, "..."]:
    return jnp.where(steps == 0, 0.0, 2.0 ** ((steps - code.top) / code.octave))


def _spread(scales: Float[Array, "*lead blocks"], n: int) -> Float[Array, "*lead n"]:
    return jnp.repeat(scales, BLOCK, axis=-1)[..., :n]


def _scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], -(-shape[-1] // BLOCK))


def _is_large(x: Any) -> bool:
    return x.ndim > 1 and x.size >= SMALL


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _by_dotted_paths(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, whose state has other shapes than the parameters, so it must not lie at paths that end in theirs."""

    def flat(tree: Params) -> dict[str, Any]:
        return traverse_util.flatten_dict(tree, sep=".")

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        steps, state = inner.update(flat(updates), state, None if params is None else flat(params))
        return traverse_util.unflatten_dict(steps, sep="."), state

    return optax.GradientTransformation(lambda params: inner.init(flat(params)), update)
