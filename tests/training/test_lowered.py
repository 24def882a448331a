"""What must not be in the programs of large policies on a GPU: squares of a sequence, all logits at once, and products
of float32 in a model of bfloat16. Nothing is compiled, so no GPU is needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_config
from training.lowered import Product, Program, as_if_on_a_gpu

from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.sketch import Robot, sketch

# Lengths that nothing else has. The prefix is odd, so that it gets an entry more in the kernel.
ROWS, PREFIX, SLOTS, SUFFIX, WORDS = 7, 89, 3, 263, 37
ROBOT = Robot(1, 5, (64, 64), (PREFIX, SLOTS, SUFFIX))
# Images of 6 x 10 patches; tokens of the action head, and those of all draws of noise of a sample.
GRID, PATCHES, ACTION_TOKENS, DRAWS = (6, 10), 60, 23, 8
CONTEXT = PREFIX + SLOTS + SUFFIX
LENGTHS = {PATCHES, PREFIX, PREFIX + 1, SUFFIX, CONTEXT, CONTEXT + WORDS, ACTION_TOKENS, DRAWS * ACTION_TOKENS}
# Those that there are. The suffix looks at prefix, slots and itself, three runs of keys, where the kernel takes one;
# the head at a context in which any column may be hidden, where the kernel knows a range.
OF_THE_SUFFIX = {(PREFIX, SUFFIX), (SUFFIX, SUFFIX)}
OF_THE_HEAD = {(ACTION_TOKENS, ACTION_TOKENS), (DRAWS * ACTION_TOKENS, CONTEXT)}


def settings_of(preset, **changes):
    return train_config.get_config(preset).to_dict() | {"batch_size": ROWS} | changes


def ecot():
    settings = settings_of("ecot")
    settings["backbone"] |= {"preset": "tiny", "attention": "cudnn"}
    settings["data"]["image_size"] = tuple(16 * size for size in GRID)
    widths = {"size": "dit_tiny", "num_layers": 2, "hidden_size": 136, "output_dim": 120}
    settings["agent_kwargs"] |= {"inference": "explicit", "max_new_tokens": WORDS}
    settings["agent_kwargs"]["action_head"] |= widths | {"use_state": True, "num_future_tokens": 6}
    assert settings["backbone"]["dtype"] == "bfloat16"
    return sketch(settings, ROBOT)


def step_of(run):
    """The program of a training step."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    state = run.state(mesh)
    with as_if_on_a_gpu():
        return Program(run.step(state, mesh).trace(state, run.batch(ROWS)))


def kinds(program):
    """Whether attention is in the kernel, forwards and backwards."""
    return {"Backward" in name for name in program.kernels if "fmhaSoftmax" in name}


def of_the_table(product):
    """Whether a product interpolates the table of positions of the vision tower, at the precision of the weights."""
    return any(set(factor[1]) <= {*GRID, 4} and len(factor[1]) == 2 for factor in (product.left, product.right))


@functools.cache
def ecot_step():
    return step_of(ecot())


def test_a_training_step_of_ecot_holds_no_square_of_its_prefix_and_images():
    program = ecot_step()
    assert kinds(program) == {False, True}
    assert program.squares(LENGTHS) == OF_THE_SUFFIX | OF_THE_HEAD


def test_a_training_step_of_ecot_holds_the_logits_of_a_chunk_alone():
    program, vocabulary = ecot_step(), ecot().agent.config.backbone.text.vocab_size
    chunk = -(-SUFFIX // 3)
    assert program.hold(vocabulary, chunk)
    assert not [shape for length in (SUFFIX, 3 * chunk, CONTEXT) for shape in program.hold(vocabulary, length)]


def test_a_training_step_of_ecot_multiplies_in_bfloat16():
    wide = ecot_step().wide()
    assert len(ecot_step().products) > 150
    assert wide
    assert all(of_the_table(product) for product in wide), wide


def test_a_decision_of_ecot_that_writes_words():
    run = ecot()
    batch = run.batch(ROWS)
    task = {"text": batch["text"]}
    params = jax.eval_shape(run.agent.init, jax.random.key(0))
    with as_if_on_a_gpu():
        program = Program(jax.jit(run.agent.act).trace(params, batch["observations"], task))
    assert kinds(program) == {False}
    context = CONTEXT + WORDS
    seen = {pair for pair in program.squares(LENGTHS) if context in pair or ACTION_TOKENS in pair}
    assert seen == {(ACTION_TOKENS, context), (ACTION_TOKENS, ACTION_TOKENS)}
    assert program.squares(LENGTHS) - seen == OF_THE_SUFFIX
    vocabulary = run.agent.config.backbone.text.vocab_size
    assert program.hold(vocabulary, ROWS)
    assert not [shape for length in (WORDS, SUFFIX, context) for shape in program.hold(vocabulary, length)]
    assert program.products
    assert all(of_the_table(product) for product in program.wide()), program.wide()


@pytest.mark.parametrize("base", ["", "int8"])
def test_a_training_step_of_openvla(base):
    settings = settings_of("openvla_tiny")
    model = settings["agent_kwargs"]["model"]
    model |= {"dtype": "bfloat16", "attention": "cudnn", "remat": "block"}
    model["siglip"]["num_attention_heads"] = 3  # of 16 values
    if base:
        settings["agent_kwargs"]["train_what"] = "lora"
        settings["agent_kwargs"]["lora"] |= {"rank": 4, "base": base}
    program = step_of(sketch(settings, ROBOT))
    assert kinds(program) == {False, True}
    # One beginning, 16 patches, 64 tokens of text, 7 of actions; and 16 patches behind five tokens of DINOv2's own.
    tokens, patches = 1 + 16 + 64 + 7, 16 + 5
    assert any(tokens in shape for shape in program.shapes)
    assert not program.squares({tokens, patches, patches + 1})
    assert not program.hold(model["text"]["vocab_size"], tokens)
    # Adapters of the output head are multiplied to its kernel, as it takes them when they are merged.
    adapted = {96, 4, model["text"]["vocab_size"]}
    assert {size for product in program.wide() for _, shape in (product.left, product.right) for size in shape} == (
        adapted if base else set()
    )


def test_what_is_looked_for_would_be_found():
    def attention(q, k, kernel):
        weights = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k, preferred_element_type=jnp.float32))
        return (weights.astype(k.dtype) @ k @ kernel).sum()

    arrays = np.ones((2, 89, 8), jnp.bfloat16), np.ones((2, 89, 8), jnp.bfloat16), np.ones((8, 1024), jnp.bfloat16)
    program = Program(jax.jit(jax.grad(attention, (0, 1, 2))).trace(*arrays))
    assert program.squares({89}) == {(89, 89)}
    assert program.hold(89, 1024) == {(2, 89, 1024)}
    assert program.wide() == {
        Product(("f32", (2, 89, 89)), ("f32", (2, 89, 8))),
    }
    assert not program.kernels
