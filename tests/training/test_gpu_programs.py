"""What must not be in the programs of large policies on a GPU: squares of a sequence, all logits at once, and products
of float32 in a model of bfloat16. Both what XLA is given and what it makes of it are read, and neither needs a GPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from training import gpu_programs, large_policies
from training.large_policies import (
    ACTION_TOKENS,
    CHUNK,
    CONTEXT,
    DRAWS,
    GRID,
    PATCHES,
    PREFIX,
    ROWS,
    SUFFIX,
    TOKENS,
    TOWER,
    WORDS,
)

LENGTHS = {PATCHES, PREFIX, SUFFIX, CONTEXT, CONTEXT + WORDS, ACTION_TOKENS, DRAWS * ACTION_TOKENS}
# The squares that there are. The suffix looks at prefix, slots and itself, three runs of keys, where the kernel takes
# one; the head at a context in which any column may be hidden, where the kernel knows a range.
OF_THE_SUFFIX = {(PREFIX, SUFFIX), (SUFFIX, SUFFIX)}
# XLA multiplies the suffix to all three runs at once.
AT_ONCE = {(SUFFIX, CONTEXT)}
OF_THE_HEAD = {(ACTION_TOKENS, ACTION_TOKENS), (ACTION_TOKENS, CONTEXT), (CONTEXT, DRAWS * ACTION_TOKENS)}


@pytest.fixture(params=["lowered", pytest.param("compiled", marks=pytest.mark.gpu_programs)])
def text(request):
    """Which of the two is read."""
    return request.param


def devices(text):
    return gpu_programs.target() if text == "compiled" else jax.devices()[:1]


@functools.cache
def program(text, trace, make, *arguments):
    return getattr(gpu_programs, text)(trace(make(*arguments), devices(text)))


def ecot_step(text):
    return program(text, large_policies.step, large_policies.ecot)


def kinds(program):
    """Whether attention is in the kernel, forwards and backwards."""
    return {"Backward" in name for name in program.kernels if "fmhaSoftmax" in name}


def of_the_table(product):
    """Whether a product interpolates the table of positions of the vision tower, at the precision of the weights."""
    return any(set(factor[1]) <= {*GRID, 4} and len(factor[1]) == 2 for factor in (product.left, product.right))


def vocabulary_of(run):
    return run.agent.config.backbone.text.vocab_size


def test_a_training_step_of_ecot_holds_no_square_of_its_prefix_and_images(text):
    found = ecot_step(text)
    assert kinds(found) == {False, True}
    assert found.squares(LENGTHS) - AT_ONCE == OF_THE_SUFFIX | OF_THE_HEAD


def test_a_training_step_of_ecot_holds_the_logits_of_a_chunk_alone(text):
    found, vocabulary = ecot_step(text), vocabulary_of(large_policies.ecot())
    assert found.hold(vocabulary, CHUNK)
    assert not [shape for length in (SUFFIX, CONTEXT) for shape in found.hold(vocabulary, length)]


def test_a_training_step_of_ecot_multiplies_in_bfloat16(text):
    wide = ecot_step(text).wide()
    assert len(ecot_step(text).products) > 150
    assert wide
    assert all(of_the_table(product) for product in wide), wide


def test_a_decision_of_ecot_that_writes_words(text):
    found = program(text, large_policies.decision, large_policies.ecot)
    assert kinds(found) == {False}
    context = CONTEXT + WORDS
    seen = {pair for pair in found.squares(LENGTHS) if context in pair or ACTION_TOKENS in pair}
    assert seen == {(ACTION_TOKENS, context), (ACTION_TOKENS, ACTION_TOKENS)}
    assert found.squares(LENGTHS) - seen - AT_ONCE == OF_THE_SUFFIX
    vocabulary = vocabulary_of(large_policies.ecot())
    assert found.hold(vocabulary, ROWS)
    assert not [shape for length in (WORDS, SUFFIX, context) for shape in found.hold(vocabulary, length)]
    assert found.products
    assert all(of_the_table(product) for product in found.wide()), found.wide()


@pytest.mark.parametrize("base", ["", "int8"])
def test_a_training_step_of_openvla(text, base):
    run = large_policies.openvla(base)
    found = program(text, large_policies.step, large_policies.openvla, base)
    assert kinds(found) == {False, True}
    vocabulary = run.agent.config.model.text.vocab_size
    assert found.hold(TOKENS)
    assert not found.squares({TOKENS, TOWER, TOWER + 1})
    assert not found.hold(vocabulary, TOKENS)
    # Adapters of the output head are multiplied to its kernel, as it takes them when they are merged.
    sizes = {size for product in found.wide() for _, shape in (product.left, product.right) for size in shape}
    assert sizes == ({96, 4, vocabulary} if base else set())


def test_what_is_looked_for_would_be_found(text):
    def attention(q, k, kernel):
        weights = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k, preferred_element_type=jnp.float32))
        return (weights.astype(k.dtype) @ k @ kernel).sum()

    place = jax.sharding.SingleDeviceSharding(devices(text)[0])
    q = jax.ShapeDtypeStruct((2, 88, 8), jnp.bfloat16, sharding=place)
    kernel = jax.ShapeDtypeStruct((8, 1024), jnp.bfloat16, sharding=place)
    found = getattr(gpu_programs, text)(jax.jit(jax.grad(attention, (0, 1, 2))).trace(q, q, kernel))
    assert found.squares({88}) == {(88, 88)}
    assert found.hold(88, 1024)
    assert ("f32", (2, 88, 88)) in {product.left for product in found.wide()}
    assert not found.kernels
