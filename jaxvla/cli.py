"""How every main of the project starts, finds its configs, and fails."""

import ast
import contextlib
import io
import math
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from jaxvla.config import local_path, unknown_key
from jaxvla.errors import ConfigError, JaxvlaError

# The mappings of the configs that take keys of any name, or whose keys are checked by who reads them.
OPEN_MAPPINGS = {
    "config": ("agent_kwargs", "optimizer.learning_rates", "curriculum.tag2think_count", "data.camera_sizes"),
    "bridgedata_config": ("cameras", "datasets"),
}


def run(
    main: Callable[[Sequence[str]], None],
    config_flags: Sequence[str] = (),
    config_dir: str | None = None,
    words: int = 0,
) -> None:
    """Parses the flags and runs `main`; a `JaxvlaError` becomes one line on stderr and exit code 1, Ctrl-C code 130.

    SIGTERM ends it with code 143, as an exception does: what was begun is put away, and no worker is left behind.

    Args:
        main: takes what is left of argv.
        config_flags: names of ml_collections config-file flags. Their files are looked for in `config_dir` when the
            path that was given does not exist, so that `train_config.py:gc_bc` works from any folder.
        config_dir: the folder of the config files, which may import what lies beside them.
        words: how many words beside the flags `main` takes at most.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        with _one_line_errors():
            return _parse(list(argv), config_flags, config_dir, words)

    def guarded(argv: Sequence[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be anything
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries tell much of themselves at INFO
        signal.signal(signal.SIGTERM, _terminate)
        with _one_line_errors():
            main(argv)

    app.run(guarded, flags_parser=parse)


def read_configs(preset: str, data_preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plain values of the flags --config and --bridgedata_config, of mains that train or show what training sees.

    A `data_path` in the first takes the place of that in the second.

    Args:
        preset, data_preset: examples of both, for who gives only one.

    Raises:
        ConfigError: one is missing.
    """
    given = [flags.FLAGS[name].value for name in ("config", "bridgedata_config")]
    if None in given:
        example = f"--config train_config.py:{preset} --bridgedata_config data_config.py:{data_preset}"
        raise ConfigError(f"give both configs: {example}")
    settings, source_settings = (config.to_dict() for config in given)
    if settings["data_path"]:
        source_settings["data_path"] = settings["data_path"]
    return settings, source_settings


def output_path(text: str) -> pathlib.Path:
    """The path of a file to write, from --output_path; its folder is made.

    Raises:
        ConfigError: no local path, a folder, or a place that cannot be written.
    """
    path = local_path(text, "--output_path").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_path: {path.parent} cannot be made: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--output_path: {path} {'is a folder' if path.is_dir() else 'cannot be written'}")
    return path


def image_size(words: Sequence[str], flag: str) -> tuple[int, ...]:
    """(height, width) in pixels from the value of a list flag, of which one number is both; () where it is empty.

    Raises:
        ConfigError: it is something else.
    """
    if not words:
        return ()
    if len(words) > 2 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise ConfigError(f"{flag} must be HEIGHT or HEIGHT,WIDTH in pixels, not {','.join(words)}")
    return int(words[0]), int(words[-1])


def numbers(words: Sequence[str], count: int, flag: str) -> tuple[float, ...]:
    """So many finite numbers from the value of a list flag.

    Raises:
        ConfigError: it is something else.
    """
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ConfigError(f"{flag} must be {count} numbers, not {','.join(map(str, words))}")
    return values


def _terminate(*_: object) -> None:
    print("terminated", file=sys.stderr)
    sys.exit(143)  # what a shell reports for SIGTERM


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except JaxvlaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # what a shell reports for Ctrl-C


def _parse(argv: list[str], config_flags: Sequence[str], config_dir: str | None, words: int) -> list[str]:
    if config_dir is not None:
        argv = resolve_config_paths(argv, config_flags, pathlib.Path(config_dir))
        if config_dir not in sys.path:
            sys.path.append(config_dir)
    argv, added = _split_overrides(argv, config_flags)
    sys.argv[:] = argv  # where ml_collections looks for overrides
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ConfigError(f"{reason} (--help lists the flags)") from error
    except (AttributeError, KeyError) as error:  # raised by ml_collections for an override of a key that is not there
        for name, (_, value) in _flag_values(argv, config_flags).items():
            check_overrides(argv, name, flags.FLAGS[name].parser.parse(value))
        raise ConfigError(str(error)) from error
    if len(rest) > 1 + words:
        raise ConfigError(f"unexpected argument {rest[1 + words]!r}: flags are given as --name=value or --name value")
    for name, path, value in added:
        add_key(flags.FLAGS[name].value, path, value, f"--{name}.{path}")
    return rest


