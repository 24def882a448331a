"""Layers, errors, gradients and sampled actions of LeRobot, from tests/parity/smolvla_torch.py."""

import dataclasses
import pathlib

import jax
import numpy as np
from models.smolvla import cases

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAME = "missing_camera"


def golden():
    with np.load(GOLDEN / f"{NAME}.npz") as values:
        return dict(values)


def errors(result, keys):
    return cases.errors({key: result[key] for key in keys}, {key: golden()[key] for key in keys})


def test_layers_errors_gradients_and_actions():
    config = dataclasses.replace(cases.CONFIG, remat="block", attention="chunked")
    result = cases.jax_result(NAME, config, gradients=True)
    assert len([key for key in golden() if key.startswith("gradient/")]) > 30
    for key, error in errors(result, golden()).items():
        assert error < 1e-4, f"{key} is off by {error:.1e}"
    text = result["gradient/text/layers/self_attn/k_proj/kernel"]
    assert np.abs(text[:-1]).max((1, 2)).all()
    assert not text[-1].any(), "the last layer of the language model is frozen"


def test_the_order_of_layers_matters():
    params = cases.seeded_params()
    turned = jax.tree.map(lambda leaf: leaf[::-1], params["expert"]["layers"])
    params["expert"] = {**params["expert"], "layers": turned}
    found = errors(cases.jax_result(NAME, params=params), ("text_layers", "expert_layers", "actions"))
    assert found["text_layers3"] < 1e-5
    assert min(found["expert_layers0"], found["actions"]) > 1e-2


def test_bfloat16_stays_near_and_is_used():
    config = dataclasses.replace(cases.CONFIG, dtype="bfloat16", scan_layers=False)
    found = errors(cases.jax_result(NAME, config), ("vision", "text_layers", "expert_layers", "actions"))
    assert 1e-4 < found["vision"] < 0.05
    assert 1e-4 < found["expert_layers3"] < 0.1
    assert found["actions"] < 0.1
