"""What torchvision makes of the pictures of ops/transform_cases.py.

PYTHONPATH=tests python tests/parity/transforms_torch.py      writes tests/ops/golden/image_transforms.npz
"""

import pathlib

import numpy as np
import torch
from ops.transform_cases import MOVES, VALUES, pictures
from torchvision.transforms.v2 import functional

GOLDEN = pathlib.Path(__file__).parents[1] / "ops" / "golden" / "image_transforms.npz"


def transformed() -> dict[str, np.ndarray]:
    """float32 [5, 2, 13, 11, 3] of each transform; every picture has the parameters of its place."""
    x = torch.from_numpy(pictures()).permute(0, 1, 4, 2, 3).float() / 255

    def each(change, values):
        return torch.stack([change(*pair) for pair in zip(x, values, strict=True)]).permute(0, 1, 3, 4, 2).numpy()

    def moved(image, move):
        degrees, right, down = move
        return functional.affine(image, degrees, [right, down], 1.0, [0.0, 0.0])

    results = {name: each(getattr(functional, f"adjust_{name}"), values) for name, values in VALUES.items()}
    return results | {"affine": each(moved, MOVES)}


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **transformed())
