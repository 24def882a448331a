"""Training data that depends on its position alone, and what a run needs beside it."""

import numpy as np

from jaxvla.assets import Assets
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics

SPEC = BatchSpec(("images0",), (8, 8), proprio_dim=4, action_dim=2, action_horizon=2)
KEYS = ("observations", "goals", "actions", "action_pad_mask")


def global_batch(position, batch_size=16):
    """Batch `position`; its actions are a fixed linear function of the proprio, so that there is something to learn."""
    rng = np.random.default_rng((7, position))
    batch = SPEC.fake_batch(batch_size, KEYS, rng)
    weights = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    batch["actions"] = np.repeat(batch["observations"]["proprio"] @ weights, 2, axis=1) + 0.5
    batch["action_pad_mask"] = np.stack([np.ones(batch_size, bool), rng.random(batch_size) < 0.7], axis=1)
    return batch


def rows_of(batch, rows):
    return {
        key: {name: x[rows] for name, x in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in batch.items()
    }


class PositionalBatches:
    """An endless loader whose only state is the index of the next batch."""

    def __init__(self, rows=slice(None), batch_size=16):
        self.position, self.rows, self.batch_size = 0, rows, batch_size

    def __next__(self):
        batch = rows_of(global_batch(self.position, self.batch_size), self.rows)
        self.position += 1
        return batch

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def validation(sizes=(16, 16, 5), rows=slice(None)):
    """One pass over batches of the given sizes."""
    return (rows_of(global_batch(1000 + i, size), rows) for i, size in enumerate(sizes))


def make_statistics(spec):
    rng = np.random.default_rng(0)
    actions, proprio = rng.normal(0.5, 0.1, (50, spec.action_dim)), rng.normal(size=(50, spec.proprio_dim))
    return Statistics(FieldStatistics.of(actions), FieldStatistics.of(proprio), 50, 5)


def make_assets(**train_config):
    return Assets(
        agent="linear",
        agent_kwargs={},
        spec=SPEC,
        statistics=make_statistics(SPEC),
        action_normalization="normal",
        proprio_normalization="normal",
        action_mask=(),
        train_config=train_config,
        data_config={"data_path": "data"},
    )
