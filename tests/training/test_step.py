import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from training.linear_agent import LinearAgent
from training.positional_batches import KEYS, SPEC, global_batch

from jaxvla.agents.agent import PartialMetric, Targets
from jaxvla.errors import TrainingError
from jaxvla.ops.placement import pin
from jaxvla.parallel.feed import to_global
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state, create_state, state_shardings
from jaxvla.training.step import make_eval_step, make_train_step
from jaxvla.training.validation import evaluate

AGENT = LinearAgent(SPEC)
ONE = make_mesh(MeshConfig(), jax.devices()[:1])
EIGHT = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
RULES = (("head/kernel$", PartitionSpec("fsdp", "tensor")),)


def brighten(batch, rng):
    """An augmentation that depends on every random number of its key."""
    shift = jax.random.uniform(rng, (len(batch["actions"]), 1, 1, 1, 1), maxval=50).astype(jnp.uint8)
    return batch | {"observations": batch["observations"] | {"images0": batch["observations"]["images0"] // 2 + shift}}


class Setup:
    def __init__(self, mesh, rules=(), augment=brighten, seed=3, agent=AGENT, rates=None, parts=1, ema_decay=0.0):
        optimizer = make_optimizer(
            OptimizerConfig(1e-2, warmup_steps=5, clip_norm=1.0, learning_rates=rates or {}), agent.frozen_modules
        )
        ema = ema_decay > 0
        self.state = create_state(agent, optimizer, seed, mesh, rules, ema=ema)
        self.sharding = batch_sharding(mesh)
        shardings = state_shardings(abstract_state(agent, optimizer, mesh, rules, ema=ema))
        self.step = make_train_step(
            agent, optimizer, augment, shardings, self.sharding, accumulate_steps=parts, ema_decay=ema_decay
        )

    def run(self, steps):
        rows = []
        for position in range(steps):
            self.state, metrics = self.step(self.state, to_global(global_batch(position), self.sharding))
            rows.append(metrics)
        return [{name: float(value) for name, value in row.items()} for row in jax.device_get(rows)]


def test_eight_devices_train_as_one_does():
    one, eight = Setup(ONE), Setup(EIGHT, RULES)
    losses = [[row["loss"] for row in setup.run(20)] for setup in (one, eight)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(
        one.state.params["head"]["kernel"], np.asarray(eight.state.params["head"]["kernel"]), rtol=2e-4, atol=1e-6
    )


def test_state_is_made_and_kept_in_its_shards():
    setup = Setup(EIGHT, RULES)
    for _ in range(2):
        kernel = setup.state.params["head"]["kernel"]
        moment = optax.tree.get(setup.state.opt_state, "mu")["head"]["kernel"]
        for array in (kernel, moment):
            assert array.sharding.spec == PartitionSpec("fsdp", "tensor")
            assert array.addressable_shards[0].data.size == array.size // 4
        setup.run(1)
    assert int(setup.state.step) == 2


def test_the_state_that_goes_in_is_given_up():
    setup = Setup(ONE)
    before = setup.state.params["head"]["kernel"]
    setup.run(1)
    assert before.is_deleted()


def test_the_step_compiles_once():
    traces = []

    class WeaklyTyped(LinearAgent):
        def init(self, rng):
            return super().init(rng) | {"gain": jnp.full((), 0.5)}

        def loss(self, params, batch, rng):
            traces.append(params)
            loss, metrics = super().loss(params, batch, rng)
            return params["gain"] * loss, metrics

    setup = Setup(ONE, augment=None, agent=WeaklyTyped(SPEC))
    setup.run(3)
    assert len(traces) == 1


def test_metrics_are_those_of_the_update():
    setup = Setup(ONE, augment=None)
    batch = global_batch(0)
    params = jax.device_get(setup.state.params)
    key = jax.random.fold_in(jax.random.wrap_key_data(setup.state.rng), 0)
    loss_key = jax.random.split(key)[1]
    (loss, _), grads = jax.jit(jax.value_and_grad(AGENT.loss, has_aux=True))(params, batch, loss_key)
    first, second = setup.run(2)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    assert first["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert first["mse"] == pytest.approx(float(loss), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert (first["learning_rate"], first["update_norm"]) == (0.0, 0.0)
    assert first["param_norm"] == pytest.approx(np.linalg.norm(params["head"]["kernel"]), rel=1e-5)
    assert second["learning_rate"] == pytest.approx(1e-2 / 5)
    # Adam moves every parameter that had the same sign of gradient twice by about the learning rate.
    assert 0 < second["update_norm"] <= 1.01 * second["learning_rate"] * np.sqrt(params["head"]["kernel"].size + 4)


def test_the_seed_decides_everything():
    runs = [Setup(ONE, seed=seed).run(3) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_steps_draw_different_numbers():
    setup = Setup(ONE)
    batch, losses = global_batch(0), []
    for _ in range(2):  # the learning rate of the first step is 0, so only the random numbers change
        setup.state, metrics = setup.step(setup.state, to_global(batch, setup.sharding))
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1]


def numpy_metrics(params, batch):
    """Per-example mse of the linear agent, and that of always predicting `MEAN`, in float64 without jax."""
    cells = [
        x.reshape(len(x), 4, 2, 4, 2, 3).astype(np.float64).mean((2, 4)).reshape(len(x), -1) / 127.5 - 1
        for x in (batch["observations"]["images0"][:, -1], batch["goals"]["images0"])
    ]
    features = np.concatenate([*cells, batch["observations"]["proprio"][:, -1]], axis=1)
    actions = features @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"])
    inside = batch["action_pad_mask"]

    def mse(predicted):
        error = ((predicted - batch["actions"]) ** 2).sum(-1)
        return (error * inside).sum(1) / inside.sum(1)

    return mse(actions.reshape(-1, 2, 2)), mse(MEAN)


MEAN = np.array([0.25, -0.5], np.float32)


@pytest.mark.parametrize("mesh", [ONE, EIGHT])
@pytest.mark.parametrize("sizes", [(16, 16, 5), (16, 0), (3,)])
def test_validation_averages_over_examples_exactly(mesh, sizes):
    params = Setup(mesh).state.params
    batches = [global_batch(i, size) for i, size in enumerate(sizes)]
    found = evaluate(
        make_eval_step(AGENT, MEAN, batch_sharding(mesh)), params, iter(batches), 16, batch_sharding(mesh), seed=0
    )
    expected = [numpy_metrics(jax.device_get(params), batch) for batch in batches if len(batch["actions"])]
    assert found["mse"] == pytest.approx(np.concatenate([mse for mse, _ in expected]).mean(), rel=1e-5)
    assert found["mse_mean_action"] == pytest.approx(np.concatenate([mean for _, mean in expected]).mean(), rel=1e-5)


def test_eval_step_gives_metrics_per_example():
    params = Setup(ONE).state.params
    batch = global_batch(0)
    valid = np.arange(16) != 3
    metrics = make_eval_step(AGENT, MEAN, batch_sharding(ONE))(params, batch, valid, jax.random.key(0))
    np.testing.assert_allclose(metrics["mse"].value_b, numpy_metrics(params, batch)[0] * valid, rtol=1e-4)
    np.testing.assert_array_equal(metrics["mse"].known_b, valid)
    assert set(batch) == set(KEYS)


def test_the_baseline_is_the_mean_action_of_each_dataset():
    batch = global_batch(0)
    batch["dataset"] = np.arange(16, dtype=np.int32) % 2
    means, mask = np.stack([MEAN, -MEAN]), batch["action_pad_mask"]
    step = make_eval_step(AGENT, means, batch_sharding(ONE))
    found = step(Setup(ONE).state.params, batch, np.ones(16, bool), jax.random.key(0))["mse_mean_action"].value_b
    error = ((means[batch["dataset"]][:, None] - batch["actions"]) ** 2).sum(-1)
    np.testing.assert_allclose(found, (error * mask).sum(1) / mask.sum(1), rtol=1e-5)


class Half(LinearAgent):
    def evaluate(self, params, batch, rng):
        value = jnp.where(batch["actions"][:, 0, 0] > 0, batch["actions"][:, 0, 0], jnp.nan)
        nothing = jnp.zeros(len(value), bool)
        known = {"positive": PartialMetric(value, ~jnp.isnan(value)), "nowhere": PartialMetric(value, nothing)}
        return super().evaluate(params, batch, rng) | known


def test_metrics_are_averaged_over_the_examples_that_have_a_value():
    batches = [global_batch(i, size) for i, size in enumerate((16, 5))]
    step = make_eval_step(Half(SPEC), MEAN, batch_sharding(ONE))
    found = evaluate(step, Setup(ONE).state.params, iter(batches), 16, batch_sharding(ONE), seed=0)
    values = np.concatenate([batch["actions"][:, 0, 0] for batch in batches])
    assert found["positive"] == pytest.approx(values[values > 0].mean(), rel=1e-5)
    assert set(found) == {"mse", "mse_mean_action", "positive"}


@pytest.mark.parametrize("sizes", [(), (0,)])
def test_validation_without_examples(sizes):
    batches = (global_batch(0, size) for size in sizes)
    with pytest.raises(TrainingError, match="gave no example"):
        evaluate(
            make_eval_step(AGENT, MEAN, batch_sharding(ONE)),
            Setup(ONE).state.params,
            batches,
            16,
            batch_sharding(ONE),
            seed=0,
        )


class Pinning(LinearAgent):
    def _features(self, observations, goals):
        return pin(super()._features(observations, goals))


def test_losses_and_metrics_know_where_activations_live():
    agent = Pinning(SPEC)
    setup, batch = Setup(EIGHT, agent=agent), global_batch(0)
    evaluate_step = make_eval_step(agent, MEAN, batch_sharding(EIGHT))
    for traced in (
        jax.make_jaxpr(setup.step)(setup.state, batch),
        jax.make_jaxpr(evaluate_step)(setup.state.params, batch, np.ones(16, bool), jax.random.key(0)),
    ):
        assert "sharding_constraint" in str(traced)
    alone = jax.make_jaxpr(agent.evaluate)(setup.state.params, batch, jax.random.key(0))
    assert "sharding_constraint" not in str(alone)


class WithFollower(LinearAgent):
    def init(self, rng):
        params = super().init(rng)
        return params | {"slow": jax.tree.map(jnp.copy, params["head"])}


def test_followers_move_after_each_step_and_by_nothing_else():
    targets = Targets((("slow", "head"),), rate=0.25)
    setup = Setup(ONE, agent=WithFollower(SPEC, frozen_modules=("slow",), targets=targets))
    assert "slow" not in optax.tree.get(setup.state.opt_state, "mu")
    expected = np.asarray(setup.state.params["slow"]["kernel"])
    for position in range(3):
        setup.state, _ = setup.step(setup.state, to_global(global_batch(position), setup.sharding))
        expected = 0.25 * np.asarray(setup.state.params["head"]["kernel"]) + 0.75 * expected
        np.testing.assert_allclose(setup.state.params["slow"]["kernel"], expected, rtol=1e-6)


class WithoutDropout(LinearAgent):
    def loss(self, params, batch, rng):
        mse = self._mse(self._actions(params, self._features(batch["observations"], batch["goals"])), batch).mean()
        return mse, {"mse": mse}


@pytest.mark.parametrize("mesh", [ONE, EIGHT])
def test_parts_of_a_batch_add_up_to_it(mesh):
    whole, parts = (
        Setup(mesh, augment=None, agent=WithoutDropout(SPEC), parts=n) for n in (1, 4 if mesh is ONE else 2)
    )
    for row, other in zip(whole.run(4), parts.run(4)):
        assert row == pytest.approx(other, rel=1e-5)
    kernels = [np.asarray(setup.state.params["head"]["kernel"]) for setup in (whole, parts)]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay_and_carry_no_state():
    setup = Setup(ONE, rates={"head/kernel": 0.0})
    before = jax.device_get(setup.state.params["head"])
    rows = setup.run(3)
    after = jax.device_get(setup.state.params["head"])
    np.testing.assert_array_equal(before["kernel"], after["kernel"])
    assert (before["bias"] != after["bias"]).all()
    assert list(optax.tree.get(setup.state.opt_state, "mu")["head"]) == ["bias"]
    assert rows[0]["grad_norm"] == rows[0]["grad_norm/head"] > 0


def test_the_average_follows_the_parameters():
    setup = Setup(ONE, ema_decay=0.75)
    expected = jax.device_get(setup.state.params["head"]["kernel"])
    for _ in range(3):
        setup.run(1)
        expected = 0.75 * expected + 0.25 * jax.device_get(setup.state.params["head"]["kernel"])
    np.testing.assert_allclose(setup.state.served["head"]["kernel"], expected, rtol=1e-6)
    assert not np.allclose(setup.state.params["head"]["kernel"], expected, rtol=1e-6)


def test_only_what_changes_is_averaged():
    """An average of what is frozen would cost its memory, and round it anew at every step."""
    targets = Targets((("slow", "head"),), rate=0.25)
    agent = WithFollower(SPEC, frozen_modules=("slow",), targets=targets)
    setup = Setup(ONE, agent=agent, rates={"head/kernel": 0.0}, ema_decay=0.75)
    ema = setup.state.ema
    assert {name: sorted(part) for name, part in ema.items()} == {"head": ["bias"], "slow": ["bias", "kernel"]}
    setup.run(2)
    served, params = setup.state.served, setup.state.params
    assert jax.tree.structure(served) == jax.tree.structure(params)
    assert served["head"]["kernel"] is params["head"]["kernel"]
    assert (np.asarray(served["head"]["bias"]) != params["head"]["bias"]).all()
    assert (np.asarray(served["slow"]["bias"]) != params["slow"]["bias"]).all()


def test_what_is_read_from_files_is_not_drawn():
    class TwoModules(LinearAgent):
        def init(self, rng):
            base = {"gain": jax.random.normal(rng, (3,)), "new": {"a": jnp.full(2, 7.0)}}
            return super().init(rng) | {"base": base}

    def pretrained(shardings):
        return {"base": {"gain": jax.device_put(np.arange(3.0, dtype=np.float32), shardings["base"]["gain"])}}

    optimizer = make_optimizer(OptimizerConfig(1e-2))
    agent = TwoModules(SPEC)
    drawn = create_state(agent, optimizer, 3, ONE)
    read = create_state(agent, optimizer, 3, ONE, pretrained=pretrained)
    assert read.params["base"]["gain"].tolist() == [0.0, 1.0, 2.0]
    assert read.params["base"]["new"]["a"].tolist() == [7.0, 7.0]  # a part of the module that the files do not have
    np.testing.assert_array_equal(read.params["head"]["kernel"], drawn.params["head"]["kernel"])
    assert jax.tree.structure(read) == jax.tree.structure(drawn)
    assert (read.rng == drawn.rng).all()
