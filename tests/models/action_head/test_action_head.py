import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models.action_head import oracle
from models.action_head.head_cases import (
    CONFIG,
    PAD_MASK,
    VALID,
    A,
    B,
    C,
    D,
    P,
    T,
    calls,
    configured,
    inputs,
    maker,
    params_for,
    quick_jit,
    to_numpy,
)

from jaxvla.errors import ConfigError
from jaxvla.models.action_head import diffusion, flow_matching
from jaxvla.models.module import bind, graph_of

HEADS = CONFIG.dit.num_heads
RNG = jax.random.key(7)


PRESENT = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)


def oracle_losses(config, params, values, noised, state, present, known):
    """From the same draws, row by row; dropout off. The first `known` [m] actions of a row are given."""
    draws = config.repeated_diffusion_steps
    x, buckets, target = (np.asarray(array) for array in noised)
    losses = np.zeros(B)
    for b in range(B):
        slots, errors = PAD_MASK[b], []
        for row in range(b * draws, (b + 1) * draws):
            given = np.arange(A) < known[row]
            predicted = oracle.predict(
                params,
                np.where(given[:, None], values["actions"][b], x[row]) * present[b].astype(float),
                buckets[row],
                values["context"][b],
                VALID[b],
                HEADS,
                state[b],
                slots,
                known[row],
            )
            errors.extend(((predicted - target[row])[slots & ~given][:, present[b]] ** 2).ravel())
        losses[b] = np.mean(errors)
    return losses


@pytest.mark.parametrize(
    ("kind", "method", "present", "most"),
    [
        ("flow_matching", flow_matching, None, 0),
        ("flow_matching", flow_matching, PRESENT, 0),
        ("flow_matching", flow_matching, PRESENT, 2),
        ("ddpm", diffusion, None, 0),
        ("ddpm", diffusion, PRESENT, 0),
    ],
)
def test_losses_against_numpy(kind, method, present, most):
    """Of draws of which up to `most` first actions are given, too, which are at the time 1 and carry no loss."""
    config = configured(kind=kind, use_state=True, max_delay=most)
    params, values = params_for(P), inputs()
    rows = jnp.repeat(values["actions"], config.repeated_diffusion_steps, axis=0)
    noised = quick_jit(method.noised, static_argnums=0)(config, jax.random.split(RNG)[0], rows)
    losses = calls("losses", config, P, train=False)
    found = losses(params, values["context"], VALID, values["actions"], PAD_MASK, RNG, values["state"], present)
    values, seen = to_numpy(values), np.ones((B, D), bool) if present is None else present
    known = np.asarray(jax.random.randint(jax.random.fold_in(RNG, 2), (len(rows), 1), 0, most + 1))[:, 0]
    assert set(known) == set(range(most + 1))
    expected = oracle_losses(config, to_numpy(params), values, noised, values["state"], seen, known)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_euler_sampler_against_numpy():
    params, values = params_for(P), inputs()
    sample = calls("sample", configured(use_state=True), P)
    found = sample(params, values["context"], VALID, values["noise"], values["state"])
    params, values = to_numpy(params), to_numpy(values)
    for b in range(B):
        row = {"context_tc": values["context"][b], "valid_t": VALID[b], "state_p": values["state"][b]}
        expected = oracle.euler(params, values["noise"][b], 4, num_heads=HEADS, **row)
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flow_matching", "ddpm"])
def test_noise_in_dimensions_that_a_sample_lacks_changes_nothing(kind):
    params, values = params_for(P), inputs()
    sample = calls("sample", configured(kind=kind, use_state=True), P)
    other = jnp.where(PRESENT[:, None], values["noise"], 3 - values["noise"])
    rows = [sample(params, values["context"], VALID, x, values["state"], PRESENT) for x in (values["noise"], other)]
    kept = np.broadcast_to(PRESENT[:, None], rows[0].shape)
    np.testing.assert_array_equal(np.asarray(rows[0])[kept], np.asarray(rows[1])[kept])
    changed = sample(params, values["context"], VALID, values["noise"] + 1, values["state"], PRESENT)
    assert (np.asarray(changed)[kept] != np.asarray(rows[0])[kept]).any()


