"""Reading dates and times: what moments a value means (PS3.5 6.2, DA, TM and DT).

Dates are integers like 20240229; times count microseconds from midnight, moments microseconds of UTC from the
first day of the year 1. What is no such value gives None, never an exception.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Final, NamedTuple

from scp_server.objects.folding import canonical_date

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_MOST_HYPHENS: Final = 3
"""In a DT range: one of its own, and those of two zones west of Greenwich."""
_EARLIEST_ZONE: Final = -12 * 60
_LATEST_ZONE: Final = 14 * 60
"""Minutes (PS3.5 6.2, DT)."""

_TIME: Final = re.compile(r"(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,6}))?)?)?", re.ASCII).fullmatch
_OLD_TIME: Final = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?", re.ASCII).fullmatch
_DATE_TIME: Final = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d(?:\d\d(?:\d\d(?:\.\d{1,6})?)?)?))?)?)?(?:([+-])(\d\d)(\d\d))?",
    re.ASCII,
).fullmatch


class Span(NamedTuple):
    """From the first moment to the last, both included; None is without bound."""

    first: int | None
    last: int | None

    def __contains__(self, moment: object) -> bool:
        return (
            isinstance(moment, int)
            and (self.first is None or self.first <= moment)
            and (self.last is None or moment <= self.last)
        )


def read_date(text: str) -> tuple[int, int] | None:
    """The day that a DA means, twice: its first and last."""
    digits = canonical_date(text)
    if len(digits) != 8 or not (digits.isascii() and digits.isdigit()):
        return None
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
    day = int(digits)
    return day, day


def read_time(text: str) -> tuple[int, int] | None:
    """The first and last microsecond that a TM means. A leap second is the next minute's first second."""
    match = _TIME(text) or _OLD_TIME(text)
    if match is None:
        return None
    hours, minutes, seconds, fraction = match.groups()
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 60:
        return None
    first = int(hours) * _HOUR + int(minutes or 0) * _MINUTE + int(seconds or 0) * _SECOND
    if fraction:
        first += int(fraction.ljust(6, "0"))
        return first, first + 10 ** (6 - len(fraction)) - 1
    return first, first + (_SECOND if seconds else _MINUTE if minutes else _HOUR) - 1


def read_date_time(text: str, zone: tzinfo) -> tuple[int, int] | None:
    """The first and last moment that a DT means; in `zone` where it has none of its own."""
    match = _DATE_TIME(text)
    if match is None:
        return None
    year, month, day, time, sign, zone_hours, zone_minutes = match.groups()
    if sign:
        offset = (int(zone_hours) * 60 + int(zone_minutes)) * (-1 if sign == "-" else 1)
        if not _EARLIEST_ZONE <= offset <= _LATEST_ZONE or int(zone_minutes) > 59:
            return None
        zone = timezone(timedelta(minutes=offset))
    times = read_time(time) if time else (0, _DAY - 1)
    if times is None or not int(year) or not 1 <= int(month or 1) <= 12:
        return None
    last_month = int(month or 12)
    try:
        first_day = datetime(int(year), int(month or 1), int(day or 1))
        last_day = datetime(int(year), last_month, int(day or monthrange(int(year), last_month)[1]))
    except ValueError:
        return None
    return _moment(first_day, times[0], zone), _moment(last_day, times[1], zone)


def read_range(
    text: str, read: Callable[[str], tuple[int, int] | None], zones: bool = False
) -> tuple[Span, bool] | None:
    """What a key means, and whether it is a range: `a-b`, `a-` or `-b` (PS3.4 C.2.2.2.5).

    With `zones` a hyphen may belong to one, where the text is no range otherwise.
    """
    hyphens = [position for position, character in enumerate(text) if character == "-"]
    if not hyphens:
        single = read(text)
        return None if single is None else (Span(*single), False)
    if len(hyphens) > (_MOST_HYPHENS if zones else 1) or text == "-":
        return None
    for hyphen in hyphens:
        begin, end = text[:hyphen].strip(), text[hyphen + 1 :].strip()
        first, last = read(begin), read(end)
        if (first or not begin) and (last or not end):
            return Span(first[0] if first else None, last[1] if last else None), True
    return None


def date_of(moment: int, days: int) -> str | None:
    """The date of a moment in UTC, some days later, as YYYYMMDD; None where the calendar ends."""
    try:
        return f"{date.fromordinal(moment // _DAY + 1 + days):%Y%m%d}".rjust(8, "0")
    except (ValueError, OverflowError):
        return None


def _moment(day: datetime, time: int, zone: tzinfo) -> int:
    """A local time in UTC; where a zone knows nothing of such times, as if it were UTC."""
    clock = min(time, _DAY - 1)
    try:
        offset = (day + timedelta(microseconds=clock)).replace(tzinfo=zone).utcoffset()
    except (OverflowError, ValueError):
        offset = None
    moment = (day.toordinal() - 1) * _DAY + time
    return moment if offset is None else moment - offset // timedelta(microseconds=1)
