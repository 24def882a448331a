import dataclasses
import json
import re

import numpy as np
import pytest
from data.bridge_files import frame, trajectory, write, write_dataset

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.goals import GoalConfig
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics
from jaxvla.errors import ConfigError, DataError

BRIDGE = ActionConvention(relabel=True, gripper=(6,), binarize=True, angles=(3, 4, 5))


def source_config(root, include=(("**",),), **changes):
    return SourceConfig("bridge_tfrecord", str(root), include=include, **changes)


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", {"open": [5, 3], "push/hard": [4]})


def test_actions_are_transformed_then_normalized(root):
    dataset = open_dataset(source_config(root, actions=BRIDGE), DataConfig(), "train")
    tables = [dataset.source.table(i) for i in range(3)]
    relabelled = np.concatenate([BRIDGE.transform(t.actions, t.proprio) for t in tables])
    np.testing.assert_allclose(dataset.statistics.actions.mean, relabelled.mean(0), atol=1e-6)
    np.testing.assert_allclose(dataset.actions, (relabelled - relabelled.mean(0)) / relabelled.std(0), atol=1e-4)
    np.testing.assert_allclose(dataset.action_normalizer.inverse(dataset.actions[:]), relabelled, atol=1e-6)
    assert (dataset.num_transitions, dataset.statistics.num_trajectories) == (12, 3)


def test_proprio_statistics_are_of_the_states_that_are_observed(root):
    dataset = open_dataset(source_config(root), DataConfig(), "train")
    observed = np.concatenate([dataset.source.table(i).proprio[:-1] for i in range(3)])
    np.testing.assert_allclose(dataset.statistics.proprio.mean, observed.mean(0), atol=1e-6)


def test_statistics_are_kept_beside_the_data_until_it_changes(root):
    open_dataset(source_config(root), DataConfig(), "train")
    kept = list(root.glob("dataset_statistics-*.json"))
    assert len(kept) == 1
    changed = json.loads(kept[0].read_text())
    changed["actions"]["mean"] = [9.0] * 7
    kept[0].write_text(json.dumps(changed))
    assert (open_dataset(source_config(root), DataConfig(), "train").statistics.actions.mean == 9).all()
    write(root / "open" / "train" / "out.tfrecord", [trajectory(7, 6)])
    assert (open_dataset(source_config(root), DataConfig(), "train").statistics.actions.mean != 9).all()


@pytest.mark.parametrize("mean", [[0.0] * 6, [float("nan")] * 7, 5, [[0.0]] * 7])
def test_garbled_statistics_are_made_anew(root, mean):
    whole = open_dataset(source_config(root), DataConfig(), "train").statistics
    (path,) = root.glob("dataset_statistics-*.json")
    changed = json.loads(path.read_text())
    changed["actions"]["mean"] = mean
    path.write_text(json.dumps(changed))
    again = open_dataset(source_config(root), DataConfig(), "train").statistics
    np.testing.assert_array_equal(again.actions.mean, whole.actions.mean)


def test_other_transforms_have_other_statistics(root):
    relabelled = open_dataset(source_config(root, actions=BRIDGE), DataConfig(), "train")
    raw = open_dataset(source_config(root, actions=BRIDGE), DataConfig(relabel_actions=False), "train")
    assert (raw.statistics.actions.mean[:6] != relabelled.statistics.actions.mean[:6]).all()
    plain = open_dataset(source_config(root), DataConfig(), "train")
    np.testing.assert_array_equal(
        plain.statistics.actions.mean, plain.source.actions.mean(0, dtype=np.float64).astype("f4")
    )


def test_the_run_may_speak_in_place_of_the_dataset(root):
    def convention(**changes):
        return open_dataset(source_config(root, actions=BRIDGE), DataConfig(**changes), "train").convention

    assert convention() == BRIDGE == convention(relabel_actions=True)
    assert convention(relabel_actions=False) == dataclasses.replace(BRIDGE, relabel=False)


