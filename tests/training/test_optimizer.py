import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvla.errors import ConfigError
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import check_learning_rates, make_optimizer

PARAMS = {"head": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5, 3.0])}}
GRADS = {"head": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([0.0, 4.0])}}


def first_update(**config):
    optimizer = make_optimizer(OptimizerConfig(0.1, **config))
    updates, _ = jax.jit(optimizer.transform.update)(GRADS, optimizer.transform.init(PARAMS), PARAMS)
    return jax.tree.map(np.asarray, updates)["head"]


def adam(gradient):
    """The first update of Adam: both moments are the gradient's, so it is the sign, but for epsilon."""
    return -0.1 * gradient / (np.abs(gradient) + 1e-8)


def test_warmup_then_cosine_to_zero():
    schedule = make_optimizer(OptimizerConfig(2.0, warmup_steps=10, decay_steps=50)).schedule
    rates = jax.jit(jax.vmap(schedule))(jnp.array([0, 5, 10, 20, 30, 50, 80])).tolist()
    cosine = [2.0 * 0.5 * (1 + math.cos(math.pi * t / 40)) for t in (0, 10, 20)]
    assert rates == pytest.approx([0.0, 1.0, *cosine, 0.0, 0.0], abs=1e-6)


def torch_multiplier(step, warmup, decay, final):
    """What LeRobot's schedule multiplies the peak rate with, from its definition."""
    if step < warmup:
        return 1 / (warmup + 1) if step <= 0 else (1 / (warmup + 1) - 1) * (1 - step / warmup) + 1
    return (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step, decay) / decay)) + final


@pytest.mark.parametrize("warmup", [0, 10])
def test_a_cosine_counted_from_the_first_step(warmup):
    """As LeRobot has it: the rate begins above 0, and drops where the warmup ends."""
    own = {"warmup_steps": warmup, "decay_steps": 50, "final_learning_rate": 0.5, "cosine": "start"}
    schedule, steps = make_optimizer(OptimizerConfig(2.0, **own)).schedule, range(70)
    rates = jax.jit(jax.vmap(schedule))(jnp.array(steps)).tolist()
    assert rates == pytest.approx([2.0 * torch_multiplier(step, warmup, 50, 0.25) for step in steps], abs=1e-6)
    kept = OptimizerConfig(2.0, **own, undecayed=("head",))
    assert make_optimizer(kept).schedule(49) == pytest.approx(rates[49])


def test_short_runs_shorten_what_is_counted_from_the_first_step():
    own = {"warmup_steps": 1000, "decay_steps": 30_000}
    lerobot, plain = OptimizerConfig(1e-4, **own, cosine="start"), OptimizerConfig(1e-4, **own)
    assert lerobot.for_run(30_000) == lerobot.for_run(100_000) == lerobot
    short = lerobot.for_run(20_000)
    assert (short.warmup_steps, short.decay_steps) == (666, 20_000)
    assert short.for_run(20_000) == short
    assert (lerobot.for_run(4).warmup_steps, lerobot.for_run(4).decay_steps) == (0, 4)
    assert plain.for_run(20_000) == plain


def test_other_readings_of_the_cosine_are_refused():
    with pytest.raises(ConfigError, match=r"config\.optimizer\.cosine must be one of after_warmup, start, not 'end'"):
        OptimizerConfig(1e-4, cosine="end")


@pytest.mark.parametrize(("warmup", "expected"), [(4, [0.0, 1.0, 2.0, 2.0]), (0, [2.0, 2.0, 2.0, 2.0])])
def test_no_decay_is_constant_after_the_warmup(warmup, expected):
    schedule = make_optimizer(OptimizerConfig(2.0, warmup_steps=warmup)).schedule
    assert [float(schedule(step)) for step in (0, 2, 4, 10**6)] == pytest.approx(expected)


def test_plain_adam_by_default():
    update = first_update()
    np.testing.assert_allclose(update["kernel"], adam(np.array([[3.0, 0.0]])), rtol=1e-5)
    np.testing.assert_allclose(update["bias"], adam(np.array([0.0, 4.0])), rtol=1e-5)


def test_weight_decay_is_of_kernels_only():
    update = first_update(weight_decay=0.01)
    np.testing.assert_allclose(
        update["kernel"], adam(np.array([[3.0, 0.0]])) - 0.1 * 0.01 * PARAMS["head"]["kernel"], rtol=1e-5
    )
    np.testing.assert_allclose(update["bias"], adam(np.array([0.0, 4.0])), rtol=1e-5)


