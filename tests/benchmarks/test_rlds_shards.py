import importlib.util
import pathlib

import numpy as np
from data.rlds_episodes import opened

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "rlds_shards.py"


def test_what_the_benchmark_writes_is_a_dataset(tmp_path):
    spec = importlib.util.spec_from_file_location("rlds_shards", PATH)
    shards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shards)
    folder = tmp_path / "set0" / "1.0.0"
    shards.write_dataset(folder, 180, shards.png(8), steps=10, episodes=3)
    dataset = opened(folder)
    assert (len(shards.files(folder)), len(dataset.source), dataset.num_transitions) == (6, 18, 6 * 3 * 9)
    assert dataset.source.language[4] == ("task 1.1",)
    first, copied = (dataset.source.frames(i, [0, 3], "images0") for i in (0, 12))
    np.testing.assert_array_equal(first, copied)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 2
