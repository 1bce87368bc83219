"""Memory stays flat whatever is sent: large objects, and many at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from scp_server import Requestor
from scp_server.interfaces import AcceptedContext
from scp_server.net.receiving import ObjectSinkWriter
from scp_server.protocol.message import CStoreRQ
from scp_server.runtime.build import SENDING_BYTES
from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dicos_objects import large_dicos_ct
from scp_server.testing.encoded_object import FRAME_BYTES, EncodedObject, LargeObject
from scp_server.testing.objects import LARGEST_NATIVE_BYTES, ct_image, large_ct
from scp_server.testing.process_usage import ProcessUsage
from scp_server.testing.scripted_peer import Framing, ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control, Tag
from tests.integration.faults import hanging_program

STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
MIB = 1 << 20
LARGE_BYTES = int(os.environ.get("SCP_LARGE_BYTES", str(256 * MIB)))
"""One large object, and half of what many senders send together."""
GROWTH_BYTES = 32 * MIB
"""What a daemon that has served once may grow by."""
SENDERS = 16
REQUESTORS = 8
FETCHED_BYTES = 64 * MIB
STREAMS = 32
BUDGET_BYTES = 16 * MIB
READ_BYTES = 256 * 1024
"""What a connection may have read when it is told to stop."""
ASSOCIATION_BYTES = 2 * MIB + READ_BYTES
BESIDE_BYTES = 8 * MIB
"""Tasks, headers and the allocator's own, beside what the limits count."""


async def _send(port: int, stored: EncodedObject | LargeObject, framing: Framing = "standard") -> None:
    async with await ScriptedPeer.connect("127.0.0.1", port, timeout_seconds=30) as peer:
        await peer.associate(storage_contexts(stored), maximum_length=131_072)
        assert await peer.store(stored, framing=framing) == 0x0000


@pytest.fixture
def environment() -> Mapping[str, str]:
    """Settings of the daemon; tests override it by parametrizing."""
    return {}


@pytest_asyncio.fixture
async def daemon(tmp_path: Path, environment: Mapping[str, str]) -> AsyncIterator[DaemonProcess]:
    """A daemon that has received one object of each kind, its peak forgotten."""
    daemon = DaemonProcess(tmp_path, environment={"SCP_SERVER_STORAGE__DURABILITY": "process", **environment})
    await asyncio.to_thread(daemon.start)
    await _send(daemon.ready.dicom_port, ct_image(rows=1024, columns=1024, seed=9_999))
    await _send(daemon.ready.dicom_port, large_dicos_ct(MIB, seed=9_999), "glued")
    _usage(daemon).forget_peak()
    yield daemon
    await asyncio.to_thread(daemon.terminate)
    # Hundreds of megabytes, or what was asked for: pytest would keep them.
    shutil.rmtree(tmp_path / "objects")


def _usage(daemon: DaemonProcess) -> ProcessUsage:
    return ProcessUsage(daemon.process.pid)


def _kept_bytes(data_dir: Path) -> list[int]:
    return sorted(path.stat().st_size for path in (data_dir / "objects").rglob("*.dcm"))


def _expect_flat(daemon: DaemonProcess, idle_bytes: int, growth_bytes: int) -> None:
    grown_bytes = _usage(daemon).peak_bytes - idle_bytes
    assert grown_bytes <= growth_bytes, f"grew by {grown_bytes / MIB:.1f} MiB"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "framing"),
    [
        pytest.param(
            large_ct(LARGE_BYTES, encapsulated=LARGE_BYTES > LARGEST_NATIVE_BYTES), "standard", id="CT"
        ),
        pytest.param(large_dicos_ct(LARGE_BYTES), "glued", id="glued .64 DICOS CT"),
    ],
)
async def test_a_large_object_costs_no_more_memory_than_a_small_one(
    daemon: DaemonProcess, stored: LargeObject, framing: Framing
) -> None:
    idle_bytes = _usage(daemon).resident_bytes
    await _send(daemon.ready.dicom_port, stored, framing)
    _expect_flat(daemon, idle_bytes, GROWTH_BYTES)
    assert _kept_bytes(daemon.data_dir)[-1] > LARGE_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "growth_bytes"),
    [
        pytest.param({}, SENDERS * ASSOCIATION_BYTES, id="as every association may"),
        pytest.param(
            {
                "SCP_SERVER_LIMITS__PROCESS_BUFFER_BYTES": str(4 * MIB),
                "SCP_SERVER_STORAGE__WRITE_BUFFER_BYTES": "65536",
            },
            4 * MIB + SENDERS * READ_BYTES,
            id="as all of them together may",
        ),
    ],
)
async def test_sixteen_senders_at_once_hold_as_much_as_the_limits_say(
    daemon: DaemonProcess, growth_bytes: int
) -> None:
    objects = [ct_image(rows=1024, columns=1024, seed=seed) for seed in range(SENDERS)]
    idle_bytes = _usage(daemon).resident_bytes
    async with asyncio.TaskGroup() as senders:
        for stored in objects:
            senders.create_task(_send(daemon.ready.dicom_port, stored))
    _expect_flat(daemon, idle_bytes, growth_bytes + BESIDE_BYTES)
    assert sum(size > 2 * MIB for size in _kept_bytes(daemon.data_dir)) >= SENDERS


