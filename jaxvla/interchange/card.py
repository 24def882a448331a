"""A model card: what a policy was trained on, how, and what came of it, as the records of its run say. Markdown."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvla.assets import Assets
from jaxvla.checkpoint import CONFIG_FILE, FOLDER, METRICS_FILE, first_line
from jaxvla.config import leaves
from jaxvla.data.transforms.normalization import FieldStatistics
from jaxvla.errors import CheckpointError

UNKNOWN = "unknown"
LICENCE = "MIT"  # of this package
_KINDS_OF_RESULT = ("validation/", "rollout/")
_COLUMNS = ("mean", "std", "min", "max")


@dataclasses.dataclass(frozen=True)
class Records:
    """What a run folder says beside its checkpoints.

    Attributes:
        command: by which it was started; empty where nobody wrote it down.
        results: by name, such as "validation/mse", the step at which it was last measured, and the value.
    """

    command: str = ""
    results: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)


def read_records(checkpoint: pathlib.Path) -> Records:
    """The records of the run that a checkpoint lies in, up to its step; empty where it lies elsewhere.

    Raises:
        CheckpointError: a file of them is damaged.
    """
    if checkpoint.parent.name != FOLDER:
        return Records()
    run, results = checkpoint.parents[1], dict[str, tuple[int, float]]()
    for event in _events(run / METRICS_FILE):
        if event["step"] <= int(checkpoint.name):
            measured = {name: x for name, x in event.items() if name.startswith(_KINDS_OF_RESULT) and x is not None}
            results |= {name: (event["step"], value) for name, value in measured.items()}
    return Records(_command(run / CONFIG_FILE), results)


def model_card(assets: Assets, step: int, records: Records, data_licence: str = "") -> str:
    """The text of a card.

    Args:
        assets: of the checkpoint.
        step: of the checkpoint.
        records: of its run.
        data_licence: of the data; empty where nobody said it.
    """
    names = ", ".join(assets.names)
    parts = [
        f"# {assets.agent}, trained on {names}",
        f"A robot policy of jaxvla {assets.version} after {step} steps. {_how_to_play(assets)}",
        "## Data",
        *(_data(assets, name) for name in assets.names),
        "## Training",
        _command_text(records.command),
        _table(
            ("setting", "value"), [(f"`{key}`", f"`{value}`") for key, value in leaves(assets.train_config).items()]
        ),
        "## Results",
        _results(records.results),
        "## Licence",
        f"The software: {LICENCE}. The data: {data_licence or UNKNOWN}. The weights are made of both.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how_to_play(assets: Assets) -> str:
    lines = [str(assets.of(name).contract()) for name in assets.names]
    return f"It plays {'; or '.join(lines)}."


def _data(assets: Assets, name: str) -> str:
    own = assets.of(name)
    source = {**own.data_config, **dict(own.data_config.get("datasets") or {}).get(name, {})}
    counts = own.statistics
    size = f"{counts.num_trajectories} trajectories, {counts.num_transitions} transitions"
    normalized = f"actions normalized by {own.action_normalization}, the robot's state by {own.proprio_normalization}"
    labels = (
        [str(i) for i in range(len(counts.actions.mean))]
        if own.actions is None
        else list(own.actions.labels(len(counts.actions.mean)))
    )
    return "\n\n".join(
        [
            f"**{name}** (`{source.get('data_path', UNKNOWN)}`, {source.get('format', UNKNOWN)}): {size} to train on; "
            f"{normalized}.",
            _statistics("action", labels, counts.actions),
            _statistics("state", [str(i) for i in range(len(counts.proprio.mean))], counts.proprio),
        ]
    )


def _statistics(what: str, labels: Sequence[str], field: FieldStatistics) -> str:
    if not labels:
        return ""
    rows = [(label, *(f"{getattr(field, name)[i]:.4g}" for name in _COLUMNS)) for i, label in enumerate(labels)]
    return _table((what, *_COLUMNS), rows)


def _command_text(command: str) -> str:
    return f"```bash\n{command}\n```" if command else f"The command: {UNKNOWN}."


def _results(results: Mapping[str, tuple[int, float]]) -> str:
    if not results:
        return f"{UNKNOWN.capitalize()}: no records lie beside the checkpoint."
    return _table(("result", "at step", "value"), [(name, f"{at}", f"{x:.4g}") for name, (at, x) in results.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _command(path: pathlib.Path) -> str:
    if not path.exists():
        return ""
    try:
        return str(json.loads(path.read_text()).get("command", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}): remove it, or get it again") from error


def _events(path: pathlib.Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl; a last line that a kill cut off is passed over."""
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if math.isfinite(line["step"])]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}): remove it, or get it again") from error
