import hashlib
import itertools
import threading

import numpy as np
import pytest
from data.bridge_files import frame, trajectory, write, write_dataset

from jaxvla.data import loader
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import BATCH_KEYS as ALL_KEYS
from jaxvla.data.text.instructions import InstructionTable
from jaxvla.errors import ConfigError, DataError

BATCH_KEYS = tuple(key for key in ALL_KEYS if key not in ("instruction", "text"))
EARLIER_KEYS = tuple(key for key in BATCH_KEYS if key not in ("action_dim_mask", "dataset"))
LENGTHS = {"a": [5, 3, 7], "b": [4, 6]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), LENGTHS, val=6)


def open_split(root, split="train", include=(("**",),), weights=(), **changes):
    source = SourceConfig("bridge_tfrecord", str(root), include=include, sample_weights=weights)
    return open_dataset(source, DataConfig(**changes), split)


def training_batches(dataset, *args, **options):
    return loader.training_batches(Mixture.of(dataset), *args, **options)


def validation_batches(dataset, *args, **options):
    return loader.validation_batches(Mixture.of(dataset), *args, **options)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


def digest(batches):
    """SHA-256 of names, dtypes, shapes and bytes of batches."""
    found = hashlib.sha256()
    for batch, key in itertools.product(batches, EARLIER_KEYS):
        views = batch[key] if isinstance(batch[key], dict) else {None: batch[key]}
        for name, x in sorted(views.items()):
            found.update(f"{key} {name} {x.dtype} {x.shape}".encode())
            found.update(np.ascontiguousarray(x))
    return found.hexdigest()


def test_the_stream_of_one_dataset_is_that_of_earlier_runs(root):
    """Both hashes are of the loader before there were mixtures: checkpoints of then go on with the same batches."""
    options = {"obs_horizon": 2, "action_horizon": 3, "normalization": "none"}
    grouped = {"include": (("a",), ("b",)), "weights": (1.0, 3.0), **options}
    stream = training_batches(open_split(root, **grouped), 16, 3, BATCH_KEYS)
    assert digest(itertools.islice(stream, 4)) == "e50776feaab37bde7b740a3175461ca1a55b5e8e0d8e0ba61ca786f76683feac"
    whole = validation_batches(open_split(root, "val", **grouped), 5, BATCH_KEYS)
    assert digest(whole) == "89b3643dbf1625af8c3e571745bb350684fd544dbe5a4b26f81d8dec46954453"


def test_every_row_fits_together(root):
    """Pixels name their trajectory and frame, so each row can be checked against the tables."""
    dataset = open_split(root, obs_horizon=2, action_horizon=3)
    batch = next(training_batches(dataset, 16, 0, BATCH_KEYS))
    spec = dataset.spec
    shapes = spec.fake_batch(16, BATCH_KEYS, np.random.default_rng(0))
    for row in range(16):
        number, step, _ = batch["observations"]["images0"][row, -1, 0, 0].tolist()
        length = dataset.source.lengths[number]
        before = max(step - 1, 0)
        np.testing.assert_array_equal(batch["observations"]["images0"][row, 0], frame(number, before))
        # What comes next is the observation of the next transition, at the start of a trajectory too.
        following = np.stack([frame(number, step), frame(number, step + 1)])
        np.testing.assert_array_equal(batch["next_observations"]["images0"][row], following)
        goal_number, goal, _ = batch["goals"]["images0"][row, 0, 0]
        assert goal_number == number
        assert step < goal <= length
        assert batch["goal_distances"][row] == goal - step
        assert batch["rewards"][row] == (0 if goal == step + 1 else -1)
        start = dataset.source.action_starts[number]
        ahead = np.minimum(np.arange(step, step + 3), length - 1)
        np.testing.assert_array_equal(batch["actions"][row], dataset.actions[start + ahead])
        np.testing.assert_array_equal(batch["action_pad_mask"][row], np.arange(step, step + 3) < length)
        state = dataset.proprio_normalizer.forward(dataset.source.table(number).proprio)
        np.testing.assert_array_equal(batch["observations"]["proprio"][row], state[[before, step]])
        np.testing.assert_array_equal(batch["goals"]["proprio"][row], state[goal])
        task = "a" if number < 3 else "b"
        assert dataset.annotations()[batch["language"][row]] in (task, f"{task} again")
    assert {k: np.shape(v) for k, v in batch.items() if not isinstance(v, dict)} == {
        k: v.shape for k, v in shapes.items() if not isinstance(v, dict)
    }
    assert batch["observations"]["images0"].dtype == np.uint8


