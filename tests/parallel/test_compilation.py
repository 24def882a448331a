import os
import subprocess
import sys

import jax
import pytest

from jaxvla.parallel.compilation import GPU_FLAGS, hide_latency, keep_programs, make_room


@pytest.fixture
def cache_dir():
    """No folder is chosen; the one of the tests comes back."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_below_the_users_cache(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = keep_programs()
    assert folder.is_dir()
    assert folder.parent == tmp_path / "jaxvla" / "programs"
    assert folder.name.startswith(f"jax{jax.__version__}_")
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_that_was_chosen_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert str(keep_programs()) == before == jax.config.jax_compilation_cache_dir


def test_where_nothing_can_be_kept_nothing_is(cache_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
    ("flags", "given", "threads"),
    [
        ("--xla_a=1 --xla_force_host_platform_device_count=8", None, "64"),
        ("--xla_force_host_platform_device_count=8", "3", "3"),
        ("--xla_force_host_platform_device_count=1", None, None),
        (None, None, None),
    ],
)
def test_simulated_devices_get_threads_to_wait_in(monkeypatch, flags, given, threads):
    for name, value in {"XLA_FLAGS": flags, "NPROC": given}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    make_room()
    assert os.environ.get("NPROC") == threads


def test_xla_takes_the_threads_that_it_is_given(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    code = (
        "import pathlib\nfrom jaxvla.parallel.compilation import make_room\nmake_room()\nimport jax\njax.devices()\n"
        "names = [path.read_text().strip() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "assert names.count('tf_XLAEigen') == 24, names"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_flags_are_added_once_and_those_of_the_user_stay(monkeypatch):
    own = GPU_FLAGS[1].replace("true", "false")
    monkeypatch.setenv("XLA_FLAGS", own)
    hide_latency()
    hide_latency()
    flags = os.environ["XLA_FLAGS"].split()
    assert sorted(flags) == sorted([own, *(flag for flag in GPU_FLAGS if flag != GPU_FLAGS[1])])


def test_xla_knows_the_flags():
    code = "from jaxvla.parallel.compilation import hide_latency; hide_latency(); import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
