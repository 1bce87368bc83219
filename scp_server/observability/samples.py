"""What the processes of one server have counted, added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Samples = dict[tuple[str, tuple[str, ...]], float]
"""What a process has counted, by name and label values; what is not there is 0."""
_NOT_ADDED = frozenset({"scp_build_info", "scp_ready", "scp_process_start_time_seconds"})
_GROWING = ("_total", "_bucket", "_count", "_sum")
"""How the names of what only grows end."""


def samples_of(registry: CollectorRegistry) -> Samples:
    """What can be added of a registry's families."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in registry.collect()
        if family.name not in _NOT_ADDED
        for sample in family.samples
        if sample.value
    }


def growing(samples: Samples) -> Samples:
    """Those that count on from where they are, without the levels of a moment."""
    return {key: value for key, value in samples.items() if key[0].endswith(_GROWING)}


def added(first: Samples, second: Samples) -> Samples:
    """The sums."""
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in first.keys() | second.keys()}


class Sum(Collector):
    """The families of a registry, with what others have counted added."""

    def __init__(self, own: CollectorRegistry, others: Callable[[], Samples]) -> None:
        self._own = own
        self._others = others

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        others = self._others()
        for family in self._own.collect():
            if others and family.name not in _NOT_ADDED:
                family.samples = [
                    sample._replace(
                        value=sample.value + others.get((sample.name, tuple(sample.labels.values())), 0.0)
                    )
                    for sample in family.samples
                ]
            yield family
