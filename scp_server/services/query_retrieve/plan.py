"""From an identifier to a search: which keys the index narrows down by, and which are looked at later.

Every key has one `Source`; the checks of PS3.4 C.4.1.2.1 and C.4.1.3.1.1 (level, unique keys) are made here.
`judge` then decides about each entity that the index finds, and makes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scp_server.index.search import Condition, EntityLevel, Search
from scp_server.objects.dictionary import vr_of
from scp_server.objects.identifier import Identifier, IdentifierLimits, Key, read_identifier
from scp_server.objects.matching_hints import AnyOf, Contains
from scp_server.objects.response_dataset import ResponseDataset
from scp_server.services.query_retrieve.asking import check_higher_levels, level_asked
from scp_server.services.query_retrieve.attributes import (
    BELOW,
    COLUMNS,
    COUNTS,
    DECISIONS,
    FIRST_PIXEL_TAG,
    INSTANCE_AVAILABILITY,
    RETRIEVE_AE_TITLE,
    UNIQUE_KEY_LEVELS,
    Column,
)
from scp_server.services.query_retrieve.judge import EntityJudge, PlannedKey
from scp_server.services.query_retrieve.models import (
    QUERY_RETRIEVE_LEVEL,
    UNIQUE_KEYS,
    InformationModel,
)
from scp_server.services.query_retrieve.negotiation import QueryOptions

_FOLDED = {"patient_name": "patient_name_folded"}
"""Columns of names, and those that have them folded."""
_ISSUER_OF_PATIENT_ID = 0x00100021
_ONLINE = "ONLINE"
_THREAT_SEQUENCE = 0x40101011
_ASSESSMENT_SEQUENCE = 0x40101038
_ASSESSMENTS = {0x40101012: "threat_categories", 0x40101015: "assessment_flags"}
"""Keys in a threat's assessments, and the columns that have all their values of an object."""


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """What holds for every query."""

    retrieve_ae_title: str
    limits: IdentifierLimits = field(default_factory=IdentifierLimits)
    header_match_rows: int = 5_000
    unknown_values_match: bool = False


@dataclass(frozen=True, slots=True)
class FindPlan:
    """A search, and who decides about what it finds."""

    search: Search
    judge: EntityJudge


def plan_find(
    data: bytes,
    transfer_syntax_uid: str,
    model: InformationModel,
    options: QueryOptions,
    config: PlanConfig,
    *,
    is_dicos: bool,
) -> FindPlan:
    """Read an identifier and plan its query. Raises OperationRefused: 0xA900 for a level or a unique key that
    the model does not allow, 0xC000 for what cannot be read (PS3.4 Table C.4-1)."""
    identifier = read_identifier(
        data, transfer_syntax_uid, is_dicos=is_dicos, options=options.matching, limits=config.limits
    )
    level = level_asked(identifier, model)
    if not options.relational:
        check_higher_levels(identifier, model, level)
    return _Planner(identifier, model, level, options, config).plan(transfer_syntax_uid, is_dicos)


def _hinted_column(key: Key, column: str) -> str | None:
    """The column that a key's hint is about: names are folded, and not every name has such a column."""
    return _FOLDED.get(column) if key.vr == "PN" else column


