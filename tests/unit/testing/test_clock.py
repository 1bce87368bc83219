"""Time moves only by `advance`."""

from __future__ import annotations

import pytest

from scp_server.testing.clock import ManualClock


def test_both_clocks_stand_still_and_move_together() -> None:
    clock = ManualClock(now=5.0, epoch_seconds=100)
    assert (clock(), clock.now, clock.time_ns()) == (5.0, 5.0, 100_000_000_000)
    assert clock.advance(2.5) == 7.5
    assert (clock(), clock.time_ns()) == (7.5, 102_500_000_000)


def test_clock_never_goes_back(manual_clock: ManualClock) -> None:
    with pytest.raises(ValueError, match="back"):
        manual_clock.advance(-0.1)
    assert manual_clock() == 0.0
