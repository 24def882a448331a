import itertools

import numpy as np
import pytest
from data import bridge_files, rlds_episodes

from jaxvla.data.dataset import DataConfig
from jaxvla.data.loader import BatchSource, training_batches, validation_batches
from jaxvla.data.mixture import Member, Mixture, open_mixture
from jaxvla.data.mixture_config import read_mixture
from jaxvla.data.order import Order
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms import images
from jaxvla.errors import ConfigError, DataError

# Transitions of training, by dataset: an episode of n steps has n - 1.
SIZES = {"bridge": 5 + 3 + 7, "narrow": 2 * 5, "wrist": 4 * 8}
KEYS = ("dataset", "observations", "goals", "actions", "action_dim_mask", "language", "text")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three datasets in two formats: of 7, 4 and 7 actions, 7, 3 and 7 states; the last with another camera."""
    root = tmp_path_factory.mktemp("data")
    bridge_files.write_dataset(root / "bridge", {"a": [5, 3, 7]})
    narrow = [rlds_episodes.episode(i, 6, (4, 3), language_instruction=["narrow"] * 6) for i in (50, 51)]
    wrist = [rlds_episodes.episode(i, 9, language_instruction=["wrist"] * 9) for i in range(60, 64)]
    for name, episodes in (("narrow", narrow), ("wrist", wrist)):
        rlds_episodes.write_dataset(root / name / "1.0.0", {split: [episodes] for split in ("train", "val")})
    rlds = {"format": "rlds", "include": (), "image_size": (8, 8)}
    return {
        "format": "bridge_tfrecord",
        "include": (("**",),),
        "datasets": {
            "wrist": {**rlds, "data_path": str(root / "wrist/1.0.0"), "cameras": {"hand": "image_0"}},
            "bridge": {"data_path": str(root / "bridge")},
            "narrow": {**rlds, "data_path": str(root / "narrow/1.0.0"), "cameras": {"images0": "image_0"}},
        },
    }


def weighed(settings, balance="weights", **weights):
    datasets = {name: {**own, "weight": weights.get(name, 1.0)} for name, own in settings["datasets"].items()}
    return {**settings, "balance": balance, "datasets": datasets}


def opened(settings, split="train", **data):
    config, data = read_mixture(settings), DataConfig(normalization="bounds", **data)
    training = open_mixture(config, data, "train")
    return training if split == "train" else open_mixture(config, data, split, training)


class Places:
    """Texts that say which trajectories and steps they are of."""

    def __call__(self, batch_index, trajectory, step, instruction, uniforms):
        return {"place": np.stack([trajectory, step], 1), "instruction": instruction}


def tree_shapes(tree):
    return {key: tree_shapes(x) if isinstance(x, dict) else (x.shape, x.dtype) for key, x in tree.items()}


def stream(mixture, rows=slice(None), keys=KEYS):
    return training_batches(mixture, 8, 5, keys, rows, text=Places())


@pytest.mark.parametrize(
    ("balance", "weights", "expected"),
    [
        ("weights", {"bridge": 0.2, "narrow": 0.5, "wrist": 0.3}, {"bridge": 0.2, "narrow": 0.5, "wrist": 0.3}),
        ("weights", {"bridge": 6.0, "narrow": 1.0, "wrist": 1.0}, {"bridge": 0.75, "narrow": 0.125, "wrist": 0.125}),
        ("size", {"wrist": 0.5}, {"bridge": 15 / 41, "narrow": 10 / 41, "wrist": 16 / 41}),
        ("equal", {}, dict.fromkeys(SIZES, 1 / 3)),
    ],
)
def test_each_dataset_has_its_share(settings, balance, weights, expected):
    mixture = opened(weighed(settings, balance, **weights))
    assert {name: dataset.num_transitions for name, dataset in zip(mixture.names, mixture.datasets)} == SIZES
    assert mixture.shares == pytest.approx(expected)
    group, _ = mixture.order(1).at(np.arange(100_000))
    counts = dict(zip(SIZES, np.bincount(group, minlength=3) / 100_000))
    assert counts == pytest.approx(expected, abs=0.005)
    assert mixture.drawn(1, 0, 100_000) == counts
    assert sum(mixture.drawn(1, 640, 704).values()) == pytest.approx(1)


def test_groups_of_a_dataset_divide_its_share(settings, tmp_path):
    bridge_files.write_dataset(tmp_path / "two", {"a": [5], "b": [9]})
    own = {"data_path": str(tmp_path / "two"), "include": (("a",), ("b",)), "sample_weights": (1.0, 3.0)}
    datasets = {"bridge": own | {"weight": 3.0}, "narrow": settings["datasets"]["narrow"]}
    mixture = opened({**settings, "datasets": datasets})
    assert mixture.group_sizes == (5, 9, 10)
    assert mixture.weights == pytest.approx((0.75 / 4, 0.75 * 3 / 4, 0.25))


def test_what_a_dataset_lacks_is_black_or_zero_and_masked(settings):
    mixture = opened(settings, action_horizon=2, obs_horizon=2)
    spec = mixture.spec
    assert (mixture.names, spec.cameras) == (("bridge", "narrow", "wrist"), ("images0", "hand"))
    assert (spec.proprio_dim, spec.action_dim, spec.several_action_dims) == (7, 7, True)
    numbers, annotations = set(), mixture.annotations()
    for batch in itertools.islice(stream(mixture), 6):
        fake = spec.fake_batch(8, KEYS[:-1], np.random.default_rng(0))
        assert tree_shapes({key: batch[key] for key in fake}) == tree_shapes(fake)
        for row, number in enumerate(batch["dataset"].tolist()):
            numbers.add(number)
            place, step = batch["text"]["place"][row].tolist()
            member, trajectory = mixture.find(place)
            assert member is mixture.members[number]
            dataset, views = member.dataset, batch["observations"]
            start, frame = dataset.source.action_starts[trajectory], dataset.source.frame_starts[trajectory] + step
            width, states = dataset.actions.shape[1], dataset.proprio.shape[1]
            np.testing.assert_array_equal(batch["actions"][row, 0, :width], dataset.actions[start + step])
            np.testing.assert_array_equal(views["proprio"][row, 1, :states], dataset.proprio[frame])
            assert not batch["actions"][row, :, width:].any()
            assert not views["proprio"][row, :, states:].any()
            assert not batch["goals"]["proprio"][row, states:].any()
            assert batch["action_dim_mask"][row].tolist() == [i < width for i in range(7)]
            camera = "hand" if number == 2 else "images0"
            has = [camera == "images0", camera == "hand"]
            assert views["camera_mask"][row].tolist() == [has, has]
            assert batch["goals"]["camera_mask"][row].tolist() == has
            other = {"hand": "images0", "images0": "hand"}[camera]
            pixels = views[camera][row, 1]
            np.testing.assert_array_equal(pixels, dataset.source.frames(trajectory, [step], camera)[0])
            assert not views[other][row].any()
            assert not batch["goals"][other][row].any()
            assert annotations[batch["language"][row]] in dataset.source.language[trajectory]
            assert batch["text"]["instruction"][row] == batch["language"][row]
    assert numbers == {0, 1, 2}


def test_only_the_frames_of_cameras_that_a_row_has_are_decoded(settings, monkeypatch):
    """Two frames of each row: the observation and the goal, of the one camera that its dataset has."""
    mixture, counts = opened(settings), {"read_frames": 0, "_picture": 0}
    sources = [dataset.source for dataset in mixture.datasets]

    def counted(name, count):
        method = getattr(TrajectorySource, name)

        def call(self, *given):
            counts[name] += count(*given) * (self in sources)  # others may still be read ahead
            return method(self, *given)

        monkeypatch.setattr(TrajectorySource, name, call)

    counted("read_frames", lambda trajectories, *_: len(trajectories))
    counted("_picture", lambda *_: 1)
    batch = BatchSource(mixture, mixture.order(5), 32, ("observations", "goals", "dataset"), slice(None), 64)[0]
    # Those of the first dataset are stored raw.
    assert counts == {"read_frames": 2 * 32, "_picture": 2 * (batch["dataset"] > 0).sum()}


def test_one_width_needs_no_mask_and_one_dataset_is_unchanged(settings):
    two = {**settings, "datasets": {name: settings["datasets"][name] for name in ("bridge", "wrist")}}
    spec = opened(two).spec
    assert (spec.several_action_dims, spec.several_camera_sets) == (False, True)
    same = {**settings, "datasets": {name: settings["datasets"][name] for name in ("bridge", "narrow")}}
    assert not opened(same).spec.several_camera_sets
    assert "camera_mask" not in next(stream(opened(same)))["observations"]
    alone = opened({**settings, "datasets": {"bridge": settings["datasets"]["bridge"]}})
    assert alone.spec == alone.datasets[0].spec
    assert (alone.describe(), alone.report) == ((), alone.datasets[0].report)


def test_limits_are_the_widest_of_the_datasets_that_have_the_dimension(settings):
    """Of bounds -1 to 1; the last of the narrow actions is a gripper that moves, and no dimension is constant."""
    assert opened(settings).spec.action_limits == ((-1.0, 1.0),) * 7


def test_processes_never_see_the_same_sample_in_an_epoch():
    """Three datasets of more samples than a block of the stream has of them: none comes twice, on whatever process."""
    sizes = (30_000, 20_000, 50_000)
    positions = np.arange(1 << 16).reshape(-1, 8)
    parts = []
    for rows in (slice(0, 4), slice(4, 8)):
        group, index = Order(sizes, tuple(map(float, sizes)), 5).at(positions[:, rows].ravel())
        parts.append({*zip(group.tolist(), index.tolist())})
    assert len(parts[0]) == len(parts[1]) == 1 << 15
    assert not parts[0] & parts[1]


def test_small_datasets_are_gone_through_evenly(settings):
    """Of a block of the stream, each transition of a dataset is drawn as often as any other of it, but for one time."""
    mixture = opened(weighed(settings, "size"))
    order = mixture.order(5)
    group, index = order.at(np.arange(1 << 16))
    member, row = mixture.locate(mixture.drawable_starts[group] + index)
    np.testing.assert_array_equal(member, group)
    for number, size in enumerate(SIZES.values()):
        counts = np.bincount(row[member == number])
        assert len(counts) == size
        assert counts.max() - counts.min() <= 1
        assert abs(counts.sum() - 65536 * size / 57) <= 1


def test_processes_share_the_batch(settings):
    mixture = opened(settings)
    whole, parts = stream(mixture), [stream(mixture, slice(start, start + 2)) for start in (0, 2, 4, 6)]
    for _ in range(4):
        batch, rows = next(whole), [next(part) for part in parts]
        for key in ("dataset", "actions", "action_dim_mask", "language"):
            np.testing.assert_array_equal(np.concatenate([part[key] for part in rows]), batch[key])
        for view in ("images0", "hand", "proprio"):
            joined = np.concatenate([part["observations"][view] for part in rows])
            np.testing.assert_array_equal(joined, batch["observations"][view])


def test_a_stream_resumes_exactly(settings):
    first = stream(opened(weighed(settings, wrist=3.0)))
    for _ in range(3):
        next(first)
    state = first.get_state()
    expected = list(itertools.islice(first, 4))
    again = stream(opened(weighed(settings, wrist=3.0)))
    again.set_state(state)
    for batch, before in zip(again, expected):
        for key in ("dataset", "actions", "language"):
            np.testing.assert_array_equal(batch[key], before[key])
        np.testing.assert_array_equal(batch["text"]["place"], before["text"]["place"])
        np.testing.assert_array_equal(batch["observations"]["hand"], before["observations"]["hand"])


def test_validation_sees_every_transition_of_all_datasets_once(settings):
    mixture = opened(weighed(settings, wrist=9.0), "val")
    batches = list(validation_batches(mixture, 8, ("dataset", "text"), text=Places()))
    places = np.concatenate([batch["text"]["place"] for batch in batches]).tolist()
    assert len(places) == len({*map(tuple, places)}) == mixture.num_transitions == 4 + 10 + 32
    assert np.bincount(np.concatenate([batch["dataset"] for batch in batches])).tolist() == [4, 10, 32]
    training = opened(settings)
    for own, of_training in zip(mixture.datasets, training.datasets):
        np.testing.assert_array_equal(own.statistics.actions.max, of_training.statistics.actions.max)


def test_a_process_without_rows_gives_empty_batches_of_the_right_shapes(settings):
    mixture = opened(settings, "val")
    keys = ("observations", "actions", "dataset")
    last = list(validation_batches(mixture, 44, keys, slice(22, 44)))[-1]
    assert (last["actions"].shape, last["dataset"].shape) == ((0, 1, 7), (0,))
    assert last["observations"]["hand"].shape == (0, 1, 8, 8, 3)


def test_the_report_says_whose_it_is(settings):
    mixture = opened(weighed(settings, bridge=2.0))
    assert mixture.describe() == (
        "bridge  3 trajectories, 15 transitions, 50.0% of the samples",
        "narrow  2 trajectories, 10 transitions, 25.0% of the samples",
        "wrist   4 trajectories, 32 transitions, 25.0% of the samples",
    )
    assert any(line.startswith("hand ") and line.endswith("  [wrist]") for line in mixture.report)


def test_bad_mixtures_are_one_line(settings):
    (bridge, narrow, _) = opened(settings).members
    with pytest.raises(ConfigError, match=r"^two datasets are called 'bridge'"):
        Mixture((bridge, Member("bridge", narrow.dataset)))
    with pytest.raises(ConfigError, match=r"^the weight of dataset 'narrow' must be positive, not -1"):
        Mixture((bridge, Member("narrow", narrow.dataset, -1.0)))
    datasets = settings["datasets"]
    sizes = datasets | {"narrow": datasets["narrow"] | {"image_size": (4, 4)}}
    with pytest.raises(
        ConfigError, match=r"several sizes \(bridge 8 x 8, narrow 4 x 4, wrist 8 x 8\): set config.data"
    ):
        opened({**settings, "datasets": sizes})
    gone = datasets | {"wrist": datasets["wrist"] | {"data_path": "/nowhere/wrist"}}
    with pytest.raises(DataError, match=r"^dataset wrist: .*/nowhere/wrist"):
        opened({**settings, "datasets": gone})


def test_cameras_may_be_of_different_sizes(settings):
    mixture = opened(settings, image_size=(8, 8), camera_sizes={"hand": (4, 6)})
    assert mixture.spec.camera_sizes == (("hand", (4, 6)),)
    batch = next(stream(mixture))
    fake = mixture.spec.fake_batch(8, ("observations", "goals"), np.random.default_rng(0))
    assert tree_shapes({key: batch[key] for key in fake}) == tree_shapes(fake)
    assert batch["observations"]["hand"].shape == (8, 1, 4, 6, 3)
    for row in np.flatnonzero(batch["dataset"] == 2):
        place, step = batch["text"]["place"][row].tolist()
        member, trajectory = mixture.find(place)
        small = member.dataset.source.stored_frames(trajectory, [step], "hand")
        expected = images.resize(np.stack(small), (4, 6))[0]
        np.testing.assert_array_equal(batch["observations"]["hand"][row, 0], expected)
    assert any("-> 4 x 6" in line for line in mixture.report)
    with pytest.raises(ConfigError, match=r"camera_sizes\.wrist is of no camera; there are: hand, images0"):
        opened(settings, image_size=(8, 8), camera_sizes={"wrist": (4, 6)})
    with pytest.raises(ConfigError, match=r"camera_sizes are of hand alone: set config\.data\.image_size"):
        opened(settings, camera_sizes={"hand": (4, 6)})
    with pytest.raises(ConfigError, match=r"camera_sizes\.hand must be \(height, width\), not \(0, 6\)"):
        opened(settings, image_size=(8, 8), camera_sizes={"hand": (0, 6)})
