"""The rule for a scan's current decision: which of the reports on it counts.

A person's decision overrides a machine's, a later one an earlier one of the same rank. What is true in the
laboratory only (GROUND TRUTH) and what does not say who decided (UNDEFINED) never decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone, tzinfo
from enum import IntEnum, StrEnum
from typing import Final

from scp_server.objects.dates import read_date_time

TDR_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.501.3"
"""SOP class of a threat detection report."""
DICOS_CLASSES: Final = "1.2.840.10008.5.1.4.1.1.501."
"""What the SOP class of every DICOS object begins with; all but reports are images here."""
_NO_TIME: Final = -1


class AlarmDecision(StrEnum):
    """Alarm Decision (4010,1031). Any other value is read as UNKNOWN."""

    ALARM = "ALARM"
    CLEAR = "CLEAR"
    UNKNOWN = "UNKNOWN"


class _Rank(IntEnum):
    """Who decided, the weakest first."""

    MACHINE = 0
    AGGREGATE = 1
    PERSON = 2


_RANKS: Final = {
    "MACHINE": _Rank.MACHINE,
    "AGGREGATE": _Rank.AGGREGATE,
    "OPERATOR": _Rank.PERSON,
    "MOD_AGGREGATE": _Rank.PERSON,
}
"""By TDR Type (4010,1027); types that are not here never decide."""
_CAUTION: Final = (AlarmDecision.CLEAR, AlarmDecision.UNKNOWN, AlarmDecision.ALARM)
"""Of two reports of one rank and one moment the one further behind here counts."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the rule has to know of a threat detection report.

    `moment` is Alarm Decision Time as `moment_of` reads it. `received_at_ns` is nanoseconds since the epoch.
    `has_operator`: it refers to the report of an operator that is here.
    """

    sop_instance_uid: str
    tdr_type: str | None
    alarm_decision: str | None
    moment: int | None
    received_at_ns: int
    has_operator: bool = False

    @property
    def decision(self) -> AlarmDecision:
        """What it says, in one of three words."""
        return decision_of(self.alarm_decision)

    @property
    def rank(self) -> int | None:
        """How much it counts beside others; None for one that never decides."""
        rank = _RANKS.get(self.tdr_type or "")
        return _Rank.PERSON if rank is _Rank.AGGREGATE and self.has_operator else rank


def decision_of(text: str | None) -> AlarmDecision:
    """Alarm Decision as one of three words."""
    return AlarmDecision.__members__.get(text or "", AlarmDecision.UNKNOWN)


def current(reports: Iterable[Report]) -> Report | None:
    """The report that decides; None where none does.

    The order in which they are given, or came, is of no matter, but among those that have no time that can be
    read: of these the one received last counts, and any that has a time before all of them. Of two with the
    same time the more cautious counts: ALARM, UNKNOWN, CLEAR.
    """
    return max((report for report in reports if report.rank is not None), key=_weight, default=None)


def reason(decides: Report, reports: Iterable[Report]) -> str:
    """Why this one of the reports decides, in a few words."""
    others = [other for other in reports if other is not decides and other.rank is not None]
    weaker = sorted({str(other.tdr_type) for other in others if other.rank != decides.rank})
    equals = [other for other in others if other.rank == decides.rank]
    why = []
    if decides.has_operator and decides.tdr_type == "AGGREGATE":
        why.append("it rests on an operator's report")
    if weaker:
        why.append(f"{decides.tdr_type} counts before {' and '.join(weaker)}")
    if equals and all(other.moment == decides.moment for other in equals):
        why.append(f"the most cautious of {len(equals) + 1} of one time")
    elif equals:
        why.append(f"the latest of {len(equals) + 1} of its rank")
    return ", ".join(why) or "the only report that decides"


def _weight(report: Report) -> tuple[int, int, int, int, str]:
    rank = _NO_TIME if report.rank is None else report.rank
    caution = _CAUTION.index(report.decision)
    if report.moment is None:
        return rank, _NO_TIME, report.received_at_ns, caution, report.sop_instance_uid
    return rank, report.moment, 0, caution, report.sop_instance_uid


def moment_of(date_time: str | None, zone: tzinfo = UTC) -> int | None:
    """The first moment that a DT means, in microseconds of UTC; in `zone` where it names none of its own."""
    span = read_date_time(date_time, zone) if date_time else None
    return None if span is None else span[0]


def scan_to_decision_ms(
    alarm_decision_time: str | None,
    study_date: str | None,
    study_time: str | None,
    acquisition_date_time: str | None,
) -> int | None:
    """Milliseconds from a scan, by its Study Date and Time or else an image's acquisition, to the decision on
    it. None where one of them cannot be read, or the decision would have come first.

    The scan's time has no zone: it is taken to be in that of the decision, since one machine writes both.
    """
    zone = _zone_of(alarm_decision_time or "")
    decided = moment_of(alarm_decision_time, zone)
    scanned = None
    if study_date and study_time:
        scanned = moment_of(f"{study_date}{study_time.replace(':', '')}", zone)
    if scanned is None:
        scanned = moment_of(acquisition_date_time, zone)
    if decided is None or scanned is None or decided < scanned:
        return None
    return (decided - scanned) // 1_000


def _zone_of(date_time: str) -> tzinfo:
    sign, digits = date_time[-5:-4], date_time[-4:]
    if sign not in ("+", "-") or not (digits.isascii() and digits.isdigit()) or int(digits[:2]) > 14:
        return UTC
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if sign == "-" else offset)
