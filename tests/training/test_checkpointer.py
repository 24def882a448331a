import dataclasses
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from serving.two_datasets import dataset
from training.file_limit import file_limit
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC, make_assets

from jaxvla.assets import Assets
from jaxvla.checkpoint import find_checkpoint, read_assets, restore, saved_steps
from jaxvla.data.dataset import DataConfig
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import CheckpointError
from jaxvla.manifest import MANIFEST
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.checkpointer import Checkpointer, config_differences, restore_state, resume
from jaxvla.training.config import CheckpointConfig, OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import TrainState, abstract_state, create_state

AGENT = LinearAgent(SPEC)
OPTIMIZER = make_optimizer(OptimizerConfig(1e-2))
RULES = (("head/kernel$", PartitionSpec("fsdp", "tensor")),)


def mesh_of(count):
    sizes = {1: MeshConfig(), 2: MeshConfig(1, 2), 8: MeshConfig(2, 2, 2)}
    return make_mesh(sizes[count], jax.devices()[:count])


def new_state(count=1, step=0):
    state = create_state(AGENT, OPTIMIZER, 5, mesh_of(count), RULES)
    return dataclasses.replace(state, step=state.step + step)


def save(run, steps, mse=(), config=None, assets=None):
    with Checkpointer(run, config or CheckpointConfig(), assets or make_assets()) as checkpointer:
        for i, step in enumerate(steps):
            metrics = {"mse": mse[i]} if mse and mse[i] is not None else None
            checkpointer.save(new_state(step=step), {"position": step}, metrics)


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("saved") / "run"
    save(run, (10, 20), assets=make_assets(seed=1, optimizer={"learning_rate": 0.1}, num_steps=50))
    return run


def test_a_state_moves_between_topologies(tmp_path):
    state = original = new_state(1, step=7)
    for i, count in enumerate((8, 2)):
        run = tmp_path / str(i)
        with Checkpointer(run, CheckpointConfig(), make_assets()) as checkpointer:
            checkpointer.save(state, {"position": 7}, None)
        state = restore_state(find_checkpoint(run), abstract_state(AGENT, OPTIMIZER, mesh_of(count), RULES))
        kernel = state.params["head"]["kernel"]
        assert len(kernel.addressable_shards) == count
        assert kernel.sharding.spec == PartitionSpec("fsdp", "tensor")
    jax.tree.map(np.testing.assert_array_equal, state, original)


def test_with_an_average_what_is_frozen_is_saved_once(tmp_path):
    optimizer = make_optimizer(OptimizerConfig(1e-2, learning_rates={"head/kernel": 0.0}))
    state = create_state(AGENT, optimizer, 5, mesh_of(1), RULES, ema=True)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.ema))
    with Checkpointer(tmp_path, CheckpointConfig(), make_assets()) as checkpointer:
        checkpointer.save(state, {"position": 0}, None)
    abstract = abstract_state(AGENT, optimizer, mesh_of(1), RULES, ema=True)
    restored = restore_state(find_checkpoint(tmp_path), abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    saved = ocp.StandardCheckpointHandler().metadata(find_checkpoint(tmp_path) / "train")
    assert list(saved["params"]["head"]) == ["bias"]


def test_the_average_is_what_is_served(tmp_path):
    state = create_state(AGENT, OPTIMIZER, 5, mesh_of(1), RULES, ema=True)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.params))
    with Checkpointer(tmp_path, CheckpointConfig(), make_assets()) as checkpointer:
        checkpointer.save(state, {"position": 0}, None)
    abstract = abstract_state(AGENT, OPTIMIZER, mesh_of(1), RULES, ema=True)
    jax.tree.map(np.testing.assert_array_equal, restore_state(find_checkpoint(tmp_path), abstract), state)
    served = restore(find_checkpoint(tmp_path), {"params": abstract.params})["params"]
    jax.tree.map(np.testing.assert_array_equal, served, state.ema)


def test_resume_gives_the_state_and_the_data_position(saved_run):
    abstract = abstract_state(AGENT, OPTIMIZER, mesh_of(1), RULES)
    assets = make_assets(seed=1, optimizer={"learning_rate": 0.1}, num_steps=80)
    state, position = resume(find_checkpoint(saved_run), assets, abstract)
    assert (int(state.step), position) == (20, {"position": 20})
    state, position = resume(saved_run / "checkpoints" / "10", assets, abstract)
    assert (int(state.step), position) == (10, {"position": 10})


