import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.environment import lerobot_command

from jaxvla.agents import make_agent
from jaxvla.agents.act import table_of
from jaxvla.contract import Execution
from jaxvla.data.schema import BatchSpec
from jaxvla.models.act.weights import PLACES, tensors_of, why_unused
from jaxvla.models.lerobot import load_table
from jaxvla.models.safetensors_io import open_checkpoint, write_checkpoint
from jaxvla.serving.execution import Schedule

pytestmark = pytest.mark.parity

SPEC = BatchSpec(("images0", "images1"), (40, 72), 5, 4, action_horizon=6)
TRANSFORMER = {
    "width": 16,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_latent_layers": 2,
    "latent_dim": 3,
}
AGENT = make_agent("act", {"transformer": TRANSFORMER | {"dropout_rate": 0.0}}, SPEC)
RNG = jax.random.key(3)


@pytest.fixture(scope="module")
def reference():
    why = lerobot_command("test_act.py")
    pytest.importorskip("lerobot.policies.act.modeling_act", reason=why, exc_type=ImportError)
    from parity import act_torch

    return act_torch


@pytest.fixture(scope="module")
def policy(reference):
    return reference.make_policy(SPEC, TRANSFORMER)


@pytest.fixture(scope="module")
def params(reference, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("act") / "weights"
    reference.write_weights(folder, policy.state_dict())
    params, report = load_table(folder, table_of(AGENT), why_unused)
    assert set(report.used) | set(report.unused) == set(policy.state_dict())
    assert set(report.unused) == {PLACES}
    return params


@pytest.fixture(scope="module")
def batch():
    batch = AGENT.spec.fake_batch(3, AGENT.batch_keys, np.random.default_rng(0))
    batch["action_pad_mask"][1, 4:] = False
    batch["action_pad_mask"][2, 1:] = False
    return batch


def error(found, expected):
    return np.abs(np.asarray(found) - expected).max() / max(np.abs(expected).max(), 1e-3)


def noise():
    return np.asarray(jax.random.normal(jax.random.split(RNG, 3)[0], (3, TRANSFORMER["latent_dim"])))


def test_parameters_have_the_places_of_the_network(params):
    shapes = jax.eval_shape(AGENT.init, RNG)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)


def test_actions(reference, policy, params, batch):
    expected = reference.act(policy, reference.torch_batch(batch, SPEC.cameras))
    assert error(jax.jit(AGENT.act)(params, batch["observations"], {}), expected) < 1e-4


def test_loss_and_gradients(reference, policy, params, batch, tmp_path):
    given = reference.torch_batch(batch, SPEC.cameras)
    expected, gradients = reference.losses(policy, given, noise())
    differentiate = jax.jit(jax.value_and_grad(AGENT.loss, has_aux=True))
    (loss, metrics), found = differentiate(params, batch, RNG)
    np.testing.assert_allclose([loss, metrics["l1_loss"], metrics["kld_loss"]], expected, rtol=1e-5)
    reference.write_weights(tmp_path / "gradients", gradients)
    leaves, _ = jax.tree_util.tree_flatten_with_path(load_table(tmp_path / "gradients", table_of(AGENT), why_unused)[0])
    flat = dict(jax.tree_util.tree_flatten_with_path(found)[0])
    largest = max(float(np.abs(leaf).max()) for _, leaf in leaves)
    for path, leaf in leaves:
        if path[-2:][0].key != "norm":  # buffers there, which have no gradient
            off = np.abs(flat[path] - leaf).max() / max(np.abs(leaf).max(), 1e-4 * largest)
            assert off < 1e-4, f"{jax.tree_util.keystr(path)} is off by {off:.1e}"
    whole = batch | {"action_pad_mask": np.ones_like(batch["action_pad_mask"])}
    own = reference.own_loss(policy, reference.torch_batch(whole, SPEC.cameras), noise())
    np.testing.assert_allclose(differentiate(params, whole, RNG)[0][0], own, rtol=1e-5)


def test_weights_go_back_to_the_same_file(reference, policy, params, tmp_path):
    (tmp_path / "saved").mkdir()
    write_checkpoint(tmp_path / "saved", tensors_of(params, table_of(AGENT)), 2**40)
    state = policy.state_dict()
    with open_checkpoint(tmp_path / "saved") as stored:
        assert stored.keys() == state.keys()
        for name, tensor in stored.items():
            assert tensor.shape == tuple(state[name].shape), name
            read = tensor.read_rows(0, tensor.shape[0]).reshape(tensor.shape)
            # The constant is computed anew; everything else is what it was.
            np.testing.assert_allclose(read, state[name].numpy(), atol=1e-7 if name == PLACES else 0, err_msg=name)


@pytest.mark.parametrize("coefficient", [0.01, 0.0])
def test_temporal_ensembling(reference, coefficient):
    chunks = np.random.default_rng(1).standard_normal((9, 1, 6, 4)).astype(np.float32)
    schedule = Schedule(Execution(ensemble=coefficient), 6, 1)
    played = np.stack([schedule.play([0], chunk)[0] for chunk in chunks])
    np.testing.assert_allclose(played, reference.ensembled(chunks, coefficient), atol=1e-5)
