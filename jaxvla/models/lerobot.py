"""What the weights of LeRobot's policies have in common, whatever the policy: one file, read by a table of names."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import StoredTensor, open_checkpoint
from jaxvla.models.weights import LoadReport, Weight, check_names, read_params

# What torch.compile puts between the names of a policy.
COMPILED = "_orig_mod."
# How names of the statistics begin that older policies keep among their weights.
STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")

_MEND = "choose the sizes that the weights have, those of the config.json that came with them"

# Why a tensor is no parameter, by its name; empty where it is one.
WhyUnused = Callable[[str], str]


def load_table(
    path: str | pathlib.Path,
    table: tuple[Weight, ...],
    why_unused: WhyUnused,
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
    prefix: str = "",
) -> tuple[Params, LoadReport]:
    """Reads the parameters of a table, see `jaxvla.models.weights.read_params`, and says what became of every tensor.

    Args:
        path: a safetensors file, or the folder of a model.safetensors.
        table: which tensor is which parameter.
        why_unused: of the tensors that no parameter is; statistics need no reason of their own.
        shardings: one for every parameter, nested as they are; None for the default device.
        dtype: of the parameters.
        prefix: what stands before the names of the file in the table.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    path = pathlib.Path(path).expanduser()
    with open_checkpoint(path) as found:
        stored = _named(found, prefix)
        report = _report(path, stored, table, why_unused)
        return read_params(path, stored, table, shardings, dtype), report


def report_of(
    path: str | pathlib.Path, table: tuple[Weight, ...], why_unused: WhyUnused, prefix: str = ""
) -> LoadReport:
    """What `load_table` would make of every tensor, from the headers alone; raises as it does, but for shapes."""
    path = pathlib.Path(path).expanduser()
    with open_checkpoint(path) as found:
        return _report(path, _named(found, prefix), table, why_unused)


def _named(found: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    return {prefix + name.replace(COMPILED, ""): tensor for name, tensor in found.items()}


def _report(
    path: pathlib.Path, stored: Mapping[str, StoredTensor], table: tuple[Weight, ...], why_unused: WhyUnused
) -> LoadReport:
    unused = {name: reason for name in stored if (reason := _why_statistics(name) or why_unused(name))}
    used = tuple(name for weight in table for name in weight.hf_names)
    check_names(str(path), stored.keys() - unused.keys(), used, _MEND)
    return LoadReport(used, unused)


def _why_statistics(name: str) -> str:
    return "statistics, which are those of the data" if name.startswith(STATISTICS) else ""