def test_padding_is_learned_where_a_run_says_so(tmp_path):
    """Repeats of the last action are, but not what follows a step that is not taught."""
    records = [trajectory(0, 4) | {"taught": np.array([1, 0, 1, 1], bool)}]
    write(tmp_path / "a" / "train" / "out.tfrecord", records)
    dataset = open_split(tmp_path, action_horizon=3, learn_padding=True)
    assert dataset.drawable.tolist() == [0, 2, 3]
    assert dataset.padded_share == pytest.approx(2 / 9)
    batch = next(training_batches(dataset, 32, 0, ("observations", "actions", "action_pad_mask")))
    steps = batch["observations"]["images0"][:, 0, 0, 0, 1]
    masks = {step: mask for step, mask in zip(steps.tolist(), batch["action_pad_mask"].tolist())}
    assert masks == {0: [True, False, False], 2: [True] * 3, 3: [True] * 3}
    row = steps.tolist().index(2)
    np.testing.assert_array_equal(batch["actions"][row], dataset.actions[np.array([2, 3, 3])])


def test_what_is_not_taught_is_seen_but_neither_drawn_nor_learned(tmp_path):
    taught = np.array([1, 1, 0, 1, 1, 1], bool)
    records = [trajectory(0, 6) | {"taught": taught}, trajectory(1, 4)]
    records[0]["actions"][2, :3] = 5.0
    write(tmp_path / "a" / "train" / "out.tfrecord", records)
    config = DataConfig(action_horizon=3, normalization="none")
    dataset = open_dataset(SourceConfig("bridge_tfrecord", str(tmp_path), (("**",),)), config, "train")
    assert dataset.drawable.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert dataset.statistics.actions.max[0] < 5
    assert dataset.report[0] == "not taught   1 of 10 train transitions, which are not drawn"
    masks = {}
    batch = next(training_batches(dataset, 64, 0, ("observations", "next_observations", "action_pad_mask")))
    for view, after, mask in zip(
        batch["observations"]["images0"], batch["next_observations"]["images0"], batch["action_pad_mask"]
    ):
        number, step, _ = view[0, 0, 0].tolist()
        masks[number, step] = mask.tolist()
        np.testing.assert_array_equal(after[0], frame(number, step + 1))
    assert [masks[0, t] for t in (0, 1, 3)] == [[True, True, False], [True, False, False], [True, True, True]]
    assert [masks[1, t] for t in (1, 2, 3)] == [[True, True, True], [True, True, False], [True, False, False]]
    assert (0, 2) not in masks
    assert dataset.padded_share == pytest.approx((1 + 2 + 0 + 1 + 2 + 0 + 0 + 1 + 2) / 27)


def test_flags_that_do_not_fit_leave_a_trajectory_out(tmp_path):
    bad = [trajectory(0, 4) | {"taught": np.ones(3, bool)}, trajectory(1, 4) | {"taught": np.ones(4, np.int32)}]
    write(tmp_path / "a" / "train" / "out.tfrecord", [trajectory(2, 4), *bad])
    source = SourceConfig("bridge_tfrecord", str(tmp_path), (("**",),), max_skipped=0.7)
    report = open_dataset(source, DataConfig(), "train").report
    assert "4 actions, `taught` for 3" in " ".join(report)
    assert "'taught' is no list of bools" in " ".join(report)


def test_only_the_keys_asked_for_are_made(root):
    assert set(next(training_batches(open_split(root), 4, 0, ("actions", "goals")))) == {"actions", "goals"}
    with pytest.raises(ConfigError, match="action_mast"):
        training_batches(open_split(root), 4, 0, ("action_mast",))


def test_an_epoch_sees_every_transition_once(root):
    batches = training_batches(open_split(root), 5, 0, ("observations",))
    pictures = np.concatenate([pixels(next(batches)) for _ in range(5)])
    assert len(np.unique(pictures, axis=0)) == 25 == sum(map(sum, LENGTHS.values()))


def test_a_state_resumes_exactly_and_prefetched_batches_do_not_count(root):
    stream = training_batches(open_split(root), 8, 3, BATCH_KEYS)
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(4)]
    fresh = training_batches(open_split(root), 8, 3, BATCH_KEYS)
    fresh.set_state(state)
    assert all(equal(next(fresh), batch) for batch in expected)


