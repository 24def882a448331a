import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.qwen3_vl import cases

from jaxvla.errors import ConfigError
from jaxvla.models.generation import Sampling, choose_token
from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.model import Qwen3VL

LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.1, 0.25, 0.6]], np.float32))


def frequencies(**options):
    keys = jax.random.split(jax.random.key(0), 20000)
    tokens = jax.vmap(lambda key: choose_token(jnp.asarray(LOGITS), key, Sampling(1, **options)))(keys)
    return np.stack([np.bincount(column, minlength=4) for column in np.asarray(tokens).T]) / len(keys)


def test_temperature_scales_logits():
    expected = np.exp(LOGITS / 0.7)
    np.testing.assert_allclose(frequencies(temperature=0.7), expected / expected.sum(1, keepdims=True), atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.5, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        (0.8, [[0.625, 0.375, 0, 0], [0, 0, 0.25 / 0.85, 0.6 / 0.85]]),
        (0.9, [[0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], [0, 0.1 / 0.95, 0.25 / 0.95, 0.6 / 0.95]]),
        (1e-6, [[1, 0, 0, 0], [0, 0, 0, 1]]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, expected):
    np.testing.assert_allclose(frequencies(temperature=1.0, top_p=top_p), expected, atol=0.015)


def test_temperature_zero_takes_the_likeliest():
    token = choose_token(jnp.asarray(LOGITS), jax.random.key(0), Sampling(1, top_p=0.1))
    np.testing.assert_array_equal(token, [0, 3])


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="sampling needs"):
        Sampling(**{"max_new_tokens": 1} | options)


def test_hidden_states_equal_those_of_one_pass_over_prompt_and_words():
    case, batch = cases.PROMPTS, cases.make_batch(cases.PROMPTS)
    found = cases.jax_generate(case)
    tokens = jnp.concatenate([batch["tokens"], found.tokens_bm], axis=1)
    graph = graph_of(lambda rngs: Qwen3VL(case.config, rngs))
    start_b, patches = jnp.asarray(batch["start"]), jnp.asarray(batch["patches"])

    @cases.quick_jit
    def forward(params):
        model = bind(graph, params)
        return model.forward(tokens, start_b=start_b, patches_bpf=patches, grids=case.grids, final_norm=False)

    expected = np.asarray(forward(cases.seeded_params(case.config)))[:, -cases.NEW_TOKENS :]
    generated = np.arange(cases.NEW_TOKENS) < np.asarray(found.length_b)[:, None]
    assert not generated.all(), "some end early, at a stop token whose hidden state counts"
    assert cases.relative(np.asarray(found.hidden_bmd)[generated], expected[generated]) < 1e-5
    np.testing.assert_array_equal(np.asarray(found.hidden_bmd)[~generated], 0)
