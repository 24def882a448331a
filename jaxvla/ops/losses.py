"""Reductions that losses share, and cross entropy over large vocabularies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The label of a position that has none, as in torch and transformers.
IGNORE = -100


def masked_mean(
    x: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "*rest"]:
    """The mean of `x` where `mask` is True, over `axis` or everything; 0 where nothing is.

    Rows that only fill up a batch are masked throughout: a 0 there stays harmless in a sum, which NaN would not.
    """
    return jnp.sum(jnp.where(mask, x, 0), axis) / jnp.maximum(jnp.sum(mask, axis), 1)


def chunked_cross_entropy(
    x_btd: Float[Array, "b t d"],
    kernel: Float[Array, "_ _"],
    labels_bt: Int[Array, "b t"],
    *,
    vocab_axis: int = 1,
    chunk: int = 128,
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """-log softmax(x kernel)[label] of each position, and 1 where that label is the likeliest; 0 where it is `IGNORE`.

    Logits exist for one chunk of positions at a time, in the forward and in the backward pass, which computes them
    again. They are float32; the products run in the dtype of `x_btd`. Chunks are cut along t, so that a batch that is
    sharded over devices stays so.

    Args:
        kernel: [d, v], or a tied embedding table [v, d] with `vocab_axis` 0.
        labels_bt: what position t predicts, so already shifted; `IGNORE` for none.
        chunk: positions of each sample per chunk. The gradient of the kernel is read and written once per chunk, so
            that b * chunk of 2048 or more keeps an accelerator busy.
    """
    b, t, d = x_btd.shape
    num_chunks = -(-t // min(chunk, t))
    steps = -(-t // num_chunks)
    padding = num_chunks * steps - t
    x = jnp.pad(x_btd, ((0, 0), (0, padding), (0, 0))).reshape(b, num_chunks, steps, d)
    labels = jnp.pad(labels_bt, ((0, 0), (0, padding)), constant_values=IGNORE).reshape(b, num_chunks, steps)
    both = _cross_entropy(vocab_axis, jnp.moveaxis(x, 1, 0), kernel, jnp.moveaxis(labels, 1, 0))
    loss_bt, hit_bt = (jnp.moveaxis(y, 0, 1).reshape(b, -1)[:, :t] for y in both)
    return loss_bt, hit_bt


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(vocab_axis: int, x_cbtd: Array, kernel: Array, labels_cbt: Array) -> tuple[Array, Array]:
    return _cross_entropy_forward(vocab_axis, x_cbtd, kernel, labels_cbt)[0]


def _logits(vocab_axis: int, x_btd: Array, kernel: Array) -> Array:
    dimensions = (((2,), (1 - vocab_axis,)), ((), ()))
    return jax.lax.dot_general(x_btd, kernel, dimensions, preferred_element_type=jnp.float32)


def _is_label(labels_bt: Array, vocab_size: int) -> Array:
    # A comparison, not a gather: it stays local where the vocabulary is sharded.
    return labels_bt[..., None] == jnp.arange(vocab_size)


def _cross_entropy_forward(
    vocab_axis: int, x_cbtd: Array, kernel: Array, labels_cbt: Array
) -> tuple[tuple[Array, Array], tuple]:
    cast = kernel.astype(x_cbtd.dtype)

    def one_chunk(args: tuple[Array, Array]) -> tuple[Array, ...]:
        x_btd, labels_bt = args
        logits_btv = _logits(vocab_axis, x_btd, cast)
        normalizer_bt = jax.nn.logsumexp(logits_btv, axis=-1)
        chosen_bt = jnp.where(_is_label(labels_bt, logits_btv.shape[-1]), logits_btv, 0).sum(-1)
        hit_bt = (chosen_bt == logits_btv.max(-1)) & (labels_bt != IGNORE)
        loss_bt = jnp.where(labels_bt == IGNORE, 0, normalizer_bt - chosen_bt)
        return loss_bt, hit_bt.astype(jnp.float32), normalizer_bt

    loss_cbt, hit_cbt, normalizer_cbt = jax.lax.map(one_chunk, (x_cbtd, labels_cbt))
    return (loss_cbt, hit_cbt), (x_cbtd, kernel, labels_cbt, normalizer_cbt)


def _cross_entropy_backward(
    vocab_axis: int, residuals: tuple, grads_cbt: tuple[Array, Array]
) -> tuple[Array, Array, np.ndarray]:
    grad_cbt, _ = grads_cbt  # whether a label is the likeliest has no gradient
    x_cbtd, kernel, labels_cbt, normalizer_cbt = residuals
    cast = kernel.astype(x_cbtd.dtype)

    def one_chunk(kernel_grad: Array, args: tuple[Array, ...]) -> tuple[Array, Array]:
        x_btd, labels_bt, normalizer_bt, grad_bt = args
        logits_btv = _logits(vocab_axis, x_btd, cast)
        grad_bt = jnp.where(labels_bt == IGNORE, 0, grad_bt)
        softmax_btv = jnp.exp(logits_btv - normalizer_bt[..., None])
        grad_btv = (softmax_btv - _is_label(labels_bt, logits_btv.shape[-1])) * grad_bt[..., None]
        grad_btv = grad_btv.astype(x_btd.dtype)
        x_grad_btd = jax.lax.dot_general(grad_btv, cast, (((2,), (vocab_axis,)), ((), ())))
        pair = (x_btd, grad_btv) if vocab_axis == 1 else (grad_btv, x_btd)
        over_positions = (((0, 1), (0, 1)), ((), ()))
        return kernel_grad + jax.lax.dot_general(*pair, over_positions, preferred_element_type=jnp.float32), x_grad_btd

    zeros = jnp.zeros(kernel.shape, jnp.float32)
    kernel_grad, x_grad_cbtd = jax.lax.scan(one_chunk, zeros, (x_cbtd, labels_cbt, normalizer_cbt, grad_cbt))
    return x_grad_cbtd, kernel_grad.astype(kernel.dtype), np.zeros(labels_cbt.shape, jax.dtypes.float0)


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
