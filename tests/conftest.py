"""Eight simulated CPU devices, caches that outlive the run, the folder of real samples, and a watch on what is written.

Tests write below their temporary folder, and to .cache in the repository.
"""

import gc
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from experiments.warm import Warm

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
# By the environment, so that the processes which tests start have all of this, too.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time would be compilation. What it compiles runs for milliseconds, so it is not optimised: the
# gradient of a whole policy compiles in a quarter of the time. Nor is it split into parts that are compiled side by
# side: the cores have the suite's other workers to run.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# What Python compiles is kept likewise, or every process might compile all of jax again: uv leaves packages as they
# are, and where PYTHONDONTWRITEBYTECODE is set nobody keeps anything.
os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(CACHE / "python")
os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "", False
# Nor is there anything to collect while modules are imported, see `pytest_collection_finish`.
gc.disable()
# Where matplotlib lists the fonts, which takes it seconds: the caches of the user are not those of the tests.
os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))

SAMPLES = pathlib.Path(os.environ.get("JAXVLA_SAMPLES", ROOT.parent / "shared" / "samples"))
# What is derived from data and lies beside it.
DERIVED = ("*.index", "dataset_statistics-*", "instructions-*", "text_lengths-*")


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files below a folder but those of tools: of git, virtual environments, caches and packages."""
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        folders[:] = [name for name in folders if not name.endswith(".egg-info")]
        yield from (pathlib.Path(path) / name for name in names)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_written_elsewhere(tmp_path_factory) -> Iterator[None]:
    """The user's cache is one of the session; at its end the repository and the samples hold what they held."""
    own = {*files(ROOT)}
    given = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files(SAMPLES)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    assert not {*files(ROOT)} - own, "tests wrote to the repository"
    assert {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files(SAMPLES)} == given


@pytest.fixture(scope="session")
def samples() -> pathlib.Path:
    """The folder of real public data (JAXVLA_SAMPLES, else ../shared/samples); skips where there is none."""
    if not SAMPLES.is_dir():
        pytest.skip(f"no real samples at {SAMPLES}; set JAXVLA_SAMPLES")
    return SAMPLES


@pytest.fixture
def bridge_rlds(samples, tmp_path) -> pathlib.Path:
    """A copy of the real BridgeData in RLDS, so that damage and derived files stay in it, without those of others."""
    copy = tmp_path / "1.0.0"
    source = samples / "bridge_rlds" / "bridge_dataset" / "1.0.0"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*DERIVED))
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    return copy


@pytest.fixture(scope="session")
def warm() -> Iterator["Warm"]:
    """A process that has imported everything, in which mains start at once."""
    from experiments.warm import Warm

    with Warm() as process:
        yield process


# The files that take longest go first, in this order: a worker takes whole files, and the last one should be short.
LONG = (
    *("training/test_methods.py", "experiments/test_ecot.py", "experiments/test_compare_reasoning.py"),
    *("tests/test_cookbook.py", "experiments/test_train.py", "training/test_meshes.py"),
    *("models/test_latent_thinking.py", "agents/test_openvla.py", "agents/test_executed.py"),
    *("agents/test_openvla_oft.py", "experiments/test_eval_metaworld.py", "agents/test_ecot.py"),
    *("agents/test_smolvla.py", "experiments/test_eval.py", "action_head/test_action_head.py"),
    *("agents/test_quantized.py", "experiments/test_lerobot.py", "training/test_damaged_checkpoints.py"),
    *("training/test_loop.py", "models/test_resnet.py"),
)


def pytest_configure() -> None:
    import jax  # not before Python knows where it keeps things

    # By hand, for a plugin may have imported jax before.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(LONG) if item.path.as_posix().endswith(name)), len(LONG))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: they need not be looked through again and again for what can go."""
    gc.enable()
    gc.collect()
    gc.freeze()
