"""The contract suite for the event log of an index that this process writes. See `index_contract`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from scp_server.errors import IndexFailure, IndexUnavailable
from scp_server.index.base import Index
from scp_server.index.events import (
    ASSOCIATION_ACCEPTED,
    ASSOCIATION_ENDED,
    CRASHED,
    OBJECT_STORED,
    STUDY_SETTLED,
    LogRequest,
)
from scp_server.testing.index_contract import (
    KEEP_FIRST,
    PARTS,
    REPLACE,
    IndexSuite,
    MakeIndex,
    MakeUnavailable,
    index_entry,
)


class EventLogContract(IndexSuite):
    """What every index must do with events."""

    async def test_what_is_recorded_is_logged_and_what_was_known_is_not(self, index: Index) -> None:
        first = replace(index_entry(content=b"first"), association_id="a-1", peer_host="192.0.2.7")
        await index.add(first, PARTS)
        await index.add(index_entry(content=b"first"), PARTS)
        await index.add(index_entry(content=b"other"), KEEP_FIRST)
        part, newcomer = index_entry(content=b"second"), index_entry(content=b"new")
        await index.add(part, PARTS)
        await index.add(newcomer, REPLACE)
        log = index.event_log
        rows = await log.rows(0, 100)
        assert [row.location for row in rows] == [first.location, part.location, newcomer.location]
        assert [row.event_id for row in rows] == [1, 2, 3]
        assert log.newest_id == 3
        assert {row.kind for row in rows} == {OBJECT_STORED}
        data = json.loads(rows[0].data)
        assert rows[0].association_id == "a-1"
        assert data["stored_at_ns"] == rows[0].at_ns
        assert data["digest"] == first.digest.hex()
        assert (data["sop_instance_uid"], data["peer_host"]) == (first.summary.sop_instance_uid, "192.0.2.7")
        assert [json.loads(row.data)["part_number"] for row in rows] == [1, 2, 1]

    async def test_an_association_begins_before_its_objects_and_ends_behind_them(self, index: Index) -> None:
        log = index.event_log
        log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 5, '{"x":1}'))
        log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-2", 6, "{}"))
        entries = [replace(index_entry(str(n)), association_id="a-1") for n in range(20)]
        await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
        log.note(LogRequest(ASSOCIATION_ENDED, "a-1", 7, '{"x":2}'))
        await log.perform(lambda connection: None)
        rows = await log.rows(0, 100)
        assert [row.event_id for row in rows] == list(range(1, 24))
        kinds = [row.kind for row in rows]
        assert kinds == [ASSOCIATION_ACCEPTED] * 2 + [OBJECT_STORED] * 20 + [ASSOCIATION_ENDED]
        assert json.loads(rows[-1].data) == {"x": 2, "parts": 20}
        assert rows[-1].at_ns == 7

    @pytest.mark.parametrize("together", [True, False])
    async def test_an_association_that_has_ended_is_not_open(self, index: Index, together: bool) -> None:
        log = index.event_log
        log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 5, '{"x":1}'))
        log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-2", 6, '{"x":2}'))
        if not together:
            await log.perform(lambda connection: None, at_once=True)
        log.note(LogRequest(ASSOCIATION_ENDED, "a-1", 7, '{"x":1}'))
        await log.perform(lambda connection: None, at_once=True)
        assert await log.end_open_associations() == 1
        rows = await log.rows(0, 100)
        assert [(row.kind, row.association_id) for row in rows[2:]] == [
            (ASSOCIATION_ENDED, "a-1"),
            (ASSOCIATION_ENDED, "a-2"),
        ]
        assert json.loads(rows[2].data) == {"x": 1, "parts": 0}
        assert json.loads(rows[3].data) == {"x": 2, "outcome": CRASHED, "parts": 0}

    async def test_the_log_goes_on_when_the_index_is_opened_again(
        self, index: Index, make_index: MakeIndex
    ) -> None:
        index.event_log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 5, '{"x":1}'))
        await index.add(replace(index_entry("1"), association_id="a-1"), KEEP_FIRST)
        await index.close()
        again = make_index()
        await again.open()
        assert again.event_log.archive_id == index.event_log.archive_id
        assert again.event_log.newest_id == 2
        assert await again.event_log.end_open_associations() == 1
        assert await again.event_log.end_open_associations() == 0
        await again.add(index_entry("2"), KEEP_FIRST)
        *_, crashed, stored = await again.event_log.rows(0, 100)
        assert (crashed.kind, crashed.association_id) == (ASSOCIATION_ENDED, "a-1")
        assert json.loads(crashed.data) == {"x": 1, "outcome": CRASHED, "parts": 1}
        assert (stored.kind, stored.event_id) == (OBJECT_STORED, 4)
        await again.close()

    async def test_a_log_that_is_not_kept_has_nothing(self, index: Index) -> None:
        log = index.event_log
        log.keep(False)
        log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 5, "{}"))
        await index.add(index_entry("1"), KEEP_FIRST)
        assert (log.newest_id, list(await log.rows(0, 100))) == (0, [])
        log.keep(True)
        await index.add(index_entry("2"), KEEP_FIRST)
        assert log.newest_id == 1

    async def test_what_an_index_that_fails_was_told_of_associations_is_logged_later_in_its_order(
        self, index: Index, make_unavailable: MakeUnavailable
    ) -> None:
        log = index.event_log
        with make_unavailable():
            log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 5, "{}"))
            with pytest.raises(IndexUnavailable):
                await index.add(index_entry("1"), KEEP_FIRST)
            with pytest.raises(IndexUnavailable):
                await log.perform(lambda connection: None, at_once=True)
        await index.add(replace(index_entry("1"), association_id="a-1"), KEEP_FIRST)
        log.note(LogRequest(ASSOCIATION_ENDED, "a-1", 7, '{"x":2}'))
        await log.perform(lambda connection: None)
        rows = await log.rows(0, 100)
        assert [row.kind for row in rows] == [ASSOCIATION_ACCEPTED, OBJECT_STORED, ASSOCIATION_ENDED]
        assert json.loads(rows[-1].data)["parts"] == 1

    async def test_what_is_still_in_memory_is_what_the_log_has(
        self, index: Index, make_unavailable: MakeUnavailable
    ) -> None:
        log = index.event_log
        for name in ("1", "2"):
            await index.add(index_entry(name), KEEP_FIRST)
        log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 5, "{}"))
        await index.add(index_entry("3"), KEEP_FIRST)
        for after in range(5):
            assert log.recent(after, 2) == await log.rows(after, 2)
        with make_unavailable(), pytest.raises(IndexUnavailable):
            await index.add(index_entry("4"), KEEP_FIRST)
        await index.add(index_entry("5"), KEEP_FIRST)
        assert log.recent(0, 100) is None  # Nobody knows what is between.
        assert log.recent(4, 100) == await log.rows(4, 100)
        assert len(await log.rows(4, 100)) == 1

    async def test_news_are_told_until_nobody_wants_them(self, index: Index) -> None:
        news = asyncio.Event()
        end = index.event_log.on_news(news.set)
        await index.add(index_entry("1"), KEEP_FIRST)
        assert news.is_set()
        news.clear()
        await index.add(index_entry("1"), KEEP_FIRST)
        assert not news.is_set()
        end()
        await index.add(index_entry("2"), KEEP_FIRST)
        assert not news.is_set()

    async def test_a_study_is_settled_once_and_not_while_objects_come(self, index: Index) -> None:
        log = index.event_log
        await index.add(index_entry("1", study="1"), KEEP_FIRST)
        before = log.oldest_unsettled_ns
        await index.add(index_entry("2", study="2"), KEEP_FIRST)
        await index.add(index_entry("3", study="1"), KEEP_FIRST)
        await log.settle_studies(before)
        assert log.newest_id == 3
        await log.settle_studies(log.oldest_unsettled_ns)
        *_, settled = await log.rows(0, 100)
        assert (settled.kind, json.loads(settled.data)) == (
            STUDY_SETTLED,
            {"study_instance_uid": "1.2.840.99.1.2"},
        )
        await log.settle_studies(2**62)
        await log.settle_studies(2**62)
        assert log.newest_id == 5
        assert log.oldest_unsettled_ns == 0

    async def test_work_that_fails_does_so_alone(self, index: Index) -> None:
        def fail(connection: object) -> None:
            raise ValueError("a bug")

        results = await asyncio.gather(
            index.add(index_entry("1"), KEEP_FIRST),
            index.event_log.perform(fail, at_once=True),
            index.event_log.perform(lambda connection: 7, at_once=True),
            index.add(index_entry("2"), KEEP_FIRST),
            return_exceptions=True,
        )
        assert isinstance(results[1], IndexFailure)
        assert results[2] == 7
        assert [row.event_id for row in await index.event_log.rows(0, 9)] == [1, 2]
