"""The dependency rule, and the bounds on files and functions, held by a walk over the syntax trees."""

import ast
import pathlib
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("jaxvla", "jaxvla_client", "configs", "data_processing", "experiments", "benchmarks", "tools")
    for path in (ROOT / folder).rglob("*.py")
)

# What each room may import of jaxvla beside itself and the leaves `errors` and `config`: imports only point down.
DEVICE = {"ops": set(), "models": {"ops"}, "parallel": {"data"}, "agents": {"models", "ops", "data"}}
BELOW = {"contract", "assets", "manifest", "checkpoint", "agents", "parallel", "models", "ops", "data"}
ROOMS = DEVICE | {
    "data": set(),
    "reasoning": {"data"},
    "envs": set(),
    "robots": {"envs", "data"},
    "contract": {"data"},
    "assets": {"contract", "data"},
    "manifest": set(),
    "checkpoint": {"assets", "contract", "manifest", "parallel", "data"},
    "interchange": BELOW,
    "training": BELOW | {"interchange", "reasoning"},
    "serving": BELOW | {"interchange", "reasoning"},
    "cli": set(),
    "errors": set(),
    "config": set(),
}
LEAVES = {"errors", "config"}
HOST_ROOMS = ("data", "reasoning", "envs", "robots")
# The rooms that may talk to a policy server, and what the client needs on a robot's computer.
USE_THE_CLIENT = ("serving", "envs", "robots")
CLIENT_PACKAGES = {"numpy", "msgpack", "websockets"}
LONG_FILES = 400
LONG_FUNCTIONS = 60


def imports(path: pathlib.Path) -> set[str]:
    """Every module that `path` imports, anywhere in it; for `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[len(ROOT.parts)] == "jaxvla"], ids=name)
def test_imports_point_down(path):
    parts = path.relative_to(ROOT / "jaxvla").parts
    room = parts[0].removesuffix(".py")
    used = {module.split(".")[1] for module in imports(path) if module.startswith("jaxvla.")} - {"__version__"}
    if room == "__init__":
        assert not used, "`import jaxvla` stays cheap"
    else:
        assert room in ROOMS, f"{room} is not a room of the design"
        assert used - LEAVES - {room} <= ROOMS[room], f"{room} imports {used - LEAVES - {room} - ROOMS[room]}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[len(ROOT.parts)] == "jaxvla_client"], ids=name)
def test_the_client_needs_nothing_of_jaxvla(path):
    packages = {module.split(".")[0] for module in imports(path)}
    assert packages <= {*sys.stdlib_module_names, *CLIENT_PACKAGES, "jaxvla_client"}
    ast.parse(path.read_text(), feature_version=(3, 10))  # as its pyproject.toml says


def test_the_client_is_installed_with_what_it_imports():
    project = tomllib.loads((ROOT / "jaxvla_client" / "pyproject.toml").read_text())["project"]
    assert {word.split(">=")[0] for word in project["dependencies"]} == CLIENT_PACKAGES
    assert project["requires-python"] == ">=3.10"
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{word}"' in setup for word in project["dependencies"] if not word.startswith("numpy"))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_bans(path):
    modules = imports(path)
    packages = {module.split(".")[0] for module in modules}
    room = path.relative_to(ROOT).parts[:2]
    if room[0] != "benchmarks":  # which compare with it where it is installed
        assert "torch" not in packages, "torch belongs in tests/parity"
    assert "configs" not in packages, "configs are loaded by config_flags alone"
    if room[0] == "configs":
        assert packages <= {"ml_collections", *(beside.stem for beside in path.parent.glob("train_*.py"))}
    if room[0] == "jaxvla":
        assert not packages & {"tensorflow", "tensorflow_datasets"}, "the data formats are read without TensorFlow"
        assert not packages & {"experiments", "data_processing", "benchmarks", "ml_collections"}
        assert room[1] in USE_THE_CLIENT or "jaxvla_client" not in packages
        if room[1] in HOST_ROOMS:
            assert not packages & {"jax", "flax", "optax", "orbax"}, "host rooms run in loader workers, without jax"
        if room[1] == "models":
            assert not any(m.startswith(f"flax.nnx.{x}") for m in modules for x in ("jit", "grad", "scan", "Optimizer"))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONG_FILES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONG_FUNCTIONS, f"{node.name} is too long"
        if isinstance(node, ast.Try):
            assert not any(isinstance(child, ast.Import | ast.ImportFrom) for child in node.body), "try: import"
    assert "TO" + "DO" not in text


def test_tests_mirror_the_package():
    rooms = {path.name for path in (ROOT / "jaxvla").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    missing = {room for room in rooms if not list((ROOT / "tests" / room).glob("test_*.py"))}
    assert not missing, f"no tests for {missing}"
