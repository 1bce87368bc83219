"""The process's byte budget."""

from __future__ import annotations

from scp_server.net.budget import ByteBudget


class Holder:
    """Records what the budget tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def budget_exhausted(self) -> None:
        self.told.append("let go")

    def stop_for_budget(self) -> None:
        self.told.append("stop")

    def go_on_with_budget(self) -> None:
        self.told.append("go on")


def test_a_holder_within_the_limit_is_told_nothing() -> None:
    budget, holder = ByteBudget(100), Holder()
    budget.join(holder)
    budget.take(holder, 100)
    assert holder.told == []


def test_the_holder_that_exceeds_stops_and_all_are_asked_to_let_go() -> None:
    budget, first, second = ByteBudget(100), Holder(), Holder()
    budget.join(first)
    budget.join(second)
    budget.take(first, 80)
    budget.take(second, 30)
    assert first.told == ["let go"]
    assert second.told == ["stop", "let go"]


def test_a_further_holder_stops_too_and_is_asked_alone() -> None:
    budget, first, second = ByteBudget(100), Holder(), Holder()
    budget.join(first)
    budget.join(second)
    budget.take(second, 101)
    budget.take(first, 1)
    assert first.told == ["let go", "stop", "let go"]
    assert second.told == ["stop", "let go"]


def test_the_stopped_go_on_below_seven_eighths() -> None:
    budget, holder = ByteBudget(800), Holder()
    budget.join(holder)
    budget.take(holder, 801)
    budget.give(100)
    assert "go on" not in holder.told
    budget.give(1)
    assert holder.told[-1] == "go on"


def test_one_who_left_is_not_woken() -> None:
    budget, holder = ByteBudget(100), Holder()
    budget.join(holder)
    budget.take(holder, 101)
    budget.give(101)
    told = list(holder.told)
    budget.take(holder, 101)
    budget.leave(holder)
    budget.give(101)
    assert holder.told == [*told, "stop", "let go"]
    assert budget.held_bytes == 0


def test_the_peak_is_remembered() -> None:
    budget, holder = ByteBudget(100), Holder()
    budget.take(holder, 60)
    budget.give(60)
    budget.take(holder, 10)
    assert budget.peak_bytes == 60