def test_resume_of_another_configuration(saved_run):
    assets = make_assets(seed=2, optimizer={"learning_rate": 0.2, "clip_norm": 1.0}, num_steps=80)
    with pytest.raises(CheckpointError) as error:
        resume(find_checkpoint(saved_run), assets, abstract_state(AGENT, OPTIMIZER, mesh_of(1)))
    assert 'train_config.optimizer.clip_norm: "absent" -> 1.0; ' in str(error.value)
    assert "train_config.optimizer.learning_rate: 0.1 -> 0.2; train_config.seed: 1 -> 2;" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "free",
    [
        {"num_steps": 9, "log_interval": 9, "eval_interval": 9, "save_interval": 9, "eval_batches": 9},
        {"save_dir": "x", "resume_path": "x", "data_path": "x"},
        {"wandb": {"enabled": True}, "checkpoint": {"keep_last": 9}, "mesh": {"data": 9}},
        {"data": {"num_threads": 9, "prefetch": 9}},
        {"execution": {"execute_steps": 1, "ensemble": 0.01}},
    ],
)
def test_keys_that_a_resumed_run_may_change(free):
    old, new = make_assets().to_json(), make_assets(**free).to_json()
    new["data_config"] = {"data_path": "x", "max_skipped": 0.9, "max_mismatched": 0.9, "control_frequency": 5.0}
    new |= {"execution": {"execute_steps": 1, "ensemble": 0.01}, "control_frequency": 5.0}
    assert config_differences(old, new) == []


def test_keys_that_a_resumed_run_may_not_change():
    old = make_assets(data={"obs_horizon": 1}).to_json()
    new = make_assets(data={"obs_horizon": 2}, meshes=1).to_json()
    new["statistics"]["num_transitions"] = 60
    assert config_differences(old, new) == [
        "statistics.num_transitions: 50 -> 60",
        "train_config.data.obs_horizon: 1 -> 2",
        'train_config.meshes: "absent" -> 1',
    ]


def test_datasets_that_come_go_or_change_are_named():
    def kept(*names, **changes):
        made = {name: dataclasses.replace(dataset(2, 4, 1.0, "images0", 5.0), **changes) for name in names}
        own = {"statistics": None, "datasets": made, "data_config": {"datasets": {name: {} for name in names}}}
        return dataclasses.replace(make_assets(), **own).to_json()

    both = kept("a", "b.1")
    assert config_differences(both, kept("a", "b.1")) == []
    assert config_differences(both, kept("a", "b.1", "c")) == ["the dataset 'c' was not there"]
    assert config_differences(both, kept("a", "c")) == ["the dataset 'b.1' is gone", "the dataset 'c' was not there"]
    assert config_differences(make_assets().to_json(), both)[1:] == ["the dataset 'b.1' was not there"]
    assert config_differences(both, make_assets().to_json()) == ["the dataset 'a' is gone", "the dataset 'b.1' is gone"]
    heavier = kept("a", "b.1")
    heavier["datasets"]["b.1"]["weight"] = 2.0
    heavier["datasets"]["b.1"]["statistics"]["num_transitions"] = 60
    assert config_differences(both, heavier) == [
        "datasets.b.1.statistics.num_transitions: 2 -> 60",
        "datasets.b.1.weight: 1.0 -> 2.0",
    ]
    moved = kept("a", "b.1", control_frequency=3.0)
    moved["data_config"]["datasets"]["b.1"] = {"data_path": "elsewhere", "max_skipped": 0.5}
    assert config_differences(both, moved) == []
    moved["data_config"]["datasets"]["b.1"]["action_key"] = "x"
    assert config_differences(both, moved) == ['data_config.datasets.b.1.action_key: "absent" -> "x"']


def test_a_run_from_before_mixtures_goes_on():
    before, after = make_assets().to_json(), make_assets().to_json()
    after["data_config"] |= {"name": "", "balance": "weights", "datasets": {}}
    assert config_differences(before, after) == []
    after["data_config"]["name"] = "mine"
    assert config_differences(before, after) == ['data_config.name: "" -> "mine"']


def test_a_run_from_before_filters_and_tasks_goes_on():
    before, after = make_assets().to_json(), make_assets().to_json()
    new = ("camera_sizes", "resize", "filters", "tasks", "learn_padding")
    defaults = dataclasses.asdict(DataConfig())
    after["train_config"]["data"] = before["train_config"].get("data", {}) | {key: defaults[key] for key in new}
    after["data_config"] |= {"max_trajectories": 0, "trajectory_share": 1.0, "subset_seed": 0}
    after["data_config"] |= {"drop_first": 0, "no_op_below": 0.0}
    assert config_differences(before, after) == []
    after["train_config"]["data"]["filters"] = {"max_action": 5.0, "max_proprio": 0.0, "max_steps": 0}
    assert config_differences(before, after) == ["train_config.data.filters.max_action: 0.0 -> 5.0"]