def test_claims_are_held_against_the_training_split(root):
    widths = dataclasses.replace(BRIDGE, open=0.08)
    with pytest.raises(ConfigError, match="gripper dimension 6"):
        open_dataset(source_config(root, actions=widths), DataConfig(), "train")
    with pytest.raises(ConfigError, match="gripper must be different numbers"):
        open_dataset(source_config(root, actions=dataclasses.replace(BRIDGE, gripper=(7,))), DataConfig(), "val")
    dataset = open_dataset(source_config(root, actions=BRIDGE), DataConfig(), "train")
    # The commands of these files are noise.
    assert "no movements of the proprio" in next(line for line in dataset.report if line.startswith("warning: "))
    validation = open_dataset(source_config(root, actions=BRIDGE), DataConfig(), "val", dataset.statistics)
    assert not any(line.startswith("warning: ") for line in validation.report)
    what, ranges = dataset.describe_actions()
    assert what.startswith("7: 6 reached movements")
    assert f"action 0 {dataset.statistics.actions.min[0]:.3g}.." in ranges


def test_validation_uses_the_statistics_of_training(root):
    train = open_dataset(source_config(root), DataConfig(), "train")
    val = open_dataset(source_config(root), DataConfig(), "val", train.statistics)
    assert val.statistics is train.statistics
    assert len(val.source) == 2
    assert len(list(root.glob("dataset_statistics-*.json"))) == 1


def test_links_that_lead_nowhere_are_said_once(root):
    for name in ("lost", "open/lost"):
        (root / name).symlink_to(root / "nowhere")
    config = source_config(root, include=(("open/**", "push/**"), ("*", "open")))
    train = open_dataset(config, DataConfig(), "train")
    line = f"warning: 2 links lead nowhere and are left out, such as {root / 'lost'}"
    assert train.report[0] == line
    assert open_dataset(config, DataConfig(), "val", train.statistics).report[0] == line


def test_the_action_mask_leaves_dimensions_as_they_are(root):
    config = source_config(root, action_mask=(True,) * 6 + (False,))
    dataset = open_dataset(config, DataConfig(normalization="bounds_q99"), "train")
    assert set(dataset.actions[:][:, 6]) <= {0.0, 1.0}
    assert abs(dataset.actions[:][:, :6]).max() == 1


def test_the_mask_that_statistics_bring_counts(root):
    mask = (True,) * 6 + (False,)
    own = open_dataset(source_config(root, action_mask=mask), DataConfig(), "train")
    assert own.statistics.action_mask == mask
    theirs = open_dataset(source_config(root), DataConfig(), "train", own.statistics)
    np.testing.assert_array_equal(theirs.actions, own.actions)
    assert set(theirs.actions[:][:, 6]) <= {0.0, 1.0}
    with pytest.raises(ConfigError, match=r"action_mask=\(True, .* is not the mask that the statistics came with"):
        open_dataset(source_config(root, action_mask=(True,) * 7), DataConfig(), "train", own.statistics)


def test_statistics_of_another_robot_are_refused(root):
    made = open_dataset(source_config(root), DataConfig(), "train").statistics
    narrow = FieldStatistics(*(getattr(made.actions, f.name)[:6] for f in dataclasses.fields(FieldStatistics)))
    other = Statistics(narrow, made.proprio, 9, 2, (True,) * 6)
    with pytest.raises(DataError, match="actions of 7 dimensions, the statistics are of 6: both must be of one robot"):
        open_dataset(source_config(root), DataConfig(), "train", other)


def test_groups_keep_their_sizes_and_weights(root):
    config = source_config(root, include=(("push/*",), ("open",)), sample_weights=(3.0, 1.0))
    dataset = open_dataset(config, DataConfig(), "train")
    assert dataset.group_sizes == (4, 8)
    assert dataset.weights == (3.0, 1.0)


