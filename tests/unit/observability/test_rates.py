"""Rates under a manual clock: what the measures counted, divided by time."""

from __future__ import annotations

import pytest

from scp_server.observability.measures import OperationMeasures, PeerCounts
from scp_server.observability.rates import KEPT_SECONDS, Rate, Rates
from scp_server.protocol.message import CEchoRQ
from scp_server.testing.clock import ManualClock


class _Busy:
    """Operations, and rates over them that are noted twice a second."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.operations = OperationMeasures()
        self.rates = Rates(self.operations, clock)

    def work(self, half_seconds: int, size_bytes: int, *, notes: bool = True) -> None:
        for _ in range(half_seconds):
            self.operations.received(PeerCounts(), size_bytes)
            self.operations.ended(PeerCounts(), CEchoRQ(message_id=1), 0x0000, 0.1, 0)
            self.clock.advance(0.5)
            if notes:
                self.rates.note()


@pytest.fixture
def busy(manual_clock: ManualClock) -> _Busy:
    return _Busy(manual_clock)


def test_a_rate_is_the_average_of_so_many_seconds_up_to_now(busy: _Busy) -> None:
    busy.work(400, 500)
    assert busy.rates.over(10) == Rate(10.0, 2.0, 1_000.0)
    assert busy.rates.over(60) == Rate(60.0, 2.0, 1_000.0)
    busy.work(10, 0)
    assert busy.rates.over(10).bytes_per_second == 500.0


def test_what_ended_long_ago_counts_no_more(busy: _Busy) -> None:
    busy.work(20, 500)
    for _ in range(200):
        busy.clock.advance(0.5)
        busy.rates.note()
    assert busy.rates.over(60) == Rate(60.0, 0.0, 0.0)


def test_shortly_after_the_start_the_average_is_over_the_time_there_was(busy: _Busy) -> None:
    busy.work(4, 150)
    assert busy.rates.over(60) == Rate(2.0, 2.0, 300.0)


def test_nothing_is_divided_by_next_to_no_time(busy: _Busy) -> None:
    busy.operations.received(PeerCounts(), 600)
    assert busy.rates.over(10) == Rate(1.0, 0.0, 600.0)


def test_where_nothing_was_noted_for_long_the_average_is_over_that_time(busy: _Busy) -> None:
    busy.work(10, 100)
    busy.work(40, 100, notes=False)
    rate = busy.rates.over(10)
    assert (rate.seconds, rate.operations_per_second) == (20.0, 2.0)


def test_no_more_is_remembered_than_the_longest_rate_needs(busy: _Busy) -> None:
    busy.work(1_000, 1)
    assert len(busy.rates._readings) <= 2 * KEPT_SECONDS + 2
