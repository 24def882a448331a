"""Latent thinking done slowly: one sample at a time, without padding or cache, everything read again for each slot.

Positions come from the layout of the whole sequence, in which slots are ordinary tokens.
"""

import functools

import jax
import jax.numpy as jnp
from models.qwen3_vl import cases

from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import token_layout
from jaxvla.models.text_decoder import DeepStack

SLOT_TOKEN = 0  # any token of text: its embedding is replaced
GRIDS = ((4, 4),)
GRAPH = graph_of(lambda rngs: Qwen3VL(cases.CONFIG, rngs))

# Without its fusion emitters, XLA compiles in a third of the time.
quick_jit = functools.partial(jax.jit, compiler_options=cases.QUICK | {"xla_cpu_use_fusion_emitters": False})


def sample_of(text, i):
    """The tokens of one sample without padding, and how many slots it uses."""
    prefix = text["prefix"][i, text["prefix_start"][i] :]
    suffix = text["suffix"][i, : text["suffix_stop"][i]]
    return prefix, int(text["slots"][i].sum()), suffix


def think(params, sample, images, position_mode, latent_hidden, *, detach=False):
    """Hidden states [t, d] before the final norm, and the cross entropy [s] of the suffix.

    Args:
        images: features of this sample.
        detach: cut the gradient where a hidden state is fed back.
    """
    prefix, count, suffix = sample
    model = bind(GRAPH, params)
    tokens_1t = jnp.concatenate([prefix, jnp.full(count, SLOT_TOKEN), suffix])[None]
    config = cases.configured(position_mode=position_mode)
    layout = token_layout(tokens_1t, jnp.ones(tokens_1t.shape, bool), GRIDS, config)
    x_1td = model.embed(tokens_1t, images, layout)
    for slot in range(len(prefix), len(prefix) + count):
        fed_1d = read((params, x_1td, images.deepstack_nbid), layout)[:, slot - 1]
        fed_1d = model.text.norm(fed_1d) if latent_hidden == "post_norm" else fed_1d
        x_1td = x_1td.at[:, slot].set(jax.lax.stop_gradient(fed_1d) if detach else fed_1d)
    hidden_1td = read((params, x_1td, images.deepstack_nbid), layout)
    return hidden_1td[0], next_token_losses((params, hidden_1td), tokens_1t)[len(tokens_1t[0]) - 1 - len(suffix) :]


def compiled(function):
    """`function(variables, constants)` and its gradient, each compiled once for all samples of the same length."""
    forward = quick_jit(function)

    @quick_jit
    def backward(variables, constants, cotangent):
        return jax.vjp(lambda variables: function(variables, constants), variables)[1](cotangent)[0]

    call = jax.custom_vjp(forward)
    call.defvjp(
        lambda variables, constants: (forward(variables, constants), (variables, constants)),
        lambda kept, cotangent: (backward(*kept, cotangent), None),
    )
    return call


@compiled
def encode_images(variables, _):
    """Image features of all samples."""
    params, patches_bpf = variables
    return bind(GRAPH, params).encode_images(patches_bpf, GRIDS)


@compiled
def read(variables, layout):
    """One pass through all layers."""
    params, x_1td, deepstack_nbid = variables
    deepstack = DeepStack(deepstack_nbid, layout.image_index_bt)
    return bind(GRAPH, params).text(x_1td, layout.positions_3bt, deepstack=deepstack).hidden_btd


@compiled
def next_token_losses(variables, tokens_1t):
    """[t - 1]"""
    params, hidden_1td = variables
    model = bind(GRAPH, params)
    scores_tv = jax.nn.log_softmax(model.logits(model.text.norm(hidden_1td[:, :-1])))[0]
    return -jnp.take_along_axis(scores_tv, tokens_1t[0, 1:, None], axis=1)[:, 0]