def test_clipping_is_by_global_norm():
    optimizer = make_optimizer(OptimizerConfig(0.1, clip_norm=1.0))
    _, state = jax.jit(optimizer.transform.update)(GRADS, optimizer.transform.init(PARAMS), PARAMS)
    clipped = jax.tree.map(lambda mu: mu / 0.1, optax.tree.get(state, "mu"))["head"]
    np.testing.assert_allclose(clipped["kernel"], [[3 / 5, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(clipped["bias"], [0.0, 4 / 5], rtol=1e-5)


def test_parts_have_their_own_learning_rates():
    rates = {"head": 0.01, "head/bias": 0.05}
    optimizer = make_optimizer(OptimizerConfig(0.1, learning_rates=rates))
    updates, _ = jax.jit(optimizer.transform.update)(GRADS, optimizer.transform.init(PARAMS), PARAMS)
    own = jax.tree.map(np.asarray, updates)["head"]
    np.testing.assert_allclose(own["kernel"], 0.1 * adam(np.array([[3.0, 0.0]])), rtol=1e-5)
    np.testing.assert_allclose(own["bias"], 0.5 * adam(np.array([0.0, 4.0])), rtol=1e-5)


def test_parts_keep_the_peak_where_others_decay():
    rates = {"head/bias": 0.05, "body": 0.2}
    config = OptimizerConfig(
        0.1,
        warmup_steps=2,
        decay_steps=6,
        final_learning_rate=0.02,
        learning_rates=rates,
        undecayed=("head/bias", "tail"),
    )
    optimizer = make_optimizer(config)
    params = PARAMS | {name: {"kernel": jnp.ones(1)} for name in ("body", "tail", "tails")}
    parts = [("head", "kernel"), ("head", "bias"), ("body", "kernel"), ("tail", "kernel"), ("tails", "kernel")]
    update, state = jax.jit(optimizer.transform.update), optimizer.transform.init(params)
    found = []
    for _ in range(8):
        # A gradient that stays the same makes each step of Adam as long as the learning rate.
        updates, state = update(params, state, params)
        found.append([float(-updates[name][kind].ravel()[0]) for name, kind in parts])
    cosine = [0.02 + 0.08 * 0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]
    decayed, kept = np.array([0, 0.05, *cosine, 0.02, 0.02]), np.array([0, 0.05, *[0.1] * 6])
    np.testing.assert_allclose(np.array(found).T, [decayed, 0.5 * kept, 2 * decayed, kept, decayed], atol=1e-5)


def test_a_rate_of_zero_freezes():
    optimizer = make_optimizer(OptimizerConfig(0.1, learning_rates={"head/kernel": 0.0}))
    trained, frozen = optimizer.split(PARAMS)
    assert (list(trained["head"]), list(frozen["head"])) == (["bias"], ["kernel"])
    with pytest.raises(ConfigError, match="freezes every parameter"):
        make_optimizer(OptimizerConfig(0.1, learning_rates={"head": 0.0})).split(PARAMS)


def test_a_rate_for_no_parameter_is_refused():
    check_learning_rates(OptimizerConfig(0.1, learning_rates={"head": 0.5}, undecayed=("head/kernel",)), PARAMS)
    for prefix in ("hea", "body", "head/kern"):
        for config in ({"learning_rates": {prefix: 0.5}}, {"undecayed": (prefix,)}):
            with pytest.raises(ConfigError, match=f"{next(iter(config))} names '{prefix}'.*begin with head"):
                check_learning_rates(OptimizerConfig(0.1, **config), PARAMS)


def test_what_is_frozen_stays_so_whatever_its_rate():
    config = OptimizerConfig(0.1, learning_rates={"head": 0.2, "head/bias": 0.5})
    optimizer = make_optimizer(config, frozen=("head/bias",))
    assert list(optimizer.split(PARAMS)[1]["head"]) == ["bias"]
    assert make_optimizer(config, frozen=("head",)).rate_of("head/bias") == 0
    check_learning_rates(OptimizerConfig(0.1, learning_rates={"head": 0.2}), PARAMS, frozen=("head",))
    check_learning_rates(OptimizerConfig(0.1, learning_rates={"head/bias": 0.0}), PARAMS, frozen=("head",))
    message = "learning_rates gives 'head/bias' 0.5, but it is frozen here: remove that rate, or what freezes it .LoRA"
    with pytest.raises(ConfigError, match=message):
        check_learning_rates(config, PARAMS, frozen=("head",))


def test_adapters_decay_like_kernels():
    params = {"lora": {"q": {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}}}
    optimizer = make_optimizer(OptimizerConfig(0.1, weight_decay=0.01))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.transform.update(zeros, optimizer.transform.init(params), params)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, -0.1 * 0.01, rtol=1e-5), updates)


def test_the_cosine_ends_at_the_final_rate():
    config = OptimizerConfig(2.0, decay_steps=50, final_learning_rate=0.5)
    schedule = make_optimizer(config).schedule
    assert [float(schedule(step)) for step in (0, 25, 50, 80)] == pytest.approx([2.0, 1.25, 0.5, 0.5])
