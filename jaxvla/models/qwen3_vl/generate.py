"""Text generation of Qwen3-VL: prefill, then one jitted while loop that ends when every sample has ended."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvla.models.cache import start_cache
from jaxvla.models.generation import Generated, Sampling, continue_text
from jaxvla.models.layers import cast_matrices
from jaxvla.models.module import Params, bind, compute_dtype
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import Grids


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling", "grids"))
def generate(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens_bt: Int[Array, "b t"],
    rng: Key[Array, ""],
    *,
    sampling: Sampling,
    start_b: Int[Array, " b"] | None = None,
    stop_b: Int[Array, " b"] | None = None,
    patches_bpf: Float[Array, "b p f"] | None = None,
    grids: Grids = (),
) -> Generated:
    """Continues every prompt of a batch.

    Args:
        graphdef: of a `Qwen3VL`.
        params: matrices are cast to the compute dtype once, before the loop.
        tokens_bt: prompts, padded on the left or on the right.
        rng: for temperatures above 0; the same key gives the same text.
        sampling: how tokens are chosen.
        start_b, stop_b, patches_bpf, grids: as in `Qwen3VL.forward`.
    """
    model: Qwen3VL = bind(graphdef, params)
    model = bind(graphdef, cast_matrices(params, compute_dtype(model.config.dtype)))
    b, t = tokens_bt.shape
    images = None if patches_bpf is None else model.encode_images(patches_bpf, grids)
    output, layout = model.decode_tokens(
        tokens_bt, start_b=start_b, stop_b=stop_b, images=images, grids=grids, keep_keys=True
    )
    last_b = (jnp.full(b, t) if stop_b is None else stop_b) - 1
    hidden_b1d = jnp.take_along_axis(output.hidden_btd, last_b[:, None, None], axis=1)

    cache = start_cache(output, layout.next_position_b, t + sampling.max_new_tokens)
    return continue_text(model.text, cache, hidden_b1d, rng, sampling=sampling)
