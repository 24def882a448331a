"""How programs are compiled: kept on disk from run to run, and with XLA's flags for overlapping communication."""

import os
import pathlib
import platform
import zlib

import jax

from jaxvla.data.formats.sidecar import user_cache

# Collectives begin as early and end as late as their data allows, so that they run beside matrix products; and what a
# loop over layers gathers or reduces is moved to the iteration before or after. The names are those of jaxlib 0.10.
GPU_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_highest_priority_async_stream=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
)


def hide_latency() -> None:
    """Tells XLA to overlap communication with computation on GPUs. Call it before anything asks jax for devices.

    TPUs do so by themselves. The flags go to XLA_FLAGS, from where processes read them once; one that is there already,
    set by the user, stays as it is. Another program may need more memory, so nothing calls this by default:
    measure a run with and without.
    """
    given = os.environ.get("XLA_FLAGS", "")
    added = [flag for flag in GPU_FLAGS if flag.split("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def keep_programs() -> pathlib.Path | None:
    """Lets jax keep compiled programs on disk, where nobody has chosen a folder (JAX_COMPILATION_CACHE_DIR).

    By default they lie below `$XDG_CACHE_HOME/jaxvla/programs` (`~/.cache/jaxvla/programs`). jax finds one by a hash of
    the program, the compiler's options and version, and the kind and number of devices. Programs for CPUs are made for
    the instructions of one, so the folder is another one for each kind of CPU, and for each version of jax.

    Returns:
        The folder; None where it cannot be made, or jax keeps nothing (JAX_ENABLE_COMPILATION_CACHE=false).
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    root = user_cache()
    if root is None:
        return None
    folder = root / "programs" / f"jax{jax.__version__}_{platform.machine()}_{_cpu():08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _cpu() -> int:
    """A number that differs between CPUs with different instructions."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return zlib.crc32(flags.encode())
