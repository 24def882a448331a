import dataclasses
import functools
import itertools

import numpy as np
import pytest
from data.bridge_files import trajectory, write, write_dataset

from jaxvla.data import statistics
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.schema import Trajectory
from jaxvla.data.statistics import Accumulator, Moments, collect, open_statistics
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.normalization import FieldStatistics
from jaxvla.errors import DataError

NAMES = ("mean", "std", "min", "max", "q01", "q99")
ROWS = 2_000_000
BRIDGE = ActionConvention(relabel=True, gripper=(6,), binarize=True, angles=(3, 4, 5))


def assert_same(found, expected):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def assert_same_statistics(found, expected):
    assert_same(found.actions, expected.actions)
    assert_same(found.proprio, expected.proprio)
    assert found.num_transitions == expected.num_transitions
    assert found.num_trajectories == expected.num_trajectories


def merged(values, parts, capacity=1 << 17):
    return functools.reduce(
        Accumulator.merge, [Accumulator.of(part, capacity) for part in np.array_split(values, parts)]
    )


@pytest.fixture(scope="module")
def columns():
    """Float32 [ROWS, 5]: far from zero, heavy tails, a gripper, one that closes rarely, none that moves."""
    rng = np.random.default_rng(0)
    values = np.full((ROWS, 5), 0.25, np.float32)
    values[:, 0] = rng.normal(0.3, 1e-4, ROWS)
    values[:, 1] = rng.standard_cauchy(ROWS)
    values[:, 2] = rng.random(ROWS) < 0.6
    values[:, 3] = rng.random(ROWS) > 0.005
    return values


def test_moments_by_hand():
    # 1, 3 and 5, 9, 9: of all five the mean is 27/5, the squares 197 - 27**2/5.
    one, other = (Moments.of(np.array(rows, np.float32)[:, None]) for rows in ([1, 3], [5, 9, 9]))
    for both in (one.merge(other), other.merge(one)):
        assert (both.count, both.min.item(), both.max.item()) == (5, 1, 9)
        np.testing.assert_allclose([both.mean.item(), both.squares.item()], [5.4, 51.2], rtol=1e-15)
        np.testing.assert_allclose(both.std, np.sqrt(51.2 / 5), rtol=1e-15)
    none = Moments.of(np.empty((0, 1), np.float32))
    for both in (one.merge(none), none.merge(one)):
        assert (both.count, both.mean.item(), both.squares.item(), both.min.item(), both.max.item()) == (2, 2, 2, 1, 3)
    assert none.merge(none).count == 0


def test_moments_of_millions_of_rows_against_numpy(columns):
    exact = columns.T.astype(np.float64, order="C")  # numpy adds up pairwise along what is contiguous
    mean, std = exact.mean(1), exact.std(1)
    for parts in (1, 2, 7):
        moments = functools.reduce(Moments.merge, map(Moments.of, np.array_split(columns, parts)))
        assert moments.count == ROWS
        assert (abs(moments.mean - mean) <= 1e-12 * np.maximum(abs(mean), std)).all()
        np.testing.assert_allclose(moments.std[:4], std[:4], rtol=1e-12)
        assert moments.std[4] == 0
        np.testing.assert_array_equal(moments.min, columns.min(0))
        np.testing.assert_array_equal(moments.max, columns.max(0))


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_quantiles_of_millions_of_rows_are_within_the_stated_ranks(columns, parts):
    accumulator = merged(columns, parts)
    found, slack = accumulator.finish(), 0.0001 * ROWS
    assert accumulator.sketch.slack <= slack
    for quantile, values in ((0.01, found.q01), (0.99, found.q99)):
        rank = quantile * (ROWS - 1)
        assert ((columns < values).sum(0) <= rank + 1 + slack).all()
        assert ((columns <= values).sum(0) >= rank - slack).all()
    # A sketch has values of the data only, so nothing lies between the ends of a gripper.
    assert (found.q01[2], found.q99[2], found.q01[3], found.q99[3]) == (0, 1, 1, 1)
    assert (found.std[4], found.q01[4], found.q99[4]) == (0, 0.25, 0.25)


def test_quantiles_of_a_sketch_by_hand():
    # 0..199 of which every second is kept: rank 1 is 0 or 1, rank 198 is 198 or 199, and no value is made up.
    found = Accumulator.of(np.arange(200, dtype=np.float32)[::-1, None], capacity=100).finish()
    assert (found.q01.item(), found.q99.item()) in ((0, 198), (1, 199))
    assert (found.min.item(), found.max.item(), found.mean.item()) == (0, 199, 99.5)


