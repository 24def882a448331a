"""What a trajectory and a batch are: every key, shape, dtype and unit, written once.

Axis letters: b batch, o observation horizon (history, oldest first), a action horizon (chunk, soonest first),
t transition of a trajectory, h height, w width, p proprio dimension, d action dimension; in texts u prefix columns,
k thinking slots, s suffix columns; l tokens of an instruction, or values of its vector.

A trajectory of T transitions has T + 1 frames and T + 1 proprio states; transition t goes from frame t to frame t + 1.

    Trajectory (host, raw robot units)
        actions    float32 [T, d]       what they are says the dataset's `ActionConvention`; of BridgeData 6 deltas
                                        (m, rad, world axes) and the absolute gripper (1 open)
        proprio    float32 [T + 1, p]   of BridgeData x, y, z (m), roll, pitch, yaw (rad), gripper opening (1 open)
        language   tuple of str         the annotations; empty where the trajectory is unlabelled
        key        str                  what errors call it, and the join key of annotations

    Batch (host numpy or device arrays; nested dict; image keys are the cameras of `BatchSpec`)
        observations       {images0: uint8 [b, o, h, w, 3], ..., proprio: float32 [b, o, p]}
        next_observations  the same, one step later
        goals              {images0: uint8 [b, h, w, 3], ..., proprio: float32 [b, p]}
                           each camera has its own h and w (`BatchSpec.size_of`)
                           with `BatchSpec.several_camera_sets` each of these three has, beside the images,
                           camera_mask: bool [b, o, c] or [b, c], True for the cameras that the row's dataset has, in
                           the order of `BatchSpec.cameras`; the others are black
        actions            float32 [b, a, d]   normalized; 0 in dimensions that the row's dataset lacks
        action_pad_mask    bool [b, a]         True where the slot is to be learned: inside the trajectory, and
                                               before a transition that is not taught
        action_dim_mask    bool [b, d]         True in the dimensions of actions that the row's dataset has
        dataset            int32 [b]           its number in the mixture
        rewards            float32 [b]         0 where the goal is the next frame, else -1
        masks              float32 [b]         1 where the return may bootstrap, 0 at terminal transitions
        goal_distances     int32 [b]           frames from the observation to the goal
        language           int32 [b]           index of the step's annotation in the mixture's table, a drawn one where
                                               several hold; -1 where it has none
        instruction        what that annotation says, see `InstructionSpec`; made by jaxvla.agents.language:
            int32 [b, l]       token ids, `NO_TOKEN` behind the last; `NO_TOKEN` throughout where unlabelled
            float32 [b, l]     or a vector; zeros where unlabelled
        text               dict                what a language model reads and says, made by jaxvla.reasoning:
            prefix         int32 [b, u]        images and instruction, padded on the left
            prefix_start   int32 [b]           where the padding ends
            slots          bool [b, k]         True at the thinking slots that the sample uses, the first n
            suffix         int32 [b, s]        the end of thinking where there are slots, the words, and `TURN_TOKENS`
                                               for the end of the turn, padded on the right
            suffix_stop    int32 [b]           where the padding begins
            labels         bool [b, s]         True at the suffix tokens that are to be learned
            stage          int32 [b]           of the curriculum; -1 where the sample has the bare instruction
            truncated      bool [b]            True where something did not fit

Proprio and actions are normalized in a batch, and in robot units in a trajectory. Those of a dataset that has fewer
dimensions than others of its mixture are filled up with 0. An agent names the top-level keys
that it needs (`batch_keys`); the loader makes these and no others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Batch = Mapping[str, Any]

BATCH_KEYS = (
    "observations",
    "next_observations",
    "goals",
    "actions",
    "action_pad_mask",
    "action_dim_mask",
    "dataset",
    "rewards",
    "masks",
    "goal_distances",
    "language",
    "instruction",
    "text",
)

# What stands beside the images of the cameras in observations and goals; the second where datasets differ in cameras.
PROPRIO = "proprio"
CAMERA_MASK = "camera_mask"

# Tokens of the end of a turn, which every suffix ends with.
TURN_TOKENS = 2

# Fills the columns behind the last token of an instruction.
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The low-dimensional part of one trajectory, in robot units. Shapes in the module docstring."""

    actions: np.ndarray
    proprio: np.ndarray
    language: tuple[str, ...]
    key: str

    @property
    def num_transitions(self) -> int:
        """T, the number of actions."""
        return len(self.actions)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """The static sizes of the texts of a batch: columns of the prefix, thinking slots, columns of the suffix."""

    prefix_length: int
    num_slots: int
    suffix_length: int


