"""What a checkpoint keeps of two datasets that differ in all that datasets may differ in."""

import dataclasses

import numpy as np
from training.positional_batches import SPEC, make_assets

from jaxvla.assets import DatasetAssets
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics


def statistics(action_dim, proprio_dim, mean):
    def field(dim):
        return FieldStatistics.of(np.array([[mean - 2.0], [mean + 2.0]]) + np.arange(dim))

    return Statistics(field(action_dim), field(proprio_dim), 2, 1)


def dataset(action_dim, proprio_dim, mean, camera, frequency, **changes):
    own = {"control_frequency": frequency, "weight": 1.0, "stored_sizes": {camera: (16, 16)}} | changes
    made = statistics(action_dim, proprio_dim, mean)
    return DatasetAssets(statistics=made, action_mask=(), actions=ActionConvention(), cameras=(camera,), **own)


def assets(**changes):
    """Of datasets of 2 and 1 actions, and 4 and 3 states, with a camera each."""
    datasets = {"arm": dataset(2, 4, 1.0, "images0", 5.0), "base": dataset(1, 3, 9.0, "wrist", 10.0)}
    spec = dataclasses.replace(SPEC, cameras=("images0", "wrist"), several_action_dims=True)
    own = {"statistics": None, "spec": spec, "datasets": datasets}
    return dataclasses.replace(make_assets(), **own, data_config={"datasets": {"arm": {}, "base": {}}}, **changes)
