"""A disk or an index that is slow, or hangs: who needs it waits, others are served, nothing is said early."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from scp_server import Server
from scp_server.storage.late_sync import LateSync
from scp_server.testing.daemon import DaemonProcess, expect_stored, stored_files
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.querying_peer import QueryingPeer, identifier
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.system_calls import SystemCalls
from tests.integration.conftest import StartServer
from tests.integration.faults import hanging_program

KIB, MIB = 1 << 10, 1 << 20
READ_BYTES = 256 * KIB
"""What a connection may have read when it is told to stop."""
DIMSE_SECONDS = 0.2
STEPS = [
    ("open", "incoming/"),
    ("writev", ".part"),
    ("fdatasync", ".part"),
    ("close", ".part"),
    ("pwrite", "incoming/directories."),
    ("fdatasync", "incoming/directories."),
    ("mkdir", "objects/"),
    ("rename", "objects/"),
    ("fsync", "objects/"),
]
"""System calls of one commit, and what they concern."""


class HangingDisk:
    """While it is `hanging`, calls of one name on such a path do not return."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        self._works = threading.Event()
        self._reached = threading.Event()

    @contextlib.contextmanager
    def hanging(self, name: str, path: str) -> Iterator[None]:
        """Inside the block it hangs; after it, whatever happened, it answers."""
        self._works.clear()
        self._reached.clear()

        def before(_number: int, called: str, of: str) -> None:
            if called == name and path in of:
                self._reached.set()
                self._works.wait()

        self._calls.before = before
        try:
            yield
        finally:
            self._calls.before = None
            self._works.set()

    async def reached(self) -> None:
        """Returns once a call hangs. Raises AssertionError when none comes."""
        assert await asyncio.to_thread(self._reached.wait, 10), "the disk was not asked for that"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HangingDisk:
    """The disk under the data folder."""
    return HangingDisk(SystemCalls(tmp_path / "data", monkeypatch))


@contextlib.asynccontextmanager
async def _associated(server: Server, *objects: EncodedObject) -> AsyncIterator[ScriptedPeer]:
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(*objects))
        yield peer


async def _echo_latencies(peer: ScriptedPeer, count: int) -> list[float]:
    latencies = []
    for _ in range(count):
        began = time.perf_counter()
        assert await peer.echo() == 0x0000
        latencies.append(time.perf_counter() - began)
    return sorted(latencies)


async def _get(server: Server, path: str) -> httpx.Response:
    host, port = server.http_address
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{host}:{port}{path}")


def _stopped(server: Server) -> int:
    """How many reasons connections have to be read from no more."""
    return sum(stop.count for stop in server._measures.associations.stops.values())


CASES = [
    *(("full", *step) for step in STEPS),
    *(("process", *step) for step in STEPS if step[0] not in ("fdatasync", "fsync")),
]


@pytest.mark.parametrize(("durability", "name", "path"), CASES, ids=[" ".join(case) for case in CASES])
async def test_an_object_is_answered_after_its_disk_and_nobody_else_waits(
    start_server: StartServer, disk: HangingDisk, tmp_path: Path, durability: str, name: str, path: str
) -> None:
    # With `full` large enough to be synced by itself, with `process` small enough to be deferred.
    side = 256 if durability == "full" else 16
    slow, other = ct_image(rows=side, columns=side, seed=1), ct_image(seed=2)
    server = await start_server(storage={"durability": durability})
    async with _associated(server, slow) as waiting, _associated(server, other) as bystander:
        with disk.hanging(name, path):
            answer = asyncio.create_task(waiting.store(slow))
            await disk.reached()
            latencies = await _echo_latencies(bystander, 200)
            assert latencies[197] < 0.1, "one echo in a hundred took longer than a tenth of a second"
            assert not answer.done(), "it was answered before its disk had answered"
            assert (await _get(server, "/healthz")).status_code == 200
        async with asyncio.timeout(1):
            assert await answer == 0x0000
            assert await bystander.store(other) == 0x0000
    expect_stored(tmp_path / "data", [slow, other])


async def test_while_the_sync_of_many_hangs_small_objects_are_answered(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, works = threading.Event(), threading.Event()
    make_durable = LateSync.make_durable

    def hanging(self: LateSync, locations: Sequence[str]) -> None:
        reached.set()
        works.wait()
        make_durable(self, locations)

    monkeypatch.setattr(LateSync, "make_durable", hanging)
    objects = [ct_image(seed=seed) for seed in range(4)]
    server = await start_server(storage={"durability": "full", "settle_seconds": 0.01})
    try:
        async with _associated(server, *objects) as peer:
            assert await peer.store(objects[0]) == 0x0000
            assert await asyncio.to_thread(reached.wait, 10)
            for stored in objects[1:]:
                assert await peer.store(stored) == 0x0000
    finally:
        works.set()
    await server.stop()
    expect_stored(tmp_path / "data", objects)
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "index" / "index.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM unsynced_objects").fetchone() == (0,)


