"""Vectors of sentences: the mean of the text decoder's last hidden states over the tokens of each.

Axis letters: n sentences, b batch, t tokens, d width of the decoder.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int
from tqdm import tqdm

from jaxvla.models.module import Params, bind
from jaxvla.ops.losses import masked_mean
from jaxvla.ops.masks import valid_range

_BATCH_SIZE = 64
# Columns of a batch are a multiple of it, so that few shapes are compiled.
_MULTIPLE = 16


def sentence_vectors(
    graphdef: nnx.GraphDef, params: Params, prompt: Int[np.ndarray, " p"], sentences: Sequence[Int[np.ndarray, " _"]]
) -> Float32[np.ndarray, "n d"]:
    """The vectors of sentences of any lengths.

    Args:
        graphdef: of a `Qwen3VL`.
        params: of it.
        prompt: ids that are read before each sentence and do not enter its mean.
        sentences: the ids of each; none is empty.
    """
    vectors = [np.empty(0)] * len(sentences)
    by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    with tqdm(desc="encoding sentences", total=len(sentences), unit="text", delay=1.0, leave=False) as bar:
        for start in range(0, len(sentences), _BATCH_SIZE):
            chosen = by_length[start : start + _BATCH_SIZE]
            tokens_bt, stop_b = _padded([np.concatenate([prompt, sentences[i]]) for i in chosen])
            means_bd = jax.device_get(_mean_states(graphdef, params, tokens_bt, np.int32(len(prompt)), stop_b))
            for i, mean_d in zip(chosen, means_bd):
                vectors[i] = mean_d
            bar.update(len(chosen))
    return np.stack(vectors)


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the left of a whole batch, and where each ends."""
    columns = -(-max(map(len, rows)) // _MULTIPLE) * _MULTIPLE
    tokens_bt, stop_b = np.zeros((_BATCH_SIZE, columns), np.int32), np.full(_BATCH_SIZE, columns, np.int32)
    for k, row in enumerate(rows):
        tokens_bt[k, : len(row)] = row
        stop_b[k] = len(row)
    return tokens_bt, stop_b


@functools.partial(jax.jit, static_argnums=0)
def _mean_states(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens_bt: Int[Array, "b t"],
    start: Int[Array, ""],
    stop_b: Int[Array, " b"],
) -> Float[Array, "b d"]:
    """Means over the tokens from `start` on, after the final norm."""
    hidden_btd = bind(graphdef, params).forward(tokens_bt, stop_b=stop_b).astype(jnp.float32)
    within_bt = valid_range(tokens_bt.shape[1], jnp.broadcast_to(start, stop_b.shape), stop_b)
    return masked_mean(hidden_btd, jnp.broadcast_to(within_bt[..., None], hidden_btd.shape), 1)