def test_delta_goals_shorten_what_can_be_drawn(root):
    goals = GoalConfig("delta_goals", delta=(4, 9))
    dataset = open_dataset(source_config(root), DataConfig(goal_relabeling=goals), "train")
    np.testing.assert_array_equal(dataset.drawable, [0])


def test_unlabelled_trajectories_are_left_out_on_request(tmp_path):
    features = [trajectory(0, 3, ("",)), trajectory(1, 4, ("go", ""))]
    write(tmp_path / "t" / "train" / "out.tfrecord", features)
    dataset = open_dataset(source_config(tmp_path), DataConfig(skip_unlabeled=True), "train")
    np.testing.assert_array_equal(dataset.drawable, [3, 4, 5, 6])
    assert dataset.annotations() == ("go",)


def broken_dataset(root):
    """Of two trajectories of task a and three of b, one of b has a single transition."""
    write(root / "a" / "train" / "out.tfrecord", [trajectory(0, 3), trajectory(1, 4)])
    return write(root / "b" / "train" / "out.tfrecord", [trajectory(2, 3), trajectory(3, 1), trajectory(4, 5)])


def test_what_cannot_be_used_is_left_out_and_said_at_every_start(tmp_path):
    path = broken_dataset(tmp_path)
    for _ in range(2):
        dataset = open_dataset(source_config(tmp_path, max_skipped=0.3), DataConfig(), "train")
        assert dataset.source.lengths.tolist() == [3, 4, 3, 5]
        assert dataset.statistics.num_trajectories == 4
        assert dataset.report[:-1] == (
            "skipped      1 of 5 train trajectories (20.0%)",
            f"             1 fewer than 2 transitions, such as {path}: record 1: trajectory 'b/train/1#0': 1",
        )


def test_too_many_that_cannot_be_used_are_an_error_whose_mend_works(tmp_path):
    broken_dataset(tmp_path)
    with pytest.raises(
        DataError, match=r"1 of 5 train .*max_skipped=0\.1: 1 fewer than 2 .*'b/train/1#0': 1:"
    ) as error:
        open_dataset(source_config(tmp_path), DataConfig(), "train")
    advised = float(re.search(r"set bridgedata_config\.max_skipped=([\d.]+)$", str(error.value))[1])
    open_dataset(source_config(tmp_path, max_skipped=advised), DataConfig(), "train")
    write(tmp_path / "a" / "train" / "out.tfrecord", [trajectory(0, 1)])
    with pytest.raises(DataError, match=r"1 of 1 train trajectories cannot be used.*: repair the data$"):
        open_dataset(source_config(tmp_path, (("a",),), max_skipped=1.0), DataConfig(), "train")
    write(tmp_path / "a" / "train" / "out.tfrecord", [])
    with pytest.raises(DataError, match=r"the train files hold no trajectories: make or download them again"):
        open_dataset(source_config(tmp_path, (("a",),)), DataConfig(), "train")


def test_files_without_trajectories_take_no_part(root):
    before = open_dataset(source_config(root), DataConfig(), "train")
    write(root / "a_first" / "train" / "out.tfrecord", [])
    after = open_dataset(source_config(root, (("a_first", "push/*"), ("open",))), DataConfig(), "train")
    assert len(after.source) == len(before.source)
    assert after.group_sizes == (4, 8)


def splits_held_out(root, **changes):
    config = source_config(root, validation_share=0.3, **changes)
    train = open_dataset(config, DataConfig(), "train")
    return train, open_dataset(config, DataConfig(), "val", train.statistics)


