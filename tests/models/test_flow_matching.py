"""Chunks that are drawn towards what is left of those before: weights, the pull, and both heads that are integrated."""

import jax.numpy as jnp
import numpy as np
import pytest
from models.action_head import oracle
from models.action_head.head_cases import (
    VALID,
    A,
    B,
    D,
    configured,
    inputs,
    maker,
    params_for,
    quick_jit,
    to_numpy,
)

from jaxvla.contract import SCHEDULES
from jaxvla.errors import ConfigError
from jaxvla.models.flow_matching import Guide, euler, guide_weights
from jaxvla.models.module import bind, graph_of

STEPS = 4
FLAT = A * D
SEEN = jnp.asarray(VALID)


def weights(delay, left, horizon, schedule):
    return np.asarray(guide_weights(jnp.array([delay]), jnp.array([left]), horizon, schedule)[0])


def test_the_weights_of_the_original():
    linear = np.array([1, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5, 0, 0, 0, 0])
    np.testing.assert_allclose(weights(2, 6, 10, "linear"), linear, atol=1e-6)
    np.testing.assert_allclose(weights(2, 6, 10, "exp"), linear * np.expm1(linear) / (np.e - 1), atol=1e-6)
    np.testing.assert_array_equal(weights(2, 6, 10, "ones"), np.arange(10) < 6)
    np.testing.assert_array_equal(weights(2, 6, 10, "zeros"), np.arange(10) < 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_at_their_ends(schedule):
    """No chunk before, one whose rest is shorter than the delay, and one that is there at once."""
    np.testing.assert_array_equal(weights(3, 0, 5, schedule), 0)
    np.testing.assert_allclose(weights(4, 2, 5, schedule), [1, 1, 0, 0, 0], atol=1e-6)
    undelayed = weights(0, 3, 5, schedule)
    assert undelayed[3:].tolist() == [0, 0]
    assert (undelayed[:3] > 0).all() == (schedule != "zeros")
    both = guide_weights(jnp.array([2, 0]), jnp.array([6, 3]), 8, schedule)
    np.testing.assert_array_equal(both, [weights(2, 6, 8, schedule), weights(0, 3, 8, schedule)])


def guide(seed=3, limit=5.0, weight=1.0):
    """Rows that weigh their actions differently, one of them not at all."""
    rng = np.random.default_rng(seed)
    weight_bad = weight * rng.uniform(0, 1, (B, A, D)) * np.array([1, 1, 0])[:, None, None]
    actions_bad = rng.standard_normal((B, A, D))
    return Guide(*(jnp.asarray(x, jnp.float32) for x in (actions_bad, weight_bad, np.full(B, limit))))


HEAD = graph_of(maker(configured()))


@quick_jit
def sample(params, context, noise, own):
    return bind(HEAD, params).sample(context, SEEN, noise, guide=own)


@quick_jit
def velocities(params, context_tc, valid_t, x_mad, bucket):
    """Of rows of one sample."""
    head = bind(HEAD, params)
    context = head.dit.context(context_tc[None], valid_t[None])
    return head.predict(x_mad, jnp.full(len(x_mad), bucket), context).reshape(len(x_mad), FLAT)


def velocity_and_jacobian(params, context_tc, valid_t, x, bucket, step=2e-3):
    """The velocity at x [a d], and its whole matrix of derivatives by central differences."""
    rows = np.concatenate([x[None], x + step * np.eye(FLAT), x - step * np.eye(FLAT)]).reshape(-1, A, D)
    found = velocities(params, context_tc, valid_t, jnp.asarray(rows, jnp.float32), bucket)
    found = np.asarray(found, np.float64)
    return found[0], (found[1 : 1 + FLAT] - found[1 + FLAT :]).T / (2 * step)


def by_hand(params, values, own, b, form=np.transpose):
    """Euler's method of one sample with the matrix of derivatives written out, in its right form or another one."""
    x = np.asarray(values["noise"][b], np.float64).reshape(-1)
    target, weight = (np.asarray(part[b], np.float64).reshape(-1) for part in own[:2])
    for k in range(STEPS):
        t = k / STEPS
        v, jacobian = velocity_and_jacobian(params, values["context"][b], SEEN[b], x, jnp.array(k * 1000 // STEPS))
        pull = (np.eye(FLAT) + (1 - t) * form(jacobian)) @ (weight * (target - x - (1 - t) * v))
        strength = min((t**2 + (1 - t) ** 2) / (t * (1 - t)), 2.5) if t else 2.5
        x = x + (v + strength * pull) / STEPS
    return x.reshape(A, D)


def test_the_pull_goes_through_the_transposed_jacobian_of_the_head():
    """The limit cuts the strength where sampling begins and ends, 10 / 3 and more, but not in the middle, 2.

    The draws lie beside no kink of the network, where differences are no derivatives.
    """
    params, values, own = params_for(), inputs(5), guide(limit=2.5)
    found = sample(params, values["context"], values["noise"], own)
    expected = [by_hand(params, values, own, b) for b in range(B)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    for wrong in (np.positive, np.zeros_like):
        others = np.array([by_hand(params, values, own, b, wrong) for b in range(2)])
        assert np.abs(others - found[:2]).max((1, 2)).min() > 0.1
    plain = np.asarray(sample(params, values["context"], values["noise"], None))
    moved = np.abs(np.asarray(found) - plain).max((1, 2))
    assert moved[:2].min() > 0.05
    np.testing.assert_allclose(found[2], plain[2], atol=1e-5)


@pytest.mark.parametrize("nothing", [{"limit": 0.0}, {"weight": 0.0}])
def test_without_strength_or_weight_it_is_plain_sampling(nothing):
    params, values = params_for(), inputs()
    plain, found = (sample(params, values["context"], values["noise"], own) for own in (None, guide(**nothing)))
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_the_pull_is_what_integration_says_whatever_the_time_is_called():
    """A velocity that arrives at 0 from everywhere: x' = -x / (1 - t). So x1 = 0, its Jacobian 0, and nothing pulls."""
    noise, own = inputs()["noise"], guide()
    shares = jnp.arange(STEPS) / STEPS
    for times, share_of in ((shares, lambda t: t), (1 - shares, lambda t: 1 - t)):
        arriving = euler(lambda x, t, f=share_of: -x / (1 - f(t))[:, None, None], noise, times, own)
        np.testing.assert_allclose(arriving, 0, atol=1e-6)
        # One that knows no x: the pull is that of the error alone, and what weighs 1 at the limit 2 comes near.
        strong = own._replace(weight_bad=jnp.ones_like(own.weight_bad), limit_b=jnp.full(B, 2.0))
        constant = euler(lambda x, t: jnp.zeros_like(x), noise, times, strong)
        assert (np.abs(constant - own.actions_bad) <= 0.1 * np.abs(noise - own.actions_bad) + 1e-6).all()


def test_a_guide_is_no_matter_of_diffusion():
    head = bind(graph_of(maker(configured(kind="ddpm"))), params_for(kind="ddpm"))
    values = inputs()
    with pytest.raises(ConfigError, match="kind ddpm are drawn towards no chunk of before"):
        head.sample(values["context"], SEEN, values["noise"], guide=guide())


PREFIX = graph_of(maker(configured(max_delay=2)))


@quick_jit
def go_on(params, context, noise, own):
    return bind(PREFIX, params).sample(context, SEEN, noise, guide=own)


def test_actions_that_are_given_come_out_as_they_are_and_the_others_go_by_them():
    """None of row 0, one of row 1, and of row 2 the two that training gave at most, of three."""
    params, values = params_for(), inputs()
    given = np.random.default_rng(1).standard_normal((2, B, A, D)).astype(np.float32)
    known = np.arange(A) < np.array([[0], [1], [3]])
    found, others = (
        np.asarray(go_on(params, values["context"], values["noise"], Guide(each, jnp.zeros((B, A, D)), None, known)))
        for each in given
    )
    plain = np.asarray(sample(params, values["context"], values["noise"], None))
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
    for b, count in enumerate((0, 1, 2)):
        np.testing.assert_array_equal(found[b, :count], given[0, b, :count])
        behind = np.abs(found[b, count:] - others[b, count:]).max(-1)
        assert (behind > 1e-3).all() if count else (behind == 0).all()
    rows = {"num_heads": configured().dit.num_heads}
    x = np.where(known[1][:, None], given[0, 1], np.asarray(values["noise"][1], np.float64))
    for step in range(STEPS):
        v = oracle.predict(to_numpy(params), x, step * 250, np.asarray(values["context"][1]), VALID[1], known=1, **rows)
        x = x + np.where(known[1][:, None], 0, v) / STEPS
    np.testing.assert_allclose(found[1], x, atol=1e-4)


def test_a_head_that_has_not_learned_to_go_on_is_given_nothing():
    values, known = inputs(), jnp.ones((B, A), bool)
    with pytest.raises(ConfigError, match="with max_delay 0 a network has not learned to go on"):
        bind(HEAD, params_for()).sample(
            values["context"], SEEN, values["noise"], guide=Guide(values["actions"], values["actions"], None, known)
        )
