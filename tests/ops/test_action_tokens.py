import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.action_tokens import to_actions, to_tokens

END = 32000
BINS = np.linspace(-1, 1, 256)


def reference(actions):
    """numpy in float64, as OpenVLA computes it."""
    return END - np.digitize(np.clip(np.asarray(actions, np.float64), -1, 1), BINS)


@pytest.mark.parametrize(
    ("value", "token", "decoded"),
    [
        (-1.0, 31999, -0.9960784),
        (-0.5, 31936, -0.5019608),
        (0.0, 31872, 0.0),
        (0.5, 31808, 0.5019608),
        (1.0, 31744, 0.9960784),
        (-7.0, 31999, -0.9960784),
        (7.0, 31744, 0.9960784),
        (0.997, 31745, 0.9960784),
    ],
)
def test_worked_values(value, token, decoded):
    found = to_tokens(jnp.float32(value), END)
    assert int(found) == token
    assert float(to_actions(found, END)) == pytest.approx(decoded, abs=1e-7)


def test_every_edge_and_its_neighbours_fall_as_in_float64():
    edges = BINS.astype(np.float32)
    values = np.concatenate([edges, np.nextafter(edges, np.float32(-2)), np.nextafter(edges, np.float32(2))])
    np.testing.assert_array_equal(to_tokens(jnp.asarray(values), END), reference(values))
    random = np.random.RandomState(0).uniform(-1.1, 1.1, (50, 7)).astype(np.float32)
    np.testing.assert_array_equal(to_tokens(jnp.asarray(random), END), reference(random))


def test_middles_come_back_and_words_count_as_the_ends():
    tokens = np.arange(END - 256, END)
    actions = to_actions(jnp.asarray(tokens), END)
    middles = (BINS[:-1] + BINS[1:]) / 2
    np.testing.assert_allclose(actions, middles[np.clip(END - tokens - 1, 0, 254)], atol=1e-7)
    np.testing.assert_array_equal(to_tokens(actions[1:], END), tokens[1:])
    np.testing.assert_allclose(to_actions(jnp.array([0, 2, 31743, 32000, 32063]), END), middles[[254] * 3 + [0] * 2])