@pytest.mark.parametrize("parts", [1, 2, 7, 300])
def test_few_rows_give_what_numpy_gives_of_all(columns, parts):
    values = columns[:1000]
    found = merged(values, parts).finish()
    np.testing.assert_array_equal(found.mean, values.mean(0, dtype=np.float64).astype(np.float32))
    np.testing.assert_array_equal(found.std, values.std(0, dtype=np.float64).astype(np.float32))
    np.testing.assert_array_equal(found.q01[:2], np.quantile(values[:, :2], 0.01, axis=0).astype(np.float32))
    np.testing.assert_array_equal(found.q99[:2], np.quantile(values[:, :2], 0.99, axis=0).astype(np.float32))
    assert_same(found, FieldStatistics.of(values))


def test_parts_merge_in_any_order():
    values = np.random.default_rng(2).normal(size=(5000, 3)).astype(np.float32)
    parts = [Accumulator.of(part, capacity=512) for part in np.array_split(values, 4)]
    ordered, mean = np.sort(values, axis=0), values.mean(0, dtype=np.float64)
    for order in itertools.permutations(parts):
        a, b, c, d = order
        for whole in (a.merge(b).merge(c).merge(d), a.merge(b).merge(c.merge(d)), a.merge(b.merge(c.merge(d)))):
            np.testing.assert_allclose(whole.moments.mean, mean, rtol=0, atol=1e-15)
            np.testing.assert_allclose(whole.moments.std, values.std(0, dtype=np.float64), rtol=1e-13)
            slack = 5000 * 4 // 512  # 4 levels, for 5000 / 512 < 2**4
            found = whole.finish()
            assert whole.sketch.slack <= slack
            assert (ordered[49 - slack] <= found.q01).all()
            assert (found.q01 <= ordered[49 + slack]).all()
            assert (ordered[4950 - slack] <= found.q99).all()
            assert (found.q99 <= ordered[min(4950 + slack, 4999)]).all()


def test_what_cannot_be_merged_or_finished_is_refused():
    none = Accumulator.of(np.empty((0, 2), np.float32))
    with pytest.raises(DataError, match="no transitions to compute statistics from"):
        none.merge(none).finish()
    with pytest.raises(DataError, match="rows of 2 and of 3 dimensions"):
        none.merge(Accumulator.of(np.zeros((1, 3), np.float32)))
    for value in (np.nan, np.inf):
        values = np.zeros((30, 3), np.float32)
        values[17, 2] = value
        with pytest.raises(DataError, match=f"transition 17, dimension 2 is {value}"):
            Accumulator.of(values)


@dataclasses.dataclass(frozen=True, eq=False)
class Walks:
    """Trajectories of random walks, made as they are asked for."""

    lengths: np.ndarray
    taught: np.ndarray

    def table(self, i):
        steps = np.random.default_rng(i).normal(size=(int(self.lengths[i]) + 1, 2)).astype(np.float32)
        return Trajectory(steps[:-1], np.cumsum(steps, axis=0), (), f"walk {i}")


def walks(count, longest=9):
    lengths = np.random.default_rng(5).integers(2, longest, count)
    return Walks(lengths, np.random.default_rng(6).random(lengths.sum()) < 0.9)


@dataclasses.dataclass(frozen=True)
class Scale:
    """A transform."""

    factor: float

    def __call__(self, table):
        return dataclasses.replace(table, actions=table.actions * np.float32(self.factor))


def whole_of(source, transform=lambda table: table):
    tables = [transform(source.table(i)) for i in range(len(source.lengths))]
    actions = np.concatenate([table.actions for table in tables])[source.taught]
    return FieldStatistics.of(actions), FieldStatistics.of(np.concatenate([table.proprio[:-1] for table in tables]))


@pytest.mark.parametrize("rows", [1, 40, 1 << 17])
def test_all_trajectories_are_collected_in_blocks_of_any_size(monkeypatch, rows):
    monkeypatch.setattr(statistics, "_BLOCK_ROWS", rows)
    source = walks(100)
    found = collect(source, Scale(3), num_workers=1).finish()
    actions, proprio = whole_of(source, Scale(3))
    assert_same(found.actions, actions)
    assert_same(found.proprio, proprio)
    assert (found.num_transitions, found.num_trajectories) == (source.lengths.sum(), 100)


