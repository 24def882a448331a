"""Pictures and parameters at which LeRobot's image transforms are compared with torchvision."""

import numpy as np

FACTORS = (0.0, 0.5, 0.8, 1.0, 1.7)
TURNS = (-0.5, -0.05, 0.0, 0.04, 0.31)
# Degrees, pixels to the right, pixels down.
MOVES = ((0, 0, 0), (0, 2, -1), (5, 0, 0), (-4.3, -1, 3), (90, 0, 0))
VALUES = {"brightness": FACTORS, "contrast": FACTORS, "saturation": FACTORS, "hue": TURNS, "sharpness": FACTORS}


def pictures() -> np.ndarray:
    """uint8 [5, 2, 13, 11, 3]: histories of noise, in which some rows are grey, black, white and pure colours."""
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 13, 11, 3), dtype=np.uint8)
    images[:, :, 1] = images[:, :, 1, :, :1]
    images[:, :, 2], images[:, :, 3] = 0, 255
    images[:, :, 4] = np.eye(3, dtype=np.uint8)[np.arange(11) % 3] * 255
    images[:, :, 5] = 255 - images[:, :, 4]
    return images