def test_a_share_is_held_out_by_key(tmp_path):
    trajectories = [trajectory(i, 3 + i % 4) for i in range(40)]
    named = [t | {"path": [f"raw/{i}"]} for i, t in enumerate(trajectories)]
    write(tmp_path / "one" / "t" / "train" / "out.tfrecord", named)
    train, val = splits_held_out(tmp_path / "one")
    assert 4 <= len(val.source) <= 20
    assert sorted([*train.source.keys, *val.source.keys]) == sorted(f"raw/{i}#0" for i in range(40))
    assert train.statistics.num_trajectories == len(train.source)
    assert val.num_transitions == val.source.lengths.sum()
    number = int(val.source.keys[1].removeprefix("raw/").removesuffix("#0"))
    np.testing.assert_array_equal(val.source.table(1).actions, trajectories[number]["actions"])
    np.testing.assert_array_equal(val.source.frames(1, [2], "images0")[0], frame(number, 2))
    # In other files, in another order, among others, the same are held out.
    more = [trajectory(99, 4) | {"path": ["raw/99"]}]
    write(tmp_path / "two" / "a" / "train" / "out.tfrecord", named[:3:-1])
    write(tmp_path / "two" / "b" / "train" / "out.tfrecord", named[:4] + more)
    _, again = splits_held_out(tmp_path / "two")
    assert {*again.source.keys} - {"raw/99#0"} == {*val.source.keys}


def test_trajectories_of_one_name_are_held_out_one_by_one(tmp_path):
    path = tmp_path / "t" / "train" / "out.tfrecord"
    write(path, [trajectory(i, 4) | {"path": ["same.hdf5"]} for i in range(40)])
    train, val = splits_held_out(tmp_path)
    assert len(val.source) + len(train.source) == 40
    assert 4 <= len(val.source) <= 20


def test_at_least_one_trajectory_is_held_out_and_one_left(tmp_path):
    path = tmp_path / "t" / "train" / "out.tfrecord"
    write(path, [trajectory(0, 4), trajectory(1, 4)])
    config = source_config(tmp_path, validation_share=1e-6)
    assert [len(open_dataset(config, DataConfig(), split).source) for split in ("train", "val")] == [1, 1]
    write(path, [trajectory(0, 4)])
    with pytest.raises(ConfigError, match=r"validation_share=1e-06 of 1 trajectories leaves none for training"):
        open_dataset(config, DataConfig(), "train")


def test_a_validation_split_and_a_share_exclude_each_other(root):
    for split in ("train", "val"):
        with pytest.raises(ConfigError, match=r"has a val split of its own: set .*validation_share=0\.0"):
            open_dataset(source_config(root, validation_share=0.1), DataConfig(), split)


def test_splits_of_other_dimensions_are_named(root):
    train = open_dataset(source_config(root), DataConfig(relabel_actions=False), "train")
    few = trajectory(0, 4) | {"actions": np.zeros((4, 6), np.float32)}
    for task in ("open", "push/hard"):
        write(root / task / "val" / "out.tfrecord", [few])
    with pytest.raises(DataError, match=r"val split has actions of 6 dimensions, the statistics are of 7"):
        open_dataset(source_config(root), DataConfig(relabel_actions=False), "val", train.statistics)


def test_excluded_tasks_are_left_out(root):
    dataset = open_dataset(source_config(root, exclude=("*/push/*",)), DataConfig(), "train")
    assert [key.split("/")[0] for key in dataset.source.keys] == ["open", "open"]


def test_the_spec_says_what_reaches_the_robot(root):
    mask = (True,) * 6 + (False,)
    dataset = open_dataset(source_config(root, action_mask=mask), DataConfig(normalization="bounds"), "train")
    assert dataset.spec.action_limits == ((-1, 1),) * 6 + ((-np.inf, np.inf),)
    hash(dataset.spec)


