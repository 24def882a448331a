"""Eight simulated CPU devices, a compilation cache that outlives the run, and the folder of real samples."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time would be compilation. What it compiles runs for milliseconds, so it is not optimised: the
# gradient of a whole policy compiles in a quarter of the time.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

# By the environment, so that the processes which tests start share the cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# And by hand, for a plugin may have imported jax before.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def samples() -> pathlib.Path:
    """The folder of real public data (JAXVLA_SAMPLES, else ../shared/samples); skips where there is none."""
    folder = pathlib.Path(os.environ.get("JAXVLA_SAMPLES", ROOT.parent / "shared" / "samples"))
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder}; set JAXVLA_SAMPLES")
    return folder