def _split_overrides(argv: list[str], names: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """`argv` with every override once, and (flag, path, value) of the overrides that add a key to an open mapping.

    Of overrides of the same value the last counts: ml_collections would append tuples.
    """
    configs = {}
    for name, (_, value) in _flag_values(argv, names).items():
        with contextlib.suppress(Exception):  # of the user's file, whatever it is; the flags raise and report it
            configs[name] = flags.FLAGS[name].parser.parse(value)
    kept: dict[Any, list[str]] = {}
    added: dict[tuple[str, str], str] = {}
    i = 0
    while i < len(argv):
        name, _, path = argv[i].lstrip("-").partition("=")[0].partition(".")
        size, key = 1, i
        if argv[i].startswith("-") and path and name in configs:
            known, old = _look_up(configs[name], path)
            size, key = _words(argv, i, old), (name, path)
            kept.pop(key, None)
            if not known and path.startswith(tuple(f"{open_path}." for open_path in OPEN_MAPPINGS.get(name, ()))):
                added[key] = argv[i + 1] if size == 2 else (argv[i].partition("=")[2] if "=" in argv[i] else "True")
                i += size
                continue
        kept[key] = argv[i : i + size]
        i += size
    return [word for words in kept.values() for word in words], [(*key, value) for key, value in added.items()]


def _look_up(config: Any, path: str) -> tuple[bool, Any]:
    """Whether the nested mapping has something at `path`, and that."""
    for key in path.split("."):
        if not hasattr(config, "keys") or key not in config:
            return False, ""
        config = config[key]
    return True, config


def _words(argv: Sequence[str], i: int, old: Any) -> int:
    """How many words the override has that begins at argv[i] and takes the place of the value `old`."""
    alone = "=" in argv[i] or isinstance(old, bool | None) or i + 1 == len(argv) or argv[i + 1].startswith("--")
    return 1 if alone else 2


def add_key(config: Any, path: str, text: str, flag: str) -> None:
    """Puts a value at a `path` of the ConfigDict `config` where there is none, and folders above it where they lack.

    The value is of the type that its neighbours have, if they all have one, else what `text` is in Python: a number, a
    tuple, True; or the text itself.

    Raises:
        ConfigError: something above it is no mapping, or the text is no value of the neighbours' type.
    """
    *above, last = path.split(".")
    with config.unlocked():
        for key in above:
            if not hasattr(config, "keys"):
                raise ConfigError(unknown_key(flag, key, ()))
            if key not in config:
                config[key] = {}
            config = config[key]
        if not hasattr(config, "keys"):
            raise ConfigError(unknown_key(flag, last, ()))
        # The keys of a dataset are of many types, however alike those are that it has.
        kinds = set() if path.startswith("datasets.") else {type(value) for value in config.values()}
        config[last] = _value(text, kinds, flag)


def _value(text: str, kinds: set[type], flag: str) -> Any:
    if kinds == {str}:
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        value = text
    value = float(value) if kinds == {float} and type(value) is int else value
    if len(kinds) == 1 and kinds <= {int, float, bool} and type(value) not in kinds:
        raise ConfigError(f"{flag} must be {kinds.pop().__name__}, as those beside it, not {text!r}")
    return value


def resolve_config_paths(argv: Sequence[str], names: Sequence[str], config_dir: pathlib.Path) -> list[str]:
    """Rewrites the values of the flags `names` in `argv` to existing config files.

    A value is PATH or PATH:PRESET. A path that exists stays; otherwise the file of the same name in `config_dir` is
    taken, so that bare names and the paths of older guides (`experiments/configs/train_config.py:gc_bc`) resolve.

    Raises:
        ConfigError: neither file exists.
    """
    argv = list(argv)
    for i, value in _flag_values(argv, names).values():
        argv[i] = argv[i].removesuffix(value) + _resolve(value, config_dir)
    return argv


def _flag_values(argv: Sequence[str], names: Sequence[str]) -> dict[str, tuple[int, str]]:
    """For each of the flags `names` in `argv`: the index of the word that ends in its value, and the value."""
    found = {}
    for i, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in names:
            if equals:
                found[name] = (i, value)
            elif i + 1 < len(argv):
                found[name] = (i + 1, argv[i + 1])
    return found


def _resolve(value: str, config_dir: pathlib.Path) -> str:
    path, colon, preset = value.partition(":")
    found = pathlib.Path(path)
    if not found.is_file():
        found = config_dir / found.name
    if not found.is_file():
        there = ", ".join(sorted(p.name for p in config_dir.glob("*_config.py")))
        raise ConfigError(f"no config file {path!r}, here or in {config_dir} (which holds {there})")
    return f"{found}{colon}{preset}"


def config_words(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words of `argv` that give the config flags `names` and override their values, for another main's argv."""
    words: list[str] = []
    i = 0
    while i < len(argv):
        name, equals, _ = argv[i].partition("=")
        alone = equals or i + 1 == len(argv) or argv[i + 1].startswith("--")
        stop = i + (1 if alone else 2)
        if argv[i].startswith("-") and name.lstrip("-").partition(".")[0] in names:
            words += argv[i:stop]
            i = stop
        else:
            i += 1
    return words


def check_overrides(argv: Sequence[str], name: str, config: Mapping[str, Any] | None) -> None:
    """Looks every override `--NAME.KEY` of `argv` up in the nested mapping `config`.

    Raises:
        ConfigError: a key that is not there, with the nearest one that is.
    """
    for word in argv:
        path = word.lstrip("-").partition("=")[0]
        if not word.startswith("-") or not path.startswith(f"{name}."):
            continue
        node = config
        for key in path.split(".")[1:]:
            known = node.keys() if hasattr(node, "keys") else ()
            if key not in known:
                raise ConfigError(unknown_key(f"--{path}", key, known))
            node = node[key]
