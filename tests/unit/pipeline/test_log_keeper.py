"""What is dropped of the event log and when, and when a study has settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from scp_server.index import awaiting
from scp_server.index import outbox as rows
from scp_server.index.base import DuplicatePolicy
from scp_server.index.events import (
    ASSOCIATION_ACCEPTED,
    ASSOCIATION_ENDED,
    STUDY_SETTLED,
    TDR_MISSING,
    TDR_ORPHAN,
    LogRequest,
)
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.pipeline import log_keeper
from scp_server.pipeline.log_keeper import LogKeeper, LogKeeperConfig
from scp_server.pipeline.log_reader import LogReader
from scp_server.pipeline.verdicts import NotDelivered, Undeliverable
from scp_server.testing.clock import ManualClock
from scp_server.testing.decision_contract import ct, tdr
from scp_server.testing.index_contract import index_entry
from tests.unit.pipeline.outbox_scene import Scene, ScriptedSubscriber

CONFIG = LogKeeperConfig(keep_events=5, keep_seconds=100, study_settle_seconds=60)


class Archive:
    """An index by a clock that stands still, and who looks after its log."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.index = SqlIndex(IndexConfig(path, synchronous_full=False), clock_ns=self.clock.time_ns)
        self.log = self.index.event_log
        self.position: int | None = None
        """What subscriptions still need is behind it; None where they need nothing."""
        self.stored = 0
        self.keeper = LogKeeper(
            self.log,
            CONFIG,
            lambda: self.log.newest_id if self.position is None else self.position,
            self.clock.time_ns,
        )

    async def store(self, count: int = 1, *, study: str = "1", association_id: str = "") -> None:
        for _ in range(count):
            self.stored += 1
            entry = replace(index_entry(str(self.stored), study=study), association_id=association_id)
            await self.index.add(entry, DuplicatePolicy.KEEP_FIRST)

    async def ids(self) -> list[int]:
        return [row.event_id for row in await self.log.rows(0, 1_000)]

    async def kinds(self) -> list[str]:
        return [row.kind for row in await self.log.rows(0, 1_000)]

    async def settled(self) -> list[int]:
        return [row.event_id for row in await self.log.rows(0, 1_000) if row.kind == STUDY_SETTLED]


@pytest_asyncio.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    archive = Archive(tmp_path / "index.sqlite")
    await archive.index.open()
    yield archive
    await archive.index.close()


async def test_the_newest_events_are_kept(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_keeper, "PIECE", 3)
    await archive.store(12)
    await archive.keeper.trim()
    assert await archive.ids() == [8, 9, 10, 11, 12]
    page = await archive.log.page(0, 100)
    assert (page.trimmed_to, len(page.rows)) == (7, 5)
    await archive.store(2)
    await archive.keeper.trim()
    assert await archive.ids() == [10, 11, 12, 13, 14]


async def test_what_is_too_old_goes_even_if_there_are_few(archive: Archive) -> None:
    await archive.store(2)
    archive.clock.advance(99)
    await archive.store(1)
    await archive.keeper.trim()
    assert await archive.ids() == [1, 2, 3]
    archive.clock.advance(2)
    await archive.keeper.trim()
    assert await archive.ids() == [3]


async def test_ids_go_on_when_all_events_were_dropped(archive: Archive) -> None:
    await archive.store(3)
    archive.clock.advance(1_000)
    await archive.keeper.trim()
    assert await archive.ids() == []
    await archive.index.close()
    await archive.index.open()
    assert archive.log.newest_id == 3
    await archive.store(1)
    assert await archive.ids() == [4]
    page = await archive.log.page(0, 100)
    assert page.trimmed_to == 3


async def test_what_is_still_to_be_delivered_is_kept(archive: Archive) -> None:
    await archive.store(20)
    archive.position = 4
    await archive.keeper.trim()
    assert (await archive.ids())[0] == 5
    archive.position = None
    await archive.keeper.trim()
    assert (await archive.ids())[0] == 16


