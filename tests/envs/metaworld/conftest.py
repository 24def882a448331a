"""Tests of Meta-World need its simulator and something to draw with; those without it say what to install."""

import importlib.util

import pytest

from jaxvla.envs.metaworld.graphics import choose_graphics
from jaxvla.errors import ConfigError


@pytest.fixture(scope="session")
def simulator():
    if importlib.util.find_spec("metaworld") is None:
        pytest.skip("needs the simulator: pip install -e '.[metaworld]'")
    try:
        choose_graphics()
    except ConfigError as error:
        pytest.skip(str(error))
