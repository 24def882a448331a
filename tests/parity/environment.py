"""How to come by LeRobot, which wants another transformers, and another PyAV, than the rest of these comparisons."""

_PACKAGES = (
    "'lerobot[smolvla]==0.4.4' 'jax>=0.10.2,<0.11' 'flax>=0.12.8,<0.12.12' 'orbax-checkpoint>=0.12.4,<0.13' "
    "'grain>=0.2.17,<0.3' 'optax>=0.2.5,<0.3' array-record google-crc32c ml-collections matplotlib jaxtyping beartype "
    "pytest"
)


def lerobot_command(test: str) -> str:
    """Why a test is skipped, and the command that runs it."""
    return (
        "needs LeRobot in an environment of its own: uv venv lerobot --python 3.11 && uv pip install --python "
        f"lerobot/bin/python {_PACKAGES} && PYTHONPATH=. lerobot/bin/python -m pytest -m parity tests/parity/{test}"
    )