async def test_what_is_parked_or_dead_is_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "index.sqlite")
    one = ScriptedSubscriber()
    one.errors[2], one.errors[3] = [NotDelivered("no")], [Undeliverable("never")]
    await scene.start(one)
    await scene.store("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    await one.has(tried=10)
    await scene.at_rest()
    await scene.stop()
    await scene.start(one)
    keeper = LogKeeper(scene.log, CONFIG, lambda: scene.outbox.position)
    await keeper.trim()
    assert [row.event_id for row in await scene.log.rows(0, 100)] == [2, 3, 6, 7, 8, 9, 10]
    await scene.stop()


async def test_the_parts_of_an_association_are_kept_until_nobody_asks_for_them(archive: Archive) -> None:
    archive.log.note(LogRequest(ASSOCIATION_ACCEPTED, "a-1", 1, "{}"))
    await archive.store(3, association_id="a-1")
    await archive.store(10)
    await archive.keeper.trim()
    assert (await archive.ids())[:5] == [1, 2, 3, 4, 10]
    archive.log.note(LogRequest(ASSOCIATION_ENDED, "a-1", 2, '{"x":1}'))
    await archive.store(10)
    archive.position = 14
    await archive.keeper.trim()
    parts = [event.event_id async for event in LogReader(archive.log).stored_by("a-1")]
    assert parts == [2, 3, 4]
    archive.position = 15
    archive.keeper = LogKeeper(archive.log, CONFIG, lambda: 15, archive.clock.time_ns)
    await archive.keeper.trim()
    assert (await archive.ids())[0] == 16
    assert [event async for event in LogReader(archive.log).stored_by("a-1")] == []


async def test_a_subscription_that_comes_back_after_its_events_were_dropped_is_told(tmp_path: Path) -> None:
    from structlog.testing import capture_logs

    scene = Scene(tmp_path / "index.sqlite")
    await scene.start()
    await scene.stop()
    await scene.start(ScriptedSubscriber("other"))
    await scene.store(*"1" * 10)
    await scene.at_rest()
    await scene.stop()
    await scene.start(ScriptedSubscriber("other"))
    await LogKeeper(scene.log, CONFIG, lambda: scene.outbox.position).trim()
    with capture_logs() as logs:
        back = ScriptedSubscriber()
        await scene.outbox.subscribe(back)
    assert [entry["event"] for entry in logs] == ["outbox.events_missed"]
    await back.has(delivered=5)
    assert back.ids == [6, 7, 8, 9, 10]
    known = await scene.log.read(rows.all_subscriptions)
    assert {row.name for row in known} == {"one", "other"}
    await scene.stop()


# -- settled studies


async def test_a_study_settles_when_nothing_has_come_for_so_long(archive: Archive) -> None:
    await archive.store()
    archive.clock.advance(40)
    await archive.store()
    archive.clock.advance(59)
    await archive.keeper.look()
    assert await archive.settled() == []
    archive.clock.advance(1)
    await archive.keeper.look()
    await archive.keeper.look()
    assert len(await archive.settled()) == 1
    await archive.store()
    archive.clock.advance(60)
    await archive.keeper.look()
    assert len(await archive.settled()) == 2


async def test_a_study_that_was_not_settled_is_so_after_a_crash_once_its_time_has_passed_again(
    archive: Archive,
) -> None:
    await archive.store()
    archive.clock.advance(1_000)
    await archive.index.close()
    await archive.index.open()
    await archive.keeper.look()
    assert await archive.settled() == []
    archive.clock.advance(60)
    await archive.keeper.look()
    assert await archive.settled() != []
    await archive.index.close()
    await archive.index.open()
    assert archive.log.oldest_unsettled_ns == 0


# -- what waits


async def test_a_scan_without_a_report_is_missing_one_so_long_after_its_last_image(archive: Archive) -> None:
    await archive.index.add(ct("1"), DuplicatePolicy.PARTS)
    archive.clock.advance(100)
    await archive.index.add(ct("2"), DuplicatePolicy.PARTS)
    archive.clock.advance(119)
    await archive.keeper.look()
    assert TDR_MISSING not in await archive.kinds()
    archive.clock.advance(1)
    await archive.keeper.look()
    await archive.keeper.look()
    assert (await archive.kinds()).count(TDR_MISSING) == 1


async def test_a_report_on_nothing_is_an_orphan_so_long_after_it_came(archive: Archive) -> None:
    await archive.index.add(tdr("9"), DuplicatePolicy.PARTS)
    archive.clock.advance(299)
    await archive.keeper.look()
    assert TDR_ORPHAN not in await archive.kinds()
    archive.clock.advance(1)
    await archive.keeper.look()
    await archive.keeper.look()
    assert (await archive.kinds()).count(TDR_ORPHAN) == 1


async def test_more_scans_than_are_told_of_at_once_are_told_of_one_page_after_another(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaiting, "_missing", awaiting._missing.limit(2))
    for number in range(3):
        await archive.index.add(ct(str(number), study=str(number)), DuplicatePolicy.PARTS)
    archive.clock.advance(120)
    await archive.keeper.look()
    assert (await archive.kinds()).count(TDR_MISSING) == 2
    await archive.keeper.look()
    assert (await archive.kinds()).count(TDR_MISSING) == 3
    assert archive.log.oldest_awaiting_ns == (0, 0)


async def test_the_keeper_sleeps_no_longer_than_until_a_report_is_overdue(archive: Archive) -> None:
    await archive.index.add(ct("1"), DuplicatePolicy.PARTS)
    archive.clock.advance(115)
    await archive.keeper.look()
    assert archive.keeper._seconds_to_sleep() == 5.0
    archive.clock.advance(5)
    await archive.keeper.look()
    assert archive.log.oldest_unsettled_ns == 0
    assert archive.log.oldest_awaiting_ns == (0, 0)


async def test_the_keeper_does_by_itself_what_is_due(tmp_path: Path) -> None:
    index = SqlIndex(IndexConfig(tmp_path / "index.sqlite", synchronous_full=False))
    await index.open()
    keeper = LogKeeper(index.event_log, LogKeeperConfig(study_settle_seconds=0.05), lambda: 0)
    keeper.start()
    settled = asyncio.Event()

    def look() -> None:
        if index.event_log.newest_id == 2:
            settled.set()

    index.event_log.on_news(look)
    await index.add(index_entry("1"), DuplicatePolicy.KEEP_FIRST)
    async with asyncio.timeout(10):
        await settled.wait()
    await keeper.stop()
    assert [row.kind for row in await index.event_log.rows(1, 9)] == [STUDY_SETTLED]
    await index.close()
