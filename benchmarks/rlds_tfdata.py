"""The tf.data pipeline of dlimp, on which Octo and OpenVLA build, restated for comparison: frames of RLDS episodes.

Episodes are flattened to frames that are still encoded, these are shuffled, then decoded and resized (Lanczos, with
antialiasing, in float32, rounded), all maps in parallel as the runtime chooses.
"""

from collections.abc import Iterator

import tensorflow as tf

_AUTOTUNE = tf.data.AUTOTUNE


def batches(
    paths: list[str], camera: str, size: tuple[int, int], batch_size: int, shuffle_buffer: int
) -> Iterator[dict]:
    """Endless numpy batches of images and actions."""
    features = {
        f"steps/{camera}": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
        "steps/action": tf.io.FixedLenSequenceFeature([7], tf.float32, allow_missing=True),
    }

    def frames(record: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_single_example(record, features)
        return {"image": parsed[f"steps/{camera}"], "actions": parsed["steps/action"]}

    def decode(frame: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = tf.io.decode_image(frame["image"], expand_animations=False, dtype=tf.uint8)
        image = tf.image.resize(image, size, method="lanczos3", antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return frame | {"image": tf.ensure_shape(image, (*size, 3))}

    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed=0).repeat()
    data = tf.data.TFRecordDataset(data, num_parallel_reads=_AUTOTUNE)
    data = data.map(frames, num_parallel_calls=_AUTOTUNE).unbatch().shuffle(shuffle_buffer, seed=0)
    data = data.map(decode, num_parallel_calls=_AUTOTUNE)
    return data.batch(batch_size, drop_remainder=True).prefetch(_AUTOTUNE).as_numpy_iterator()
