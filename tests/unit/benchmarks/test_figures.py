"""Medians, ratios, goals and tables say what the samples say."""

from __future__ import annotations

import pytest

from benchmarks.figures import (
    OURS,
    RATE,
    Bound,
    Column,
    Figures,
    Goal,
    Sample,
    Spread,
    goals_table,
    number,
    percentile,
    ratios_table,
    replaced,
    rotated,
    spread,
    workload_table,
)


def figures(**rates: list[float]) -> Figures:
    """Samples of the workload `ct` with one sender."""
    return Figures({}, [Sample("ct", 1, name, {RATE: rate}) for name, each in rates.items() for rate in each])


def test_a_spread_has_the_median_between_least_and_greatest() -> None:
    assert spread([5, 1, 2]) == Spread(1, 2, 5)
    assert spread([]) is None


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_measured(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_a_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0


def test_over_the_turns_each_comes_at_each_place_once() -> None:
    turns = [rotated("abc", turn) for turn in range(3)]
    assert [sorted(place) for place in zip(*turns, strict=True)] == [["a", "b", "c"]] * 3
    assert rotated("abc", 3) == rotated("abc", 0)
    assert rotated([], 1) == []


def test_a_ratio_is_that_of_the_medians() -> None:
    found = figures(scp_server=[10, 30, 20], other=[5, 4, 100])
    assert found.ratio(Goal("ct", 1, "other", 4.0)) == 4.0


@pytest.mark.parametrize(
    "goal", [Goal("ct", 4, "other", 1), Goal("ct", 1, "nobody", 1), Goal("sr", 1, "other", 1)]
)
def test_what_was_not_measured_has_no_ratio(goal: Goal) -> None:
    assert figures(scp_server=[1], other=[1]).ratio(goal) is None


def test_a_server_that_failed_has_no_ratio() -> None:
    assert figures(scp_server=[1], other=[0]).ratio(Goal("ct", 1, "other", 1)) is None


def test_a_goal_can_be_against_the_same_server_elsewhere() -> None:
    found = Figures({}, [Sample("ct", at, OURS, {RATE: rate}) for at, rate in ((2, 100.0), (32, 95.0))])
    assert found.ratio(Goal("ct", 32, OURS, 0.9, against_at=2)) == 0.95


@pytest.mark.parametrize(("factor", "said"), [(4.0, "reached"), (4.1, "missed")])
def test_a_goal_is_reached_from_its_factor_on(factor: float, said: str) -> None:
    found = figures(scp_server=[20], other=[5])
    assert said in goals_table(found, [Goal("ct", 1, "other", factor)], [], {})


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (Bound("ct", 1, RATE, "", most=20), "reached"),
        (Bound("ct", 1, RATE, "", most=19), "missed"),
        (Bound("ct", 1, RATE, "", least=20), "reached"),
        (Bound("ct", 1, RATE, "", least=21), "missed"),
    ],
)
def test_a_bound_holds_up_to_itself(bound: Bound, said: str) -> None:
    assert said in goals_table(figures(scp_server=[20]), [], [bound], {})


def test_goals_without_figures_are_left_out() -> None:
    assert goals_table(figures(other=[5]), [Goal("ct", 1, "other", 1)], [Bound("ct", 9, RATE, "")], {}) == ""


def test_ratios_have_a_column_for_each_other_that_was_there() -> None:
    found = figures(scp_server=[20], slow=[5], fast=[40])
    assert ratios_table(found, ["ct"], {"ct": "CT"}, OURS, ["slow", "fast", "absent"]).splitlines()[2] == (
        "| CT | 1 | 20 | 4\N{MULTIPLICATION SIGN} | 0.5\N{MULTIPLICATION SIGN} |"
    )


@pytest.mark.parametrize(("workload", "other"), [("sr", "slow"), ("ct", "absent")])
def test_without_anybody_to_compare_with_there_is_no_table_of_ratios(workload: str, other: str) -> None:
    assert ratios_table(figures(scp_server=[20], slow=[5]), [workload], {}, OURS, [other]) == ""


def test_a_table_shows_the_spread_of_several_turns_only() -> None:
    found = figures(scp_server=[1, 2, 3], other=[7])
    rows = workload_table(found, "ct", [Column(RATE, "a second", spread=True)]).splitlines()[2:]
    assert rows == ["| scp_server | 1 | 2 (1 to 3) |", "| other | 1 | 7 |"]


def test_a_server_that_failed_is_in_the_notes_and_not_in_the_table() -> None:
    found = figures(scp_server=[1])
    found.samples += 2 * [Sample("ct", 4, "other", {}, ("did not start",))]
    assert "other" not in workload_table(found, "ct", [Column(RATE, "a second")])
    assert found.notes("ct") == ["other at 4: did not start"]


def test_thousands_stand_apart() -> None:
    assert number(1_234_567.5, 1) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567.5"


def test_json_brings_back_all_samples() -> None:
    found = Figures({"date": "today"}, [Sample("ct", 4, "other", {RATE: 1.5}, ("a note",))])
    assert Figures.from_json(found.to_json()) == found


def test_what_is_between_the_marks_is_replaced_and_nothing_else() -> None:
    page = "before\n<!-- x -->\nold\n<!-- /x -->\nafter\n"
    assert replaced(page, "x", r"new \1") == "before\n<!-- x -->\nnew \\1\n<!-- /x -->\nafter\n"


@pytest.mark.parametrize("page", ["", "<!-- x -->\n", 2 * "<!-- x -->\n<!-- /x -->\n"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="the marks of x"):
        replaced(page, "x", "new")
