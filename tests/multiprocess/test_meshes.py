"""Several processes of two devices train as one process does, and go on from what it saved."""

import json

import numpy as np
import pytest
from training.mesh_cases import steps
from training.process_jobs import start_job

from jaxvla.checkpoint import find_checkpoint
from jaxvla.manifest import has_manifest

# By number of processes, what trains on which mesh: parameters over all devices, by both axes; rows that do not stand
# together; and rows that two processes share.
JOBS = {2: ("ecot", (1, 2, 2), (4, 1, 1)), 4: ("openvla", (2, 2, 2), (2, 1, 4))}


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", JOBS)
def test_processes_give_what_one_gives(processes, tmp_path):
    large, split, by_rows = JOBS[processes]
    one, run = tmp_path / "one", tmp_path / "run"
    alone = {method: steps(method, (1, 1, 1), devices=1) for method in ("gc_bc", large)}
    steps("gc_bc", (1, 1, 1), devices=1, save=str(one))
    expected = steps("gc_bc", (1, 1, 1), devices=1, restore=str(one))
    interleaved = [*range(0, 2 * processes, 2), *range(1, 2 * processes, 2)]
    runs = [
        {"method": large, "mesh": split},
        {"method": "gc_bc", "mesh": by_rows, "order": interleaved if processes == 2 else None, "save": str(run)},
        {"method": "gc_bc", "mesh": split, "restore": str(one)},
    ]
    start_job("mesh_cases.py", processes, 2, timeout=600, out=str(tmp_path / "found"), runs=runs)
    reasoned, cloned, resumed = json.loads((tmp_path / "found").read_text())
    for method, found in ((large, reasoned), ("gc_bc", cloned)):
        assert found["first"] == alone[method]["first"]
        np.testing.assert_allclose(found["losses"], alone[method]["losses"], rtol=1e-4)
    # From one process to several, and from several to one; every byte is compared with the manifest.
    assert has_manifest(find_checkpoint(str(run)))
    assert resumed["first"] == expected["first"]
    np.testing.assert_allclose(resumed["losses"], expected["losses"], rtol=1e-5)
    back = steps("gc_bc", (1, 1, 1), devices=1, restore=str(run))
    assert back["first"] == cloned["last"]
    np.testing.assert_allclose(back["losses"], expected["losses"], rtol=1e-4)