class _Counting:
    """A sink that counts bytes and keeps none."""

    def __init__(self) -> None:
        self.received_bytes = 0

    async def begin(self, request: CStoreRQ, context: AcceptedContext) -> ObjectSinkWriter:
        del request, context
        return self

    async def write(self, chunks: Sequence[memoryview]) -> None:
        self.received_bytes += sum(map(len, chunks))

    async def commit(self) -> None: ...

    async def abort(self) -> None: ...


async def _fetch(port: int, stored: LargeObject) -> None:
    sink = _Counting()
    async with Requestor(
        "127.0.0.1",
        port,
        contexts=[(STUDY_ROOT_GET, [stored.transfer_syntax_uid])],
        receives=[(stored.sop_class_uid, (stored.transfer_syntax_uid,))],
    ) as association:
        uids = {
            "StudyInstanceUID": stored.study_instance_uid,
            "SeriesInstanceUID": stored.series_instance_uid,
            "SOPInstanceUID": stored.sop_instance_uid,
        }
        getting = association.get(uids, receive=sink)
        async for _ in getting:
            pass
    assert getting.result is not None
    assert getting.result.status == 0x0000
    assert sink.received_bytes == stored.size_bytes


@pytest.mark.slow
async def test_an_object_that_eight_fetch_at_once_costs_each_a_few_pieces(daemon: DaemonProcess) -> None:
    stored = large_ct(FETCHED_BYTES)
    await _send(daemon.ready.dicom_port, stored)
    _usage(daemon).forget_peak()
    idle_bytes = _usage(daemon).resident_bytes
    async with asyncio.TaskGroup() as requestors:
        for _ in range(REQUESTORS):
            requestors.create_task(_fetch(daemon.ready.dicom_port, stored))
    # The allocator keeps some for each of the threads that read.
    _expect_flat(daemon, idle_bytes, REQUESTORS * SENDING_BYTES + 2 * BESIDE_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {
            "SCP_SERVER_LIMITS__PROCESS_BUFFER_BYTES": str(BUDGET_BYTES),
            # What the server holds is to be seen, not what glibc keeps of it once it is freed.
            "MALLOC_MMAP_THRESHOLD_": "65536",
        }
    ],
    ids=["with a small budget"],
)
async def test_many_senders_of_large_objects_cost_no_more_memory_than_one(daemon: DaemonProcess) -> None:
    """However long they are, and also while the disk is behind."""
    each_bytes = 2 * LARGE_BYTES // STREAMS
    idle_bytes = _usage(daemon).resident_bytes
    async with asyncio.TaskGroup() as senders:
        for seed in range(STREAMS):
            senders.create_task(_send(daemon.ready.dicom_port, large_ct(each_bytes, seed=seed)))
    # Of each: a read that is delivered, one that waits, and one that what is left of it keeps alive.
    reads_bytes = 3 * STREAMS * READ_BYTES
    _expect_flat(daemon, idle_bytes, BUDGET_BYTES + reads_bytes + BESIDE_BYTES)
    assert sum(size >= each_bytes for size in _kept_bytes(daemon.data_dir)) == STREAMS
    await asyncio.to_thread(_read_all, daemon.data_dir, large_ct(each_bytes))


