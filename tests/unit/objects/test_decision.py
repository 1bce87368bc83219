"""Which report decides on a scan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.objects.dicos.decision import (
    AlarmDecision,
    Report,
    current,
    decision_of,
    moment_of,
    reason,
    scan_to_decision_ms,
)

EARLY, LATE = "20261120101114+0000", "20261120101500+0000"


def _report(
    uid: str,
    tdr_type: str | None = "MACHINE",
    decision: str | None = "ALARM",
    at: str | None = EARLY,
    received: int = 1,
    *,
    has_operator: bool = False,
) -> Report:
    return Report(uid, tdr_type, decision, moment_of(at), received, has_operator)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], None),
        ([_report("1")], "1"),
        ([_report("1"), _report("2", at=LATE)], "2"),
        # A person before a machine, however early and whatever both say.
        ([_report("1", at=LATE), _report("2", "OPERATOR", "CLEAR")], "2"),
        ([_report("1", "OPERATOR", "CLEAR"), _report("2", "OPERATOR", "ALARM", LATE)], "2"),
        ([_report("1", "OPERATOR"), _report("2", "MOD_AGGREGATE", at=LATE)], "2"),
        ([_report("1", "OPERATOR", at=LATE), _report("2", "MOD_AGGREGATE")], "1"),
        ([_report("1", at=LATE), _report("2", "AGGREGATE", "CLEAR")], "2"),
        ([_report("1", "AGGREGATE", at=LATE), _report("2", "OPERATOR", "CLEAR")], "2"),
        ([_report("1", "AGGREGATE", at=LATE, has_operator=True), _report("2", "OPERATOR", "CLEAR")], "1"),
        ([_report("1", "MACHINE", at=LATE, has_operator=True), _report("2", "OPERATOR")], "2"),
        # What never decides.
        ([_report("1", "GROUND TRUTH", at=LATE), _report("2")], "2"),
        ([_report("1", "GROUND TRUTH"), _report("2", "UNDEFINED"), _report("3", None)], None),
        ([_report("1", "BANANA")], None),
        # Times mean moments, whatever zone they are in; one without a zone is in UTC.
        ([_report("1", at="20261120111113+0100"), _report("2", at="20261120101112")], "1"),
        ([_report("1", at="20261120101114-0500"), _report("2", at="20261120101500+0000")], "1"),
        # Without a time the one received last, and any that has a time before all of them.
        ([_report("1", at=None, received=2), _report("2", at="soon", received=1)], "1"),
        ([_report("1", at=None, received=2), _report("2", at=EARLY, received=1)], "2"),
        # At one moment caution decides.
        ([_report("1", decision="ALARM"), _report("2", decision="CLEAR")], "1"),
        ([_report("1", decision="MAYBE"), _report("2", decision="CLEAR")], "1"),
        ([_report("1", decision="CLEAR"), _report("2", decision="CLEAR")], "2"),
    ],
)
def test_the_report_that_decides(reports: list[Report], expected: str | None) -> None:
    for given_ in (reports, reports[::-1]):
        decides = current(given_)
        assert (None if decides is None else decides.sop_instance_uid) == expected


_REPORTS = st.lists(
    st.builds(
        Report,
        sop_instance_uid=st.integers(1, 10**9).map(str),
        tdr_type=st.sampled_from(
            ["MACHINE", "OPERATOR", "AGGREGATE", "MOD_AGGREGATE", "GROUND TRUTH", "UNDEFINED", None]
        ),
        alarm_decision=st.sampled_from(["ALARM", "CLEAR", "UNKNOWN", "MAYBE", None]),
        moment=st.none() | st.integers(0, 3),
        received_at_ns=st.integers(0, 3),
        has_operator=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda report: report.sop_instance_uid,
)


@given(_REPORTS, st.randoms())
def test_the_order_of_arrival_never_matters(reports: list[Report], random: object) -> None:
    shuffled = list(reports)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert current(shuffled) == current(reports)


@given(_REPORTS)
def test_deciding_step_by_step_comes_to_the_same(reports: list[Report]) -> None:
    decides: Report | None = None
    for report in reports:
        decides = current([report] if decides is None else [decides, report])
    assert decides == current(reports)


@pytest.mark.parametrize(("text", "expected"), [("ALARM", "ALARM"), ("alarm", "UNKNOWN"), (None, "UNKNOWN")])
def test_a_decision_is_one_of_three_words(text: str | None, expected: str) -> None:
    assert decision_of(text) is AlarmDecision(expected)


@pytest.mark.parametrize(
    ("decided", "study_date", "study_time", "acquired", "expected"),
    [
        ("20261120101114.000000+0000", "20261120", "101112.000000", None, 2_000),
        # The scan's time is in the zone of the decision's.
        ("20261120101114.5+0200", "20261120", "101112", None, 2_500),
        ("20261120101114", "20261120", "10:11:12", None, 2_000),
        ("20261120101114+0200", None, None, "20261120081113+0000", 1_000),
        ("20261120101114+0000", "20261120", "noon", "20261120101113", 1_000),
        ("20261120101114+0000", "20261120", "101115", None, None),
        ("soon", "20261120", "101112", None, None),
        (None, "20261120", "101112", None, None),
        ("20261120101114+0000", None, None, None, None),
        ("20261120101114+9999", "20261120", "101112", None, None),
    ],
)
def test_latency_is_from_the_scan_to_the_decision_by_the_machines_clock(
    decided: str | None,
    study_date: str | None,
    study_time: str | None,
    acquired: str | None,
    expected: int | None,
) -> None:
    assert scan_to_decision_ms(decided, study_date, study_time, acquired) == expected


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([_report("1")], "the only report that decides"),
        ([_report("1"), _report("2", at=LATE)], "the latest of 2 of its rank"),
        ([_report("1"), _report("2", decision="CLEAR")], "the most cautious of 2 of one time"),
        (
            [_report("1"), _report("2", "OPERATOR"), _report("3", "OPERATOR", at=LATE)],
            "OPERATOR counts before MACHINE, the latest of 2 of its rank",
        ),
        (
            [_report("1", "AGGREGATE", has_operator=True), _report("2", "GROUND TRUTH")],
            "it rests on an operator's report",
        ),
    ],
)
def test_the_reason_is_said_in_a_few_words(reports: list[Report], expected: str) -> None:
    decides = current(reports)
    assert decides is not None
    assert reason(decides, reports) == expected
