"""What of an agent's actions reaches the robot, and how far that is from the data. Axis letters as in the schema."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.ops.dimensions import sum_present
from jaxvla.ops.losses import masked_mean


def mask_keys(spec: BatchSpec) -> tuple[str, ...]:
    """The batch key that an agent needs beside the actions, where datasets differ in the dimensions of these."""
    return ("action_dim_mask",) if spec.several_action_dims else ()


def executed(actions_bad: Float[Array, "b a d"], spec: BatchSpec) -> Float[Array, "b a d"]:
    """The actions within `spec.action_limits`, normalized: those that the robot gets when the normalizer inverts them.

    For metrics alone. A loss learns from the actions as they are, since beyond a limit this has no gradient, and the
    policy that serves an agent has the normalizer itself.
    """
    if not spec.action_limits:
        return actions_bad
    low_d, high_d = np.asarray(spec.action_limits, np.float32).T
    return jnp.clip(actions_bad, low_d, high_d)


def action_mse(
    actions_bad: Float[Array, "b a d"], batch: Batch, spec: BatchSpec, axis: int | None = None
) -> Float[Array, "*b"]:
    """Squared error of the executed actions, averaged over the slots inside the trajectories.

    It is summed over the dimensions that a sample's dataset has.

    Args:
        actions_bad: normalized, as an agent gives them.
        batch: of data.
        spec: its sizes.
        axis: 1 for the error of each example, [b]; None for one average over all slots, [].
    """
    error_ba = sum_present((executed(actions_bad, spec) - batch["actions"]) ** 2, batch.get("action_dim_mask"))
    return masked_mean(error_ba, batch["action_pad_mask"], axis)
