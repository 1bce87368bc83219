"""A worker that dies at once again and again is left longer and longer."""

from __future__ import annotations

from scp_server.runtime.workers.patience import FIRST_SECONDS, MOST_SECONDS, STEADY_SECONDS, Patience
from scp_server.testing.clock import ManualClock


def test_the_first_death_costs_no_waiting_and_each_soon_after_a_start_twice_as_much() -> None:
    clock = ManualClock()
    patience = Patience(clock)
    waited = []
    for _ in range(10):
        waited.append(patience.ended())
        patience.started()
        clock.advance(STEADY_SECONDS - 1)
    assert waited[:4] == [0.0, FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert waited[-1] == MOST_SECONDS


def test_one_that_lived_for_a_while_is_started_again_at_once() -> None:
    clock = ManualClock()
    patience = Patience(clock)
    for _ in range(5):
        patience.ended()
        patience.started()
    clock.advance(STEADY_SECONDS)
    assert patience.ended() == 0.0