def test_threads_and_prefetch_change_nothing(root):
    a = training_batches(open_split(root, num_threads=1, prefetch=1), 8, 3, BATCH_KEYS)
    b = training_batches(open_split(root, num_threads=7, prefetch=9), 8, 3, BATCH_KEYS)
    assert all(equal(next(a), next(b)) for _ in range(10))


def test_seeds_differ(root):
    a, b = (next(training_batches(open_split(root), 8, seed, ("observations",))) for seed in (0, 1))
    assert not equal(a, b)


def test_processes_share_a_batch_without_overlap(root):
    dataset = open_split(root)
    whole = training_batches(dataset, 8, 0, BATCH_KEYS)
    parts = [training_batches(dataset, 8, 0, BATCH_KEYS, slice(start, start + 2)) for start in (0, 2, 4, 6)]
    for _ in range(5):
        batch, rows = next(whole), [next(part) for part in parts]
        for key in BATCH_KEYS:
            joined = (
                {k: np.concatenate([r[key][k] for r in rows]) for k in rows[0][key]}
                if isinstance(batch[key], dict)
                else np.concatenate([r[key] for r in rows])
            )
            assert equal(joined, batch[key])


def test_weights_are_met(root):
    dataset = open_split(root, include=(("a",), ("b",)), weights=(1.0, 3.0))
    stream = training_batches(dataset, 200, 0, ("observations",))
    numbers = np.concatenate([next(stream)["observations"]["images0"][:, 0, 0, 0, 0] for _ in range(10)])
    assert abs((numbers >= 3).mean() - 0.75) < 0.03


def test_validation_is_one_fixed_pass(root):
    dataset = open_split(root, "val", include=(("a",), ("b",)), weights=(1.0, 9.0))
    passes = [list(validation_batches(dataset, 5, BATCH_KEYS)) for _ in range(2)]
    assert [len(batch["actions"]) for batch in passes[0]] == [5, 5, 2]
    assert all(equal(a, b) for a, b in zip(*passes))
    steps = np.concatenate([batch["observations"]["images0"][:, 0, 0, 0, 1] for batch in passes[0]])
    np.testing.assert_array_equal(np.bincount(steps), [2] * 6)


def test_validation_can_be_shortened_and_split_among_processes(root):
    dataset = open_split(root, "val")
    assert len(list(validation_batches(dataset, 4, ("actions",), max_batches=2))) == 2
    sizes = [
        [len(batch["actions"]) for batch in validation_batches(dataset, 8, ("actions",), rows)]
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert sizes == [[4, 4], [4, 0]]


def test_rows_need_not_stand_together(root):
    """As where the chips of a process are no neighbours on their torus."""
    dataset, scattered = open_split(root), np.array([0, 1, 6, 7])
    whole, part = (training_batches(dataset, 8, 0, BATCH_KEYS, rows) for rows in (slice(None), scattered))
    for _ in range(3):
        batch, rows = next(whole), next(part)
        np.testing.assert_array_equal(rows["actions"], batch["actions"][scattered])
        np.testing.assert_array_equal(rows["observations"]["images0"], batch["observations"]["images0"][scattered])
    short = list(validation_batches(open_split(root, "val"), 8, ("actions",), scattered))
    last = list(validation_batches(open_split(root, "val"), 8, ("actions",)))[-1]["actions"]
    assert [len(batch["actions"]) for batch in short] == [4, 2]
    np.testing.assert_array_equal(short[-1]["actions"], last[:2])


def test_an_epoch_goes_on_with_another_number_of_processes(root):
    """Every sample of it exactly once, whoever reads it; sample ids are written in the pixels."""
    counts, dataset = ((1, 2), (4, 1), (2, 2)), open_split(root)
    position, seen = None, []
    for processes, batches in counts:
        rows = [np.arange(process, 5, processes) for process in range(processes)]
        streams = [training_batches(dataset, 5, 0, ("observations",), own) for own in rows]
        for stream in streams if position is not None else ():
            stream.set_state(position)
        for _ in range(batches):
            seen += [pixels(next(stream)) for stream in streams]
        states = [stream.get_state() for stream in streams]
        assert all(state == states[0] for state in states)
        position = states[0]
    assert len(np.concatenate(seen)) == 25 == sum(map(sum, LENGTHS.values()))
    assert len(np.unique(np.concatenate(seen), axis=0)) == 25


def pixels(batch):
    """Trajectory and step of each row, by which frames are told apart."""
    return batch["observations"]["images0"][:, 0, 0, 0, :2]


def test_errors_of_reading_threads_reach_the_caller(tmp_path):
    root = write_dataset(tmp_path, {"a": [5, 5]})
    stream = training_batches(open_split(root), 4, 0, ("observations",))
    path = root / "a" / "train" / "out.tfrecord"
    with open(path, "r+b") as file:
        file.truncate(50)
    with pytest.raises(DataError, match=r"out\.tfrecord: ends before the frame"):
        list(itertools.islice(stream, 20))


def test_no_threads_are_left_behind(root):
    before = set(threading.enumerate())
    for _ in range(3):
        list(validation_batches(open_split(root, "val"), 4, ("actions",)))
        stream = training_batches(open_split(root), 4, 0, ("actions",))
        next(stream)
        stream.close()
    # Closing tells the readers to end, and does not wait for them.
    new = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("grain")]
    for thread in new:
        thread.join(timeout=20)
    assert not [thread for thread in new if thread.is_alive()]


