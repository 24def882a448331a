"""The clients of others, each in a virtual environment of its own, as `make serving-clients` makes them."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHONS = ROOT / ".venv" / "clients"


def python_of(client: str) -> pathlib.Path:
    """The interpreter of a client's environment; skips where there is none."""
    path = PYTHONS / client / "bin" / "python"
    if not path.exists():
        pytest.skip(f"needs {client} in an environment of its own, {path.parents[1]}: run `make serving-clients`")
    return path