class _Planner:
    """Sorts the keys of one identifier."""

    def __init__(
        self,
        identifier: Identifier,
        model: InformationModel,
        level: EntityLevel,
        options: QueryOptions,
        config: PlanConfig,
    ) -> None:
        self._identifier = identifier
        self._model = model
        self._level = level
        self._options = options
        self._config = config
        self._conditions: list[Condition] = []
        self._planned: dict[int, PlannedKey] = {}
        self._below: set[str] = set()
        self._counts: set[str] = set()
        self._all_supported = True

    def plan(self, transfer_syntax_uid: str, is_dicos: bool) -> FindPlan:
        """Plan every key, and what is answered beside them (PS3.4 C.4.1.3.1.1)."""
        for key in self._identifier.keys:
            self._sort(key)
        self._add_unasked(is_dicos)
        planned = [self._planned[tag] for tag in sorted(self._planned)]
        search = Search(
            level=self._level,
            conditions=tuple(self._conditions),
            below=frozenset(self._below),
            counts=frozenset(self._counts),
            with_header=any(key.in_header for key in planned),
        )
        judge = EntityJudge(
            planned,
            ResponseDataset(
                [each.key for each in planned], transfer_syntax_uid, self._identifier.character_set
            ),
            all_supported=self._all_supported,
            combined_date_time=self._options.combined_date_time,
            header_match_rows=self._config.header_match_rows,
            unknown_values_match=self._config.unknown_values_match,
        )
        return FindPlan(search, judge)

    def _add_unasked(self, is_dicos: bool) -> None:
        constants = {
            QUERY_RETRIEVE_LEVEL: self._identifier.level,
            RETRIEVE_AE_TITLE: self._config.retrieve_ae_title,
        }
        for tag, constant in constants.items():
            self._planned[tag] = PlannedKey(Key(tag, vr_of(tag, is_dicos)), constant=constant)
        for level in (*self._model.higher_levels(self._level), self._level):
            tag = UNIQUE_KEYS[level]
            if tag not in self._planned:
                self._planned[tag] = PlannedKey(Key(tag, vr_of(tag, is_dicos)), COLUMNS[tag].name)

    def _sort(self, key: Key) -> None:
        tag = key.tag
        if tag == RETRIEVE_AE_TITLE:
            return
        if tag == INSTANCE_AVAILABILITY:
            self._planned[tag] = PlannedKey(key, constant=_ONLINE)
        elif key.is_private_creator:
            self._planned[tag] = PlannedKey(key, constant=key.private_creator or "")
        elif tag >= FIRST_PIXEL_TAG:
            self._all_supported = False
        elif tag in COUNTS:
            self._count(key, COUNTS[tag])
        elif tag in BELOW and key.items is None:
            self._value_below(key, BELOW[tag])
        elif tag in DECISIONS and self._level <= EntityLevel.STUDY and key.items is None:
            self._column(key, DECISIONS[tag])
        elif tag in COLUMNS and key.items is None:
            self._column(key, COLUMNS[tag])
        else:
            self._header_key(key)

    def _count(self, key: Key, column: Column) -> None:
        """Counts are returned, never matched; those of a lower level do not exist here."""
        if column.level > self._level:
            self._all_supported = False
            return
        self._counts.add(column.name)
        self._column_key(key, column.name, matched=False)

    def _value_below(self, key: Key, column: Column) -> None:
        """Values of everything below; a series has no modalities but its own (PS3.4 C.3.4)."""
        if self._level >= column.level and column.name != "referenced_sop_instance_uid":
            self._all_supported = False
            return
        self._below.add(column.name)
        self._column_key(key, column.name, matched=True)

    def _column(self, key: Key, column: Column) -> None:
        if column.level > self._level:
            if key.tag in UNIQUE_KEY_LEVELS:
                self._all_supported = False
                return
            self._below.add(column.name)
        self._column_key(key, column.name, matched=self._is_matched(key, column.level))

    def _column_key(self, key: Key, name: str, *, matched: bool) -> None:
        matcher = key.matcher
        self._planned[key.tag] = PlannedKey(key, name, matched=matched and matcher is not None)
        if matcher is None:
            return
        if not matched:
            self._all_supported = False
        elif matcher.hint is not None and (hinted := _hinted_column(key, name)):
            self._conditions.append(Condition(hinted, matcher.hint, self._config.unknown_values_match))

    def _is_matched(self, key: Key, level: EntityLevel) -> bool:
        """Whether this query matches a key of a level: at baseline no other one of higher levels than the
        unique keys (PS3.4 C.4.1.2.1), and the issuer, without which a Patient ID is not unique."""
        if self._options.relational or not self._model.belongs_to_higher_level(level, self._level):
            return True
        return key.tag == UNIQUE_KEYS[max(level, self._model.levels[0])] or (
            key.tag == _ISSUER_OF_PATIENT_ID and EntityLevel.PATIENT in self._model.levels
        )

    def _header_key(self, key: Key) -> None:
        self._planned[key.tag] = PlannedKey(key, matched=not key.is_universal)
        if key.tag == _THREAT_SEQUENCE and self._level is EntityLevel.INSTANCE:
            self._narrow_down_threats(key.items or ())

    def _narrow_down_threats(self, keys: Sequence[Key]) -> None:
        assessments = next((key.items or () for key in keys if key.tag == _ASSESSMENT_SEQUENCE), ())
        for key in assessments:
            hint = key.matcher.hint if key.matcher is not None else None
            if key.tag in _ASSESSMENTS and isinstance(hint, AnyOf) and len(hint.values) == 1:
                self._conditions.append(
                    Condition(
                        _ASSESSMENTS[key.tag],
                        Contains(f"\\{hint.values[0]}\\"),
                        self._config.unknown_values_match,
                    )
                )
