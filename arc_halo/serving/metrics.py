"""What a server counts, and how Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the latency histogram, in seconds; above the last it is +Inf."""


class Metrics:
    """Counts of a server since it began; threads may count at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._failed: Counter[tuple[str, str]] = Counter()
        self.in_flight = 0

    def count(self, reactor: str, status: int, seconds: float) -> None:
        """A request that was answered; `reactor` is "" where it named none that there is."""
        with self._lock:
            self._requests[reactor, status] += 1
            buckets = self._buckets.setdefault(reactor, [0] * (len(BOUNDS) + 1))
            buckets[bisect_left(BOUNDS, seconds)] += 1
            self._seconds[reactor] = self._seconds.get(reactor, 0.0) + seconds

    def count_failed(self, reactor: str, members: Iterable[str]) -> None:
        """Members that did not answer in one run."""
        with self._lock:
            self._failed.update((reactor, member) for member in members)

    def text(self) -> str:
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        name = "arc_halo_requests_total"
        yield from _head(name, "counter", "Requests, by reactor and HTTP status.")
        for (reactor, status), count in sorted(self._requests.items()):
            yield f"{name}{_labels(reactor=reactor, status=str(status))} {count}"
        name = "arc_halo_request_seconds"
        yield from _head(name, "histogram", "Seconds from a request to its answer.")
        for reactor, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*BOUNDS, "+Inf"), buckets, strict=True):
                total += count
                yield f"{name}_bucket{_labels(reactor=reactor, le=str(bound))} {total}"
            yield f"{name}_sum{_labels(reactor=reactor)} {self._seconds[reactor]}"
            yield f"{name}_count{_labels(reactor=reactor)} {total}"
        name = "arc_halo_requests_in_flight"
        yield from _head(name, "gauge", "Requests that run or wait.")
        yield f"{name} {self.in_flight}"
        name = "arc_halo_members_failed_total"
        yield from _head(name, "counter", "Members that did not answer, by reactor.")
        for (reactor, member), count in sorted(self._failed.items()):
            yield f"{name}{_labels(reactor=reactor, member=member)} {count}"


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


ESCAPES: Mapping[str, str] = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def _escaped(value: str) -> str:
    return "".join(ESCAPES.get(each, each) for each in value)
