"""A sound dataset has no findings, and each way of breaking an episode has its own and no other."""

import dataclasses
import io

import numpy as np
import pytest
from data import rlds_episodes
from data.inspection.episodes import SIZE, STEPS, episode, parts, whole, write
from PIL import Image

from jaxvla.data.inspection.findings import ERROR, NOTE, WARNING, counted, find, remarks
from jaxvla.data.inspection.measures import measure
from jaxvla.data.inspection.pictures import look
from jaxvla.data.inspection.recordings import find_config, open_recordings
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError, DataError

BRIDGE = ActionConvention(relabel=True, gripper=(6,), binarize=True, angles=(3, 4, 5))
BOTH = {"images0": "images0", "images1": "images1"}


def inspected(root, convention=None, **options):
    """The findings of a dataset, with what a config says of its actions, or without one."""
    config = find_config(root)
    if convention:
        config = dataclasses.replace(config, actions=convention, **({"cameras": BOTH} | options))
    recordings = open_recordings(config, convention is not None, 0, 0)
    return find(recordings, measure(recordings), look(recordings, 1000, 0))


def brief(findings):
    return [(finding.severity, finding.kind, finding.where) for finding in findings]


def twelve():
    return [episode(i) for i in range(12)]


@pytest.mark.parametrize("convention", [None, BRIDGE])
def test_sound_data_has_no_findings(convention, tmp_path):
    assert inspected(write(tmp_path, twelve()), convention) == ()
    assert counted(()) == "none"


def black(records):
    images = whole(records[1], "images1")
    images[:] = 3
    records[1] |= parts("images1", images)


def one_colour(records):
    images = whole(records[1], "images1")
    images[:] = (200, 40, 40)
    records[1] |= parts("images1", images)


def frozen(records):
    images = whole(records[1], "images0")
    images[:] = images[0]
    records[1] |= parts("images0", images)


def static(records):
    states = whole(records[1], "state")
    states[:] = states[0]
    records[1] |= parts("state", states)


def gripper(records):
    records[1]["actions"][:, 6] = 1


def not_a_number(records):
    records[1]["actions"][5, 2] = np.nan


def infinite(records):
    records[1]["observations/state"][5, 2] = np.inf


def unrelated(records):
    records[1]["actions"][:, :6] = np.random.default_rng(7).normal(0, 0.02, (STEPS, 6))


def jump(records):
    states = whole(records[1], "state")
    states[20:, 1] += 2
    records[1] |= parts("state", states)


def wrap(records):
    for record in records:
        states = whole(record, "state")
        states[:, 4] = np.linspace(-3, 3, STEPS + 1)
        record["actions"][:, 4] = np.diff(states[:, 4])
        record |= parts("state", states)
    states = whole(records[1], "state")
    states[20:, 4] -= 2 * np.pi  # from about 0 on it would leave the circle, so all of it begins a turn later
    states[:, 4] += np.pi
    records[1] |= parts("state", states)


def outlier(records):
    records[1]["actions"][3, 0] = 50


def short(records):
    records[1] = episode(1, 2)
    records[1]["actions"][:, 6] = (0, 1)


def too_short(records):
    records[1] = episode(1, 1)


def twice(records):
    records[2] = records[1] | {"path": ["raw/2"]}


def copied(records):
    records[2] = records[1]


def same_key(records):
    records[2]["path"] = ["raw/1"]


def silent(records):
    records[1].pop("language")


