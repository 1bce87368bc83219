"""What events may hold in memory: bounded by settings, and counted in `memory_ceiling_bytes`."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scp_server.index.base import DuplicatePolicy
from scp_server.index.events import EventRow
from scp_server.index.outbox import ParkedRow
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.interfaces import AssociationInfo
from scp_server.pipeline.association_log import AssociationLog
from scp_server.pipeline.instances import Archive, StoredFiles, StoredInstance
from scp_server.pipeline.log_reader import logged_event
from scp_server.pipeline.parking import Parking
from scp_server.pipeline.window import Item
from scp_server.runtime.delivering import (
    DEAD_BYTES,
    EVENT_BYTES,
    EVENT_ROW_BYTES,
    PARKED_BYTES,
    deliveries_ceiling_bytes,
)
from scp_server.settings import Settings
from scp_server.testing.index_contract import index_entry

MakeSettings = Callable[..., Settings]
MANY = 50
WORST = "\U0001f600"
"""JSON writes it as twelve characters."""


def _uid(number: int) -> str:
    return f"1.2.{number:060}"


async def _worst_rows(path: Path) -> list[EventRow]:
    """Of objects and of an association whose peer filled every text."""
    index = SqlIndex(IndexConfig(path, synchronous_full=False))
    await index.open()
    listener = AssociationLog(index.event_log, None)
    text = "\xff" * 65_000
    association = AssociationInfo(
        association_id="a" * 32,
        calling_ae_title="C" * 16,
        called_ae_title="D" * 16,
        peer_host="2001:db8:1234:5678:9abc:def0:1234:5678",
        peer_port=65_535,
        peer=None,
        is_dicos=False,
        application_context_name=text,
        implementation_class_uid=text,
        implementation_version_name=text,
    )
    listener.accepted(association)
    for number in range(MANY):
        entry = index_entry(str(number))
        summary = replace(
            entry.summary,
            study_instance_uid=_uid(number),
            series_instance_uid=_uid(number + MANY),
            modality=WORST * 1_024,
        )
        await index.add(
            replace(entry, summary=summary, location=f"{number:0200}"), DuplicatePolicy.KEEP_FIRST
        )
    rows = list(await index.event_log.rows(0, 2 * MANY))
    await index.close()
    assert len(rows) == MANY + 1
    return rows


def _held_bytes(make: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = make()
        held = tracemalloc.get_traced_memory()[0] - before
        assert kept is not None
        return held
    finally:
        tracemalloc.stop()


async def test_no_event_holds_more_than_is_counted_for_it(tmp_path: Path) -> None:
    rows = await _worst_rows(tmp_path / "index.sqlite")
    accepted, *stored = rows
    assert len(json.loads(accepted.data)["implementation_class_uid"]) == 64
    archive = Archive(StoredFiles(tmp_path))

    def copied() -> list[tuple[Any, ...]]:
        return [tuple(bytes(str(value), "ascii") for value in row) for row in stored]

    def decoded() -> list[tuple[Item, StoredInstance]]:
        events = [logged_event(row) for row in stored]
        return [(Item(event), StoredInstance.of(event, archive)) for event in events]

    def parked() -> Parking:
        parking = Parking(name)
        for number in range(10_000, 10_000 + MANY):
            key, error = f"{_uid(number)}/{_uid(number + MANY)}", f"{number:0256}"
            parking.add(ParkedRow(name, number, key, number << 40, 3, number << 41, False, False, error))
        return parking

    def dead() -> frozenset[int]:
        return frozenset(range(1 << 40, (1 << 40) + MANY))

    name = "forward:somewhere:REMOTE"
    assert 0.5 < _held_bytes(copied) / MANY / EVENT_ROW_BYTES < 1
    assert 0.5 < _held_bytes(decoded) / MANY / EVENT_BYTES < 1
    assert 0.5 < _held_bytes(parked) / MANY / PARKED_BYTES < 1
    assert 0.5 < _held_bytes(dead) / MANY / DEAD_BYTES < 1


@pytest.mark.parametrize(
    ("section", "setting", "more", "growth_bytes"),
    [
        ("outbox", "max_parked", 10, 2 * 10 * PARKED_BYTES),
        ("outbox", "max_dead_letters", 10, 2 * 10 * DEAD_BYTES),
        ("events", "max_followers", 1, 100 * 4 * EVENT_ROW_BYTES),
    ],
)
def test_the_ceiling_grows_with_each_limit_of_events(
    make_settings: MakeSettings, section: str, setting: str, more: int, growth_bytes: int
) -> None:
    settings = make_settings()
    limit = getattr(getattr(settings, section), setting)
    grown = make_settings(**{section: {setting: limit + more}})
    assert deliveries_ceiling_bytes(grown, 2) - deliveries_ceiling_bytes(settings, 2) == growth_bytes


def test_each_subscription_may_hold_its_own(make_settings: MakeSettings) -> None:
    settings = make_settings()
    one, two = (deliveries_ceiling_bytes(settings, count) for count in (1, 2))
    assert two - one == one - deliveries_ceiling_bytes(settings, 0) > 10_000 * PARKED_BYTES
