"""What a server counts, as Prometheus reads it: https://prometheus.io/docs/instrumenting/exposition_formats/."""

import collections
from collections.abc import Callable, Mapping

import numpy as np

QUANTILES = (0.5, 0.9, 0.99)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Quantiles are over so many of the last values.
WINDOW = 1000

_HELP = {
    "requests_total": ("counter", "requests by how they ended"),
    "connections_refused_total": ("counter", "connections that were not admitted"),
    "request_seconds": ("summary", "from when a request was read to its answer"),
    "infer_seconds": ("summary", "of one computation"),
    "batch_robots": ("histogram", "robots of one computation"),
}
_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts, and the last values of what takes time. For one thread."""

    def __init__(self) -> None:
        self._counts: collections.Counter[tuple[str, _Labels]] = collections.Counter()
        self._sums: collections.Counter[tuple[str, _Labels]] = collections.Counter()
        self._values: dict[tuple[str, _Labels], collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=WINDOW)
        )
        self._gauges: dict[tuple[str, _Labels], tuple[str, Callable[[], float | int]]] = {}

    def count(self, name: str, **labels: str) -> None:
        """One more of a counter."""
        self._counts[name, tuple(labels.items())] += 1

    def observe(self, name: str, value: float | int, **labels: str) -> None:
        """One more value of a summary, or of a histogram."""
        key = name, tuple(labels.items())
        self._values[key].append(value)
        self._sums[key] += value
        self._counts[f"{name}_count", key[1]] += 1
        if _HELP[name][0] == "histogram":
            for bound in BATCHES:
                self._counts[f"{name}_bucket", (*key[1], ("le", str(bound)))] += value <= bound

    def gauge(self, name: str, text: str, read: Callable[[], float | int], **labels: str) -> None:
        """Something that `read` gives whenever the metrics are asked for."""
        self._gauges[name, tuple(labels.items())] = text, read

    def text(self) -> str:
        """All of it."""
        lines = []
        for name, (kind, text) in _HELP.items():
            lines += _head(name, kind, text)
            if kind == "counter":
                lines += [_line(name, own, n) for (each, own), n in self._counts.items() if each == name]
                continue
            for labels in (own for each, own in self._values if each == name):
                lines += self._distribution(name, kind, labels)
        for i, ((name, labels), (text, read)) in enumerate(self._gauges.items()):
            first = name not in [each for each, _ in list(self._gauges)[:i]]
            lines += [*(_head(name, "gauge", text) if first else ()), _line(name, labels, read())]
        return "\n".join([*lines, ""])

    def _distribution(self, name: str, kind: str, labels: _Labels) -> list[str]:
        count = self._counts[f"{name}_count", labels]
        if kind == "histogram":
            bounds = [(*labels, ("le", str(bound))) for bound in BATCHES]
            lines = [_line(f"{name}_bucket", own, self._counts[f"{name}_bucket", own]) for own in bounds]
            lines.append(_line(f"{name}_bucket", (*labels, ("le", "+Inf")), count))
        else:
            values = np.quantile(self._values[name, labels], QUANTILES)
            own = ((*labels, ("quantile", str(q))) for q in QUANTILES)
            lines = [_line(name, each, float(value)) for each, value in zip(own, values)]
        return [*lines, _line(f"{name}_sum", labels, self._sums[name, labels]), _line(f"{name}_count", labels, count)]


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP jaxvla_{name} {text}", f"# TYPE jaxvla_{name} {kind}"]


def _line(name: str, labels: _Labels, value: float | int) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"jaxvla_{name}{{{inside}}} {value:.9g}" if inside else f"jaxvla_{name} {value:.9g}"


def _escaped(text: str) -> str:
    for sign, escape in ESCAPES.items():
        text = text.replace(sign, escape)
    return text


ESCAPES: Mapping[str, str] = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
