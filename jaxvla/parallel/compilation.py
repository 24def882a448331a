"""How programs are compiled and run: kept on disk from run to run, with XLA's flags for overlapping communication, and
with threads for simulated devices."""

import os
import pathlib
import platform
import re
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

# Collectives of one device that may wait at once, each in a thread.
_WAITING = 8


def make_room() -> None:
    """Gives XLA the threads that simulated devices need. Call it before anything asks jax for devices.

    XLA runs what does not depend on each other in one pool of threads, of all devices that XLA_FLAGS simulates, and a
    collective keeps its thread until the other devices have come to theirs. The pool has as many threads as there are
    devices or cores: with large programs all of them may wait, and none is left for those that are waited for. NPROC,
    from which XLA takes the size of the pool, stays as it is where the user has set it.
    """
    count = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if count and int(count[1]) > 1:
        os.environ.setdefault("NPROC", str(_WAITING * int(count[1])))


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