async def test_what_the_disk_does_not_take_is_left_to_the_network(
    start_server: StartServer, disk: HangingDisk, tmp_path: Path
) -> None:
    """Memory stays within the limits, and no sender is blamed for a silence that is ours."""
    objects = [ct_image(rows=2048, columns=1024, seed=seed) for seed in range(6)]
    small = ct_image(seed=99)
    limit_bytes = 1024 * KIB
    server = await start_server(
        limits={
            "association_buffer_bytes": 256 * KIB,
            "header_buffer_bytes": 64 * KIB,
            "process_buffer_bytes": limit_bytes,
        },
        storage={"write_buffer_bytes": 128 * KIB},
        timeouts={"dimse_seconds": DIMSE_SECONDS},
    )
    async with contextlib.AsyncExitStack() as peers:
        bystander = await peers.enter_async_context(_associated(server, small))
        senders = [await peers.enter_async_context(_associated(server, stored)) for stored in objects]
        with disk.hanging("writev", ".part"):
            answers = [
                asyncio.create_task(peer.store(stored)) for peer, stored in zip(senders, objects, strict=True)
            ]
            await disk.reached()
            async with asyncio.timeout(10):
                while _stopped(server) < len(objects):
                    await asyncio.sleep(0.01)
            held_bytes = server._manager.budget.held_bytes
            assert 0 < held_bytes < limit_bytes + len(objects) * READ_BYTES
            until = time.monotonic() + 3 * DIMSE_SECONDS
            while time.monotonic() < until:
                assert await bystander.echo() == 0x0000
            assert server._manager.budget.held_bytes == held_bytes
            # Every thread of the storage waits for the disk: the metrics go without it.
            metrics = (await _get(server, "/metrics")).text
            assert "\nscp_held_bytes " in metrics
            assert "\nscp_storage_free_bytes " not in metrics
            assert not any(answer.done() for answer in answers)
        assert await asyncio.gather(*answers) == [0x0000] * len(objects)
        assert await bystander.store(small) == 0x0000
    expect_stored(tmp_path / "data", [*objects, small])


