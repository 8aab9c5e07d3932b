"""Which series a metric goes to: `eval_loss` is the `loss` of the scope `eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Scopes:
    """Scopes of metrics, by what their names begin with.

    No two names share a series: where `loss` has been seen, `train_loss` keeps its name.
    """

    def __init__(self, prefixes: Mapping[str, str], *, default: str = "train") -> None:
        self._prefixes = prefixes
        self._default = default
        self._series: dict[str, tuple[str, str]] = {}
        self._taken: set[tuple[str, str]] = set()

    def divide(self, metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The metrics of each scope, by the names they have there."""
        divided: dict[str, dict[str, Any]] = {}
        for name, value in metrics.items():
            key, scope = self.series_of(name)
            divided.setdefault(scope, {})[key] = value
        return divided

    def series_of(self, name: str) -> tuple[str, str]:
        """The name and the scope of a metric's series; always the same for a name."""
        if name not in self._series:
            key, scope = self._split(name)
            series = (name, scope) if (key, scope) in self._taken else (key, scope)
            self._series[name] = series
            self._taken.add(series)
        return self._series[name]

    def _split(self, name: str) -> tuple[str, str]:
        for prefix, scope in self._prefixes.items():
            if name.startswith(prefix) and name != prefix:
                return name.removeprefix(prefix), scope
        return name, self._default