ONE = ("#1 (train) raw/1#0",)
BROKEN = [
    (black, WARNING, "black camera", ONE),
    (one_colour, WARNING, "one colour camera", ONE),
    (frozen, WARNING, "frozen camera", ONE),
    (static, WARNING, "static episodes", ONE),
    (gripper, NOTE, "gripper", ONE),
    (not_a_number, ERROR, "not finite", "record 1: trajectory 'raw/1#0': step 5, dimension 2: nan"),
    (infinite, ERROR, "not finite", "record 1: trajectory 'raw/1#0': step 5, dimension 2: inf"),
    (unrelated, WARNING, "unexplained episodes", ONE),
    (jump, WARNING, "jumps", ("#1 (train) raw/1#0: step 19",)),
    (wrap, WARNING, "wrapped angles", ("#1 (train) raw/1#0: step 19",)),
    (outlier, WARNING, "outliers", ("#1 (train) raw/1#0: step 3",)),
    (short, NOTE, "short", ONE),
    (too_short, ERROR, "short", "record 1: trajectory 'raw/1#0': 1"),
    (twice, WARNING, "duplicates", ("#1 (train) raw/1#0 = #2 (train) raw/2#0",)),
    (copied, WARNING, "duplicates", ("#1 (train) = #2 (train) raw/1#0",)),
    (same_key, WARNING, "duplicate keys", ("raw/1#0 (2 times)",)),
    (silent, WARNING, "no language", ONE),
]