def test_ddpm_sampler_against_numpy():
    """All levels, the mean of every step: x0 is never formed, and x is clipped after each step."""
    config = configured(kind="ddpm")
    params, values = params_for(), inputs()
    found = calls("sample", config)(params, values["context"], VALID, values["noise"])
    params, values = to_numpy(params), to_numpy(values)
    squares = np.cos((np.linspace(0, 1, 21) + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.clip(1 - squares[1:] / squares[:-1], 0, 0.999)
    alphas, shares = 1 - betas, np.cumprod(1 - betas)
    x = values["noise"][0]
    for t in range(19, -1, -1):
        noise = oracle.predict(params, x, 50 * t, values["context"][0], VALID[0], HEADS)
        x = np.clip((x - (1 - alphas[t]) / np.sqrt(1 - shares[t]) * noise) / np.sqrt(alphas[t]), -2, 2)
    np.testing.assert_allclose(found[0], x, rtol=1e-3, atol=1e-3)


def test_repeats_share_the_keys_of_the_context():
    """Folded draws, and one call per draw with the context as it is: the same errors."""
    params, values, draws = params_for(), inputs(), CONFIG.repeated_diffusion_steps
    graph = graph_of(maker())
    x, buckets = jax.random.normal(RNG, (B * draws, A, D)), jnp.arange(B * draws)

    @quick_jit
    def predict(params, x, buckets):
        head = bind(graph, params)
        return head.predict(x, buckets, head.dit.context(values["context"], jnp.asarray(VALID)))

    folded = predict(params, x, buckets)
    for i in range(draws):
        np.testing.assert_allclose(folded[i::draws], predict(params, x[i::draws], buckets[i::draws]), atol=1e-5)


def test_gradients_are_those_of_a_tiled_context():
    config = configured(num_layers=2)
    params, values, draws = params_for(num_layers=2), inputs(), CONFIG.repeated_diffusion_steps
    graph = graph_of(maker(config))
    x = jax.random.normal(RNG, (B * draws, A, D))

    def loss(params, context, copies):
        head = bind(graph, params)
        tiled = (jnp.repeat(array, copies, axis=0) for array in (context, jnp.asarray(VALID)))
        return (head.predict(x, jnp.arange(B * draws), head.dit.context(*tiled)) ** 2).mean()

    grad = quick_jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    folded, tiled = (grad(params, values["context"], copies) for copies in (1, draws))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), folded, tiled)


def test_context_keys_are_not_tiled():
    """Keys and values are [b, t, n, h] wherever they occur, whatever the number of draws."""
    values, params = inputs(), params_for()
    graph = graph_of(maker(configured(repeated_diffusion_steps=5)))

    def losses(params):
        masks = jnp.asarray(VALID), jnp.asarray(PAD_MASK)
        return bind(graph, params).losses(values["context"], masks[0], values["actions"], masks[1], RNG)

    text = str(jax.make_jaxpr(losses)(params))
    width, heads, head_dim = CONFIG.dit.inner_dim, HEADS, CONFIG.dit.head_dim
    assert f"f32[{B},{T},{width}]" in text
    assert f"f32[{B},{T},{heads},{head_dim}]" in text
    assert f"[{5 * B},{T}," not in text


def test_a_sample_does_not_depend_on_batch_or_padding():
    params, values = params_for(), inputs()
    sample = calls("sample")
    found = sample(params, values["context"], VALID, values["noise"])
    for b in range(B):
        valid = VALID[b]
        alone = sample(
            params, values["context"][b : b + 1, valid], np.ones((1, valid.sum()), bool), values["noise"][b, None]
        )
        np.testing.assert_allclose(found[b], alone[0], rtol=1e-4, atol=1e-5)
    garbage = jnp.where(VALID[..., None], values["context"], jnp.nan)
    np.testing.assert_array_equal(sample(params, garbage, VALID, values["noise"]), found)


def test_padding_has_no_gradient():
    params, values = params_for(num_layers=2), inputs()
    graph = graph_of(maker(configured(num_layers=2)))

    def loss(context, actions):
        masks = jnp.asarray(VALID), jnp.asarray(PAD_MASK)
        return bind(graph, params).losses(context, masks[0], actions, masks[1], RNG, train=False).sum()

    context_grad, actions_grad = quick_jit(jax.grad(loss, (0, 1)))(values["context"], values["actions"])
    for grad, mask in ((context_grad, VALID), (actions_grad, PAD_MASK)):
        assert (np.asarray(grad)[~mask] == 0).all()
        assert (np.abs(np.asarray(grad)[mask]).max(-1) > 0).all()


def test_a_sample_without_valid_slots_gives_zero():
    params, values = params_for(), inputs()
    mask = PAD_MASK.copy()
    mask[1] = False
    losses = calls("losses")(params, values["context"], VALID, values["actions"], mask, RNG)
    assert losses[1] == 0
    assert (losses[jnp.array([0, 2])] > 0).all()


def test_dropout_is_for_training_alone():
    params, values = params_for(), inputs()
    args = (params, values["context"], VALID, values["actions"], PAD_MASK, RNG)
    dropping = calls("losses")(*args)
    still = calls("losses", configured(dropout=0.0))(*args)
    np.testing.assert_array_equal(calls("losses", train=False)(*args), still)
    assert (dropping != still).all()
    np.testing.assert_array_equal(calls("losses")(*args), dropping)