@contextlib.contextmanager
def _locked_index(data_dir: Path) -> Iterator[None]:
    """Inside the block the index can be read and not written: somebody else writes, and takes his time."""
    with contextlib.closing(sqlite3.connect(data_dir / "index" / "index.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.rollback()


SLOW_INDEX = {"busy_timeout_seconds": 60}


async def test_an_object_is_answered_after_its_index_and_nobody_else_waits(
    start_server: StartServer, tmp_path: Path
) -> None:
    known, slow = ct_image(seed=1), ct_image(seed=2)
    server = await start_server(index=SLOW_INDEX)
    async with (
        _associated(server, known) as waiting,
        await QueryingPeer.connect(*server.address) as querying,
        _associated(server) as bystander,
    ):
        await querying.associate_to_find()
        assert await waiting.store(known) == 0x0000
        with _locked_index(tmp_path / "data"):
            answer = asyncio.create_task(waiting.store(slow))
            async with asyncio.timeout(10):
                while len(stored_files(tmp_path / "data")) < 2:
                    await asyncio.sleep(0.001)
            latencies = await _echo_latencies(bystander, 200)
            assert latencies[197] < 0.1, "one echo in a hundred took longer than a tenth of a second"
            found = await querying.find(
                identifier("STUDY", Element(0x0020000D, "UI", known.study_instance_uid))
            )
            assert (found.status, len(found.datasets)) == (0x0000, 1)
            assert (await _get(server, "/healthz")).status_code == 200
            assert not answer.done(), "it was answered before its index had answered"
        async with asyncio.timeout(10):
            assert await answer == 0x0000
            assert await bystander.echo() == 0x0000
    expect_stored(tmp_path / "data", [known, slow])


async def _send_ahead(
    peer: ScriptedPeer, objects: Iterable[EncodedObject], sent: list[EncodedObject]
) -> None:
    """Send one after another, without waiting for answers; `sent` are those that went out whole."""
    for stored in objects:
        await peer.send_store(stored)
        sent.append(stored)


@pytest.mark.parametrize("slow", ["disk", "index"])
async def test_back_pressure_reaches_the_senders_socket_and_not_memory(
    start_server: StartServer, disk: HangingDisk, tmp_path: Path, slow: str
) -> None:
    """A sender that does not wait for answers is kept from sending; all it has sent is stored in the end."""
    objects = [ct_image(rows=1024, columns=512, seed=seed, pixels=bytes(MIB)) for seed in range(64)]
    limit_bytes = 2 * MIB
    server = await start_server(
        index=SLOW_INDEX, limits={"association_buffer_bytes": MIB, "process_buffer_bytes": limit_bytes}
    )
    hanging = disk.hanging("writev", ".part") if slow == "disk" else _locked_index(tmp_path / "data")
    sent: list[EncodedObject] = []
    async with (
        await ScriptedPeer.connect(*server.address, timeout_seconds=60) as peer,
        _associated(server) as bystander,
    ):
        await peer.associate(storage_contexts(objects[0]), maximum_length=131_072)
        with hanging:
            sending = asyncio.create_task(_send_ahead(peer, objects, sent))
            async with asyncio.timeout(10):
                while not _stopped(server):
                    await asyncio.sleep(0.01)
            # Long enough to send all of it several times, were it taken.
            until, latencies = time.monotonic() + 0.5, await _echo_latencies(bystander, 200)
            while time.monotonic() < until:
                assert await bystander.echo() == 0x0000
            assert latencies[197] < 0.1, "one echo in a hundred took longer than a tenth of a second"
            assert not sending.done()
            assert len(sent) < len(objects) // 2, "the rest is still the sender's"
            assert server._manager.budget.held_bytes < limit_bytes + READ_BYTES
        assert [(await peer.read_response()).status for _ in objects] == [0x0000] * len(objects)
        await sending
    expect_stored(tmp_path / "data", objects)


@pytest.mark.parametrize(("name", "path"), [("writev", ".part"), ("fsync", "objects/")])
async def test_what_its_sender_gave_up_is_undone_once_the_disk_answers(
    start_server: StartServer, disk: HangingDisk, tmp_path: Path, name: str, path: str
) -> None:
    given_up, stored = ct_image(seed=1), ct_image(seed=2)
    server = await start_server(storage={"durability": "full"})
    async with _associated(server, stored) as bystander:
        async with _associated(server, given_up) as impatient:
            with disk.hanging(name, path):
                await impatient.send_store(given_up)
                await disk.reached()
                await impatient.abort()
                await impatient.wait_eof()
        assert await bystander.store(stored) == 0x0000
    await server.stop()
    # It came whole: the answer was lost, not the object, so either is right; half of it is not.
    kept = {file.sop_instance_uid for file in stored_files(tmp_path / "data")}
    expect_stored(tmp_path / "data", [one for one in (given_up, stored) if one.sop_instance_uid in kept])
    assert stored.sop_instance_uid in kept
    assert not list((tmp_path / "data" / "incoming").iterdir())


@pytest.mark.parametrize(
    ("name", "suffix"), [("fdatasync", ".part"), ("stat", "-wal")], ids=["the objects'", "the index's"]
)
async def test_a_disk_that_hangs_for_ever_does_not_keep_the_daemon_from_ending(
    tmp_path: Path, name: str, suffix: str
) -> None:
    stored = ct_image(rows=256, columns=256)
    daemon = DaemonProcess(
        tmp_path,
        environment={"SCP_SERVER_DRAIN_TIMEOUT_SECONDS": "0.3", "SCP_SERVER_CLOSE_TIMEOUT_SECONDS": "1"},
        program=hanging_program(name, suffix),
    )
    await asyncio.to_thread(daemon.start)
    async with (
        await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as waiting,
        await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as bystander,
    ):
        await waiting.associate(storage_contexts(stored))
        await bystander.associate(storage_contexts(stored))
        await waiting.send_store(stored)
        for _ in range(10):
            assert await bystander.echo() == 0x0000
        daemon.process.send_signal(signal.SIGTERM)
        # The one is released; the other's operation cannot end, and nothing is said of it.
        await bystander.wait_eof()
        await waiting.expect_abort()
        assert await asyncio.to_thread(daemon.process.wait, 5) == 1
    await asyncio.to_thread(daemon.kill)
    (record,) = daemon.log_records("server.stop_failed")
    assert record["error"] == "storage or index did not close within 1.3 s: their disk does not answer"
    with DaemonProcess(tmp_path):
        assert not list(tmp_path.rglob("*.part"))
        expect_stored(tmp_path, [stored] if stored_files(tmp_path) else [])
