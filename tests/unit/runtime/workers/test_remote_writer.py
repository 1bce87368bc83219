"""An index that another process writes: what its contract (`tests/contract`) does not say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from scp_server.errors import IndexFailure
from scp_server.index.base import AddOutcome, DuplicatePolicy
from scp_server.index.events import ASSOCIATION_ACCEPTED, ASSOCIATION_ENDED, OBJECT_STORED, LogRequest
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.runtime.workers import remote_writer
from scp_server.runtime.workers.framing import encoded, receive
from scp_server.runtime.workers.remote_writer import RemoteWriter, serve_writer
from scp_server.testing.index_contract import index_entry

KEEP_FIRST = DuplicatePolicy.KEEP_FIRST


@dataclass
class Scene:
    """The primary's index, and that of a satellite; `here` is the primary's end of the connection."""

    primary: SqlIndex
    satellite: SqlIndex
    here: socket.socket
    broken: list[str]


def _asked(here: socket.socket) -> object:
    with here.makefile("rb") as stream:
        return receive(stream)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    config = IndexConfig(tmp_path / "index.sqlite", synchronous_full=False)
    here, there = socket.socketpair()
    broken: list[str] = []
    writer = RemoteWriter(there, lambda: broken.append("told"))
    scene = Scene(SqlIndex(config), SqlIndex(config, writer=writer), here, broken)
    await scene.primary.open()
    await scene.satellite.open()
    yield scene
    await scene.satellite.close()
    await scene.primary.close()


async def test_what_waits_shares_a_message_and_the_primary_s_transactions(scene: Scene) -> None:
    serving = asyncio.create_task(serve_writer(scene.here, scene.primary))
    entries = [index_entry(str(number)) for number in range(300)]
    results = await asyncio.gather(
        *(scene.satellite.add(entry, KEEP_FIRST) for entry in entries[::2]),
        *(scene.primary.add(entry, KEEP_FIRST) for entry in entries[1::2]),
    )
    assert {result.outcome for result in results} == {AddOutcome.ADDED}
    assert (await scene.satellite.totals()).instances == 300
    await scene.satellite.close()
    await serving


async def test_what_a_satellite_notes_is_in_the_primary_s_log_around_the_objects_of_the_association(
    scene: Scene,
) -> None:
    serving = asyncio.create_task(serve_writer(scene.here, scene.primary))
    log = scene.satellite.event_log
    log.note(LogRequest(ASSOCIATION_ACCEPTED, "b-1", 5, '{"x":1}'))
    await scene.satellite.add(replace(index_entry(), association_id="b-1"), KEEP_FIRST)
    log.note(LogRequest(ASSOCIATION_ENDED, "b-1", 6, '{"x":1}'))
    await scene.satellite.close()
    await serving
    rows = await scene.primary.event_log.rows(0, 10)
    assert [row.kind for row in rows] == [ASSOCIATION_ACCEPTED, OBJECT_STORED, ASSOCIATION_ENDED]
    assert {row.association_id for row in rows} == {"b-1"}


async def test_a_killed_primary_leaves_the_outcome_open_and_is_told_of(scene: Scene) -> None:
    """No failure: for then an object would be deleted that the index has, perhaps."""
    adding = asyncio.create_task(scene.satellite.add(index_entry(), KEEP_FIRST))
    await asyncio.to_thread(_asked, scene.here)
    scene.here.close()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert scene.broken == ["told"]
    with pytest.raises(asyncio.CancelledError):
        await scene.satellite.add(index_entry("2"), KEEP_FIRST)


async def test_what_a_killed_satellite_asked_for_whole_is_performed_and_nothing_else(scene: Scene) -> None:
    sent: list[bytes] = []
    adding = asyncio.create_task(scene.satellite.add(index_entry("1"), KEEP_FIRST))
    sent.append(encoded(await asyncio.to_thread(_asked, scene.here)))
    scene.here.close()
    with pytest.raises(asyncio.CancelledError):
        await adding
    here, there = socket.socketpair()
    there.sendall(sent[0] + sent[0][:-1])
    there.close()
    await serve_writer(here, scene.primary)
    assert (await scene.primary.totals()).parts == 1


@pytest.mark.parametrize("is_header", [True, False])
async def test_an_entry_that_is_too_long_suffers_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, is_header: bool
) -> None:
    monkeypatch.setattr(remote_writer, "_MOST_LONG_BYTES", 1_000)
    monkeypatch.setattr(remote_writer, "_LONGEST_BYTES", 2_000)
    serving = asyncio.create_task(serve_writer(scene.here, scene.primary))
    long = [b"h" * (2_001 if n == 5 else 600) for n in range(10)]
    entries = [
        index_entry(str(n), header=each) if is_header else index_entry(str(n), unsynced=each)
        for n, each in enumerate(long)
    ]
    results = await asyncio.gather(
        *(scene.satellite.add(entry, KEEP_FIRST) for entry in entries), return_exceptions=True
    )
    assert [n for n, result in enumerate(results) if isinstance(result, IndexFailure)] == [5]
    assert (await scene.primary.totals()).parts == 9
    await scene.satellite.close()
    await serving


async def test_every_value_of_an_entry_arrives(scene: Scene) -> None:
    serving = asyncio.create_task(serve_writer(scene.here, scene.primary))
    entry = index_entry(patient_name="Müller^Änne", rows=512, modality="CT")
    summary = replace(entry.summary, referenced_sop_instance_uids=("1.2", "1.3"))
    await scene.satellite.add(replace(entry, summary=summary, unsynced=b"whole file"), KEEP_FIRST)
    assert await scene.primary.unsynced_contents([entry.location]) == {entry.location: b"whole file"}
    (part,) = await scene.primary.parts(entry.summary.sop_instance_uid)
    for name in ("digest", "location", "size_bytes", "arrival_id", "received_at_ns", "calling_ae_title"):
        assert getattr(part, name) == getattr(entry, name)
    assert await scene.primary.header(entry.location) == entry.header.pack()
    await scene.satellite.close()
    await serving


async def test_discarded_files_are_forgotten_by_the_primary(scene: Scene) -> None:
    serving = asyncio.create_task(serve_writer(scene.here, scene.primary))
    await scene.satellite.add(index_entry("1", b"old"), KEEP_FIRST)
    result = await scene.satellite.add(index_entry("1", b"new"), DuplicatePolicy.REPLACE)
    assert await scene.primary.discarded() == list(result.discarded) != []
    scene.satellite.forget_discarded(result.discarded)
    await scene.satellite.close()
    await serving
    await scene.primary.add(index_entry("2"), KEEP_FIRST)
    assert await scene.primary.discarded() == []
