"""The process around the server: what it asks of Python's garbage collector."""

from __future__ import annotations

import gc
import weakref

from scp_server.runtime.loop import COLLECTOR_THRESHOLDS, collector_at_ease


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_while_it_serves_the_collector_looks_at_nothing_that_the_start_made() -> None:
    before = gc.get_threshold()
    with collector_at_ease():
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == COLLECTOR_THRESHOLDS
        assert len(gc.get_objects()) < 10_000
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before


def test_what_becomes_garbage_while_it_serves_is_found() -> None:
    with collector_at_ease():
        cycle = weakref.ref(_Cycle())
        gc.collect()
        assert cycle() is None
