import jax
import jax.numpy as jnp
import optax
import pytest

from jaxvla.errors import ConfigError
from jaxvla.models.partition import combine, partition, replace, select

PARAMS = {
    "text": {"layers": {"q_proj": {"kernel": jnp.ones((2, 3, 3))}}, "norm": {"scale": jnp.ones(3)}},
    "head": {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)},
}


def test_parts_keep_their_nesting_and_their_arrays():
    trainable, frozen = partition(PARAMS, "^head/|norm")
    assert trainable == {"text": {"norm": PARAMS["text"]["norm"]}, "head": PARAMS["head"]}
    assert frozen == {"text": {"layers": PARAMS["text"]["layers"]}}
    joined = combine(trainable, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(PARAMS), strict=True))


def test_everything_may_train():
    assert partition(PARAMS, "")[1] == {}
    assert combine(*partition(PARAMS, "")).keys() == PARAMS.keys()


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state():
    trainable, frozen = partition(PARAMS, "^head/")

    def loss(trainable, frozen):
        params = combine(trainable, frozen)
        hidden = params["text"]["norm"]["scale"] @ params["text"]["layers"]["q_proj"]["kernel"][0]
        return jnp.sum((hidden @ params["head"]["kernel"] + params["head"]["bias"]) ** 2)

    grads = jax.grad(loss)(trainable, frozen)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(trainable)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == [(1,), (1,), (3, 1), (3, 1)]
    updates, _ = optimizer.update(grads, state, trainable)
    updated = combine(optax.apply_updates(trainable, updates), frozen)
    assert updated["text"]["norm"]["scale"] is PARAMS["text"]["norm"]["scale"]
    assert jnp.all(updated["head"]["kernel"] != PARAMS["head"]["kernel"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("lora", r"no parameter path matches 'lora'; there are head/bias, head/kernel, text"), ("(", "'\\(' is no regex")],
)
def test_a_pattern_that_chooses_nothing(pattern, message):
    with pytest.raises(ConfigError, match=message):
        partition(PARAMS, pattern)


def test_parts_do_not_overlap():
    with pytest.raises(ConfigError, match="share head/bias"):
        combine(PARAMS, {"head": {"bias": jnp.ones(1)}})


def test_leaves_are_replaced_and_selected_by_path():
    params = {"head": {"kernel": 1, "bias": 2}, "text": {"norm": {"scale": 3}}}
    part = {"text": {"norm": {"scale": 30}}}
    assert replace(params, part) == {"head": {"kernel": 1, "bias": 2}, "text": {"norm": {"scale": 30}}}
    assert list(replace(params, part)["head"]) == ["kernel", "bias"]
    assert select(params, part) == {"text": {"norm": {"scale": 3}}}
