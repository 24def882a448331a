import numpy as np
import pytest

from jaxvla.data.order import Order, permute, uniforms


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 255, 1000])
def test_permute_is_a_bijection_that_depends_on_the_key(size):
    keys = [np.full(size, key, np.uint64) for key in (0, 1)]
    permutations = [permute(np.arange(size), np.full(size, size), key) for key in keys]
    for permutation in permutations:
        np.testing.assert_array_equal(np.sort(permutation), np.arange(size))
    if size > 7:
        assert (permutations[0] != permutations[1]).any()


def test_permute_looks_random():
    n = 20_000
    p = permute(np.arange(n), np.full(n, n), np.full(n, 3, np.uint64))
    assert abs(np.corrcoef(p, np.arange(n))[0, 1]) < 0.03
    assert abs(np.corrcoef(p[:-1], p[1:])[0, 1]) < 0.03


def test_one_group_is_gone_through_completely_in_a_new_order_each_epoch():
    order = Order((10,), (1.0,), seed=5)
    group, index = order.at(np.arange(30))
    assert (group == 0).all()
    epochs = index.reshape(3, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (3, 1)))
    assert (epochs[0] != epochs[1]).any()


def test_any_position_can_be_asked_for_alone():
    order = Order((100, 7), (3.0, 1.0), seed=1)
    whole = np.stack(order.at(np.arange(70_000)))
    for i in (0, 1, 65_535, 65_536, 69_999):
        np.testing.assert_array_equal(np.stack(order.at(np.array([i])))[:, 0], whole[:, i])


def test_weights_are_shares_and_every_group_is_covered_evenly():
    order = Order((1000, 50), (1.0, 3.0), seed=0)
    group, index = order.at(np.arange(1 << 16))
    assert (group == 1).mean() == 0.75
    for g, size in enumerate(order.sizes):
        counts = np.bincount(index[group == g], minlength=size)
        assert counts.max() - counts.min() <= 1


def test_a_tiny_weight_still_gets_its_turn():
    group, _ = Order((5, 5), (1.0, 1e-12), seed=0).at(np.arange(1 << 16))
    assert (group == 1).sum() == 1


def test_seeds_give_different_orders():
    a, b = (Order((1000,), (1.0,), seed).at(np.arange(1000))[1] for seed in (0, 1))
    assert (a == b).mean() < 0.02


def test_uniforms_depend_on_seed_and_batch_alone():
    np.testing.assert_array_equal(uniforms(1, 2, (4, 3)), uniforms(1, 2, (4, 3)))
    assert (uniforms(1, 2, (4, 3)) != uniforms(1, 3, (4, 3))).all()
    assert (uniforms(1, 2, (4, 3)) != uniforms(2, 2, (4, 3))).all()
