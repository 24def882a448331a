"""How every main of the project starts, finds its configs, and fails."""

import contextlib
import io
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from jaxvla.config import unknown_key
from jaxvla.errors import ConfigError, JaxvlaError


def run(main: Callable[[Sequence[str]], None], config_flags: Sequence[str] = (), config_dir: str | None = None) -> None:
    """Parses the flags and runs `main`; a `JaxvlaError` becomes one line on stderr and exit code 1, Ctrl-C code 130.

    Args:
        main: takes what is left of argv.
        config_flags: names of ml_collections config-file flags. Their files are looked for in `config_dir` when the
            path that was given does not exist, so that `train_config.py:gc_bc` works from any folder.
        config_dir: the folder of the config files.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        with _one_line_errors():
            return _parse(list(argv), config_flags, config_dir)

    def guarded(argv: Sequence[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be anything
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries tell much of themselves at INFO
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


def _parse(argv: list[str], config_flags: Sequence[str], config_dir: str | None) -> list[str]:
    if config_dir is not None:
        argv = resolve_config_paths(argv, config_flags, pathlib.Path(config_dir))
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ConfigError(f"{reason} (--help lists the flags)") from error
    except (AttributeError, KeyError) as error:  # raised by ml_collections for an override of a key that is not there
        for name, (_, value) in _flag_values(argv, config_flags).items():
            check_overrides(argv, name, flags.FLAGS[name].parser.parse(value))
        raise ConfigError(str(error)) from error
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}: flags are given as --name=value or --name value")
    return rest


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
