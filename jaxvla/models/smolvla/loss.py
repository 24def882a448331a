"""How SmolVLA's squared errors become one number."""

from jaxtyping import Array, Bool, Float

from jaxvla.ops.losses import masked_mean


def reduce_errors(
    errors_bad: Float[Array, "b a d"],
    pad_mask_ba: Bool[Array, "b a"],
    present_bd: Bool[Array, "b d"],
    reduction: str,
) -> Float[Array, ""]:
    """The loss of a batch.

    Losses of the two reductions cannot be compared: "all" is smaller by about the share of dimensions that are there.

    Args:
        errors_bad: from `SmolVLA.errors`.
        pad_mask_ba: True at the slots inside the trajectory.
        present_bd: True in the dimensions that a sample's actions have.
        reduction: "valid", the mean over these slots and dimensions; or "all", over everything, as LeRobot did before
            0.6.
    """
    if reduction == "all":
        return errors_bad.mean()
    return masked_mean(errors_bad, pad_mask_ba[:, :, None] & present_bd[:, None])


def sample_losses(
    errors_bad: Float[Array, "b a d"], pad_mask_ba: Bool[Array, "b a"], present_bd: Bool[Array, "b d"]
) -> Float[Array, " b"]:
    """The mean error of each sample over its slots inside the trajectory and its dimensions; 0 where it has none."""
    return masked_mean(errors_bad, pad_mask_ba[:, :, None] & present_bd[:, None], (1, 2))