@dataclasses.dataclass(frozen=True)
class InstructionSpec:
    """How the instructions of a batch are encoded.

    Attributes:
        length: columns: of token ids, or the values of a vector.
        vocab_size: one above the highest token id; 0 where instructions are vectors.
    """

    length: int
    vocab_size: int = 0

    @property
    def dtype(self) -> np.dtype:
        """int32 of token ids, float32 of vectors."""
        return np.dtype(np.int32 if self.vocab_size else np.float32)

    def unlabelled(self) -> np.ndarray:
        """What stands where there is no annotation, [l]."""
        return np.full(self.length, NO_TOKEN if self.vocab_size else 0, self.dtype)


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The static sizes of a batch: what an agent must know of the data before it sees any.

    `action_limits` are, per action dimension, the lowest and the highest normalized value that reaches the robot:
    (-1, 1) where a normalization has bounds, (0, 0) where the data is constant, else (-inf, inf). Empty for no limits.
    With `several_action_dims` the datasets have different numbers of action dimensions, of which `action_dim` is the
    largest: batches need `action_dim_mask`. `camera_sizes` are (camera, size) of those whose images are of another size
    than `image_size`. With `several_camera_sets` not all of them have all `cameras`.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    proprio_dim: int
    action_dim: int
    obs_horizon: int = 1
    action_horizon: int = 1
    text: TextSpec | None = None
    instruction: InstructionSpec | None = None
    action_limits: tuple[tuple[float, float], ...] = ()
    several_action_dims: bool = False
    several_camera_sets: bool = False
    camera_sizes: tuple[tuple[str, tuple[int, int]], ...] = ()

    def size_of(self, camera: str) -> tuple[int, int]:
        """(height, width) of a camera's images."""
        return dict(self.camera_sizes).get(camera, self.image_size)

    def fake_batch(self, batch_size: int, keys: tuple[str, ...], rng: np.random.Generator) -> dict[str, Any]:
        """A random host batch of the right keys, shapes and dtypes: for tests, warm-up and compile-ahead."""

        def views(lead: tuple[int, ...]) -> dict[str, np.ndarray]:
            images = {
                camera: rng.integers(0, 256, (*lead, *self.size_of(camera), 3), dtype=np.uint8)
                for camera in self.cameras
            }
            mask = {CAMERA_MASK: np.ones((*lead, len(self.cameras)), bool)} if self.several_camera_sets else {}
            return {**images, PROPRIO: rng.standard_normal((*lead, self.proprio_dim), dtype=np.float32), **mask}

        chunk = (batch_size, self.action_horizon)
        makers = {
            "observations": lambda: views((batch_size, self.obs_horizon)),
            "next_observations": lambda: views((batch_size, self.obs_horizon)),
            "goals": lambda: views((batch_size,)),
            "actions": lambda: rng.standard_normal((*chunk, self.action_dim), dtype=np.float32),
            "action_pad_mask": lambda: np.ones(chunk, bool),
            "action_dim_mask": lambda: np.ones((batch_size, self.action_dim), bool),
            "dataset": lambda: np.zeros(batch_size, np.int32),
            "rewards": lambda: -np.ones(batch_size, np.float32),
            "masks": lambda: np.ones(batch_size, np.float32),
            "goal_distances": lambda: np.ones(batch_size, np.int32),
            "language": lambda: np.full(batch_size, -1, np.int32),
            "instruction": lambda: _fake_instruction(self.instruction, batch_size, rng),
            "text": lambda: _fake_text(self.text, batch_size),
        }
        return {key: makers[key]() for key in keys}


def _fake_instruction(spec: InstructionSpec | None, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    if spec is None:
        raise ValueError("a batch with instructions needs BatchSpec.instruction")
    shape = (batch_size, spec.length)
    if spec.vocab_size:
        return rng.integers(0, spec.vocab_size, shape, dtype=spec.dtype)
    return rng.standard_normal(shape, dtype=spec.dtype)


def _fake_text(spec: TextSpec | None, batch_size: int) -> dict[str, np.ndarray]:
    """Texts of the right shapes, all columns in use; the tokens are those of id 0."""
    if spec is None:
        raise ValueError("a batch with texts needs BatchSpec.text")
    suffix = (batch_size, spec.suffix_length)
    return {
        "prefix": np.zeros((batch_size, spec.prefix_length), np.int32),
        "prefix_start": np.zeros(batch_size, np.int32),
        "slots": np.ones((batch_size, spec.num_slots), bool),
        "suffix": np.zeros(suffix, np.int32),
        "suffix_stop": np.full(batch_size, spec.suffix_length, np.int32),
        "labels": np.ones(suffix, bool),
        "stage": np.zeros(batch_size, np.int32),
        "truncated": np.zeros(batch_size, bool),
    }
