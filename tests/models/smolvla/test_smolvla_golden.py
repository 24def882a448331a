"""Layers, errors, gradients and sampled actions of LeRobot, from tests/parity/smolvla_torch.py."""

import dataclasses
import pathlib

import jax
import numpy as np
from models.smolvla import cases

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAME = "missing_camera"


def test_layers_errors_gradients_and_actions():
    with np.load(GOLDEN / f"{NAME}.npz") as values:
        expected = dict(values)
    config = dataclasses.replace(cases.CONFIG, remat="block", attention="chunked")
    result = cases.jax_result(NAME, config, gradients=True)
    assert len([key for key in expected if key.startswith("gradient/")]) > 30
    for key, error in cases.errors({key: result[key] for key in expected}, expected).items():
        assert error < 1e-4, f"{key} is off by {error:.1e}"
    text = result["gradient/text/layers/self_attn/k_proj/kernel"]
    assert np.abs(text[:-1]).max((1, 2)).all()
    assert not text[-1].any(), "the last layer of the language model is frozen"


def test_the_order_of_layers_matters():
    params = cases.seeded_params()
    turned = jax.tree.map(lambda leaf: leaf[::-1], params["expert"]["layers"])
    params["expert"] = {**params["expert"], "layers": turned}
    with np.load(GOLDEN / f"{NAME}.npz") as values:
        expected = {key: values[key] for key in ("text_layers", "expert_layers", "actions")}
    result = cases.jax_result(NAME, params=params)
    found = cases.errors({key: result[key] for key in expected}, expected)
    assert found["text_layers3"] < 1e-5
    assert min(found["expert_layers0"], found["actions"]) > 1e-2
