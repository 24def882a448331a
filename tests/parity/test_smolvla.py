import dataclasses

import pytest
from models.smolvla import cases
from parity.environment import lerobot_command

pytestmark = pytest.mark.parity

VENV = lerobot_command("test_smolvla.py")


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("lerobot.policies.smolvla.modeling_smolvla", reason=VENV, exc_type=ImportError)
    from parity import smolvla_torch

    return smolvla_torch


@pytest.mark.parametrize("name", cases.CASES)
def test_every_layer_gradient_and_action(reference, name):
    found, expected = cases.jax_result(name, gradients=True), reference.torch_result(name, gradients=True)
    for key, error in cases.errors(found, expected).items():
        assert error < 1e-4, f"{key} is off by {error:.1e}"


def test_the_expert_alone(reference):
    config = dataclasses.replace(cases.CONFIG, freeze_vision_encoder=True, train_expert_only=True)
    name = "missing_camera"
    expected = reference.torch_result(name, config, gradients=True)
    found = cases.jax_result(name, config, gradients=True)
    for key, error in cases.errors(found, expected).items():
        frozen = key.startswith(tuple(f"gradient/{module}/" for module in config.frozen_modules))
        assert frozen or error < 1e-4, f"{key} is off by {error:.1e}"
        assert not (frozen and expected[key].any()), f"LeRobot trains {key}"
    assert config.frozen_modules == ("vision", "connector", "text")
