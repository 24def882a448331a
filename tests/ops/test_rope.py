import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.rope import Rotation, interleaved_axes, inverse_frequencies, multimodal_rotation, rotate, rotation_at


def test_frequencies():
    np.testing.assert_allclose(inverse_frequencies(8, 16.0), [1, 0.5, 0.25, 0.125], rtol=1e-6)


@pytest.mark.parametrize(
    ("section", "axes"),
    [((4, 2, 2), "01201200"), ((2, 1, 1), "0120"), ((2, 2, 2), "012012"), ((3, 0, 0), "000")],
)
def test_axes_take_turns(section, axes):
    np.testing.assert_array_equal(interleaved_axes(section), list(map(int, axes)))


def test_axes_of_the_published_models():
    axes = interleaved_axes((24, 20, 20))
    np.testing.assert_array_equal(np.bincount(axes), [24, 20, 20])
    np.testing.assert_array_equal(axes[:60], np.tile([0, 1, 2], 20))


def test_each_frequency_follows_its_axis():
    rotation = multimodal_rotation(jnp.array([[[3]], [[5]], [[7]]]), (2, 1, 1), 16.0)
    angles = [3, 5 * 0.5, 7 * 0.25, 3 * 0.125]
    np.testing.assert_allclose(rotation.cos_btf[0, 0], np.cos(angles), rtol=1e-5)
    np.testing.assert_allclose(rotation.sin_btf[0, 0], np.sin(angles), rtol=1e-5)


def test_pairs_turn_like_complex_numbers():
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((2, 3, 4, 6)), rng.standard_normal((1, 3, 3))
    rotation = Rotation(*(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin)))
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angles[:, :, None])
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(x, jnp.float32), rotation), expected, atol=1e-6)


def test_bfloat16_is_turned_in_float32():
    x = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    angle = jnp.full((1, 1, 1), 0.3)
    turned = rotate(x, Rotation(jnp.cos(angle), jnp.sin(angle)))
    assert turned.dtype == jnp.bfloat16
    expected = jnp.array([np.cos(0.3) - np.sin(0.3), np.cos(0.3) + np.sin(0.3)], jnp.bfloat16)
    np.testing.assert_array_equal(turned[0, 0, 0].astype(float), expected.astype(float))


def test_tokens_in_a_line_turn_as_those_of_an_image_that_stand_in_one():
    positions = jnp.array([[0, 3, 3, 7]])
    found = rotation_at(positions, 8, 16.0)
    expected = multimodal_rotation(jnp.stack([positions] * 3), (2, 1, 1), 16.0)
    np.testing.assert_array_equal(found.cos_btf, expected.cos_btf)
    np.testing.assert_array_equal(found.sin_btf, expected.sin_btf)
