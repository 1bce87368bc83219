"""The event log goes on in an index that is made anew, or comes from a backup."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from scp_server.index import outbox as rows
from scp_server.index.base import DuplicatePolicy
from scp_server.index.events import TDR_MISSING
from scp_server.index.log_transfer import after_restore, carry_over
from scp_server.index.outbox import OutboxChanges, ParkedRow, SubscriptionRow
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.decision_contract import ct, study_uid, told
from scp_server.testing.index_contract import index_entry

PARKED = ParkedRow("one", 2, "key", 5, 1, 9, is_dead=False, may_be_repeated=False, error="no")


@asynccontextmanager
async def _index(path: Path) -> AsyncIterator[SqlIndex]:
    index = SqlIndex(IndexConfig(path, synchronous_full=False))
    await index.open()
    try:
        yield index
    finally:
        await index.close()


async def _make(path: Path) -> str:
    """Three objects, a subscription that is behind, with one parked; returns the log's id."""
    async with _index(path) as index:
        for number in range(3):
            await index.add(index_entry(str(number)), DuplicatePolicy.KEEP_FIRST)
        changes = OutboxChanges(subscriptions=[SubscriptionRow("one", 2, 2)], put=[PARKED])
        await index.event_log.perform(lambda connection: rows.apply(connection, changes))
        return index.event_log.archive_id


async def test_a_new_index_goes_on_with_the_log_of_the_old_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    archive_id = await _make(old)
    async with _index(new) as index:
        index.event_log.keep(False)
        await index.add(index_entry("9"), DuplicatePolicy.KEEP_FIRST)
    assert carry_over(old, new)
    async with _index(new) as index:
        log = index.event_log
        assert (log.archive_id, log.newest_id) == (archive_id, 3)
        assert await log.read(rows.all_subscriptions) == [SubscriptionRow("one", 2, 2)]
        assert await log.read(lambda c: rows.parked_of(c, "one", dead=False)) == [PARKED]
        assert log.oldest_unsettled_ns > 0
        await index.add(index_entry("10"), DuplicatePolicy.KEEP_FIRST)
        assert [row.event_id for row in await log.rows(0, 9)] == [1, 2, 3, 4]


async def test_what_waits_goes_on_waiting_and_what_was_told_of_is_not_told_again(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    images = [ct(str(number), study=str(number)) for number in range(2)]
    async with _index(old) as index:
        await index.add(images[0], DuplicatePolicy.PARTS)
        await index.event_log.tell_overdue(2**62, 2**62)
        await index.add(images[1], DuplicatePolicy.PARTS)
    async with _index(new) as index:
        index.event_log.keep(False)
        for image in images:
            await index.add(replace(image, peer_name=None), DuplicatePolicy.PARTS)
        assert index.event_log.oldest_awaiting_ns == (0, 0)
    assert carry_over(old, new)
    async with _index(new) as index:
        await index.event_log.tell_overdue(2**62, 2**62)
        missing = await told(index, TDR_MISSING)
    assert [each["study_instance_uid"] for each in missing] == [study_uid("0"), study_uid("1")]
    assert {each["peer_name"] for each in missing} == {"lane 7"}


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b"no database at all"), Path.touch],
    ids=["gone", "damaged", "sound"],
)
async def test_where_the_old_log_is_lost_no_id_of_it_is_given_again(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    archive_id = await _make(old)
    async with _index(new):
        pass
    damage(old)
    is_sound = damage is Path.touch
    assert carry_over(old, new) is is_sound
    async with _index(new) as index:
        assert (index.event_log.archive_id == archive_id) is is_sound
        await index.add(index_entry("10"), DuplicatePolicy.KEEP_FIRST)
        newest = index.event_log.newest_id
        assert (newest == 4) if is_sound else (newest > 1_700_000_000_000)


async def test_after_a_restore_all_that_is_delivered_may_be_repeated_and_ids_are_others(
    tmp_path: Path,
) -> None:
    path = tmp_path / "index.sqlite"
    archive_id = await _make(path)
    after_restore(path)
    async with _index(path) as index:
        log = index.event_log
        assert log.archive_id == archive_id
        assert await log.read(rows.all_subscriptions) == [SubscriptionRow("one", 2, 3)]
        (parked,) = await log.read(lambda c: rows.parked_of(c, "one", dead=False))
        assert parked == PARKED._replace(may_be_repeated=True)
        await index.add(index_entry("10"), DuplicatePolicy.KEEP_FIRST)
        found = [row.event_id for row in await log.rows(0, 9)]
        assert found[:3] == [1, 2, 3]
        assert found[3] > 1_700_000_000_000
        assert (await log.page(3, 9)).trimmed_to >= found[3] - 1