def test_spec(root):
    spec = open_dataset(source_config(root), DataConfig(obs_horizon=2, action_horizon=4), "train").spec
    assert (spec.cameras, spec.image_size, spec.proprio_dim, spec.action_dim) == (("images0",), (8, 8), 7, 7)
    assert (spec.obs_horizon, spec.action_horizon) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": (("nothing*",),)}, r"include pattern 'nothing\*' matches no"),
        ({"exclude": ("*",)}, "no train/out.tfrecord below"),
        ({"cameras": {"images0": "images5"}}, "no camera 'images5'"),
        ({"action_mask": (True,)}, "1 entries for 7"),
    ],
)
def test_what_does_not_fit_the_data_is_named(root, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        open_dataset(source_config(root, **changes), DataConfig(), "train")


def test_a_missing_folder_and_a_missing_split_are_named(root, tmp_path):
    with pytest.raises(DataError, match="no data folder"):
        open_dataset(source_config(tmp_path / "nowhere"), DataConfig(), "train")
    for path in root.rglob("val/out.tfrecord"):
        path.unlink()
    with pytest.raises(DataError, match=r"no val/out\.tfrecord below"):
        open_dataset(source_config(root), DataConfig(), "val")


def test_nothing_usable_is_an_error(root):
    goals = GoalConfig("delta_goals", delta=(50, 60))
    with pytest.raises(DataError, match="no train transition"):
        open_dataset(source_config(root), DataConfig(goal_relabeling=goals), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "hdf5"}, "format must be one of bridge_tfrecord, rlds"),
        ({"include": ()}, "include needs groups"),
        ({"include": ((),)}, "include needs groups"),
        ({"sample_weights": (1.0, 2.0)}, "2 entries for 1 groups"),
        ({"sample_weights": (0.0,)}, "must be positive"),
        ({"image_size": (8,)}, "image_size must be"),
        ({"data_path": ""}, "data_path is empty: give the folder of the data"),
        ({"cameras": {}}, "cameras is empty"),
        ({"cameras": {"": "images0"}}, "cameras cannot have the name ''"),
        ({"cameras": {"proprio": "images0"}}, "cameras cannot have the name 'proprio'"),
        ({"max_mismatched": 1.5}, r"max_mismatched must lie in \[0, 1\], not 1\.5"),
        ({"max_skipped": 1.5}, r"max_skipped must lie in \[0, 1\], not 1\.5"),
        ({"validation_share": 1.0}, r"validation_share must lie in \[0, 1\), not 1\.0"),
        ({"proprio_key": "observation/joints"}, "proprio_key has no effect with format 'bridge_tfrecord'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    values = {"format": "bridge_tfrecord", "data_path": "x", "include": (("**",),)} | changes
    with pytest.raises(ConfigError, match=message):
        SourceConfig(**values)


@pytest.mark.parametrize("strategy", ["uniform", "delta_goals"])
def test_the_share_of_action_slots_behind_an_end(root, strategy):
    goals = GoalConfig(strategy, delta=(2, 4))
    dataset = open_dataset(source_config(root), DataConfig(goal_relabeling=goals, action_horizon=3), "train")
    inside = [
        step + ahead < dataset.source.lengths[trajectory]
        for trajectory, step in zip(*dataset.source.locate(dataset.drawable))
        for ahead in range(3)
    ]
    assert dataset.padded_share == pytest.approx(1 - np.mean(inside))
    assert 0 < dataset.padded_share < 1 or strategy == "delta_goals"


def test_images_take_the_size_that_the_training_asks_for(root):
    dataset = open_dataset(source_config(root), DataConfig(image_size=(16, 24)), "train")
    assert dataset.spec.image_size == (16, 24)
    assert dataset.source.frames(0, [0], "images0").shape == (1, 16, 24, 3)
    assert dataset.report[0].startswith("images0      camera -> 8 x 8 stored -> 16 x 24: enlarged")
    with pytest.raises(ConfigError, match=r"config\.data\.image_size must be"):
        DataConfig(image_size=(8,))
    assert open_dataset(source_config(root, image_size=(16, 24)), DataConfig(), "val").spec.image_size == (16, 24)
    with pytest.raises(
        ConfigError, match=r"bridgedata_config\.image_size=\(8, 8\) and config\.data\.image_size=\(16, 24\)"
    ):
        open_dataset(source_config(root, image_size=(8, 8)), DataConfig(image_size=(16, 24)), "train")


def test_bad_horizons_are_refused():
    with pytest.raises(ConfigError, match=r"config\.data\.obs_horizon must be at least 1"):
        DataConfig(obs_horizon=0)
