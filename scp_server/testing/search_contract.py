"""The contract suite for searches of an index: the second half of `index_contract`.

Subclass `SearchContract` in the same way, with `make_index` for an index over an empty place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from scp_server.errors import IndexUnavailable, SearchInterrupted
from scp_server.index.base import Index
from scp_server.index.search import (
    MAX_DISTINCT_VALUES,
    Condition,
    Entity,
    EntityLevel,
    Judge,
    Search,
)
from scp_server.objects.matching_hints import AnyOf, Between, Contains, Hint, StartsWith
from scp_server.testing.index_contract import KEEP_FIRST, PARTS, REPLACE, MakeIndex, index_entry

PATIENT, STUDY, SERIES, INSTANCE = EntityLevel
_ROOT = "1.2.840.99"
T = TypeVar("T")


async def found(index: Index, search: Search, judge: Judge[T]) -> list[T]:
    """Everything that a search gives, of all pages."""
    return [each for page in [page async for page in index.search(search, judge)] for each in page]


async def values_of(index: Index, name: str, search: Search) -> list[Any]:
    """What the entities found have under `name`, sorted, None first."""
    listed = await found(index, search, lambda entity: (entity.values[name],))
    return sorted((value for (value,) in listed), key=lambda value: (value is not None, value))


def where(level: EntityLevel, column: str, hint: Hint, or_missing: bool = False, **other: Any) -> Search:
    """A search with one condition."""
    return Search(level, (Condition(column, hint, or_missing),), **other)


async def _add_archive(index: Index) -> None:
    """Patient A has studies 1 (series 1 of CT 1 and 2, series 2 with report 3 in two parts) and 2 (MR 4);
    a patient without an ID has study 3 (CT 5, that says nothing more)."""
    a: dict[str, Any] = {"patient_id": "A", "issuer_of_patient_id": "H", "patient_name": "Doe^Jane"}
    study_1 = {**a, "study_date": "20240101", "accession_number": "A1", "modality": "CT", "series_number": 1}
    report = {**study_1, "modality": "TDR", "series_number": 2, "alarm_decision": "ALARM"}
    report |= {"threat_categories": "\\EXPLOSIVE\\OTHER\\", "number_of_alarm_objects": 2}
    for entry in (
        index_entry("1", instance_number=1, header=b"first", **study_1),
        index_entry("2", instance_number=2, header=b"second", **study_1),
        index_entry("3", b"a", series="2", referenced_sop_instance_uids=("9.1", "9.2"), **report),
        index_entry("3", b"b", series="2", header=b"its other part", **report),
        index_entry("4", study="2", series="3", study_date="20240202", modality="MR", **a),
        index_entry("5", study="3", series="4", modality="CT", patient_id=None),
    ):
        await index.add(entry, PARTS)


class SearchContract:
    """What every index must do with searches. Subclasses override `make_index`."""

    @pytest.fixture
    def make_index(self) -> MakeIndex:
        raise NotImplementedError("override make_index")

    @pytest_asyncio.fixture
    async def index(self, make_index: MakeIndex) -> AsyncIterator[Index]:
        index = make_index()
        await index.open()
        yield index
        await index.close()

    @pytest_asyncio.fixture
    async def archive(self, index: Index) -> Index:
        await _add_archive(index)
        return index

    # What is found

    @pytest.mark.parametrize(
        ("level", "column", "expected"),
        [
            (PATIENT, "patient_id", [None, "A"]),
            (STUDY, "study_instance_uid", [f"{_ROOT}.1.{n}" for n in (1, 2, 3)]),
            (SERIES, "series_instance_uid", [f"{_ROOT}.2.{n}" for n in (1, 2, 3, 4)]),
            (INSTANCE, "sop_instance_uid", [f"{_ROOT}.3.{n}" for n in (1, 2, 3, 4, 5)]),
            (INSTANCE, "patient_id", [None, "A", "A", "A", "A"]),
        ],
    )
    async def test_without_conditions_every_entity_of_the_level_is_found_once(
        self, archive: Index, level: EntityLevel, column: str, expected: list[object]
    ) -> None:
        assert await values_of(archive, column, Search(level)) == expected

    async def test_an_entity_has_the_columns_of_its_level_and_above(self, archive: Index) -> None:
        search = where(SERIES, "series_instance_uid", AnyOf((f"{_ROOT}.2.2",)))
        (entity,) = await found(archive, search, lambda entity: entity)
        expected: dict[str, object] = {
            "patient_name": "Doe^Jane",
            "issuer_of_patient_id": "H",
            "study_date": "20240101",
        }
        expected |= {"modality": "TDR", "series_number": 2, "station_name": None}
        assert {name: entity.values[name] for name in expected} == expected
        assert "sop_instance_uid" not in entity.values
        assert entity.header is None

    @pytest.mark.parametrize(
        ("hint", "expected"),
        [
            (AnyOf(("b",)), ["b"]),
            (AnyOf(("b", "b", "B", "none")), ["B", "b"]),
            (AnyOf(()), []),
            (StartsWith("a"), ["a", "a%", "ab", "a\U0010ffffz"]),
            (StartsWith("a%"), ["a%"]),
            (StartsWith("a\U0010ffff"), ["a\U0010ffffz"]),
            (StartsWith("\ud7ff"), ["\ud7ffx"]),
            (StartsWith("\U0010ffff"), ["\U0010ffff\U0010ffff"]),
            (Contains("b"), ["ab", "b"]),
            (Contains("%"), ["a%"]),
            (Contains("ä"), ["xäx"]),
            (Between("ab", "b"), ["ab", "a\U0010ffffz", "b"]),
            (Between("b", None), ["b", "xäx", "\ud7ffx", "\ue000", "\U0010ffff\U0010ffff"]),
            (Between(None, "a"), ["B", "a"]),
            (Between(None, None), "all"),
        ],
        ids=repr,
    )
    async def test_text_is_compared_by_code_points(self, index: Index, hint: Hint, expected: Any) -> None:
        texts = ["B", "a", "a%", "ab", "a\U0010ffffz", "b", "xäx", "\ud7ffx", "\ue000"]
        texts.append("\U0010ffff\U0010ffff")
        for number, text in enumerate([*texts, None]):
            entry = index_entry(str(number), study=str(number), accession_number=text, station_name=text)
            await index.add(entry, KEEP_FIRST)
        wanted = texts if expected == "all" else expected
        assert await values_of(index, "accession_number", where(STUDY, "accession_number", hint)) == wanted
        below = where(STUDY, "station_name", hint)
        assert await values_of(index, "accession_number", below) == wanted
        missing = where(STUDY, "accession_number", hint, or_missing=True)
        assert await values_of(index, "accession_number", missing) == [None, *wanted]
        missing = where(STUDY, "station_name", hint, or_missing=True)
        assert await values_of(index, "accession_number", missing) == [None, *wanted]

    async def test_numbers_are_found(self, archive: Index) -> None:
        wanted = where(INSTANCE, "instance_number", AnyOf((2, 7)))
        assert await values_of(archive, "instance_number", wanted) == [2]
        too_large = where(INSTANCE, "instance_number", AnyOf((2, 10**30)))
        assert await values_of(archive, "instance_number", too_large) == [2]
        only = where(INSTANCE, "instance_number", AnyOf((10**30,)))
        assert await values_of(archive, "instance_number", only) == []

    @pytest.mark.parametrize(
        ("level", "column", "hint", "expected"),
        [
            (SERIES, "patient_id", AnyOf(("A",)), 3),
            (INSTANCE, "study_date", Between("20240201", "20240301"), 1),
            (INSTANCE, "patient_name_folded", Contains("=doe"), 4),
            (PATIENT, "study_date", Between("20240201", None), 1),
            (PATIENT, "modality", AnyOf(("MR", "US")), 1),
            (PATIENT, "accession_number", AnyOf(("A1",)), 1),
            (STUDY, "modality", AnyOf(("CT",)), 2),
            (STUDY, "instance_number", AnyOf((1,)), 1),
            (STUDY, "series_instance_uid", AnyOf((f"{_ROOT}.2.3",)), 1),
            (STUDY, "sop_instance_uid", AnyOf((f"{_ROOT}.3.3", f"{_ROOT}.3.5")), 2),
            (SERIES, "alarm_decision", AnyOf(("ALARM",)), 1),
            (PATIENT, "alarm_decision", AnyOf(("ALARM", "CLEAR")), 1),
            (STUDY, "number_of_alarm_objects", AnyOf((2,)), 1),
            (INSTANCE, "threat_categories", Contains("\\OTHER\\"), 1),
            (STUDY, "threat_categories", Contains("\\EXPLO"), 1),
            (STUDY, "threat_categories", Contains("\\XPLO"), 0),
            (INSTANCE, "referenced_sop_instance_uid", AnyOf(("9.2",)), 1),
            (STUDY, "referenced_sop_instance_uid", AnyOf(("9.1", "9.2")), 1),
            (PATIENT, "referenced_sop_instance_uid", AnyOf(("9.3",)), 0),
        ],
    )
    async def test_a_condition_may_be_on_a_column_of_any_level(
        self, archive: Index, level: EntityLevel, column: str, hint: Hint, expected: int
    ) -> None:
        assert len(await found(archive, where(level, column, hint), lambda entity: entity)) == expected

    @pytest.mark.parametrize(
        ("level", "column", "hint", "expected"),
        [
            (PATIENT, "patient_id", AnyOf(("nobody",)), [None]),
            (PATIENT, "study_date", AnyOf(("20240202",)), [None, "A"]),
            (STUDY, "study_date", AnyOf(("20240202",)), [None, "A"]),
            (STUDY, "alarm_decision", AnyOf(("ALARM",)), [None, "A", "A"]),
            (STUDY, "alarm_decision", AnyOf(("CLEAR",)), [None, "A"]),
            (PATIENT, "referenced_sop_instance_uid", AnyOf(("9.3",)), [None]),
            (STUDY, "modality", AnyOf(("XA",)), []),
        ],
    )
    async def test_what_has_no_value_at_all_can_be_found_too(
        self, archive: Index, level: EntityLevel, column: str, hint: Hint, expected: list[object]
    ) -> None:
        assert await values_of(archive, "patient_id", where(level, column, hint, True)) == expected

    async def test_every_condition_must_hold_but_each_for_any_entity_below(self, archive: Index) -> None:
        both = Search(STUDY, (Condition("modality", AnyOf(("CT",))), Condition("modality", AnyOf(("TDR",)))))
        assert await values_of(archive, "accession_number", both) == ["A1"]
        none = Search(STUDY, (*both.conditions, Condition("study_date", AnyOf(("20240202",)))))
        assert await values_of(archive, "accession_number", none) == []

    @pytest.mark.parametrize(
        "search",
        [
            where(STUDY, "no_such_column", AnyOf(("x",))),
            where(STUDY, "study_key", AnyOf((1,))),
            Search(STUDY, below=frozenset({"study_date"})),
            Search(STUDY, counts=frozenset({"number_of_series_related_instances"})),
        ],
        ids=["unknown", "key", "below", "counts"],
    )
    async def test_what_a_level_cannot_have_is_a_mistake(self, index: Index, search: Search) -> None:
        with pytest.raises(ValueError, match=r"no_such|study_key|study_date|number_of"):
            await found(index, search, lambda entity: entity)

    async def test_any_number_of_uids_can_be_asked_for(self, archive: Index) -> None:
        uids = tuple(f"{_ROOT}.3.{number}" for number in range(3, 100_003))
        assert (
            len(
                await values_of(archive, "sop_instance_uid", where(INSTANCE, "sop_instance_uid", AnyOf(uids)))
            )
            == 3
        )
        assert await values_of(archive, "study_date", where(STUDY, "sop_instance_uid", AnyOf(uids))) == [
            None,
            "20240101",
            "20240202",
        ]

    # What is known of it

    async def test_distinct_values_below_come_in_order(self, archive: Index) -> None:
        names = frozenset({"modality", "alarm_decision", "instance_number", "referenced_sop_instance_uid"})
        search = Search(STUDY, below=names)
        listed = await found(archive, search, lambda entity: {name: entity.values[name] for name in names})
        empty = {"alarm_decision": (), "instance_number": (), "referenced_sop_instance_uid": ()}
        expected = {"modality": ("CT", "TDR"), "alarm_decision": ("ALARM",), "instance_number": (1, 2)}
        assert listed == [
            {**expected, "referenced_sop_instance_uid": ("9.1", "9.2")},
            {**empty, "modality": ("MR",)},
            {**empty, "modality": ("CT",)},
        ]

    async def test_distinct_values_are_bounded(self, index: Index) -> None:
        for number in range(MAX_DISTINCT_VALUES + 5):
            await index.add(index_entry(str(number), instance_number=number), KEEP_FIRST)
        search = Search(PATIENT, below=frozenset({"instance_number"}))
        ((values,),) = await found(index, search, lambda entity: (entity.values["instance_number"],))
        assert values == tuple(range(MAX_DISTINCT_VALUES))

    async def test_counts_are_of_instances_and_not_of_parts(self, archive: Index) -> None:
        names = [
            *("number_of_patient_related_studies", "number_of_patient_related_series"),
            *("number_of_patient_related_instances", "number_of_study_related_series"),
            *("number_of_study_related_instances", "number_of_series_related_instances"),
        ]
        series = await found(
            archive, Search(SERIES, counts=frozenset(names)), lambda entity: [entity.values[n] for n in names]
        )
        assert series == [[2, 3, 4, 2, 3, 2], [2, 3, 4, 2, 3, 1], [2, 3, 4, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
        patients = await found(
            archive, Search(PATIENT, counts=frozenset(names[:3])), lambda e: [e.values[n] for n in names[:3]]
        )
        assert patients == [[2, 3, 4], [1, 1, 1]]

    @pytest.mark.parametrize("level", list(EntityLevel))
    async def test_the_header_is_that_of_the_first_part_of_the_first_instance_kept(
        self, archive: Index, level: EntityLevel
    ) -> None:
        headers = await found(archive, Search(level, with_header=True), lambda entity: entity.header)
        expected = {PATIENT: 2, STUDY: 3, SERIES: 4, INSTANCE: 5}
        assert len(headers) == expected[level]
        assert headers[0] == b"first"
        assert b"its other part" not in headers
        (first,) = await archive.parts(f"{_ROOT}.3.1")
        await archive.remove([first.location])
        headers = await found(archive, Search(level, with_header=True), lambda entity: entity.header)
        assert headers[0] == b"second"

    # The judge, and how a search ends

    async def test_only_what_the_judge_gives_comes(self, archive: Index) -> None:
        def judge(entity: Entity) -> str | None:
            return "yes" if entity.values["study_date"] else None

        assert await found(archive, Search(STUDY), judge) == ["yes", "yes"]

    async def test_what_the_judge_raises_is_raised_and_ends_the_search(self, archive: Index) -> None:
        def judge(entity: Entity) -> object:
            raise OSError("not the database's")

        search = archive.search(Search(STUDY), judge)
        with pytest.raises(OSError, match="not the database's"):
            await anext(search)
        with pytest.raises(StopAsyncIteration):
            await anext(search)
        assert (await archive.totals()).studies == 3

    async def test_pages_are_many_and_the_first_is_small(self, index: Index) -> None:
        await _add_many(index, 700)
        sizes = [len(page) async for page in index.search(Search(INSTANCE), lambda entity: entity)]
        assert sum(sizes) == 700
        assert sizes[0] < 100
        assert len(sizes) > 3

    async def test_nothing_comes_twice_while_others_come_and_go(self, index: Index) -> None:
        await _add_many(index, 700)
        stay = {f"{_ROOT}.3.{number}" for number in range(700) if number % 3}
        seen: list[str] = []
        number = 0
        search = index.search(Search(INSTANCE, with_header=True), lambda e: str(e.values["sop_instance_uid"]))
        async for page in search:
            seen += page
            for each in range(number, number + 30, 3):
                await index.add(index_entry(str(each % 700), b"replaced", study="new"), REPLACE)
                parts = await index.parts(f"{_ROOT}.3.{(each + 300) % 700}")
                await index.remove([part.location for part in parts if each % 2])
                await index.add(index_entry(f"1{each}", study="new"), KEEP_FIRST)
            number += 30
        assert len(seen) == len(set(seen))
        assert set(seen) >= {uid for uid in stay if await index.parts(uid)}

    @pytest.mark.parametrize("pages", [0, 1, 2])
    async def test_an_interrupted_search_ends(self, index: Index, pages: int) -> None:
        await _add_many(index, 300)
        search = index.search(Search(INSTANCE), lambda entity: entity)
        for _ in range(pages):
            assert await anext(search)
        search.interrupt()
        search.interrupt()
        for _ in range(2):
            with pytest.raises(SearchInterrupted):
                await anext(search)

    async def test_an_interruption_is_heard_between_two_judgements(self, index: Index) -> None:
        await _add_many(index, 30)
        judged: list[Entity] = []

        def judge(entity: Entity) -> Entity:
            judged.append(entity)
            search.interrupt()
            return entity

        search = index.search(Search(INSTANCE), judge)
        with pytest.raises(SearchInterrupted):
            await anext(search)
        assert len(judged) == 1
        assert len(await found(index, Search(INSTANCE), lambda entity: entity)) == 30

    async def test_other_searches_do_not_notice_an_interruption(self, index: Index) -> None:
        await _add_many(index, 200)

        async def interrupted() -> None:
            search = index.search(Search(INSTANCE), lambda entity: entity)
            page = asyncio.ensure_future(anext(search))
            await asyncio.sleep(0)
            search.interrupt()
            await asyncio.gather(page, return_exceptions=True)

        whole = [found(index, Search(INSTANCE), lambda entity: entity) for _ in range(20)]
        results = await asyncio.gather(*whole, *(interrupted() for _ in range(40)))
        assert [len(result) for result in results[:20] if result is not None] == [200] * 20

    async def test_a_search_may_be_dropped(self, make_index: MakeIndex) -> None:
        index = make_index()
        await index.open()
        await _add_many(index, 200)
        for _ in range(20):
            async for _page in index.search(Search(INSTANCE), lambda entity: entity):
                break
        search = index.search(Search(INSTANCE), lambda entity: entity)
        await anext(search)
        await index.close()
        with pytest.raises(IndexUnavailable):
            await anext(search)

    async def test_an_index_that_is_not_open_is_unavailable(self, make_index: MakeIndex) -> None:
        with pytest.raises(IndexUnavailable):
            await anext(make_index().search(Search(STUDY), lambda entity: entity))

    async def test_what_was_added_before_is_found_with_eight_who_add_at_once(self, index: Index) -> None:
        async def adder(number: int) -> None:
            for each in range(number, 160, 8):
                entry = index_entry(str(each), study=str(each // 4), series=str(each // 2), modality="CT")
                await index.add(entry, KEEP_FIRST)
                uid = entry.summary.sop_instance_uid
                own = where(INSTANCE, "sop_instance_uid", AnyOf((uid,)))
                assert await values_of(index, "sop_instance_uid", own) == [uid]
                above = Condition("study_instance_uid", AnyOf((entry.summary.study_instance_uid,)))
                study = Search(STUDY, (above, Condition("modality", AnyOf(("CT",)))))
                assert len(await values_of(index, "study_instance_uid", study)) == 1

        await asyncio.gather(*(adder(number) for number in range(8)))


async def _add_many(index: Index, count: int) -> None:
    await asyncio.gather(
        *(
            index.add(index_entry(str(n), study=str(n % 7), series=str(n % 7)), KEEP_FIRST)
            for n in range(count)
        )
    )
