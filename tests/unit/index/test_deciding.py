"""What is counted of decisions, and that many reports are no other matter than one."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scp_server.errors import IndexUnavailable
from scp_server.index import report_links
from scp_server.index.base import DuplicatePolicy
from scp_server.index.events import DECISION_CHANGED, TDR_RECEIVED
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.observability.measures import IndexMeasures
from scp_server.testing.decision_contract import ct, decisions, tdr, told

PARTS = DuplicatePolicy.PARTS


async def test_what_was_committed_is_counted_once_by_the_scans_machine(path: Path) -> None:
    measures = IndexMeasures()
    index = SqlIndex(IndexConfig(path, synchronous_full=False, busy_timeout_seconds=0.05), measures)
    await index.open()
    await index.add(ct("1"), PARTS)
    await index.add(ct("2", study="2", peer_name=None), PARTS)
    await index.add(tdr("11"), PARTS)
    operator = tdr("12", kind="OPERATOR", decision="CLEAR")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(IndexUnavailable):
            await index.add(operator, PARTS)
        with pytest.raises(IndexUnavailable):
            await index.event_log.tell_overdue(2**62, 2**62)
        other.execute("ROLLBACK")
    await index.add(operator, PARTS)
    await index.event_log.tell_overdue(2**62, 2**62)
    counted = measures.decisions
    assert counted.decisions == {("lane 7", "ALARM"): 1, ("lane 7", "CLEAR"): 1}
    assert {peer: sum(seconds.counts) for peer, seconds in counted.seconds.items()} == {"lane 7": 2}
    assert (counted.missing, counted.orphaned) == ({"other": 1}, 0)
    await index.close()


async def test_while_events_are_not_kept_it_is_decided_and_nothing_is_told(index: SqlIndex) -> None:
    index.event_log.keep(False)
    await index.add(ct("1"), PARTS)
    await index.add(tdr("11"), PARTS)
    await index.add(ct("2", study="2"), PARTS)
    assert (await decisions(index))["1"][0] == "ALARM"
    index.event_log.keep(True)
    await index.event_log.tell_overdue(2**62, 2**62)
    assert index.event_log.newest_id == 0


async def test_more_reports_than_one_statement_takes_are_all_linked(
    index: SqlIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_links, "MAX_VALUES_PER_STATEMENT", 4)
    reports = [tdr(f"9{number}", at=f"2026112010{10 + number}00") for number in range(11)]
    await asyncio.gather(*(index.add(each, PARTS) for each in reports))
    await index.add(ct("1", study="2"), PARTS)
    assert (await decisions(index))["2"] == ("ALARM", "20261120102000", "MACHINE", "910")
    await index.remove([each.location for each in reports[3:]])
    assert (await decisions(index))["2"] == ("ALARM", "20261120101200", "MACHINE", "92")


async def test_what_comes_in_one_transaction_is_one_change(index: SqlIndex) -> None:
    await index.add(tdr("11", ("1", "2")), PARTS)
    await index.add(tdr("12", ("1", "2"), kind="OPERATOR", decision="CLEAR"), PARTS)
    await asyncio.gather(*(index.add(ct(name), PARTS) for name in ("1", "2")))
    assert [each["to"] for each in await told(index, DECISION_CHANGED)] == ["CLEAR"]
    assert len(await told(index, TDR_RECEIVED)) == 2


async def test_after_a_failure_whoever_looks_for_what_is_overdue_finds_out_what_waits(path: Path) -> None:
    index = SqlIndex(IndexConfig(path, synchronous_full=False, busy_timeout_seconds=0.05))
    await index.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(IndexUnavailable):
            await index.add(ct("1"), PARTS)
        other.execute("ROLLBACK")
    assert index.event_log.oldest_awaiting_ns == (1, 1)
    await index.event_log.tell_overdue(0, 0)
    assert index.event_log.oldest_awaiting_ns == (0, 0)
    await index.add(ct("1"), PARTS)
    since, _ = index.event_log.oldest_awaiting_ns
    await index.event_log.tell_overdue(0, 0)
    assert index.event_log.oldest_awaiting_ns == (since, 0) != (0, 0)
    await index.close()
