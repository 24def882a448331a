import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.qwen3_vl import cases

from jaxvla.errors import ConfigError
from jaxvla.models.cache import append, extend, start_cache
from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.ops.attention import KeyValues

GOLDEN = pathlib.Path(__file__).parent / "golden"


class Session:
    """A model that reads a case bit by bit, the way a caller would jit it."""

    def __init__(self, case, capacity):
        self.params = cases.seeded_params(case.config)
        graph = graph_of(lambda rngs: Qwen3VL(case.config, rngs))

        def prefill(params, tokens, patches, start, stop):
            model = bind(graph, params)
            images = model.encode_images(patches, case.grids)
            output, layout = model.decode_tokens(
                tokens, start_b=start, stop_b=stop, images=images, grids=case.grids, keep_keys=True
            )
            return model.text.norm(output.hidden_btd), start_cache(output, layout.next_position_b, capacity)

        def go_on(params, cache, tokens, count):
            model = bind(graph, params)
            hidden_btd, cache = extend(model.text, cache, model.embed(tokens), count)
            return model.text.norm(hidden_btd), cache

        self.prefill, self.go_on = cases.quick_jit(prefill), cases.quick_jit(go_on)


def full_pass(name):
    with np.load(GOLDEN / f"{name}.npz") as values:
        return values["hidden"]


def test_single_steps_behind_left_padding_equal_one_pass():
    case, expected = cases.CASES["left_padding"], full_pass("left_padding")
    batch = {key: jnp.asarray(value) for key, value in cases.make_batch(case).items()}
    tokens, length = batch["tokens"], expected.shape[1]
    session = Session(case, capacity=length + 3)
    hidden, cache = session.prefill(session.params, tokens[:, : length - 2], batch["patches"], batch["start"], None)
    assert cases.relative(np.asarray(hidden[:, -1]), expected[:, length - 3]) < 1e-5
    for step in (length - 2, length - 1):
        hidden, cache = session.go_on(session.params, cache, tokens[:, step : step + 1], None)
        assert cases.relative(np.asarray(hidden[:, 0]), expected[:, step]) < 1e-5


def test_several_tokens_behind_right_padding_equal_one_pass():
    case, expected = cases.CASES["untied"], full_pass("untied")
    batch = cases.make_batch(case)
    counts = np.array([3, 2])
    stop = batch["stop"] - counts
    prompt = np.where(np.arange(expected.shape[1]) < stop[:, None], batch["tokens"], 7)
    rest = np.full((2, 4), 5, np.int32)
    for row, tokens, first, count in zip(rest, batch["tokens"], stop, counts):
        row[:count] = tokens[first : first + count]
    session = Session(case, capacity=expected.shape[1])
    arrays = [jnp.asarray(x) for x in (prompt, batch["patches"], stop, rest, counts)]
    _, cache = session.prefill(session.params, *arrays[:2], None, arrays[2])
    hidden, cache = session.go_on(session.params, cache, *arrays[3:])
    for sample, (first, count) in enumerate(zip(stop, counts)):
        wanted = expected[sample, first : first + count]
        assert cases.relative(np.asarray(hidden[sample, :count]), wanted) < 1e-5
    np.testing.assert_array_equal(cache.keys.stop_b, batch["stop"])


def test_append_writes_where_each_sample_ends_and_drops_what_does_not_fit():
    empty = jnp.zeros((1, 3, 4, 1, 1))
    new = jnp.arange(1.0, 7).reshape(1, 3, 2, 1, 1)
    keys = append(KeyValues(empty, -empty, None, jnp.array([0, 2, 3])), KeyValues(new, -new), jnp.array([2, 1, 1]))
    np.testing.assert_array_equal(keys.k_bskh[0, :, :, 0, 0], [[1, 2, 0, 0], [0, 0, 3, 4], [0, 0, 0, 5]])
    np.testing.assert_array_equal(keys.v_bskh, -keys.k_bskh)
    np.testing.assert_array_equal(keys.stop_b, [2, 3, 4])


def test_a_prompt_longer_than_the_cache_is_refused():
    case = cases.CASES["text"]
    graph = graph_of(lambda rngs: Qwen3VL(case.config, rngs))

    def prefill(params, keep_keys):
        output, layout = bind(graph, params).decode_tokens(jnp.zeros((1, 5), jnp.int32), keep_keys=keep_keys)
        return start_cache(output, layout.next_position_b, 4)

    for keep_keys, message in ((True, r"cache of 4 tokens.*prompt of 5"), (False, "keep_keys=True")):
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(functools.partial(prefill, keep_keys=keep_keys), param_shapes(case.config))