def test_data_that_is_stored_at_another_size_is_another_configuration():
    def stored(size):
        return dataclasses.replace(make_assets(), stored_sizes={"images0": size}).to_json()

    assert config_differences(stored((128, 128)), stored((64, 64))) == ["stored_sizes.images0: [128, 128] -> [64, 64]"]
    assert config_differences(stored((64, 64)), stored((64, 64))) == []
    older = {key: value for key, value in stored((64, 64)).items() if key != "stored_sizes"}
    assert Assets.from_json(older).stored_sizes == {}


def test_data_positions_of_another_number_of_processes(saved_run, tmp_path):
    run = shutil.copytree(saved_run, tmp_path / "run")
    data = run / "checkpoints" / "20" / "data" / "data.json"
    assets, abstract = read_assets(find_checkpoint(run)), abstract_state(AGENT, OPTIMIZER, mesh_of(1), RULES)
    (find_checkpoint(run) / MANIFEST).unlink()
    data.write_text('[{"position": 20}, {"position": 20}]')
    assert resume(find_checkpoint(run), assets, abstract)[1] == {"position": 20}
    data.write_text('[{"position": 20}, {"position": 21}]')
    with pytest.raises(CheckpointError, match="2 different data positions; resume it with 2 processes, not 1"):
        resume(find_checkpoint(run), assets, abstract)


@pytest.mark.parametrize(
    ("mse", "kept"),
    [
        ((3.0, 1.0, 2.0, 5.0, 4.0), [2, 4, 5]),
        ((None, 1.0, None, 0.5, 4.0), [4, 5]),
        ((), [4, 5]),
    ],
)
def test_the_last_and_the_best_stay(tmp_path, mse, kept):
    save(tmp_path, range(1, 6), mse, CheckpointConfig(keep_last=2, keep_best=1))
    assert saved_steps(tmp_path) == kept


def test_the_best_stays_over_a_resume(tmp_path):
    config = CheckpointConfig(keep_last=1, keep_best=1)
    save(tmp_path, (1, 2), (1.0, 2.0), config)
    save(tmp_path, (3, 4), (3.0, 4.0), config)
    assert saved_steps(tmp_path) == [1, 4]


def test_assets_survive_json():
    assets = make_assets(hidden_dims=(256, 256))
    again = Assets.from_json(json.loads(json.dumps(assets.to_json())))
    assert again.spec == assets.spec
    assert again.train_config == {"hidden_dims": [256, 256]}
    np.testing.assert_array_equal(again.statistics.actions.q99, assets.statistics.actions.q99)
    assert again.to_json() == assets.to_json()


def test_what_actions_are_survives_json():
    limits = ((-1.0, 1.0), (-np.inf, np.inf))
    convention = ActionConvention(gripper=(1,), open=0.08, names=("x (m)", "width (m)"))
    spec = dataclasses.replace(make_assets().spec, action_limits=limits)
    assets = dataclasses.replace(make_assets(), spec=spec, actions=convention)
    text = json.dumps(assets.to_json(), allow_nan=False)
    again = Assets.from_json(json.loads(text))
    assert (again.spec, again.actions) == (spec, convention)
    assert hash(again.spec) == hash(spec)


def test_assets_from_before_actions_were_described_are_read():
    values = make_assets().to_json()
    del values["actions"], values["spec"]["action_limits"]
    old = Assets.from_json(values)
    assert (old.actions, old.spec.action_limits) == (None, ())
    np.testing.assert_array_equal(old.action_normalizer().inverse(np.zeros(2)), old.statistics.actions.mean)


def test_the_ends_of_the_gripper_bound_its_quantiles():
    assets = dataclasses.replace(
        make_assets(), action_normalization="bounds_q99", actions=ActionConvention(gripper=(1,))
    )
    s = assets.statistics.actions
    np.testing.assert_array_equal(assets.action_normalizer().inverse(np.full(2, 9.0)), [s.q99[0], s.max[1]])


def test_normalizers_of_assets():
    assets = dataclasses.replace(make_assets(), action_normalization="bounds", action_mask=(True, False))
    low = assets.statistics.actions.min
    np.testing.assert_allclose(assets.action_normalizer().forward(low), [-1, low[1]], atol=1e-6)
    np.testing.assert_allclose(assets.proprio_normalizer().forward(assets.statistics.proprio.mean), 0, atol=1e-6)


