"""Matching dates and times by what they mean: single values and ranges (PS3.4 C.2.2.2.1, C.2.2.2.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial
from typing import Self

from scp_server.objects.dates import Span, date_of, read_date, read_date_time, read_range, read_time
from scp_server.objects.matching_hints import AnyOf, Between, Hint
from scp_server.objects.raw_header import Scalar

_MARGIN_DAYS = 2
"""How far a column's DT may be from its date in UTC, in days: a zone, and less precision than a day."""


@dataclass(frozen=True, slots=True)
class SpanMatcher:
    """Moments within one of some spans. A stored value means its first moment."""

    spans: tuple[Span, ...]
    is_range: bool
    """It is one range."""
    read: Callable[[str], tuple[int, int] | None]
    hint: Hint | None

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        """Whether one of the values is meant."""
        return any(moment in span for moment in self.moments(values) for span in self.spans)

    def moments(self, values: Sequence[Scalar | bytes]) -> list[int]:
        """The first moments of values; those that cannot be read are left out."""
        found = [self.read(value.strip(" \0")) for value in values if isinstance(value, str)]
        return [moments[0] for moments in found if moments is not None]


def span_matcher(vr: str, keys: Sequence[str], zone: tzinfo) -> SpanMatcher | None:
    """A matcher for keys of VR DA, TM or DT; None when one of them is no such value."""
    read = {"DA": read_date, "TM": read_time}.get(vr) or partial(read_date_time, zone=zone)
    spans, ranges = [], 0
    for key in keys:
        found = read_range(key, read, zones=vr == "DT")
        if found is None:
            return None
        spans.append(found[0])
        ranges += found[1]
    hint = None
    if vr == "DA":
        hint = _date_hint(spans, ranges)
    elif vr == "DT":
        hint = _date_time_hint(_hull(spans))
    return SpanMatcher(tuple(spans), bool(ranges) and len(spans) == 1, read, hint)


def _hull(spans: Sequence[Span]) -> Span:
    firsts = [span.first for span in spans if span.first is not None]
    lasts = [span.last for span in spans if span.last is not None]
    return Span(
        min(firsts) if len(firsts) == len(spans) else None, max(lasts) if len(lasts) == len(spans) else None
    )


def _date_hint(spans: Sequence[Span], ranges: int) -> Hint | None:
    if not ranges:
        return AnyOf(tuple(dict.fromkeys(f"{span.first:08}" for span in spans)))
    first, last = _hull(spans)
    return _between(None if first is None else f"{first:08}", None if last is None else f"{last:08}")


def _date_time_hint(hull: Span) -> Hint | None:
    """By the object's own text, which has any precision and zone."""
    return _between(
        None if hull.first is None else date_of(hull.first, -_MARGIN_DAYS),
        None if hull.last is None else date_of(hull.last, _MARGIN_DAYS),
    )


def _between(low: str | None, high: str | None) -> Between | None:
    return None if low is None and high is None else Between(low, high)


@dataclass(frozen=True, slots=True)
class CombinedDateTime:
    """A date and a time range matched as one span of moments, where that was agreed (PS3.4 C.2.2.2.5.4)."""

    date: SpanMatcher
    time: SpanMatcher

    @classmethod
    def of(cls, date: object, time: object) -> Self | None:
        """From the matchers of a DA and a TM key; None when not both are ranges: they match apart."""
        if not (isinstance(date, SpanMatcher) and isinstance(time, SpanMatcher)):
            return None
        return cls(date, time) if date.is_range and time.is_range else None

    @property
    def hint(self) -> Hint | None:
        """About the date."""
        return self.date.hint

    def matches(self, dates: Sequence[Scalar | bytes], times: Sequence[Scalar | bytes]) -> bool:
        """Whether the first date and time lie in the span. A missing one matches nothing."""
        days, moments = self.date.moments(dates), self.time.moments(times)
        if not days or not moments:
            return False
        (first_day, last_day), (first_time, last_time) = self.date.spans[0], self.time.spans[0]
        day, moment = days[0], moments[0]
        if first_day is not None and (day, moment) < (first_day, first_time or 0):
            return False
        if last_day is None or day < last_day:
            return True
        return day == last_day and (last_time is None or moment <= last_time)
