"""Events and deliveries of a whole server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server, Settings, callback
from scp_server.pipeline.instances import StoredInstance
from scp_server.pipeline.settled import AssociationComplete, StoredParts
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

PATIENCE_SECONDS = 10


def _settings(data_dir: Path, **more: Any) -> Settings:
    return Settings.model_validate({"listen": {"port": 0}, "http": {"port": 0}, "data_dir": data_dir, **more})


async def _send(server: Server, *seeds: int) -> list[str]:
    """Send objects over one association; returns their UIDs."""
    images = [ct_image(seed=seed) for seed in seeds]
    async with await ScriptedPeer.connect("127.0.0.1", server.address[1]) as peer:
        await peer.associate(storage_contexts(images[0]), calling_ae_title="SCANNER")
        for image in images:
            assert await peer.store(image) == 0x0000
        await peer.release()
    return [image.sop_instance_uid for image in images]


@pytest.mark.parametrize("needed", [False, True])
async def test_a_server_that_is_to_keep_no_events_has_none_unless_somebody_needs_them(
    tmp_path: Path, needed: bool
) -> None:
    told = asyncio.Event()

    @callback(stage="stored")
    async def note(instance: StoredInstance) -> None:
        told.set()

    settings = _settings(tmp_path, events={"enabled": False})
    async with Server(settings, callbacks=[note] if needed else []) as server:
        await _send(server, 1)
        if needed:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await told.wait()
        rows = await server.index.event_log.rows(0, 100)
        assert bool(rows) is needed


async def test_an_association_is_complete_with_all_its_parts_in_their_order(tmp_path: Path) -> None:
    complete: asyncio.Queue[tuple[AssociationComplete, list[str]]] = asyncio.Queue()

    @callback(stage="association_complete")
    async def note(association: AssociationComplete) -> None:
        assert isinstance(association.parts, StoredParts)
        await complete.put((association, [part.sop_instance_uid async for part in association.parts]))

    async with Server(_settings(tmp_path), callbacks=[note]) as server:
        for seeds in ((1, 2, 3), (4,)):
            uids = await _send(server, *seeds)
            async with asyncio.timeout(PATIENCE_SECONDS):
                association, parts = await complete.get()
            assert association.outcome == "released"
            assert association.association.calling_ae_title == "SCANNER"
            assert parts == uids


async def test_what_was_not_delivered_when_a_server_stopped_is_by_the_next(tmp_path: Path) -> None:
    seen: list[tuple[str, int, bool]] = []
    failed, done = asyncio.Event(), asyncio.Event()

    @callback(stage="stored")
    async def note(instance: StoredInstance, delivery: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("not yet")
        seen.append((instance.sop_instance_uid, delivery.attempt, delivery.may_be_repeated))
        done.set()

    settings = _settings(tmp_path, outbox={"first_retry_seconds": 1.0})
    async with Server(settings, callbacks=[note]) as server:
        (uid,) = await _send(server, 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await failed.wait()
    assert seen == []
    async with Server(settings, callbacks=[note]):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await done.wait()
    assert seen == [(uid, 2, False)]
