"""Totals and rates under a manual clock, and the ring of the last problems."""

from __future__ import annotations

import io

import pytest

from scp_server.observability.activity import Activity
from scp_server.observability.logs import captured_logs, configure_logging, get_logger
from scp_server.observability.recent import RECENT_PROBLEMS, forget_problems, recent_problems


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.5

    def __call__(self) -> float:
        return self.now


def test_rates_are_averages_of_whole_seconds_and_totals_count_all() -> None:
    clock = _Clock()
    activity = Activity(clock)
    for _ in range(100):
        activity.received(1_000)
        activity.performed(success=True)
        clock.now += 1
    activity.performed(success=False)
    assert (activity.operations, activity.operations_failed, activity.dataset_bytes) == (101, 1, 100_000)
    assert (activity.rate(10).operations_per_second, activity.rate(10).bytes_per_second) == (1.0, 1_000.0)
    assert activity.rate(60).bytes_per_second == 1_000.0
    clock.now += 5
    assert activity.rate(10).operations_per_second == pytest.approx(0.6)
    clock.now += 100
    assert activity.rate(60).bytes_per_second == 0
    assert activity.uptime_seconds == 205


def test_shortly_after_the_start_the_average_is_over_the_time_there_was() -> None:
    clock = _Clock()
    activity = Activity(clock)
    activity.received(600)
    clock.now += 2
    rate = activity.rate(60)
    assert (rate.seconds, rate.bytes_per_second) == (2.0, 300.0)


def test_the_last_problems_are_remembered_and_no_more() -> None:
    forget_problems()
    with captured_logs():
        configure_logging("json", "info", io.StringIO())
        log = get_logger("test")
        log.info("nothing.special")
        for number in range(RECENT_PROBLEMS + 5):
            log.warning("disk.slow", number=number, patient_name="DOE")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("operation.failed")
    found = recent_problems()
    assert len(found) == RECENT_PROBLEMS
    assert [each["event"] for each in found[-2:]] == ["disk.slow", "operation.failed"]
    assert found[-2]["number"] == RECENT_PROBLEMS + 4
    assert not any("exception" in each or "patient_name" in each for each in found)
    forget_problems()