def _read_all(data_dir: Path, sent: LargeObject) -> None:
    """Every large file ends as the object does: no frame of it is lost, swapped or another's."""
    for path in (data_dir / "objects").rglob("*.dcm"):
        if path.stat().st_size < sent.size_bytes:
            continue
        with path.open("rb") as file:
            file.seek(-sent.frames * FRAME_BYTES, os.SEEK_END)
            for frame in itertools.islice(sent.chunks(), 1, None):
                assert file.read(FRAME_BYTES) == frame, path


CEILING = {
    "STORAGE__SHARED_SYNC_BYTES": "0",
    "STORAGE__DURABILITY": "full",
    "TIMEOUTS__WRITE_SECONDS": "60",
    "LIMITS__MAX_ASSOCIATIONS": "8",
    "LIMITS__MAX_PENDING_OPERATIONS": "40",
    "LIMITS__MAX_CONNECTIONS": "20",
    "LIMITS__PROCESS_BUFFER_BYTES": str(MIB),
    "LIMITS__ASSOCIATION_BUFFER_BYTES": str(MIB),
    "LIMITS__MAX_ASSOCIATE_PDU_BYTES": "65536",
    "LIMITS__HALF_OPEN_BUFFER_BYTES": "65536",
    "LIMITS__MAX_HEADER_BYTES": "65536",
    "LIMITS__MAX_INDEXED_ELEMENTS": "256",
    "LIMITS__MAX_CHANGED_OBJECTS": "1",
    "QUERY__MAX_IDENTIFIER_BYTES": "4096",
    "QUERY__MAX_VALUES": "1",
    "QUERY__MAX_WILDCARD_BYTES": "256",
    "RETRIEVE__MAX_WAITING_SUBOPERATIONS": "1",
    "CODECS__MAX_OBJECTS": "1",
    "CODECS__MAX_FRAME_BYTES": str(MIB),
    "EVENTS__MAX_FOLLOWERS": "0",
}
"""What costs most then is commands that wait."""
NEAR = 0.6


def _unfolding_command(message_id: int) -> bytes:
    """N-GET-RQ (PS3.7 10.3.2.1) with as many tags as fit, of four bytes; numbers take forty."""
    elements: dict[int, int | str | bytes] = {
        0x0003: wire.VERIFICATION,
        Tag.COMMAND_FIELD: 0x0110,
        Tag.MESSAGE_ID: message_id,
        Tag.DATASET_TYPE: wire.NO_DATASET,
        0x1001: "1.2.3",
        0x1005: b"\xff" * 65_000,
    }
    return wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, wire.command_set(elements)))


async def _send_until_nothing_is_taken(daemon: DaemonProcess, stored: EncodedObject) -> ScriptedPeer:
    """An object, then commands until the peer's own socket is full."""
    peer = await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port, timeout_seconds=3)
    await peer.associate(storage_contexts(stored))
    await peer.send_store(stored)
    with contextlib.suppress(TimeoutError):
        for message_id in range(2, 1_000):
            await peer.send(_unfolding_command(message_id))
        pytest.fail("everything was taken")
    return peer


@pytest.mark.slow
async def test_the_ceiling_that_the_start_tells_is_come_near_and_not_passed(tmp_path: Path) -> None:
    """Every association that there may be has an object that hangs, and behind it what costs most."""
    environment = {f"SCP_SERVER_{name}": value for name, value in CEILING.items()}
    daemon = DaemonProcess(tmp_path, environment=environment, program=hanging_program("fdatasync", ".part"))
    await asyncio.to_thread(daemon.start)
    (ready,) = daemon.log_records("server.ready")
    usage, most_bytes = _usage(daemon), int(ready["memory_ceiling_bytes"])
    idle_bytes = usage.resident_bytes
    sending = (
        _send_until_nothing_is_taken(daemon, ct_image(seed=seed))
        for seed in range(int(CEILING["LIMITS__MAX_ASSOCIATIONS"]))
    )
    try:
        peers = await asyncio.gather(*sending)
        grown_bytes = usage.peak_bytes - idle_bytes
    finally:
        await asyncio.to_thread(daemon.kill)
    for peer in peers:
        await peer.close()
    assert NEAR * most_bytes < grown_bytes < most_bytes