class Echo:
    """Texts that say what they were asked for."""

    def __call__(self, batch_index, trajectory, step, instruction, uniforms):
        return {
            "asked": np.stack([np.full(len(step), batch_index), trajectory, step, instruction], 1),
            "uniforms": uniforms,
        }


def test_texts_are_of_the_same_samples(root):
    dataset, keys = open_split(root), ("observations", "language", "text")
    stream = training_batches(dataset, 8, 3, keys, text=Echo())
    part = training_batches(dataset, 8, 3, keys, slice(2, 6), text=Echo())
    plain = training_batches(dataset, 8, 3, keys[:2])
    seen = []
    for i, (batch, rows, without) in enumerate(itertools.islice(zip(stream, part, plain), 3)):
        asked, pixels = batch["text"]["asked"], batch["observations"]["images0"][:, -1, 0, 0]
        assert (asked[:, 0] == i).all()
        np.testing.assert_array_equal(asked[:, 1:3], pixels[:, :2])
        np.testing.assert_array_equal(asked[:, 3], batch["language"])
        assert equal({key: batch[key] for key in keys[:2]}, without)
        np.testing.assert_array_equal(batch["text"]["uniforms"][2:6], rows["text"]["uniforms"])
        seen.append(batch["text"]["uniforms"])
    assert len(np.unique(np.stack(seen))) == np.stack(seen).size


def numbered(dataset):
    """Instructions that say which annotation they are of, 100 more than its number."""
    count = len(dataset.annotations())
    values = np.repeat(np.arange(100, 101 + count)[:, None], 3, axis=1).astype(np.float32)
    return InstructionTable(values, np.arange(count + 1, dtype=np.int32))


def test_instructions_are_those_of_the_drawn_annotations(root):
    dataset, keys = open_split(root), ("observations", "language", "instruction")
    table = numbered(dataset)
    stream = training_batches(dataset, 8, 3, keys, instructions=table)
    part = training_batches(dataset, 8, 3, keys, slice(2, 6), instructions=table)
    plain = training_batches(dataset, 8, 3, keys[:2])
    for batch, rows, without in itertools.islice(zip(stream, part, plain), 3):
        assert (batch["instruction"].shape, batch["instruction"].dtype) == ((8, 3), np.float32)
        np.testing.assert_array_equal(batch["instruction"][:, 0], 100 + batch["language"])
        np.testing.assert_array_equal(rows["instruction"], batch["instruction"][2:6])
        assert equal({key: batch[key] for key in keys[:2]}, without)
    batches = validation_batches(dataset, 5, keys, instructions=table)
    assert all((batch["instruction"][:, 2] == 100 + batch["language"]).all() for batch in batches)


def test_unlabelled_trajectories_have_the_last_instruction(tmp_path):
    path = tmp_path / "a" / "train" / "out.tfrecord"
    write(path, [trajectory(0, 4, ("do it",)), trajectory(1, 4, ())])
    dataset = open_split(tmp_path)
    batch = next(training_batches(dataset, 32, 0, ("observations", "instruction"), instructions=numbered(dataset)))
    number = batch["observations"]["images0"][:, 0, 0, 0, 0]
    np.testing.assert_array_equal(batch["instruction"][:, 0], np.where(number == 0, 100, 101))


def test_instructions_need_a_table(root):
    with pytest.raises(ConfigError, match="need a table of them"):
        next(training_batches(open_split(root), 8, 3, ("instruction",)))


def test_texts_need_a_source(root):
    with pytest.raises(ConfigError, match="need a source of texts"):
        next(training_batches(open_split(root), 8, 3, ("text",)))