def test_ddpm_noise_comes_from_the_key():
    params, values = params_for(), inputs()
    sample = calls("sample", configured(kind="ddpm"))
    args = (params, values["context"], VALID, values["noise"], None, None, None)
    mean, one, again, other = (sample(*args, rng) for rng in (None, RNG, RNG, jax.random.key(8)))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one != mean).any()
    assert (abs(one) <= CONFIG.diffusion.clip).all()


def test_bfloat16_keeps_float32_where_it_matters():
    params, values = params_for(), inputs()
    config = configured(dtype="bfloat16")
    context = values["context"].astype(jnp.bfloat16)
    losses = calls("losses", config, train=False)(params, context, VALID, values["actions"], PAD_MASK, RNG)
    exact = calls("losses", train=False)(params, values["context"], VALID, values["actions"], PAD_MASK, RNG)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, exact, rtol=0.03)
    sampled = calls("sample", config)(params, context, VALID, values["noise"])
    assert sampled.dtype == jnp.float32
    assert (sampled != sampled.astype(jnp.bfloat16)).any()


def test_it_learns_a_mapping_from_context_to_actions():
    config = configured(num_layers=2, dropout=0.0, repeated_diffusion_steps=2)
    graph, params = graph_of(maker(config)), params_for(num_layers=2)
    rng = np.random.default_rng(3)
    context = jnp.asarray(rng.standard_normal((4, T, C)), jnp.float32)
    actions = jnp.asarray(rng.uniform(-1, 1, (4, A, D)), jnp.float32)
    valid, mask = jnp.asarray(np.resize(VALID, (4, T))), jnp.ones((4, A), bool)
    optimizer = optax.adam(2e-3)

    def loss(params, rng):
        return bind(graph, params).losses(context, valid, actions, mask, rng).mean()

    def step(carry, rng):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, rng)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def fit(params, rng):
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(rng, 400))

    (trained, _), values = fit(params, jax.random.key(1))
    noise = jax.random.normal(jax.random.key(2), actions.shape)
    sample = quick_jit(lambda params: bind(graph, params).sample(context, valid, noise))
    errors = [float(((sample(tree) - actions) ** 2).mean()) for tree in (params, trained)]
    assert values[-20:].mean() < 0.2 * values[:5].mean()
    assert errors[1] < 0.05 * errors[0]


def test_what_does_not_fit_is_refused():
    values, valid = inputs(), jnp.asarray(VALID)

    def sample(config, state_dim=0, **options):
        head = nnx.eval_shape(lambda: maker(config, state_dim)(nnx.Rngs(0)))
        return jax.eval_shape(lambda: head.sample(values["context"], valid, values["noise"], **options))

    with pytest.raises(ConfigError, match="use_state=True does not fit a state of 0 values"):
        sample(configured(use_state=True))
    with pytest.raises(ConfigError, match="use_state=False does not fit a state of 5 values"):
        sample(CONFIG, P)
    with pytest.raises(ConfigError, match="max_seq_len 3 is below the action horizon 4"):
        sample(configured(max_seq_len=3))
    with pytest.raises(ConfigError, match="a state was given"):
        sample(CONFIG, state_bp=values["state"])
    with pytest.raises(ConfigError, match="no state was given"):
        sample(configured(use_state=True), P)
    with pytest.raises(ConfigError, match="num_inference_steps must be positive, not 0"):
        sample(CONFIG, num_steps=0)
    with pytest.raises(ConfigError, match="between 1 and num_levels 20, not 21"):
        sample(configured(kind="ddpm"), num_steps=21)


def test_where_the_head_looks():
    given, params = inputs(), params_for()
    mass = calls("looks_at")(params, given["context"], jnp.asarray(VALID), given["noise"])
    assert mass.shape == (CONFIG.depth // 2, B, T)
    np.testing.assert_allclose(mass.sum(-1), 1, atol=1e-5)
    assert (np.asarray(mass)[:, ~VALID] == 0).all()
    assert not np.allclose(mass[0], mass[1], atol=1e-3), "each pair of layers has its own"
    projection = params["dit"]["layers"]["cross_block"]["attention"]["q_proj"]
    blind = jax.tree.map(jnp.zeros_like, projection)
    attention = {**params["dit"]["layers"]["cross_block"]["attention"], "q_proj": blind}
    layers = {
        **params["dit"]["layers"],
        "cross_block": {**params["dit"]["layers"]["cross_block"], "attention": attention},
    }
    mass = calls("looks_at")(
        {**params, "dit": {**params["dit"], "layers": layers}}, given["context"], jnp.asarray(VALID), given["noise"]
    )
    np.testing.assert_allclose(mass, np.broadcast_to(VALID / VALID.sum(1, keepdims=True), mass.shape), atol=1e-6)
