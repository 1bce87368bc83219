"""Dates and times match by what they mean, single or as ranges (PS3.4 C.2.2.2.1.2-3, C.2.2.2.5)."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.errors import OperationRefused
from scp_server.objects.dates import read_date, read_date_time, read_time
from scp_server.objects.matching import CombinedDateTime, Matcher, MatchingOptions, make_matcher
from scp_server.objects.matching_hints import AnyOf, Between

BERLIN = ZoneInfo("Europe/Berlin")


def matcher(vr: str, key: str, zone: tzinfo = UTC) -> Matcher:
    made = make_matcher(
        0x00080020,
        vr,
        key.encode(),
        charset=None,
        little_endian=True,
        options=MatchingOptions(timezone=zone),
    )
    assert made is not None
    return made


def found(vr: str, key: str, stored: list[str], zone: tzinfo = UTC) -> list[str]:
    return [value for value in stored if matcher(vr, key, zone).matches([value])]


DAYS = ["18991231", "20231231", "20240101", "2024.01.02", "20240103"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("20240101", ["20240101"]),
        ("2024.01.02", ["2024.01.02"]),
        ("20240101-20240102", ["20240101", "2024.01.02"]),
        ("2024.01.01-2024.01.02", ["20240101", "2024.01.02"]),
        ("20240102-", ["2024.01.02", "20240103"]),
        ("-20231231", ["18991231", "20231231"]),
        ("18991231", ["18991231"]),
        ("20240103-20240101", []),
        ("20231231\\20240103", ["20231231", "20240103"]),
        ("-18991231\\20240103-", ["18991231", "20240103"]),
    ],
)
def test_dates_match_by_day_and_range(key: str, expected: list[str]) -> None:
    """PS3.4 C.2.2.2.5."""
    assert found("DA", key, DAYS) == expected


TIMES = ["1029", "1030", "103000", "10:30:00.5", "103059.999999", "1031", "11", "2359", "235960", "garbage"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("1030", ["1030", "103000", "10:30:00.5", "103059.999999"]),
        ("10", ["1029", "1030", "103000", "10:30:00.5", "103059.999999", "1031"]),
        ("103000", ["1030", "103000", "10:30:00.5"]),
        ("10:30:00.5", ["10:30:00.5"]),
        ("1030-1031", ["1030", "103000", "10:30:00.5", "103059.999999", "1031"]),
        ("11-", ["11", "2359", "235960"]),
        ("-1030", ["1029", "1030", "103000", "10:30:00.5", "103059.999999"]),
        ("2300-0100", []),
        ("235960", ["235960"]),
    ],
)
def test_times_match_by_their_precision_and_never_across_midnight(key: str, expected: list[str]) -> None:
    """PS3.4 C.2.2.2.5."""
    assert found("TM", key, TIMES) == expected


@pytest.mark.parametrize(
    ("key", "stored", "expected"),
    [
        ("2024", "20240630", True),
        ("2024", "2023123123", False),
        ("202402", "20240229235959.999999", True),
        ("20240101", "20240101", True),
        ("20240101103000", "20240101103000.25", True),
        ("20240101103000+0100", "20240101093000", True),
        ("20240101103000+0100", "20240101103000", False),
        ("20240101-20240102", "20240102235959", True),
        ("2024010112-", "2024010111", False),
        ("-2024", "20241231", True),
        ("20240101120000-0500-20240101130000-0500", "20240101173000", True),
        ("20240101120000-0500-20240101130000-0500", "20240101123000", False),
        ("20240101120000-0500-", "20240101165959", False),
        ("20240101120000-0500-", "20240101170000", True),
        ("-20240101120000-0500", "20240101170000", True),
        ("20240101-20240102-0500", "20240103045959", True),
        ("20240101110000+0100-20240101120000+0100", "20240101053000-0500", True),
        ("20240101-0500", "20240101", False),
        ("20240630120060", "20240630120100", True),
    ],
)
def test_date_times_match_as_utc(key: str, stored: str, expected: bool) -> None:
    assert matcher("DT", key).matches([stored]) is expected


def test_date_times_without_a_zone_are_in_ours() -> None:
    assert found("DT", "20240701100000+0000", ["20240701120000"], BERLIN) == ["20240701120000"]
    assert found("DT", "20240101100000+0000", ["20240101110000"], BERLIN) == ["20240101110000"]
    assert found("DT", "20240701", ["20240630220000+0000", "20240701220000+0000"], BERLIN) == [
        "20240630220000+0000"
    ]


GARBAGE = {
    "DA": ["2024", "202401", "20241301", "20240230", "00000101", "2024-01-01", "20240101-20240102-20240103"],
    "TM": ["24", "2400", "1060", "103061", "1", "10:3", "103000.", "103000.1234567", "10-11-12", "1030+0100"],
    "DT": ["0000", "202413", "20240230", "2024010124", "2024+1500", "20240101-1-2-3-4", "x"],
}


@pytest.mark.parametrize(("vr", "key"), [(vr, key) for vr, keys in GARBAGE.items() for key in [*keys, "-"]])
def test_garbage_is_refused_in_a_key(vr: str, key: str) -> None:
    with pytest.raises(OperationRefused) as caught:
        matcher(vr, key)
    assert (caught.value.status, caught.value.offending_elements) == (0xC000, (0x00080020,))


def test_a_hyphen_that_can_only_be_a_zone_is_none_in_a_single_value() -> None:
    """PS3.4 C.2.2.2.1.3: a single value has no zone west of Greenwich."""
    with pytest.raises(OperationRefused):
        matcher("DT", "20240101-0000")
    assert found("DT", "20240101", ["20240101-0000"]) == ["20240101-0000"]


@pytest.mark.parametrize("vr", ["DA", "TM", "DT"])
def test_garbage_never_matches_when_it_is_stored(vr: str) -> None:
    everything = matcher(vr, {"DA": "00010101-", "TM": "00-", "DT": "0001-"}[vr])
    assert not everything.matches([])
    for value in [*GARBAGE[vr], "", "x", "\u0662\u0660\u0662\u0664"]:
        assert not everything.matches([value]), value


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("2024.01.02", AnyOf(("20240102",))),
        ("20240101\\20240102", AnyOf(("20240101", "20240102"))),
        ("20240101-", Between("20240101", None)),
        ("-20240101", Between(None, "20240101")),
        ("20240101-20240105\\20230101", Between("20230101", "20240105")),
        ("-20240101\\20240103-", None),
    ],
)
def test_hints_of_dates_are_canonical(key: str, hint: object) -> None:
    assert matcher("DA", key).hint == hint


def test_hints_of_date_times_leave_room_for_zones_and_times_have_none() -> None:
    assert matcher("DT", "20240110").hint == Between("20240108", "20240112")
    assert matcher("DT", "0001").hint == Between(None, "00020102")
    assert matcher("DT", "9999").hint == Between("99981230", None)
    assert matcher("TM", "10").hint is None


ZONES = st.sampled_from([UTC, BERLIN, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))])
DATE_TIMES = st.builds(
    lambda moment, length, zone: f"{moment:%Y%m%d%H%M%S}".rjust(14, "0")[:length] + zone,
    st.datetimes(),
    st.sampled_from([4, 6, 8, 10, 12, 14]),
    st.sampled_from(["", "+1400", "-1200", "+0000", "+0530"]),
)


@given(DATE_TIMES, DATE_TIMES, ZONES)
def test_hints_of_date_times_let_all_pass_that_match(key: str, stored: str, zone: tzinfo) -> None:
    for text in (key, f"{key}-", f"-{key}"):
        try:
            made = matcher("DT", text, zone)
        except OperationRefused:
            continue
        if made.matches([stored]) and made.hint is not None:
            assert isinstance(made.hint, Between)
            assert made.hint.low is None or made.hint.low <= stored
            assert made.hint.high is None or stored <= made.hint.high


@given(st.text("0123456789.:+- x", max_size=24))
def test_no_text_makes_reading_fail(text: str) -> None:
    for moments in (read_date(text), read_time(text), read_date_time(text, BERLIN)):
        assert moments is None or moments[0] <= moments[1]


def combined(date: str, time: str) -> CombinedDateTime:
    made = CombinedDateTime.of(matcher("DA", date), matcher("TM", time))
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("date", "time", "day", "moment", "expected"),
    [
        ("20240105-20240107", "10-18", "20240105", "0959", False),
        ("20240105-20240107", "10-18", "20240105", "1000", True),
        ("20240105-20240107", "10-18", "20240106", "03", True),
        ("20240105-20240107", "10-18", "20240107", "185959", True),
        ("20240105-20240107", "10-18", "20240107", "19", False),
        ("20240105-20240107", "22-02", "20240106", "12", True),
        ("20240105-", "10-", "20240105", "09", False),
        ("20240105-", "10-", "20250101", "09", True),
        ("-20240107", "-10", "20240107", "11", False),
        ("-20240107", "-10", "20240101", "23", True),
        ("20240105-20240107", "10-", "20240107", "23", True),
    ],
)
def test_a_date_and_a_time_range_can_mean_one_span(
    date: str, time: str, day: str, moment: str, expected: bool
) -> None:
    """PS3.4 C.2.2.2.5.4."""
    assert combined(date, time).matches([day], [moment]) is expected


def test_a_span_is_not_matched_by_half_a_moment() -> None:
    span = combined("20240105-20240107", "10-18")
    assert not span.matches(["20240106"], [])
    assert not span.matches([], ["12"])
    assert not span.matches(["20240106"], ["garbage"])
    assert span.hint == Between("20240105", "20240107")


@pytest.mark.parametrize(("date", "time"), [("20240105", "10-18"), ("20240105-", "10")])
def test_only_two_ranges_are_combined(date: str, time: str) -> None:
    assert CombinedDateTime.of(matcher("DA", date), matcher("TM", time)) is None
    assert CombinedDateTime.of(None, matcher("TM", "10-")) is None
