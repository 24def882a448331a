"""The tf.data pipeline of bridge_data_v2, restated for comparison: same order of operations, same defaults."""

from collections.abc import Iterator

import tensorflow as tf

FEATURES = {
    "observations/images0": tf.uint8,
    "observations/state": tf.float32,
    "next_observations/images0": tf.uint8,
    "next_observations/state": tf.float32,
    "actions": tf.float32,
    "terminals": tf.bool,
    "truncates": tf.bool,
}
SHUFFLE_BUFFER = 25_000


def _decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in FEATURES}
    parsed = tf.io.parse_single_example(record, spec)
    return {name: tf.io.parse_tensor(parsed[name], dtype) for name, dtype in FEATURES.items()}


def _with_goals(trajectory: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    length = tf.shape(trajectory["actions"])[0]
    steps = tf.range(length)
    ahead = tf.cast(length - steps - 1, tf.float32)
    goal = steps + 1 + tf.cast(tf.floor(tf.random.uniform([length]) * ahead), tf.int32)
    goals = tf.gather(trajectory["next_observations/images0"], tf.minimum(goal, length - 1))
    movement = trajectory["next_observations/state"][:, :6] - trajectory["observations/state"][:, :6]
    actions = tf.concat([movement, trajectory["actions"][:, 6:]], axis=1)
    return {"observations": trajectory["observations/images0"], "goals": goals, "actions": actions}


def _augment(seed: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return batch | {name: _augment_image(batch[name], tf.stack([seed, seed])) for name in ("observations", "goals")}


def _augment_image(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    size = image.shape[:2]
    image = tf.cast(image, tf.float32) / 255
    scale, ratio = tf.random.stateless_uniform([], seed, 0.8, 1.0), tf.random.stateless_uniform([], seed, 0.9, 1.1)
    height, width = tf.minimum(tf.sqrt(scale / ratio), 1.0), tf.minimum(tf.sqrt(scale * ratio), 1.0)
    top, left = (
        tf.random.stateless_uniform([], seed) * (1 - height),
        tf.random.stateless_uniform([], seed) * (1 - width),
    )
    box = tf.stack([top, left, top + height, left + width])
    image = tf.image.crop_and_resize(image[None], box[None], [0], size)[0]
    image = tf.image.stateless_random_brightness(image, 0.2, seed)
    image = tf.image.stateless_random_contrast(image, 0.8, 1.2, seed)
    image = tf.image.stateless_random_saturation(image, 0.8, 1.2, seed)
    image = tf.image.stateless_random_hue(image, 0.1, seed)
    return tf.cast(tf.clip_by_value(image, 0, 1) * 255, tf.uint8)


def batches(paths: list[str], batch_size: int, image_size: int, augment: bool) -> Iterator[dict]:
    """Endless numpy batches of observation and goal images and actions."""
    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed=0).repeat()
    data = tf.data.TFRecordDataset(data, num_parallel_reads=tf.data.AUTOTUNE)
    data = data.map(_decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    data = data.map(_with_goals, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False).unbatch()
    data = data.map(lambda step: {k: tf.ensure_shape(v, _shape(k, image_size)) for k, v in step.items()})
    data = data.shuffle(SHUFFLE_BUFFER, seed=0)
    if augment:
        data = data.enumerate().map(_augment, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    return data.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _shape(name: str, image_size: int) -> tuple[int, ...]:
    return (7,) if name == "actions" else (image_size, image_size, 3)
