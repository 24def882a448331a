"""The start of a job that runs as several processes."""

import jax

from jaxvla.errors import ConfigError


def initialize(coordinator: str = "", num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connects this process to the others of its job. Call it once, in a main, before anything asks jax for devices.

    Args:
        coordinator: "" for a job of one process (nothing is done); "auto" where the launcher is one that jax knows
            (Slurm, Open MPI, Kubernetes, Cloud TPU); else HOST:PORT of process 0, with the two other arguments.
        num_processes: how many processes the job has.
        process_id: the index of this one, from 0.

    Raises:
        ConfigError: the arguments contradict each other, or no launcher was recognised.
    """
    explicit = coordinator not in ("", "auto")
    if explicit != (num_processes is not None) or explicit != (process_id is not None):
        raise ConfigError(
            "coordinator HOST:PORT, num_processes and process_id go together: give all three, "
            f"not {coordinator!r}, {num_processes}, {process_id}"
        )
    if explicit and not 0 <= process_id < num_processes:
        raise ConfigError(f"process_id must be 0 to {num_processes - 1}, not {process_id}")
    if not coordinator:
        return
    if explicit:
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ConfigError(
            "coordinator=auto found no launcher that jax knows (Slurm, Open MPI, Kubernetes, Cloud TPU): "
            "give HOST:PORT, num_processes and process_id"
        ) from error