@pytest.mark.parametrize("exact", [True, False])
def test_the_order_in_which_workers_end_changes_nothing(monkeypatch, exact):
    monkeypatch.setattr(statistics, "_BLOCK_ROWS", 40)
    if not exact:
        monkeypatch.setattr(statistics, "_accumulate", small_sketches(statistics._accumulate))
    source = walks(100)
    expected = collect(source, num_workers=1)
    assert expected.actions.sketch.exact == exact
    shuffle = np.random.default_rng(0).permutation
    monkeypatch.setattr(statistics, "completed", lambda run, jobs, _: map(run, shuffle(np.array([*jobs], object))))
    for _ in range(5):
        found = collect(source)
        for field in ("actions", "proprio"):
            one, other = (getattr(tally, field) for tally in (found, expected))
            for a, b in zip(one.sketch.levels, other.sketch.levels, strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(one.moments.mean, other.moments.mean)
            np.testing.assert_array_equal(one.moments.squares, other.moments.squares)


def small_sketches(accumulate):
    """Accumulators that thin out what has more than 16 rows."""

    def run(block):
        number, tally = accumulate(block)
        small = [Accumulator.of(part.sketch.levels[0], 16) for part in (tally.actions, tally.proprio)]
        return number, statistics.Tally(*small, tally.num_transitions, tally.num_trajectories)

    return run


def test_any_number_of_processes_gives_the_same():
    source = walks(10, longest=60_000)
    assert len(statistics._blocks(source.lengths)) == 3
    tallies = [collect(source, num_workers=workers, capacity=1 << 17) for workers in (1, 2)]
    assert tallies[0].actions.sketch.slack > 0
    assert_same_statistics(*(tally.finish() for tally in tallies))
    tables = [source.table(i) for i in range(10)]
    exact = collect(source, num_workers=1).finish()  # which is of all rows at once, far beyond a block of them
    assert_same(exact.actions, FieldStatistics.of(np.concatenate([table.actions for table in tables])[source.taught]))
    assert_same(exact.proprio, FieldStatistics.of(np.concatenate([table.proprio[:-1] for table in tables])))


@dataclasses.dataclass(frozen=True)
class Spoil:
    """Makes something wrong of one trajectory."""

    field: str
    values: object

    def __call__(self, table):
        if table.key != "walk 7":
            return table
        return dataclasses.replace(table, **{self.field: self.values(getattr(table, self.field))})


def with_nan(values):
    values = values.copy()
    values[1, 0] = np.nan
    return values


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("actions", with_nan, "^trajectory 'walk 7': actions are not finite: step 1, dimension 0: nan$"),
        ("proprio", with_nan, "^trajectory 'walk 7': states are not finite: step 1, dimension 0: nan$"),
        (
            "actions",
            lambda values: values[:, :1],
            r"^trajectory 'walk 7': actions have the shape \[\d, 1\], not \[\d, 2",
        ),
        ("proprio", lambda values: values[1:], r"^trajectory 'walk 7': states have the shape \[\d, 2\], not \[\d, 2\]"),
        ("actions", lambda values: values[:, 0], r"^trajectory 'walk 7': actions have the shape \[\d\], not"),
    ],
)
def test_a_trajectory_of_which_no_statistics_can_be_made_is_named(field, values, message):
    with pytest.raises(DataError, match=message):
        collect(walks(10), Spoil(field, values))


def test_no_trajectories_have_no_statistics():
    with pytest.raises(DataError, match="no trajectories"):
        collect(walks(0))


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", {"open": [5, 3], "push/hard": [4]})


def open_source(root):
    config = SourceConfig("bridge_tfrecord", str(root), include=(("**",),), actions=BRIDGE)
    return open_dataset(config, DataConfig(), "train")


def test_what_is_collected_is_what_a_dataset_has(root):
    dataset = open_source(root)
    assert_same_statistics(collect(dataset.source, BRIDGE).finish(), dataset.statistics)


@dataclasses.dataclass(frozen=True)
class Standardize:
    """A transform whose name does not say what its function does."""

    function: object

    def __call__(self, table):
        return self.function(table)


def standardize(factor):
    return Standardize(lambda table: Scale(factor)(table))


def test_statistics_are_kept_until_data_or_transform_change(root, monkeypatch):
    source, calls = open_source(root).source, []
    monkeypatch.setattr(statistics, "collect", lambda *given: calls.append(given) or collect(*given))

    def made(transform, source=source):
        before = len(calls)
        found = open_statistics(root, source, transform)
        assert_same_statistics(found, collect(source, transform).finish())
        return len(calls) - before

    # Those of the convention were kept when the dataset was opened.
    assert [made(transform) for transform in (None, BRIDGE, Scale(2), Scale(3))] == [1, 0, 1, 1]
    assert [made(transform) for transform in (None, BRIDGE, Scale(2), Scale(3))] == [0, 0, 0, 0]
    assert [made(dataclasses.replace(BRIDGE, binarize=False)), made(BRIDGE)] == [1, 0]
    # Functions of one name at different addresses: what they do tells them apart.
    assert repr(standardize(2)).split(" at ")[0] == repr(standardize(3)).split(" at ")[0]
    first = standardize(2)
    assert [made(first), made(standardize(3)), made(standardize(2)), made(standardize(3))] == [1, 1, 0, 0]
    write(root / "open" / "train" / "out.tfrecord", [trajectory(0, 5), trajectory(9, 3)])
    before, changed = len(calls), open_source(root).source
    assert len(calls) == before + 1
    assert [made(BRIDGE, changed), made(None, changed)] == [0, 1]
