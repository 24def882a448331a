"""Writes golden/augmentation.npz: what tf.image makes of small images. The tests read the file and need no TensorFlow.

python tests/ops/make_augmentation_golden.py        (with the "tf" extra: make EXTRAS=tf)
"""

import pathlib

import numpy as np
import tensorflow as tf

GOLDEN = pathlib.Path(__file__).parent / "golden" / "augmentation.npz"
# Top, left, bottom, right in shares of the image: all of it, corners, a thin slice, and boxes between pixels.
BOXES = ((0, 0, 1, 1), (0, 0, 0.5, 0.6), (0.37, 0.21, 1, 1), (0.1, 0.45, 0.9, 0.55), (0.013, 0.02, 0.95, 0.97))
FACTORS = (0.0, 0.5, 0.93, 1.2, 3.0)
TURNS = (-0.5, -0.13, 0.0, 0.07, 0.31)


def images() -> np.ndarray:
    """uint8 [5, 13, 11, 3]: noise, in which some rows are grey, black, white and pure colours."""
    pictures = np.random.default_rng(0).integers(0, 256, (5, 13, 11, 3), dtype=np.uint8)
    pictures[:, 1] = pictures[:, 1, :, :1]
    pictures[:, 2], pictures[:, 3] = 0, 255
    pictures[:, 4] = np.eye(3, dtype=np.uint8)[np.arange(11) % 3] * 255
    pictures[:, 5] = 255 - pictures[:, 4]
    return pictures


def main() -> None:
    """Writes the file."""
    pictures = images()
    x = tf.constant(pictures, tf.float32) / 255

    def each(function, values):
        return np.stack([function(image, value).numpy() for image, value in zip(x, values)])

    golden = {
        "images": pictures,
        "boxes": np.array(BOXES, np.float32),
        "factors": np.array(FACTORS, np.float32),
        "turns": np.array(TURNS, np.float32),
        "crop": tf.image.crop_and_resize(x, BOXES, range(5), x.shape[1:3]).numpy(),
        "contrast": each(tf.image.adjust_contrast, FACTORS),
        "saturation": each(tf.image.adjust_saturation, FACTORS),
        "hue": each(tf.image.adjust_hue, TURNS),
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    main()