@pytest.mark.parametrize(("break_it", "severity", "kind", "where"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_each_fault_is_found_and_no_other(break_it, severity, kind, where, tmp_path):
    records = twelve()
    break_it(records)
    if isinstance(where, str):
        where = (f"{tmp_path}/task/train/out.tfrecord: {where}",)
    assert brief(inspected(write(tmp_path, records))) == [(severity, kind, where)]


def test_many_faults_are_found_side_by_side(tmp_path):
    records = twelve()
    for k, break_it in enumerate((black, static, gripper, unrelated, silent, not_a_number)):
        own = [records[0], records[k + 1]]
        break_it(own)
        records[k + 1] = own[1]
    found = inspected(write(tmp_path, records), BRIDGE)
    assert [(finding.kind, len(finding.where)) for finding in found] == [
        ("not finite", 1),
        ("black camera", 1),
        ("static episodes", 1),
        ("unexplained episodes", 1),
        ("no language", 1),
        ("gripper", 1),
    ]
    assert counted(found) == "1 error, 4 warnings, 1 note"
    assert all(finding.mend and finding.what.endswith(".") for finding in found)


def test_what_is_wrong_throughout_is_said_once(tmp_path):
    records = [*twelve(), episode(100)]
    for record in records:
        record["actions"][:, 6] = 1
        record["actions"][:, :6] = np.random.default_rng(len(record["path"][0])).normal(0, 0.02, (STEPS, 6))
        record.pop("language")
        record |= parts("images1", np.zeros((STEPS + 1, SIZE, SIZE, 3), np.uint8))
    write(tmp_path, records[:-1], records[-1:])
    broken = [(WARNING, kind, ()) for kind in ("black camera", "unexplained actions", "no language")]
    assert brief(inspected(tmp_path)) == [*broken, (NOTE, "gripper", ())]
    said = [*broken[:1], (WARNING, "gripper", ()), *broken[1:]]
    assert brief(inspected(tmp_path, dataclasses.replace(BRIDGE, relabel=False))) == said
    assert brief(inspected(tmp_path, BRIDGE)) == [(ERROR, "refused", ()), *said]


def test_an_episode_of_several_splits_is_an_error(tmp_path):
    records = twelve()
    found = inspected(write(tmp_path, records, [records[3] | {"path": ["raw/v"]}]))
    assert brief(found) == [(ERROR, "duplicates", ("#3 (train) raw/3#0 = #12 (val) raw/v#0",))]


def test_a_camera_that_lacks_in_an_episode(tmp_path):
    records = twelve()
    for part in ("observations", "next_observations"):
        records[1][f"{part}/images1"] = records[1][f"{part}/images1"][:-3]
    (found,) = inspected(write(tmp_path, records))
    assert (found.severity, found.kind) == (ERROR, "no camera")
    assert found.where == (
        f"{tmp_path}/task/train/out.tfrecord: trajectory 'raw/1#0': {STEPS - 2} pictures for {STEPS + 1} states",
    )
    options = {"cameras": {"images0": "images0"}}
    assert inspected(tmp_path, BRIDGE, **options) == ()  # nobody uses that camera


def test_a_training_run_is_quoted(tmp_path):
    records = twelve()
    for record in records:
        record["actions"][:, :6] *= 100
    config = dataclasses.replace(find_config(write(tmp_path, records)), actions=BRIDGE)
    (remark,) = remarks(open_recordings(config, True, 0, 0))
    assert remark.startswith("the reached movements are 0.0")
    assert remarks(open_recordings(config, False, 0, 0)) == ()


def noise(rng, steps):
    """PNGs."""
    files = [io.BytesIO() for _ in range(steps)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return [file.getvalue() for file in files]


def rlds_episode(number, steps=30, **changes):
    rng = np.random.default_rng(number)
    states = rng.normal(0, 0.02, (steps, 7)).cumsum(0).astype(np.float32)
    states[:, 6] = np.arange(steps) % 10 < 5
    actions = np.diff(states, axis=0, append=states[-1:])
    actions[:, 6] = states[:, 6]
    own = {"action": actions, "observation__state": states, "observation__image_0": noise(rng, steps)}
    return rlds_episodes.episode(number, steps, **(own | changes))


def test_rlds_is_found_out_and_its_pictures_are_tried(tmp_path):
    episodes = [rlds_episode(i) for i in range(6)]
    root = rlds_episodes.write_dataset(tmp_path / "1.0.0", {"train": [episodes], "test": [[rlds_episode(9)]]})
    recordings = open_recordings(find_config(root), False, 0, 0)
    assert (recordings.format, recordings.splits, recordings.counts) == ("rlds", ("test", "train"), (1, 6))
    assert recordings.cameras == ("observation/image_0",)
    assert inspected(root) == ()
    broken = [*noise(np.random.default_rng(0), 29), b"\x89PNG"]
    rlds_episodes.write_dataset(root, {"train": [[*episodes[:5], rlds_episode(5, observation__image_0=broken)]]})
    (found,) = inspected(root)
    assert (found.severity, found.kind, len(found.where)) == (ERROR, "unreadable frames", 1)
    assert found.where[0].startswith("#6 (train) /raw/5#5: ")


def test_instructions_in_part_of_an_episode(tmp_path):
    episodes = [rlds_episode(i) for i in range(6)]
    episodes[2] = rlds_episode(2, language_instruction=["go"] * 15 + [""] * 15)
    root = rlds_episodes.write_dataset(tmp_path / "1.0.0", {"train": [episodes]})
    assert brief(inspected(root)) == [(NOTE, "language in part", ("#2 (train) /raw/2#2",))]


def test_real_data_has_the_faults_that_it_is_known_for(bridge_rlds):
    found = inspected(bridge_rlds)
    assert [(finding.severity, finding.kind, len(finding.where)) for finding in found] == [
        (ERROR, "duplicates", 25),  # both splits hold the same episodes
        (WARNING, "black camera", 0),
        (NOTE, "gripper", 18),  # cut off before they grasp
    ]
    assert "observation/image_3 is black throughout" in found[1].what


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ("", "no data folder .*: give a folder of TFRecords, an RLDS version folder or a LeRobotDataset$"),
        ("set/raw/x", "holds no dataset that is read: neither features.json .* it has raw: convert raw data first"),
        ("set/bridge/1.0.0/features.json/", "is no RLDS version folder, below it lie bridge/1.0.0: set the data path"),
    ],
)
def test_what_is_no_dataset_is_one_line(made, line, tmp_path):
    if made:
        (tmp_path / made).mkdir(parents=True)
    with pytest.raises(DataError, match=line) as caught:
        find_config(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_data_of_which_nothing_can_be_used_is_one_line(tmp_path):
    write(tmp_path, [episode(0, 1)], [episode(1, 1)])
    with pytest.raises(DataError, match=r"none of its 2 episodes can be used \(such as fewer than 2 transitions: "):
        open_recordings(find_config(tmp_path), False, 0, 0)
    write(tmp_path, twelve())
    config = dataclasses.replace(find_config(tmp_path), actions=ActionConvention(gripper=(9,)))
    with pytest.raises(ConfigError, match="gripper must be different numbers from 0 to 6"):
        open_recordings(config, True, 0, 0)
