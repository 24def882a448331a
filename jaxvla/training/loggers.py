"""Where metrics go: metrics.jsonl and TensorBoard always, Weights & Biases on request. Process 0 writes."""

import importlib.util
import json
import math
import netrc
import os
import pathlib
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax

from jaxvla.checkpoint import METRICS_FILE, first_line
from jaxvla.errors import ConfigError, TrainingError
from jaxvla.training.config import WandbConfig
from jaxvla.training.tensorboard import EventFile


@runtime_checkable
class Logger(Protocol):
    """One destination."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one event so that it survives a kill."""

    def close(self) -> None:
        """Releases the destination."""


class _JsonlLogger:
    """metrics.jsonl: one line per event, {"step": ..., name: value, ...}; a value that is not finite is null."""

    def __init__(self, run: pathlib.Path, start: int) -> None:
        path = run / METRICS_FILE
        if path.exists():
            _drop_after(path, start)
        self._file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Removes the lines after `step`, and a last line that a kill cut off."""
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    replacement = path.with_suffix(".tmp")
    replacement.write_text("".join(kept))
    replacement.replace(path)


class _WandbLogger:
    """A Weights & Biases run named after the run folder; where there is no API key it is offline, and asks for none."""

    def __init__(self, run: pathlib.Path, config: WandbConfig, settings: Mapping[str, Any]) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "offline":
            print(
                f"wandb: no API key, or WANDB_MODE=offline; send the run later with `wandb sync {run}/wandb/*`",
                file=sys.stderr,
            )
        self._run = wandb.init(
            project=config.project,
            entity=config.entity or None,
            id=run.name,
            name=run.name,
            dir=str(run),
            config=dict(settings),
            mode=mode,
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = pathlib.Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and any("wandb" in host for host in netrc.netrc(path).hosts)


class Loggers:
    """All destinations of a run as one; a context manager. Writes nothing on other processes than 0.

    Args:
        run: the run folder.
        start: the step that training goes on from. What an earlier process logged after it is dropped, so that no step
            is logged twice.
        wandb: see `WandbConfig`.
        settings: the configuration that Weights & Biases shows.

    Raises:
        ConfigError: wandb is enabled and not installed.
        TrainingError: a file cannot be written.
    """

    def __init__(self, run: pathlib.Path, start: int, wandb: WandbConfig, settings: Mapping[str, Any]) -> None:
        self._run = run
        self._loggers: list[Logger] = []
        if jax.process_index() != 0:
            return
        if wandb.enabled and importlib.util.find_spec("wandb") is None:
            raise ConfigError("config.wandb.enabled needs the wandb package: pip install wandb, or set it to False")
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._loggers += [_JsonlLogger(run, start), EventFile(run / "tensorboard", start + 1)]
        except (OSError, ValueError) as error:  # a ValueError is a damaged line of metrics.jsonl
            raise self._failure(error) from error
        if wandb.enabled:
            self._loggers.append(_WandbLogger(run, wandb, settings))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends one event everywhere.

        Raises:
            TrainingError: a file cannot be written.
        """
        try:
            for logger in self._loggers:
                logger.write(step, metrics)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Releases all destinations.

        Raises:
            TrainingError: what was left could not be written.
        """
        try:
            for logger in self._loggers:
                logger.close()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> TrainingError:
        return TrainingError(f"cannot write logs to {self._run}: {first_line(error)}")

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
