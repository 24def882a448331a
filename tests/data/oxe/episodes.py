"""What episodes in the tests are made of."""

import numpy as np

LONG = "_dataset_converted_externally_to_rlds"
SHORT = "_converted_externally_to_rlds"
NATURAL = "natural_language_instruction"


def column(*values):
    return np.array(values, np.float32)[:, None]


def rows(*values):
    return np.array(values, np.float32)


def texts(*values):
    return np.array(values, object)


def ramp(width, n=2):
    """Row i counts from 100 i on, so that a value tells its row and column."""
    return rows(*(np.arange(width) + 100 * i for i in range(n)))


LANGUAGE = {"language_instruction": texts(b"a", b"a")}

# Movements that were commanded (9) and others that were reached, and a gripper that hesitates.
BRIDGE = {
    "action": rows(*((9, 9, 9, 9, 9, 9, gripper) for gripper in (1, 0.8, 0.97, 0.5, 0.02))),
    "observation": {"state": rows((0, 0, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, 0.1, 0.9), (3, 0, 0, 0, 0, 0.3, 0.5),
                                  (6, 0, 0, 0, 0, 0.6, 0.2), (10, 0, 0, 0, 0, 1.0, 0))},
    "language_instruction": texts(b"", "second", b"third ", "vierte \u00e4".encode(), b"fifth"),
}  # fmt: skip
