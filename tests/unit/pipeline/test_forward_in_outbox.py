"""A rule that forwards, as a subscriber of the outbox over a real index: what arrives, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import ConnectFailed
from scp_server.index.store import SqlIndex
from scp_server.observability.measures import OutboxMeasures
from scp_server.pipeline.builtin.forward import ForwardRule, ForwardSubscriber
from scp_server.pipeline.outbox import Outbox, OutboxConfig
from scp_server.pipeline.sending import Source
from scp_server.runtime.build import build_storage_service_config
from scp_server.services.storage import StorageService
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.testing.archive import Archive
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.fake_sender import FakeDestinations, FakeRemote
from scp_server.testing.objects import ct_image, structured_report

NAME = "forward:all:PACS"
CONFIG = OutboxConfig(first_retry_seconds=0.01, max_retry_seconds=0.05, max_attempts=5)


def series(number: int, count: int) -> list[EncodedObject]:
    return [
        ct_image(rows=2, columns=2, seed=100 * number + each, series_instance_uid=f"1.2.{number}")
        for each in range(count)
    ]


@dataclass(slots=True)
class Scene:
    """An archive whose outbox forwards to one remote."""

    archive: Archive
    storage: FilesystemStorage
    index: SqlIndex
    remote: FakeRemote
    destinations: FakeDestinations
    measures: OutboxMeasures = field(default_factory=OutboxMeasures)

    async def store(self, objects: Iterable[EncodedObject]) -> None:
        service = StorageService(
            self.storage, self.index, build_storage_service_config(self.archive.settings)
        )
        for each in objects:
            await service.store(store_operation(each))

    @asynccontextmanager
    async def forwarding(self, **rule: Any) -> AsyncIterator[Outbox]:
        outbox = Outbox(self.index.event_log, CONFIG, self.measures)
        source = Source(self.storage)
        subscriber = ForwardSubscriber(
            ForwardRule("all", "PACS", **rule), source, self.index, self.destinations
        )
        await outbox.start([subscriber])
        try:
            yield outbox
        finally:
            await outbox.stop(1.0)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Look after whatever the loop does; a test fails that waits for too long."""
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.002)

    @property
    def sent(self) -> list[str]:
        """By SOP Instance UID, in the order in which the remote answered."""
        return [each.sop_instance_uid for each in self.remote.sent]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    archive = Archive.at(tmp_path)
    remote = FakeRemote()
    async with archive.opened() as (storage, index):
        index.event_log.keep(True)
        yield Scene(archive, storage, index, remote, FakeDestinations({"PACS": remote}))


async def test_each_series_arrives_in_its_order_whatever_becomes_of_single_tries(scene: Scene) -> None:
    """The remote has no room for every third object when it is asked first."""
    both = [series(1, 8), series(2, 8)]
    scene.remote.answers = [0xA700, 0, 0] * 5
    async with scene.forwarding():
        await scene.store(each for pair in zip(*both, strict=True) for each in pair)
        await scene.until(lambda: scene.measures.of(NAME).outcomes["delivered"] == 16)
    for objects in both:
        wanted = [each.sop_instance_uid for each in objects]
        arrived = [uid for uid in scene.sent if uid in wanted]
        assert list(dict.fromkeys(arrived)) == wanted


async def test_a_remote_that_is_down_gets_everything_once_it_is_up(scene: Scene) -> None:
    scene.remote.refusal = ConnectFailed("nobody listens")
    objects = series(1, 4) + series(2, 4)
    async with scene.forwarding():
        await scene.store(objects)
        await scene.until(lambda: scene.measures.of(NAME).outcomes["down"] > 2)
        assert scene.sent == []
        scene.remote.refusal = None
        await scene.until(lambda: len(scene.sent) == 8)
    assert sorted(scene.sent) == sorted(each.sop_instance_uid for each in objects)
    assert scene.measures.of(NAME).dead == 0


async def test_a_class_for_which_no_association_is_granted_ends_as_dead_letters_and_the_rest_arrives(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is tried as often as the settings say, though nothing tells it from a remote that is down."""
    report = structured_report()
    send_to = FakeDestinations.send_to

    @asynccontextmanager
    async def no_reports(self: FakeDestinations, title: str, contexts: Any) -> AsyncIterator[Any]:
        if contexts[0][0] == report.sop_class_uid:
            raise ConnectFailed("silence")
        async with send_to(self, title, contexts) as sender:
            yield sender

    monkeypatch.setattr(FakeDestinations, "send_to", no_reports)
    images = series(1, 3)
    async with scene.forwarding():
        await scene.store([report, *images])
        await scene.until(lambda: scene.measures.of(NAME).dead == 1 and len(scene.sent) == 3)
    assert scene.sent == [each.sop_instance_uid for each in images]


async def test_what_is_stored_while_nothing_forwards_is_forwarded_later(scene: Scene) -> None:
    first, second = series(1, 3), series(2, 3)
    async with scene.forwarding():
        await scene.store(first)
        await scene.until(lambda: len(scene.sent) == 3)
    await scene.store(second)
    async with scene.forwarding():
        await scene.until(lambda: len(scene.sent) == 6)
    assert scene.sent == [each.sop_instance_uid for each in (*first, *second)]
