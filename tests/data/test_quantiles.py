import functools
import itertools
import math

import numpy as np
import pytest

from jaxvla.data.quantiles import Sketch

CAPACITY = 1 << 17
ROWS = 2_000_000


def bound(n, capacity):
    """Of a rank's error, as the docstring of the sketch states it."""
    return n * math.ceil(math.log2(n / capacity)) / capacity if n > capacity else 0


def rank_errors(ordered, found, ranks):
    """By how many rows the ranks of `found` [r, d] in sorted columns [n, d] differ from `ranks`; ties have several."""
    errors = []
    for column, row in zip(ordered.T, found.T):
        first, behind = (np.searchsorted(column, row, side) for side in ("left", "right"))
        assert (first < behind).all(), "no value of the data"
        errors.append(np.maximum(np.maximum(first - ranks, ranks - (behind - 1)), 0))
    return np.array(errors)


@pytest.fixture(scope="module")
def columns():
    """Float32 [ROWS, 7], one distribution each: skewed, few values, a rare one, none but one, heavy tails, sorted."""
    rng = np.random.default_rng(0)
    values = np.empty((ROWS, 7), np.float32)
    values[:, 0] = rng.normal(0.3, 1e-4, ROWS)
    values[:, 1] = rng.gamma(0.5, 0.1, ROWS)
    values[:, 2] = rng.integers(0, 2, ROWS)
    values[:, 3] = rng.random(ROWS) < 0.0101
    values[:, 4] = 0.25
    values[:, 5] = rng.standard_cauchy(ROWS)
    values[:, 6] = np.linspace(-1, 1, ROWS)
    return values, np.sort(values, axis=0)


def of_blocks(values, block, capacity):
    parts = np.split(values, range(block, len(values), block))
    return functools.reduce(Sketch.merge, [Sketch.of(part, capacity) for part in parts])


def test_few_rows_are_kept_as_they_are():
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    sketch = of_blocks(values, 300, 1000)
    assert (sketch.exact, sketch.count, sketch.slack) == (True, 1000, 0)
    np.testing.assert_array_equal(sketch.levels[0], values)
    np.testing.assert_array_equal(sketch.order(np.array([0, 10, 999])), np.sort(values, axis=0)[[0, 10, 999]])


def test_one_row_too_many_is_thinned_by_hand():
    # 0..4 and one too many for 4: sorted, either 0 and 2 or 1 and 3 go on for two each, and 4 stays.
    sketch = Sketch.of(np.array([[3.0], [1.0], [4.0], [0.0], [2.0]], np.float32), capacity=4)
    assert (sketch.exact, sketch.count, sketch.slack) == (False, 5, 1)
    assert sketch.levels[0].tolist() == [[4]]
    half = sketch.levels[1].ravel().tolist()
    assert half in ([0, 2], [1, 3])
    assert sketch.order(np.arange(5)).ravel().tolist() == [half[0], half[0], half[1], half[1], 4]


@pytest.mark.parametrize("block", [ROWS, 40_000])
def test_ranks_of_millions_of_rows_are_within_the_bound(columns, block):
    values, ordered = columns
    sketch = of_blocks(values, block, CAPACITY)
    assert sketch.count == ROWS
    assert sketch.slack <= bound(ROWS, CAPACITY) < 0.0001 * ROWS
    assert len(np.concatenate(sketch.levels)) <= len(sketch.levels) * CAPACITY
    ranks = np.array([0, ROWS // 100, ROWS // 2, ROWS * 99 // 100, ROWS - 1])
    assert rank_errors(ordered, sketch.order(ranks), ranks).max() <= sketch.slack


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("capacity", [16, 256])
def test_any_split_in_any_order_keeps_the_bound(parts, capacity):
    rng = np.random.default_rng(parts)
    values = rng.normal(size=(20_000, 2)).astype(np.float32)
    values[:, 1] = np.round(values[:, 1])
    ordered = np.sort(values, axis=0)
    sketches = [Sketch.of(part, capacity) for part in np.array_split(values, parts)]
    ranks = np.arange(0, 20_000, 199)
    for order in itertools.islice(itertools.permutations(sketches), 5):
        for merged in (functools.reduce(Sketch.merge, order), functools.reduce(lambda a, b: b.merge(a), order)):
            assert merged.count == 20_000
            assert merged.slack <= bound(20_000, capacity)
            assert rank_errors(ordered, merged.order(ranks), ranks).max() <= merged.slack


def test_single_rows_keep_the_bound_and_the_memory():
    values = np.random.default_rng(3).normal(size=(5000, 1)).astype(np.float32)
    sketch = of_blocks(values, 1, 32)
    assert sketch.slack <= bound(5000, 32)
    assert all(len(level) <= 32 for level in sketch.levels)
    assert len(sketch.levels) <= 1 + math.ceil(math.log2(5000 / 32))
    ranks = np.arange(5000)
    errors = rank_errors(np.sort(values, axis=0), sketch.order(ranks), ranks)
    assert errors.max() <= sketch.slack
    # Errors of coins cancel: far below what the bound allows, here 1,250 of 5,000.
    assert errors.max() < sketch.slack / 4


def test_the_same_parts_give_the_same_sketch(columns):
    first, again = (of_blocks(columns[0][:500_000], 200_000, 4096) for _ in range(2))
    for a, b in zip(first.levels, again.levels, strict=True):
        np.testing.assert_array_equal(a, b)