def test_a_checkpoint_is_found_by_run_or_by_folder(saved_run):
    folder = saved_run / "checkpoints" / "10"
    assert find_checkpoint(saved_run).name == "20"
    assert find_checkpoint(saved_run, step=10) == folder
    assert find_checkpoint(str(folder)) == folder
    assert find_checkpoint(folder, step=10) == folder


def test_what_is_no_checkpoint(saved_run, tmp_path):
    for path in (tmp_path, tmp_path / "nothing", saved_run / "checkpoints"):
        with pytest.raises(
            CheckpointError, match=r"is no checkpoint: looked in it for checkpoints/STEP .* and for params"
        ):
            find_checkpoint(path)
    with pytest.raises(CheckpointError, match="has no step 15; there are 10, 20"):
        find_checkpoint(saved_run, step=15)
    with pytest.raises(CheckpointError, match="is no run folder, so step 20 cannot"):
        find_checkpoint(saved_run / "checkpoints" / "10", step=20)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("item", ["params", "train", "data", "assets"])
def test_an_incomplete_checkpoint(saved_run, tmp_path, item):
    folder = shutil.copytree(saved_run / "checkpoints" / "10", tmp_path / "10")
    shutil.rmtree(folder / item)
    with pytest.raises(CheckpointError, match=f"incomplete: it lacks {item}; .* has no other step"):
        find_checkpoint(folder)


def test_an_unfinished_checkpoint(saved_run, tmp_path):
    folder = shutil.copytree(saved_run / "checkpoints" / "10", tmp_path / "10.orbax-checkpoint-tmp")
    with pytest.raises(CheckpointError, match="incomplete: its writing was interrupted"):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("kernel", (100, 6), r"head/kernel is float32\[100, 4\] there, float32\[100, 6\] here"),
        ("scale", (4,), r"head/scale is no such array there, float32\[4\] here"),
    ],
)
def test_parameters_of_another_agent(saved_run, name, shape, message):
    params = abstract_state(AGENT, OPTIMIZER, mesh_of(1)).params
    params["head"][name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=params["head"]["bias"].sharding)
    with pytest.raises(CheckpointError, match=message):
        restore(find_checkpoint(saved_run), {"params": params})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoints to .*run/checkpoints"):
        Checkpointer(tmp_path / "run", CheckpointConfig(), make_assets())


def large_state(step):
    """A state of a megabyte that does not compress."""
    params = {"head": {"kernel": jax.random.normal(jax.random.key(step), (512, 512))}}
    return TrainState(jnp.int32(step), params, OPTIMIZER.transform.init(params), jnp.zeros(2, jnp.uint32))


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def test_a_full_disk_keeps_the_checkpoints_before(tmp_path, caplog, capfd):
    states = [large_state(step) for step in (1, 2)]
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(keep_last=1), make_assets())
    checkpointer.save(states[0], {}, None)
    checkpointer.close()
    message = (
        f"cannot write a checkpoint to {tmp_path}/checkpoints: File too large; "
        "the checkpoints of steps 1 are whole; make room or mend the path, then resume"
    )
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(keep_last=1), make_assets())
    with file_limit(100_000):
        checkpointer.save(states[1], {}, None)
        with pytest.raises(CheckpointError) as error:
            checkpointer.close()
    assert str(error.value) == message
    assert saved_steps(tmp_path) == [1]
    restored = restore_state(find_checkpoint(tmp_path), abstract_of(states[0]))
    jax.tree.map(np.testing.assert_array_equal, restored, states[0])
    assert not caplog.records
    assert "Traceback" not in capfd.readouterr().err


def test_a_failed_save_is_noticed_while_training_goes_on(tmp_path):
    states = [large_state(step) for step in (1, 2)]
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(), make_assets())
    with file_limit(100_000):
        checkpointer.save(states[0], {}, None)
        with pytest.raises(CheckpointError, match="no checkpoint was kept"):
            wait_for_check(checkpointer)
    checkpointer.save(states[1], {}, None)
    checkpointer.close()
    assert saved_steps(tmp_path) == [2]


def test_a_state_is_saved_as_it_was_though_training_goes_on(tmp_path):
    state = large_state(1)
    expected = np.array(state.params["head"]["kernel"])
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 + 7, state), donate_argnums=0)
    with Checkpointer(tmp_path, CheckpointConfig(), make_assets()) as checkpointer:
        checkpointer.save(state, {}, None)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
    restored = restore_state(find_checkpoint(tmp_path), abstract_of(state))
    np.testing.assert_array_equal(restored.params["head"]["kernel"], expected)


def wait_for_check(checkpointer):
    for _ in range(1000):
        checkpointer.check()
        time.sleep(0.01)
