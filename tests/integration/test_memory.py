"""Memory stays flat whatever is sent: large objects, and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from scp_server import Requestor
from scp_server.interfaces import AcceptedContext
from scp_server.net.receiving import ObjectSinkWriter
from scp_server.protocol.message import CStoreRQ
from scp_server.runtime.build import SENDING_BYTES
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dicos_objects import large_dicos_ct
from scp_server.testing.encoded_object import EncodedObject, LargeObject
from scp_server.testing.objects import ct_image, large_ct
from scp_server.testing.scripted_peer import Framing, ScriptedPeer, storage_contexts

STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
MIB = 1 << 20
LARGE_BYTES = 256 * MIB
GROWTH_BYTES = 32 * MIB
"""What a daemon that has served once may grow by."""
SENDERS = 16
REQUESTORS = 8
FETCHED_BYTES = 64 * MIB
READ_BYTES = 256 * 1024
"""What a connection may have read when it is told to stop."""
ASSOCIATION_BYTES = 2 * MIB + READ_BYTES
BESIDE_BYTES = 8 * MIB
"""Tasks, headers and the allocator's own, beside what the limits count."""


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _reset_peak(pid: int) -> None:
    """VmHWM counts from now on (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


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
    _reset_peak(daemon.process.pid)
    yield daemon
    await asyncio.to_thread(daemon.terminate)


def _kept_bytes(data_dir: Path) -> list[int]:
    return sorted(path.stat().st_size for path in (data_dir / "objects").rglob("*.dcm"))


def _expect_flat(daemon: DaemonProcess, idle_bytes: int, growth_bytes: int) -> None:
    grown_bytes = _status_bytes(daemon.process.pid, "VmHWM") - idle_bytes
    assert grown_bytes <= growth_bytes, f"grew by {grown_bytes / MIB:.1f} MiB"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "framing"),
    [
        pytest.param(large_ct(LARGE_BYTES), "standard", id="native CT"),
        pytest.param(large_dicos_ct(LARGE_BYTES), "glued", id="glued .64 DICOS CT"),
    ],
)
async def test_a_large_object_costs_no_more_memory_than_a_small_one(
    daemon: DaemonProcess, stored: LargeObject, framing: Framing
) -> None:
    idle_bytes = _status_bytes(daemon.process.pid, "VmRSS")
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
    idle_bytes = _status_bytes(daemon.process.pid, "VmRSS")
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
    _reset_peak(daemon.process.pid)
    idle_bytes = _status_bytes(daemon.process.pid, "VmRSS")
    async with asyncio.TaskGroup() as requestors:
        for _ in range(REQUESTORS):
            requestors.create_task(_fetch(daemon.ready.dicom_port, stored))
    # The allocator keeps some for each of the threads that read.
    _expect_flat(daemon, idle_bytes, REQUESTORS * SENDING_BYTES + 2 * BESIDE_BYTES)
