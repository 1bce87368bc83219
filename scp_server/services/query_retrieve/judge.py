"""Deciding whether what the index found really matches, and making its answer.

Runs in the index's threads, one page after another: nothing here waits, and no two
queries share anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from scp_server.errors import IndexFailure
from scp_server.index.search import MAX_DISTINCT_VALUES, ColumnValue, Entity
from scp_server.objects.identifier import Key, located, source_matches, stored_values
from scp_server.objects.matching import CombinedDateTime, Matcher
from scp_server.objects.raw_header import RawHeader, Scalar
from scp_server.objects.response_dataset import AnswerValue, ResponseDataset
from scp_server.protocol.status import Status

_DATE_TIME_PAIRS: Final[Mapping[int, int]] = {
    0x00080012: 0x00080013,
    0x00080020: 0x00080030,
    0x00080021: 0x00080031,
    0x00080022: 0x00080032,
    0x00080023: 0x00080033,
    0x00100030: 0x00100032,
}
"""Dates and times that combined date-time matching takes for one (PS3.4 C.2.2.2.5.4)."""

_Values = Sequence[Scalar | bytes]
_Test = Callable[[Mapping[str, ColumnValue], RawHeader | None], bool]


@dataclass(frozen=True, slots=True)
class PlannedKey:
    """A key, and where its values are: in a column of this name, or in the header; or it has one `constant`.

    `matched`: those that have the key's value are wanted.
    """

    key: Key
    column: str | None = None
    constant: str | None = None
    matched: bool = False

    @property
    def in_header(self) -> bool:
        """Whether its values are in the stored header."""
        return self.column is None and self.constant is None


class Answer(NamedTuple):
    """One match: 0xFF00 or 0xFF01, and the data set."""

    status: Status
    dataset: bytes


class EntityJudge:
    """Decides about each entity of one query, and makes its answer."""

    def __init__(
        self,
        keys: Sequence[PlannedKey],
        response: ResponseDataset,
        *,
        all_supported: bool,
        combined_date_time: bool,
        header_match_rows: int,
        unknown_values_match: bool,
    ) -> None:
        """`keys` are those of `response`, in its order. `all_supported`: no key was left out or unmatched."""
        self._keys = tuple(keys)
        self._response = response
        self._all_supported = all_supported
        self._unknown_values_match = unknown_values_match
        self._headers_left = header_match_rows
        tests = _Tests(self._keys, combined_date_time, unknown_values_match)
        self._column_tests = tests.of_columns
        self._header_tests = tests.of_headers
        self._reads_headers = any(planned.in_header for planned in self._keys)

    def __call__(self, entity: Entity) -> Answer | None:
        """The answer, or None for what does not match. Raises IndexFailure for a header that is damaged."""
        values = entity.values
        if not all(test(values, None) for test in self._column_tests):
            return None
        header = _unpacked(entity.header) if self._reads_headers else None
        complete = self._all_supported
        if self._header_tests:
            if self._headers_left > 0:
                self._headers_left -= 1
                if not all(test(values, header) for test in self._header_tests):
                    return None
            else:
                complete = False
        response = self._response.encode([_answer_value(key, values, header) for key in self._keys])
        supported = complete and response.complete
        return Answer(
            Status.PENDING if supported else Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED, response.dataset
        )


class _Tests:
    """What has to be true of an entity's columns, and of its header."""

    def __init__(
        self, keys: Sequence[PlannedKey], combined_date_time: bool, unknown_values_match: bool
    ) -> None:
        self._unknown_values_match = unknown_values_match
        self.of_columns: list[_Test] = []
        self.of_headers: list[_Test] = []
        by_tag = {planned.key.tag: planned for planned in keys if planned.matched}
        together: set[int] = set()
        if combined_date_time:
            for date_tag, time_tag in _DATE_TIME_PAIRS.items():
                if date_tag in by_tag and time_tag in by_tag:
                    together |= self._combine(by_tag[date_tag], by_tag[time_tag])
        for tag, planned in by_tag.items():
            if tag not in together:
                self._add(planned)

    def _combine(self, date: PlannedKey, time: PlannedKey) -> set[int]:
        combined = CombinedDateTime.of(date.key.matcher, time.key.matcher)
        if combined is None:
            return set()
        unknown_values_match = self._unknown_values_match

        def test(values: Mapping[str, ColumnValue], header: RawHeader | None) -> bool:
            dates, times = _values_of(date, values, header), _values_of(time, values, header)
            if unknown_values_match and (not dates or not times):
                return True
            return combined.matches(dates, times)

        (self.of_headers if date.in_header or time.in_header else self.of_columns).append(test)
        return {date.key.tag, time.key.tag}

    def _add(self, planned: PlannedKey) -> None:
        key, matcher, unknown_values_match = planned.key, planned.key.matcher, self._unknown_values_match
        if planned.in_header:
            self.of_headers.append(
                lambda _, header: header is not None and source_matches(header, key, unknown_values_match)
            )
        elif matcher is not None:
            self.of_columns.append(_column_test(planned, matcher, unknown_values_match))


def _column_test(planned: PlannedKey, matcher: Matcher, unknown_values_match: bool) -> _Test:
    name = planned.column or ""

    def test(values: Mapping[str, ColumnValue], _: RawHeader | None) -> bool:
        found = _listed(values[name])
        if not found and unknown_values_match:
            return True
        # Where there are more values than we are given, the one that the index found may not be among them.
        return matcher.matches(found) or len(found) >= MAX_DISTINCT_VALUES

    return test


def _values_of(planned: PlannedKey, values: Mapping[str, ColumnValue], header: RawHeader | None) -> _Values:
    if planned.column is not None:
        return _listed(values[planned.column])
    tag = None if header is None else located(header, planned.key)
    return () if header is None or tag is None else stored_values(header, tag, planned.key.vr) or ()


def _listed(value: ColumnValue) -> Sequence[str | int]:
    if isinstance(value, tuple):
        return value
    return () if value is None or value == "" else (value,)


def _answer_value(
    planned: PlannedKey, values: Mapping[str, ColumnValue], header: RawHeader | None
) -> AnswerValue:
    if planned.column is not None:
        return values[planned.column]
    return header if planned.in_header else planned.constant


def _unpacked(packed: bytes | None) -> RawHeader | None:
    if packed is None:
        return None
    try:
        return RawHeader.unpack(packed)
    except ValueError as error:
        raise IndexFailure(f"a header in the index is damaged: {error}") from error
